"""A warm start takes what an earlier model learnt of the same values and tasks, and names the
rest."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedsvc.config import TrainConfig
from embedsvc.ranking.config import RankerConfig
from embedsvc.ranking.trained import TrainedRanker
from embedsvc.training.ranker import RankerFolders, train
from partitions.errors import ConfigError

CATEGORY = {"kind": "category"}
BASE = {"labels": ["y"], "weight": "w", "batch_size": 64, "deep": {"dim": 4, "hidden": [8]}}
HASH = {"kind": "hash", "buckets": 1000}
ASKED = {"a": list(range(8)), "b": [at % 7 for at in range(8)], "x": [0.0, 5, -5, 1, 2, 3, 0.5, 0]}


def rows(seed: int, weight: float = 1.0, num: int = 1500) -> pa.Table:
    """Of weight 0 they teach nothing: the model stays as it began."""
    rng = np.random.default_rng(seed)
    a, x = (rng.random(num) ** 2 * 30).astype(int), rng.normal(size=num) ** 3
    taste = np.random.default_rng(7).normal(size=30) * 2
    y = (rng.random(num) < 1 / (1 + np.exp(-taste[a] - x))).astype(np.int8)
    return pa.table({"a": a, "b": a % 7, "x": x, "y": y, "z": 1 - y, "w": np.full(num, weight)})


def begun(
    tmp_path: Path, before: dict[str, Any], now: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [8, T] by the earlier model and by the one that began with it."""
    pq.write_table(rows(0), tmp_path / "before.parquet")
    pq.write_table(rows(5, 0.0), tmp_path / "now.parquet")
    found, start = [], {}
    for name, settings in (("before", before), ("now", now)):
        folders = RankerFolders(tmp_path / f"run-{name}")
        table = {**BASE, "train": str(tmp_path / f"{name}.parquet"), **settings, **start}
        config = RankerConfig.model_validate(table)
        train(folders, config, TrainConfig(threads=1, epochs=2 if name == "before" else 1))
        start = {"start_from": str(folders.checkpoint)}
        trained = TrainedRanker(folders.checkpoint)
        found.append(trained.probabilities(trained.features.encode(ASKED)))
    return found[0], found[1]


def of(**features: Any) -> dict[str, Any]:
    return {"features": features}


WIDE = {"deep": {"enabled": False}}
CROSSED = {"features": {"a": CATEGORY, "b": CATEGORY}, **WIDE, "wide": {"features": ["c"]}}


def cross(*names: str) -> dict[str, Any]:
    return CROSSED | {"crosses": {"c": {"of": list(names), "buckets": 5000}}}


@pytest.mark.parametrize(
    "before, now",
    [
        (of(a=CATEGORY, x={"kind": "number"}), of(a=CATEGORY, x={"kind": "number"})),
        (of(a=CATEGORY), of(a=CATEGORY | {"type": "integer"})),
        (cross("a", "b"), cross("a", "b")),
        (of(a=HASH) | WIDE, of(a=HASH) | WIDE),
    ],
)
def test_what_means_the_same_is_taken(
    tmp_path: Path, before: Any, now: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        then, after = begun(tmp_path, before, now)
    assert np.ptp(then) > 0.05
    np.testing.assert_allclose(after, then, atol=1e-3)
    assert "not taken" not in caplog.text


@pytest.mark.parametrize(
    "before, now, sentence",
    [
        (of(a=CATEGORY), of(a=CATEGORY | {"type": "text"}), "the ids of a have another meaning"),
        (of(a=HASH), of(a=CATEGORY), "the ids of a have another meaning"),
        (of(a=HASH), of(a=HASH | {"type": "text"}), "the ids of a have another meaning"),
        (
            of(x={"kind": "number"}),
            of(x={"kind": "number", "scale": "log"}),
            "the number x has another scale",
        ),
        (cross("a", "b"), cross("b", "a"), "the ids of c have another meaning"),
    ],
)
def test_what_means_something_else_begins_anew_and_is_named(
    tmp_path: Path, before: Any, now: Any, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        then, after = begun(tmp_path, before | WIDE, now | WIDE)
    assert np.ptp(then) > 0.05 and np.ptp(after) < 1e-6
    assert sentence in caplog.text


@pytest.mark.parametrize("hidden", [[8], []])
def test_tasks_are_found_by_their_labels(
    tmp_path: Path, hidden: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    settings = of(a=CATEGORY, x={"kind": "number"}) | {"deep": {"dim": 4, "hidden": hidden}}
    with caplog.at_level(logging.WARNING):
        then, after = begun(
            tmp_path, settings | {"labels": ["y", "z"]}, settings | {"labels": ["z", "w", "y"]}
        )
    np.testing.assert_allclose(after[:, [2, 0]], then, atol=1e-3)
    assert "the label w is new" in caplog.text and "label y" not in caplog.text


def test_another_column_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        begun(tmp_path, of(a=CATEGORY), of(a=CATEGORY | {"column": "b"}))
    assert "feature a reads column b" in caplog.text


def test_another_start_in_a_resume_is_said(tmp_path: Path) -> None:
    begun(tmp_path, of(a=CATEGORY), of(a=CATEGORY))
    table = {"train": str(tmp_path / "now.parquet"), **BASE, **of(a=CATEGORY)}
    config = RankerConfig.model_validate(table)
    with pytest.raises(ConfigError, match=r'start_from = ".*", now it is unset'):
        train(RankerFolders(tmp_path / "run-now"), config, TrainConfig(threads=1, epochs=2))
