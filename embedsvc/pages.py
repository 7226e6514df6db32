"""Parts of the HTML files that people look at: tables and plots, in one file that fetches nothing.

    page("Title", [facts({"graph": "1,000 edges"}), line_plot("Loss", [1, 2], {"": [.5, .4]})])

Every function returns HTML, and escapes what it is given: a key may hold any character. A page
forbids by its own policy whatever it does not bring along, so that not even a mistake here would
let a key run or fetch something. It follows the reader's light or dark, and needs no script: the
one there is adds a box to maps, in which a key is looked for.
"""

import base64
import hashlib
import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 640, 220, 64, 28, 12, 12  # of a plot, in pixels
_ROW, _LABEL = 22, 190  # of a row of dots: height, and room for its label
_MAP = 640  # a map's side, in pixels
_DRAWN = 1_000  # most points of a line that say their value
NUM_COLOURS = 8
_TURNS = "\u202a-\u202e\u2066-\u2069"  # the direction of the text after it
_ODD = re.compile(f"[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f{_TURNS}\ud800-\udfff\ufffe\uffff]")


class WithInterval(Protocol):
    """A value between two ends, such as evaluation.significance.Interval."""

    @property
    def value(self) -> float: ...

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...


def escaped(text: object) -> str:
    """As HTML shows it, inside of quotes too. What neither HTML nor XML may hold becomes U+FFFD,
    and what would turn round the text after it."""
    return html.escape(_ODD.sub("\ufffd", str(text)))


def short(text: str, most: int = 28) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def number(value: float | None, digits: int = 4) -> str:
    """A dash for what is not known."""
    if value is None or value != value:
        return "-"
    return f"{value:,.{digits}f}"


def spread(of: WithInterval, digits: int = 4) -> str:
    """0.1234 [0.1200, 0.1270]"""
    if of.low != of.low or of.high != of.high:
        return number(of.value, digits)
    return f"{number(of.value, digits)} [{number(of.low, digits)}, {number(of.high, digits)}]"


# --- text and tables ------------------------------------------------------------------------------


def heading(text: str, level: int = 2) -> str:
    return f"<h{level}>{escaped(text)}</h{level}>"


def note(text: str) -> str:
    return f"<p>{escaped(text)}</p>"


def facts(rows: Mapping[str, str]) -> str:
    cells = "".join(
        f"<tr><th scope=row>{escaped(name)}</th><td>{escaped(value)}</td></tr>"
        for name, value in rows.items()
    )
    return f"<div class=wide><table>{cells}</table></div>"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The first cell of a row names it; the others are numbers, or text like them."""
    head = "".join(f"<th scope=col>{escaped(name)}</th>" for name in columns)
    body = "".join(
        f"<tr><th scope=row>{escaped(first)}</th>"
        + "".join(f"<td>{escaped(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return f"<div class=wide><table class=numbers><tr>{head}</tr>{body}</table></div>"


def bars(rows: Sequence[tuple[str, float]], digits: int = 4) -> str:
    """A bar as long as each value, the longest one being the largest; below 0 there is none."""
    most = max((value for _, value in rows if math.isfinite(value)), default=0.0)

    def bar(value: float) -> str:
        share = 100 * value / most if most > 0 and 0 < value < math.inf else 0.0
        return (
            '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
            f'<rect width="{share:.1f}" height="10"/></svg>'
        )

    body = "".join(
        f"<tr><th scope=row>{escaped(name)}</th><td>{number(value, digits)}</td>"
        f"<td>{bar(value)}</td></tr>"
        for name, value in rows
    )
    return f"<table class=numbers>{body}</table>"


# --- plots ----------------------------------------------------------------------------------------


def line_plot(
    title: str,
    xs: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    by: str = "epoch",
    floor: float | None = None,
) -> str:
    """A line for each name, over the same xs; each point says its value when pointed at.

    What is not finite is left out; nothing is drawn where nothing is left.
    """
    lines = {
        name: [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
        for name, ys in series.items()
    }
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return ""
    all_x = [x for points in lines.values() for x, _ in points]
    all_y = [y for points in lines.values() for _, y in points]
    marks = ticks(min(all_y) if floor is None else min(floor, *all_y), max(all_y))
    at = _Axes(min(all_x), max(all_x), min(marks[0], *all_y), max(marks[-1], *all_y))
    shown = sorted(set(all_x))
    labels = "".join(
        f'<text x="{at.x(x):.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{_plain(x)}</text>'
        for x in shown[:: max(1, -(-len(shown) // 10))]
    )
    drawn = "".join(
        _line(name, points, at, f"s{colour % NUM_COLOURS}", by)
        for colour, (name, points) in enumerate(lines.items())
    )
    last = ", ".join(f"{name} {points[-1][1]:,.6g}".strip() for name, points in lines.items())
    label = f"{title} by {by}, last {last}"
    return (
        f"{heading(title)}{_open_svg(_HEIGHT, label)}{_grid(at, marks)}{labels}{drawn}</svg>"
        f"{legend(list(lines)) if len(lines) > 1 else ''}"
    )


def _line(
    name: str, points: Sequence[tuple[float, float]], at: "_Axes", colour: str, by: str
) -> str:
    line = " ".join(f"{at.x(x):.1f},{at.y(y):.1f}" for x, y in points)
    said = f"{name}, " if name else ""
    dots = "".join(
        f'<circle class="{colour}" cx="{at.x(x):.1f}" cy="{at.y(y):.1f}" r="3">'
        f"<title>{escaped(said)}{escaped(by)} {_plain(x)}: {y:,.6g}</title></circle>"
        for x, y in (points if len(points) <= _DRAWN else ())
    )
    return f'<polyline class="{colour}" points="{line}"/>{dots}'


def dots(title: str, rows: Sequence[tuple[str, WithInterval]], *, zero: bool = False) -> str:
    """A dot and its interval for each name, on one scale; zero: the scale holds 0, marked."""
    rows = [(name, one) for name, one in rows if math.isfinite(one.value)]
    if not rows:
        return ""
    ends = [e for _, one in rows for e in (one.value, one.low, one.high) if math.isfinite(e)]
    marks = ticks(min(ends + [0.0] * zero), max(ends + [0.0] * zero))
    height = _ROW * len(rows) + _BOTTOM
    at = _Axes(marks[0], max(marks[-1], *ends), 0, 1, left=_LABEL, height=height)
    grid = "".join(
        f'<line class="grid{" zero" if zero and not mark else ""}" x1="{at.x(mark):.1f}" '
        f'x2="{at.x(mark):.1f}" y1="0" y2="{height - _BOTTOM}"/><text x="{at.x(mark):.1f}" '
        f'y="{height - 10}" text-anchor="middle">{_plain(mark)}</text>'
        for mark in marks
    )
    drawn = []
    for place, (name, one) in enumerate(rows):
        y = place * _ROW + _ROW / 2
        bar = ""
        if math.isfinite(one.low) and math.isfinite(one.high):
            bar = (
                f'<line class="reach" x1="{at.x(one.low):.1f}" x2="{at.x(one.high):.1f}" '
                f'y1="{y:.1f}" y2="{y:.1f}"/>'
            )
        drawn.append(
            f'<g><title>{escaped(name)}: {spread(one)}</title><text x="{_LABEL - 10}" '
            f'y="{y + 4:.1f}" text-anchor="end">{escaped(short(name))}</text>{bar}'
            f'<circle class="s0" cx="{at.x(one.value):.1f}" cy="{y:.1f}" r="4"/></g>'
        )
    label = f"{title}: {len(rows)} values with 95 % intervals"
    return f"{_open_svg(height, label)}{grid}{''.join(drawn)}</svg>"


@dataclass(frozen=True)
class Bin:
    """Rows of like probability: the mean of what was said of them, and of what happened."""

    said: float
    happened: float
    rows: int


def calibration_plot(title: str, bins: Sequence[Bin]) -> str:
    """What happened by what was said; a model that means what it says lies on the diagonal."""
    bins = [b for b in bins if math.isfinite(b.said) and math.isfinite(b.happened)]
    if not bins:
        return ""
    most = max(max(b.said, b.happened) for b in bins)
    marks = ticks(0.0, most if most > 0 else 1.0)
    side, top = 340, marks[-1]
    at = _Axes(0.0, top, 0.0, top, width=side + _LEFT, height=side)
    grid = _grid(at, marks) + "".join(
        f'<text x="{at.x(mark):.1f}" y="{side - 8}" text-anchor="middle">{_plain(mark)}</text>'
        for mark in marks
    )
    diagonal = (
        f'<line class="diagonal" x1="{at.x(0):.1f}" y1="{at.y(0):.1f}" '
        f'x2="{at.x(top):.1f}" y2="{at.y(top):.1f}"/>'
    )
    line = " ".join(f"{at.x(b.said):.1f},{at.y(b.happened):.1f}" for b in bins)
    points = "".join(
        f'<circle class="s0" cx="{at.x(b.said):.1f}" cy="{at.y(b.happened):.1f}" r="4"><title>'
        f"said {b.said:.4f}, happened {b.happened:.4f}, {b.rows:,} rows</title></circle>"
        for b in bins
    )
    label = f"{title}: what happened (up) by what was said (right); the diagonal is right"
    return (
        f'<figure class="square">{_open_svg(side, label, width=side + _LEFT)}{grid}{diagonal}'
        f'<polyline class="s0" points="{line}"/>{points}</svg>'
        f"<figcaption>{escaped(label)}</figcaption></figure>"
    )


@dataclass(frozen=True)
class Point:
    """Of a map. weight in [0, 1] says how large; colour: a place in the legend, or none."""

    x: float
    y: float
    key: str
    label: str
    weight: float = 0.0
    colour: int | None = None


def scatter(title: str, points: Sequence[Point], names: Sequence[str] = ()) -> str:
    """A map whose points say what they are when pointed at; names: of the colours."""
    points = [p for p in points if math.isfinite(p.x) and math.isfinite(p.y)]
    if not points:
        return ""
    xs, ys = [p.x for p in points], [p.y for p in points]
    reach = max(max(xs) - min(xs), max(ys) - min(ys), 1e-12)
    room, middle = _MAP - 2 * _TOP, ((max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2)
    scale = room / reach
    width, height = ((max(v) - min(v)) * scale + 2 * _TOP for v in (xs, ys))
    width, height = max(width, _MAP / 2), max(height, _MAP / 3)
    # Large ones first, so that small ones lie on top and can be pointed at.
    drawn = "".join(
        f'<circle class="{"s0" if p.colour is None else f"s{p.colour % NUM_COLOURS}"}" '
        f'cx="{(p.x - middle[0]) * scale + width / 2:.1f}" '
        f'cy="{(middle[1] - p.y) * scale + height / 2:.1f}" r="{2 + 4 * p.weight:.1f}" '
        f'data-key="{escaped(p.key)}"><title>{escaped(p.label)}</title></circle>'
        for p in sorted(points, key=lambda p: -p.weight)
    )
    svg = _open_svg(round(height), f"{title}: {len(points):,} points", width=round(width))
    return f'<div class="map">{svg}{drawn}</svg>{legend(names) if names else ""}</div>'


def legend(names: Sequence[str]) -> str:
    items = "".join(
        f'<span><i class="s{at % NUM_COLOURS}"></i>{escaped(short(name, 40))}</span>'
        for at, name in enumerate(names)
    )
    return f'<p class="legend">{items}</p>'


def ticks(low: float, high: float) -> list[float]:
    """Some six round numbers that span [low, high]."""
    span = max(high - low, 1e-6 * max(abs(low), abs(high)), 1e-9)
    unit = 10.0 ** math.floor(math.log10(span / 6))
    step = unit * next(times for times in (1, 2, 5, 10) if span / (unit * times) <= 6)
    return [n * step for n in range(math.floor(low / step), math.ceil(high / step) + 1)]


@dataclass(frozen=True)
class _Axes:
    """From values to pixels."""

    first_x: float
    last_x: float
    low: float
    high: float
    left: int = _LEFT
    width: int = _WIDTH
    height: int = _HEIGHT

    def x(self, x: float) -> float:
        room = self.width - self.left - _RIGHT
        return self.left + (x - self.first_x) / ((self.last_x - self.first_x) or 1) * room

    def y(self, y: float) -> float:
        room = self.height - _TOP - _BOTTOM
        return _TOP + (1 - (y - self.low) / max(self.high - self.low, 1e-30)) * room


def _grid(at: _Axes, marks: Sequence[float]) -> str:
    return "".join(
        f'<line class="grid" x1="{at.left}" x2="{at.width - _RIGHT}" y1="{at.y(mark):.1f}" '
        f'y2="{at.y(mark):.1f}"/><text x="{at.left - 6}" y="{at.y(mark) + 4:.1f}" '
        f'text-anchor="end">{_plain(mark)}</text>'
        for mark in marks
    )


def _plain(value: float) -> str:
    return f"{value:,.4g}" if value else "0"


def _open_svg(height: int, label: str, width: int = _WIDTH) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escaped(label)}">'


# --- the page -------------------------------------------------------------------------------------


def page(title: str, parts: Iterable[str]) -> str:
    """The whole file: a heading, then the parts."""
    body = "\n".join(part for part in parts if part)
    script = f"<script>{_SCRIPT}</script>" if '<div class="map">' in body else ""
    return (
        f"<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name=viewport content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{_STYLE}</style>\n"
        f"<h1>{escaped(title)}</h1>\n{body}\n{script}</html>\n"
    )


_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1a1a1a; --soft: #6b6b6b; --rule: #ddd; }
:root { --s0: #0b62c4; --s1: #c2570c; --s2: #1a7f4b; --s3: #8b3fb5; --s4: #b3261e; --s5: #0f7f8c;
  --s6: #8a6400; --s7: #6b7280; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #161616; --ink: #e8e8e8; --soft: #9a9a9a; --rule: #3a3a3a; }
  :root { --s0: #6cb0ff; --s1: #ff9d57; --s2: #5fcf95; --s3: #cf96f2; --s4: #ff8a80; --s5: #58cbd8;
    --s6: #dcb64a; --s7: #a3abb8; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 58rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 1.8rem 0 .3rem; }
h3 { font-size: .95rem; margin: 1.2rem 0 .2rem; }
h4 { font-size: .85rem; font-weight: 600; margin: .8rem 0 .1rem; overflow-wrap: anywhere; }
p { margin: .4rem 0; color: var(--soft); }
svg { display: block; width: 100%; max-width: 44rem; height: auto; font-size: 11px; }
.map svg { max-width: none; }
svg text { fill: var(--soft); } .grid { stroke: var(--rule); } .zero { stroke: var(--soft); }
polyline { fill: none; stroke-width: 2; } .reach { stroke: var(--s0); stroke-width: 2; }
.diagonal { stroke: var(--soft); stroke-dasharray: 4 4; } rect { fill: var(--s0); }
.square { max-width: 26rem; margin: 0; } figcaption { color: var(--soft); font-size: .85rem; }
table { border-collapse: collapse; } .wide { overflow-x: auto; }
th { text-align: left; font-weight: 500; }
th[scope=row] { max-width: 24rem; overflow-wrap: anywhere; unicode-bidi: isolate; }
.numbers th:first-child { min-width: 7rem; } .wide .numbers th:first-child { min-width: 13rem; }
th, td { padding: .15rem .9rem .15rem 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; unicode-bidi: isolate; }
.numbers td { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.numbers th[scope=col]:not(:first-child) { text-align: right; }
.bar { width: 9rem; height: .7rem; margin-top: .35rem; } td:has(.bar) { width: 9rem; }
.map circle { fill-opacity: .6; } .map svg { border: 1px solid var(--rule); }
.map circle:hover, .map .found { fill-opacity: 1; stroke: var(--ink); stroke-width: 2; }
.map .searched circle:not(.found) { fill-opacity: .12; }
.map input { font: inherit; margin: .3rem 0; padding: .15rem .4rem; width: 16rem; max-width: 90%; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .85rem; }
.legend i { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%;
  margin-right: .35rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr));
  gap: 0 1.5rem; }
""" + "".join(
    f"polyline.s{at} {{ stroke: var(--s{at}); }} circle.s{at} {{ fill: var(--s{at}); }} "
    f"i.s{at} {{ background: var(--s{at}); }}\n"
    for at in range(NUM_COLOURS)
)

# A box above each map: what is typed lights up the points whose key holds it.
_SCRIPT = """
for (const map of document.querySelectorAll(".map")) {
  const svg = map.querySelector("svg"), box = document.createElement("input");
  const said = document.createElement("span");
  box.type = "search"; box.placeholder = "find a key"; box.setAttribute("aria-label", "find a key");
  box.addEventListener("input", () => {
    const wanted = box.value.toLowerCase();
    let count = 0, first = "";
    for (const dot of svg.querySelectorAll("circle")) {
      const hit = wanted !== "" && dot.dataset.key.toLowerCase().includes(wanted);
      dot.classList.toggle("found", hit);
      if (hit && !count++) first = dot.textContent;
    }
    svg.classList.toggle("searched", count > 0);
    said.textContent = wanted === "" ? "" : count === 1 ? " " + first : ` ${count} found`;
  });
  map.prepend(box, said);
}
"""
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-"
    + base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    + "'"
)
