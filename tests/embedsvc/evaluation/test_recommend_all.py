"""Everybody's lists, as they are written, equal a plain sort; whatever blocks and partitions."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedsvc.config import ModelConfig
from embedsvc.evaluation import recommend_all
from embedsvc.evaluation.recommend_all import write_all
from embedsvc.trained import Trained
from partitions.graph import Graph

MakeGraph, MakeTrained = Callable[..., Graph], Callable[..., Trained]
DIM, NUM_USERS, NUM_ITEMS = 3, 11, 7


def numbers(*names: str) -> np.ndarray:
    return np.random.default_rng([3, *"/".join(names).encode()]).standard_normal(DIM)


def edges() -> dict[str, list[tuple[str, str, str]]]:
    """In all splits; u0 has had everything."""
    rng = np.random.default_rng(4)
    pairs = [(f"u{rng.integers(NUM_USERS)}", f"i{rng.integers(NUM_ITEMS)}") for _ in range(30)]
    whole = [(f"u{u}", f"i{u % NUM_ITEMS}") for u in range(NUM_USERS)]
    whole += [("u0", f"i{item}") for item in range(NUM_ITEMS)]
    parts = {"train": whole + pairs[:10], "valid": pairs[10:15], "test": pairs[15:]}
    return {name: [(u, "buys", i) for u, i in part] for name, part in parts.items()}


@pytest.mark.parametrize("partitions", [1, 3])
def test_everybody_gets_the_best_of_what_they_have_not_had(
    partitions: int,
    make_graph: MakeGraph,
    make_trained: MakeTrained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recommend_all, "BLOCK", 2)
    monkeypatch.setattr(recommend_all, "_SPAN", 3)
    graph = make_graph(
        edges(), {"buys": ("user", "item")}, {"user": partitions, "item": partitions}
    )
    trained = make_trained(graph, ModelConfig(dim=DIM), numbers)
    had = {(u, i) for part in edges().values() for u, _, i in part}
    wanted, empty = {}, 0
    for user in range(NUM_USERS):
        new = [f"i{i}" for i in range(NUM_ITEMS) if (f"u{user}", f"i{i}") not in had]
        score = {i: float(numbers("user", f"u{user}") @ numbers("item", i)) for i in new}
        wanted[f"u{user}"] = sorted(new, key=lambda i: -score[i])[:4]
        empty += 4 - len(wanted[f"u{user}"])
    to, answered = tmp_path / "lists.parquet", []
    assert write_all(trained, "buys", to, 4, progress=answered.append) == empty
    assert sum(answered) == NUM_USERS and wanted["u0"] == []
    table = pq.read_table(to)
    lists = dict(zip(*(table.column(name).to_pylist() for name in ("lhs", "rhs")), strict=True))
    assert lists == wanted
    assert table.column("lhs").to_pylist() == graph.all_keys("user").to_pylist()
    for row in table.to_pylist():
        exact = [float(numbers("user", row["lhs"]) @ numbers("item", i)) for i in row["rhs"]]
        assert row["score"] == pytest.approx(exact, rel=1e-5)
    write_all(trained, "buys", to, 4, long=True)
    rows = [tuple(row.values())[:3] for row in pq.read_table(to).to_pylist()]
    keys = graph.all_keys("user").to_pylist()
    assert rows == [(u, at, i) for u in keys for at, i in enumerate(wanted[u], 1)]


def test_more_places_than_there_are_items_take_no_memory(
    make_graph: MakeGraph, make_trained: MakeTrained, tmp_path: Path
) -> None:
    trained = make_trained(
        make_graph(edges(), {"buys": ("user", "item")}), ModelConfig(dim=DIM), numbers
    )
    to, few = tmp_path / "lists.parquet", tmp_path / "few.parquet"
    empty = write_all(trained, "buys", to, 10**9)
    assert empty == write_all(trained, "buys", few, NUM_ITEMS) > 0
    assert pq.read_table(to).equals(pq.read_table(few))


def test_a_job_that_fails_leaves_the_file_that_was_there(
    make_graph: MakeGraph, make_trained: MakeTrained, tmp_path: Path
) -> None:
    graph = make_graph(edges(), {"buys": ("user", "item")})
    trained = make_trained(graph, ModelConfig(dim=DIM), numbers)
    to = tmp_path / "lists.parquet"
    to.write_text("old")

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_all(trained, "buys", to, 4, progress=stop)
    assert to.read_text() == "old" and list(tmp_path.glob("*.parquet*")) == [to]
