"""partitions.import_plan: what is planned grows with entities, not with edges; guesses say so."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from partitions.config import GraphConfig
from partitions.import_plan import plan_import
from tests.partitions.import_cases import NAMES, columns, shop, shop_edges, write_edges


def drawn(folder: Path, num_edges: int, **settings: Any) -> GraphConfig:
    rng = np.random.default_rng(1)
    users = pa.array(rng.integers(0, 5000, num_edges)).cast(pa.string())
    items = pa.array(rng.integers(0, 2000, num_edges)).cast(pa.string())
    pq.write_table(pa.table({"u": users, "i": items}), folder / "e.parquet", row_group_size=100_000)
    inputs = [{"path": "e.parquet", "relation": "bought", "columns": {"lhs": "u", "rhs": "i"}}]
    return shop(folder, inputs=inputs, **settings)


def test_the_number_of_edges_does_not_matter_once_buffers_are_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("partitions.spool.HELD_ROWS", 1 << 12)
    monkeypatch.setattr("partitions.spool.READ_ROWS", 1 << 12)
    known = {"user": 5000, "item": 2000}
    for settings in ({}, {"self_loops": "drop"}, {"holdout": {"valid": 0.1}}):
        totals = []
        for num_edges in (400_000, 800_000):
            plan = plan_import(drawn(tmp_path, num_edges, **settings), known)
            totals.append(plan.dictionaries + max(plan.pass_1, plan.pass_2))
        assert totals[1] < 1.02 * totals[0]


def test_duplicates_are_looked_for_in_a_whole_bucket(tmp_path: Path) -> None:
    plans = [plan_import(drawn(tmp_path, n, duplicates="drop")) for n in (50_000, 500_000)]
    assert plans[1].pass_2 > 5 * plans[0].pass_2
    split_up = plan_import(drawn(tmp_path, 500_000, duplicates="drop", user=8, item=8))
    assert split_up.pass_2 < plans[1].pass_2 / 20


def test_known_numbers_of_entities_are_taken_and_others_guessed(tmp_path: Path) -> None:
    config = drawn(tmp_path, 300_000)
    guess = plan_import(config)
    assert guess.is_guess and plan_import(config, {"user": 5}).is_guess
    for name, true in {"user": 5000, "item": 2000}.items():
        assert true <= guess.num_entities[name] <= 1.2 * true
    known = plan_import(config, {"user": 10**8, "item": 7})
    assert not known.is_guess
    assert known.num_entities == {"user": 10**8, "item": 7}
    assert 32 * 10**8 <= known.dictionaries <= 110 * 10**8


def test_text_inputs_and_small_graphs_have_a_plan(tmp_path: Path) -> None:
    write_edges(tmp_path / "e.tsv", shop_edges(100))
    write_edges(tmp_path / "empty.tsv", [])
    inputs = [{"path": name, "columns": columns(*NAMES)} for name in ("e.tsv", "empty.tsv")]
    plan = plan_import(shop(tmp_path, inputs=inputs, holdout={"last": True}))
    assert 0 < plan.dictionaries + plan.pass_1 + plan.pass_2 < 10_000_000
    assert plan.total_bytes > plan.code > 10_000_000
