"""embedsvc.pages: what is drawn lies where it should, and nothing that is shown can do anything."""

import base64
import hashlib
import math
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedsvc import pages
from embedsvc.pages import Bin, Point

HOSTILE = (
    "<script>alert(1)</script>\"'><img src=http://x.example/ onerror=alert(2)>&amp;\0\x1b\u202e"
)


@dataclass(frozen=True)
class Between:
    value: float
    low: float
    high: float


class Reader(HTMLParser):
    """Every tag with its attributes, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def svgs(text: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def everything(key: str) -> str:
    """A page that shows `key` in every place that there is."""
    return pages.page(
        key,
        [
            pages.heading(key),
            pages.note(key),
            pages.facts({key: key}),
            pages.table([key, key], [(key, key)]),
            pages.bars([(key, 1.0)]),
            pages.line_plot(key, [1, 2], {key: [1.0, 2.0], key + "b": [2.0, 1.0]}, by=key),
            pages.dots(key, [(key, Between(0.5, 0.4, 0.6))]),
            pages.calibration_plot(key, [Bin(0.1, 0.2, 3)]),
            pages.scatter(key, [Point(0, 0, key, key, 0.5, 1)], [key, key]),
        ],
    )


@given(st.text() | st.just(HOSTILE))
def test_no_text_becomes_anything_but_text(key: str) -> None:
    shown, harmless = Reader(everything(key)), Reader(everything("k"))
    assert [tag for tag, _ in shown.tags] == [tag for tag, _ in harmless.tags]
    assert [set(found) for _, found in shown.tags] == [set(found) for _, found in harmless.tags]
    for svg in svgs(everything(key)):
        assert svg.tag == "svg"


def test_a_key_can_be_read_and_looked_for_as_it_was() -> None:
    key = "<b> & \"x\" 'y' \u00e9\u4e2d"
    text = pages.page("", [pages.scatter("map", [Point(0, 0, key, f"{key}, 3 edges")])])
    [(_, found)] = [(tag, found) for tag, found in Reader(text).tags if "data-key" in found]
    assert found["data-key"] == key
    assert f"{key}, 3 edges" in Reader(text).text


@pytest.mark.parametrize("control", [*"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"])
def test_no_key_turns_round_the_text_after_it(control: str) -> None:
    shown = everything(f"a{control}b")
    assert control not in shown and "a\ufffdb" in shown
    assert "\u05d0\u05d1" in everything("\u05d0\u05d1")  # Hebrew needs no control


def test_a_page_fetches_nothing_and_says_that_nothing_may_be_fetched() -> None:
    text = everything("key")
    assert not re.search(r"https?://|<link|<img|<iframe|@import|url\(|src=|href=", text)
    [policy] = [f["content"] for tag, f in Reader(text).tags if "http-equiv" in f]
    assert policy is not None and policy.startswith("default-src 'none';")
    [script] = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_a_page_without_a_map_has_no_script() -> None:
    assert "<script" not in pages.page("a", [pages.note("b")])


def test_a_lone_surrogate_can_be_written() -> None:
    assert pages.escaped("a\ud800b").encode() == "a\ufffdb".encode()


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9))
def test_ticks_span_what_they_are_for_and_are_few(low: float, span: float) -> None:
    high = low + span
    ticks = pages.ticks(low, high)
    near = 1e-6 * max(abs(low), abs(high), 1e-3)
    assert 1 <= len(ticks) <= 9
    assert ticks[0] <= low + near and ticks[-1] >= high - near


def test_lines_share_their_axes_and_leave_out_what_is_not_finite() -> None:
    text = pages.line_plot("t", [1, 2, 3], {"a": [1.0, math.nan, 3.0], "b": [3.0, 2.0, 1.0]})
    [svg] = svgs(text)
    first, second = svg.findall("polyline")
    a = [tuple(map(float, p.split(","))) for p in first.attrib["points"].split()]
    b = [tuple(map(float, p.split(","))) for p in second.attrib["points"].split()]
    assert (len(a), len(b)) == (2, 3)
    assert a[0] == pytest.approx((b[0][0], b[2][1])) and a[1] == pytest.approx((b[2][0], b[0][1]))
    assert first.attrib["class"] != second.attrib["class"]
    assert "legend" in text and "legend" not in pages.line_plot("t", [1], {"": [1.0]})
    assert pages.line_plot("t", [1], {"": [math.inf]}) == ""


def test_an_interval_reaches_from_its_low_to_its_high_end() -> None:
    rows = [("a", Between(2.0, 1.0, 3.0)), ("b", Between(1.0, 1.0, 1.0)), ("c", Between(3, 3, 3))]
    [svg] = svgs(pages.dots("t", [*rows, ("none", Between(math.nan, math.nan, math.nan))]))
    at = [float(dot.attrib["cx"]) for dot in svg.iter("circle")]
    [reach, *_] = [line for line in svg.iter("line") if line.attrib["class"] == "reach"]
    assert len(at) == 3
    assert float(reach.attrib["x1"]) == pytest.approx(at[1], abs=0.1)
    assert float(reach.attrib["x2"]) == pytest.approx(at[2], abs=0.1)
    assert at[1] < at[0] < at[2]


def test_a_scale_with_zero_marks_it() -> None:
    rows = [("a", Between(0.02, 0.01, 0.03))]
    assert len(re.findall('class="grid zero"', pages.dots("t", rows, zero=True))) == 1
    assert "zero" not in pages.dots("t", rows)


def test_a_right_calibration_lies_on_the_diagonal() -> None:
    [svg] = svgs(pages.calibration_plot("t", [Bin(p, p, 10) for p in (0.05, 0.2, 0.4)]))
    [line] = [line for line in svg.iter("line") if line.attrib["class"] == "diagonal"]
    x1, y1, x2, y2 = (float(line.attrib[name]) for name in ("x1", "y1", "x2", "y2"))
    for dot in svg.iter("circle"):
        x, y = float(dot.attrib["cx"]), float(dot.attrib["cy"])
        assert (y - y1) / (y2 - y1) == pytest.approx((x - x1) / (x2 - x1), abs=2e-3)
        assert x1 < x <= x2


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=30))
def test_points_of_a_map_lie_on_it_and_keep_their_shape(where: list[tuple[float, float]]) -> None:
    points = [Point(x, y, str(at), str(at)) for at, (x, y) in enumerate(where)]
    [svg] = svgs(pages.scatter("t", points))
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    at = {dot.attrib["data-key"]: dot.attrib for dot in svg.iter("circle")}
    found = [(float(at[p.key]["cx"]), float(at[p.key]["cy"])) for p in points]
    assert all(0 < x < width and 0 < y < height for x, y in found)
    # One scale for both axes, up is more.
    spans = [max(v) - min(v) for v in zip(*where, strict=True)]
    drawn = [max(v) - min(v) for v in zip(*found, strict=True)]
    if max(spans) > 1e-9:
        assert min(drawn) / max(drawn) == pytest.approx(min(spans) / max(spans), abs=1e-3)
        up, down = (f(range(len(where)), key=lambda n: where[n][1]) for f in (max, min))
        assert found[up][1] <= found[down][1]


def test_bars_are_as_long_as_their_values() -> None:
    text = pages.bars([("a", 2.0), ("b", 1.0), ("c", -1.0), ("d", math.nan)])
    widths = [float(svg.find("rect").attrib["width"]) for svg in svgs(text)]  # type: ignore[union-attr]
    assert widths == [100.0, 50.0, 0.0, 0.0]
    assert "<td>-</td>" in text
