"""A ranker's evaluation.html, and two published rankers side by side."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedsvc import publish as publishing
from embedsvc.config import ModelConfig, PublishConfig
from embedsvc.evaluation import changes, clicks, ranker_report, rankers
from embedsvc.evaluation.compare import clicks_of_version, compare, compare_rankers, opened
from embedsvc.evaluation.compare_page import page
from embedsvc.ranker_road import RankerRoad
from embedsvc.ranking.trained import TrainedRanker
from embedsvc.trained import Trained
from partitions.errors import ConfigError, DataError
from partitions.graph import Graph
from tests import toy_ranker

SMALL = {"dim": 4, "hidden": [8], "row_lr": 0.05}


@pytest.fixture(scope="module")
def roads(tmp_path_factory: pytest.TempPathFactory) -> tuple[RankerRoad, RankerRoad]:
    """Two runs over the same rows, each published; the second one's labels are fewer."""
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    found = []
    for folder, more in zip(folders, ({}, {"deep": SMALL, "labels": ["click"]}), strict=True):
        toy_ranker.write_rows(folder)
        road = toy_ranker.road(folder, {"user": "user", **more})
        road.train()
        road.evaluate()
        road.publish()
        found.append(road)
    return found[0], found[1]


def test_the_page_says_what_was_found(roads: tuple[RankerRoad, RankerRoad]) -> None:
    folder = roads[0].folders.checkpoint
    result = json.loads((folder / "evaluation.json").read_text())
    text = (folder / "evaluation.html").read_text()
    assert not re.search(r"https?:|<script|<link|<img|@import|url\(|src=|href=", text)
    for label, one in result["labels"].items():
        assert f"{one['auc']:.4f} [{one['auc_low']:.4f}, {one['auc_high']:.4f}]" in text
        assert f"Calibration of {label}" in text
        for said, happened in zip(one["curve"]["probability"], one["curve"]["label"], strict=True):
            assert f"said {said:.4f}, happened {happened:.4f}" in text
        assert sum(one["auc_by_user"]) == one["gauc_users"] == 15
    unknown = result["rows"] - result["labels"]["like"]["rows"]
    assert unknown > 0 and f"{unknown} rows without like" in text


def test_the_version_that_was_made_of_the_checkpoint_is_named(
    roads: tuple[RankerRoad, RankerRoad],
) -> None:
    roads[0].evaluate()
    text = (roads[0].folders.checkpoint / "evaluation.html").read_text()
    assert "v000001 is live, and was made of this checkpoint." in text


def test_a_published_ranker_says_what_its_checkpoint_says(
    roads: tuple[RankerRoad, RankerRoad],
) -> None:
    road = roads[0]
    version = clicks_of_version(opened(road.published, ""), road.config, "test")
    trained = TrainedRanker(road.folders.checkpoint)
    _, right = rankers.clicks_of(rankers.said_by(trained), road.config, "test")
    for label, one in right.items():
        assert version[label].probability == pytest.approx(one.probability, abs=1e-5)
        assert version[label].label.tolist() == one.label.tolist()


def test_rankers_are_compared_on_the_same_rows_by_user(
    roads: tuple[RankerRoad, RankerRoad],
) -> None:
    old, new = (opened(road.published, "") for road in roads)
    found = compare_rankers(old, new, roads[1].config, "test")
    [row] = found.rows
    assert row.label == "click" and (row.rows, row.users) == (2000, 15)
    assert f"Only {old.name} knows the labels like." in found.notes
    said = [clicks_of_version(each, roads[1].config, "test")["click"] for each in (old, new)]
    for name, of in (
        ("auc", lambda c: clicks.auc(c.probability, c.label)),
        ("log_loss", clicks.log_loss),
    ):
        before, after, less = getattr(row, name)
        values = [of(one) for one in said]
        assert [before.value, after.value] == pytest.approx(values)
        assert less.value == pytest.approx(values[1] - values[0])
        assert less.low <= less.value <= less.high
    assert row.moved == pytest.approx(np.abs(said[0].probability - said[1].probability).mean())
    assert found.settings is not None and found.settings["ranker.deep.dim"] == (8, 4)
    text = page(found)
    assert f"{row.auc[2].value:.4f} [" in text and "2,000 rows of 15 users" in text


def test_since_the_live_version_is_that_comparison(
    roads: tuple[RankerRoad, RankerRoad], tmp_path: Path
) -> None:
    first, second = roads
    trained = TrainedRanker(second.folders.checkpoint)
    _, said = rankers.clicks_of(rankers.said_by(trained), second.config, "test")
    result = json.loads((second.folders.checkpoint / "evaluation.json").read_text())
    shown = ranker_report.Evaluated(result, said, second.config)
    text = ranker_report.page("A run", shown, first.published, tmp_path)
    before = clicks_of_version(opened(first.published, ""), second.config, "test")
    row = changes.row_change("click", before["click"], said["click"])
    assert row.user_auc is not None and list(row.figures) == ["AUC", "log loss", "user_auc"]
    was, now, less = row.user_auc
    assert now.value == clicks.auc_by_user(said["click"])[0].mean()
    assert less.value == pytest.approx(now.value - was.value) and less.low <= less.high
    less = row.auc[2]
    assert f"{less.value:.4f} [{less.low:.4f}, {less.high:.4f}]" in text


def test_rankers_and_vectors_are_not_compared(
    roads: tuple[RankerRoad, RankerRoad],
    tmp_path: Path,
    make_graph: Callable[..., Graph],
    make_trained: Callable[..., Trained],
) -> None:
    graph = make_graph({"train": [("a", "r", "b")], "test": [("b", "r", "a")]}, {"r": ("n", "n")})
    trained = make_trained(graph, ModelConfig(dim=2), lambda *_: [1.0, 2.0])
    publishing.publish(trained, tmp_path, PublishConfig(), {}, {})
    vectors, ranker = opened(tmp_path, ""), opened(roads[0].published, "")
    with pytest.raises(DataError, match=r"is vectors of a graph, .* a ranker: compare versions of"):
        compare_rankers(vectors, ranker, roads[0].config, "test")
    with pytest.raises(ConfigError, match=r"are a ranker: give the TOML file .* with \[ranker\]"):
        compare(ranker, ranker, graph, "test", 5, [])
    with pytest.raises(ConfigError, match=r"are vectors of a graph: .* without \[ranker\]"):
        compare_rankers(vectors, vectors, roads[0].config, "test")


def test_what_can_not_be_compared_is_said(
    roads: tuple[RankerRoad, RankerRoad], tmp_path: Path
) -> None:
    road = roads[0]
    with pytest.raises(DataError, match=r"has no version v000009. Did you mean v000001"):
        road.compare("v000001", "v000009", [], None)
    with pytest.raises(ConfigError, match="has no relations: leave --relation"):
        road.compare("v000001", "v000001", ["bought"], None)
    road.compare("v000001", "v000001", [], tmp_path / "page.html")
    assert "0.0000 [0.0000, 0.0000]" in (tmp_path / "page.html").read_text()


def test_paired_log_loss_is_the_mean_and_its_intervals_are_of_drawn_users() -> None:
    rng = np.random.default_rng(0)
    user = rng.integers(0, 40, 500)
    label = (rng.random(500) < 0.4).astype(float)
    weight = rng.uniform(0.5, 2, 500)
    said = [np.clip(label * 0.4 + rng.random(500) * 0.6, 0, 1) for _ in range(2)]
    values, less = clicks.paired_log_loss(said, label, user, weight=weight)
    right = [clicks.log_loss(clicks.Clicks(one, label, weight)) for one in said]
    assert [one.value for one in values] == pytest.approx(right)
    assert less[0].value == pytest.approx(right[0] - right[1])
    # All rows of one user: there is nobody else to draw.
    alone, _ = clicks.paired_log_loss(said, label, 0 * user, weight=weight)
    assert alone[0].low == pytest.approx(alone[0].high) == pytest.approx(right[0])
    spread = [one.high - one.low for one in values]
    same, none = clicks.paired_log_loss([said[0], said[0]], label, user, weight=weight)
    assert (none[0].low, none[0].high) == (0, 0) and same[0] == values[0]
    assert all(0 < width < 0.5 for width in spread)


def test_auc_by_user_is_that_of_the_users_own_rows() -> None:
    rng = np.random.default_rng(1)
    user = rng.integers(0, 9, 200)
    label, score = (rng.random(200) < 0.3).astype(float), rng.random(200).round(1)
    label[user == 3] = 1  # has no pair
    found, rows = clicks.auc_by_user(clicks.Clicks(score, label, np.ones(200), user))
    right = [
        (clicks.auc(score[user == u], label[user == u]), int((user == u).sum()))
        for u in range(9)
        if 0 < label[user == u].mean() < 1
    ]
    assert found.tolist() == pytest.approx([auc for auc, _ in right])
    assert rows.tolist() == [count for _, count in right]
