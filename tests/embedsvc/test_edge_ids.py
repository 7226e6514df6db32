"""embedsvc.edge_ids: what a plain set of edges says, whatever the partitions."""

from collections.abc import Callable

import numpy as np
import pytest

from embedsvc.edge_ids import EdgeIds, of_split, repeated
from partitions.graph import Graph

MakeGraph = Callable[..., Graph]


@pytest.mark.parametrize("partitions", [1, 3])
def test_repeated_edges_are_those_of_the_splits_before(
    partitions: int, make_graph: MakeGraph
) -> None:
    rng = np.random.default_rng(partitions)
    ends = {"buys": ("user", "item"), "likes": ("user", "item"), "knows": ("user", "user")}

    def some(num: int) -> list[tuple[str, str, str]]:
        drawn = rng.choice(list(ends), num)
        return [
            (f"u{rng.integers(9)}", r, f"{'u' if r == 'knows' else 'i'}{rng.integers(9)}")
            for r in drawn
        ]

    splits = {"train": some(80), "valid": some(25), "test": some(60)}
    graph = make_graph(splits, ends, {"user": partitions, "item": partitions})
    test = of_split(graph, "test")
    for before in (("train",), ("train", "valid"), ()):
        had = {edge for split in before for edge in splits[split]}
        found = repeated(graph, test, before)
        assert len(found) == 60 and found.sum() == sum(edge in had for edge in splits["test"])
        rows = np.arange(0, 60, 7)
        assert repeated(graph, test.take(rows), before).tolist() == found[rows].tolist()
    none = EdgeIds(*(np.empty(0, np.int64) for _ in range(3)))
    assert not len(repeated(graph, none, ("train",)))
