"""partitions.import_plan: what is planned grows with entities, not with edges; guesses say so."""

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from partitions.config import GraphConfig
from partitions.errors import ConfigError
from partitions.graph import Graph
from partitions.import_plan import check_memory, plan_import
from partitions.importer import import_graph
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
    true = {"user": 5000, "item": 2000}
    assert guess.fewest_entities == guess.num_entities == true  # the first rows have them all
    known = plan_import(config, {"user": 10**8, "item": 7})
    assert not known.is_guess
    assert known.num_entities == {"user": 10**8, "item": 7}
    assert 32 * 10**8 <= known.dictionaries <= 110 * 10**8


def test_the_true_number_lies_between_the_two_guesses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("partitions.columnar._BATCH_ROWS", 1 << 11)
    config = drawn(tmp_path, 100_000)
    plan = plan_import(config)
    assert plan.is_guess and plan.least_bytes < plan.total_bytes
    for name, true in {"user": 5000, "item": 2000}.items():
        assert 0.8 * true <= plan.fewest_entities[name] <= 1.2 * true < plan.num_entities[name]
    assert plan_import(config, {"user": 5000}).is_guess
    expecting = config.model_dump() | {"entities": {n: {"expected": 7} for n in ("user", "item")}}
    told = plan_import(GraphConfig.model_validate(expecting))
    assert not told.is_guess and told.num_entities == {"user": 7, "item": 7}


def test_the_least_must_fit_and_the_most_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("partitions.columnar._BATCH_ROWS", 1 << 11)
    plan = plan_import(drawn(tmp_path, 100_000))
    assert check_memory(plan, plan.total_bytes // 10**6 + 1) is None
    tight = replace(plan, dictionaries=plan.dictionaries + 50_000_000)
    assert "may take" in (check_memory(tight, plan.total_bytes // 10**6 + 1) or "")
    with pytest.raises(ConfigError, match=r"MB, and graph.memory_mb allows 1 MB. Raise .*mb\.$"):
        check_memory(plan, 1)
    with pytest.raises(ConfigError, match=r"Raise graph.memory_mb, or set graph.duplicates=keep"):
        check_memory(plan_import(drawn(tmp_path, 1000, duplicates="drop")), 1)


def test_an_append_plans_for_what_is_there_and_for_new_files_only(tmp_path: Path) -> None:
    write_edges(tmp_path / "a.tsv", shop_edges(500))
    config = shop(tmp_path, inputs=[{"path": "?.tsv", "columns": columns(*NAMES)}])
    import_graph(config, tmp_path / "graph")
    base = Graph(tmp_path / "graph")
    write_edges(tmp_path / "b.tsv", shop_edges(50, seed=1))
    plan = plan_import(config, base=base)
    assert 40 <= plan.num_rows <= 60
    assert plan.fewest_entities["user"] >= base.num_entities("user")


def test_text_inputs_and_small_graphs_have_a_plan(tmp_path: Path) -> None:
    write_edges(tmp_path / "e.tsv", shop_edges(100))
    write_edges(tmp_path / "empty.tsv", [])
    inputs = [{"path": name, "columns": columns(*NAMES)} for name in ("e.tsv", "empty.tsv")]
    for holdout in ({"last": True}, {"test": 0.1, "by": "time"}, {"test": 0.1, "by": "lhs"}):
        plan = plan_import(shop(tmp_path, inputs=inputs, holdout=holdout))
        assert 0 < plan.dictionaries + plan.pass_1 + plan.pass_2 < 10_000_000
        assert plan.total_bytes > plan.code > 10_000_000


def test_a_file_that_is_read_whole_is_counted_and_not_guessed(tmp_path: Path) -> None:
    write_edges(tmp_path / "e.tsv", shop_edges(3000))
    text = (tmp_path / "e.tsv").read_bytes()
    (tmp_path / "e.tsv.gz").write_bytes(gzip.compress(text))
    for name in ("e.tsv", "e.tsv.gz"):
        plan = plan_import(shop(tmp_path, inputs=[{"path": name, "columns": columns(*NAMES)}]))
        assert plan.num_rows == 3000
        assert plan.num_entities == plan.fewest_entities == {"user": 60, "item": 40}
