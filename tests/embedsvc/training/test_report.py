"""embedsvc.training.report: the numbers are those of the records; the page stands alone."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from embedsvc.training.report import epochs_of, page


def record(epoch: int, bucket: tuple[int, int], **more: Any) -> dict[str, Any]:
    known = {"edges": 100, "edges_per_s": 50, "loss": 1.0, "wait_s": 0.5}
    return {"epoch": epoch, "bucket": list(bucket)} | known | more


def test_epochs_add_up_and_a_bucket_trained_again_counts_once() -> None:
    records = [
        record(1, (0, 0), loss=9.0),  # before a kill
        record(1, (0, 0), loss=2.0),
        record(1, (0, 1), loss=4.0, edges=300, edges_per_s=100),
        record(2, (0, 0)),
        {"epoch": 1, "mrr": 0.25},
    ]
    first, second = epochs_of(records)
    assert (first.number, first.edges, first.loss) == (1, 400, pytest.approx(3.5))
    assert (first.train_s, first.wait_s) == (pytest.approx(2 + 3), 1.0)
    assert first.edges_per_s == pytest.approx(80)
    assert (second.edges, second.loss) == (100, 1.0)


def test_the_page_shows_every_curve_and_fetches_nothing() -> None:
    records = [record(n, (0, 0), loss=3.0 / n) for n in range(1, 25)]
    records += [{"epoch": n, "mrr": n / 100} for n in (8, 16, 24)]
    text = page("A <run>", {"graph": "1 & 2"}, records, {"model": {"dim": 7}})
    assert "A &lt;run&gt;" in text and "1 &amp; 2" in text and "model.dim" in text
    assert not re.search(r"https?:|<script|<link|<img|@import|url\(", text)
    plots = re.findall(r"<h2>([^<]*)</h2><svg", text)
    assert plots == [
        "Loss, mean per edge",
        "Edges per second",
        "Waited for tables, % of the time",
        "Validation mrr",
    ]
    assert "<title>epoch 24: 0.125</title>" in text and "<title>epoch 16: 0.16</title>" in text


def test_points_lie_inside_their_plot() -> None:
    records = [record(n, (0, 0), loss=value) for n, value in enumerate((5.0, -2.0, 0.1), start=1)]
    text = page("run", {}, records, {})
    svg = text[text.index("<svg") : text.index("</svg>") + 6]
    dots = ElementTree.fromstring(svg).findall("circle")
    heights = [float(dot.attrib["cy"]) for dot in dots]
    assert len(dots) == 3
    assert all(0 < y < 220 for y in heights)
    assert heights[1] > heights[2] > heights[0]  # down is less


def test_a_run_without_records_has_a_page(tmp_path: Path) -> None:
    assert "<h1>empty</h1>" in page("empty", {}, [], {})
