"""partitions.lhs_shares: each lhs gives its own share, and which edges, is what a sort says."""

import math
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitions import candidates, graph_writer
from partitions.graph import Graph
from partitions.hashing import hash_edges, hash_keys
from partitions.importer import import_graph
from tests.partitions.import_cases import Edge, columns, edges_of, shop, shop_edges, write_edges

SEED = 1


def draw_of(edge: Edge) -> int:
    parts = [hash_keys(pa.array([name])) for name in edge[:3]]
    return int(hash_edges(SEED, *parts)[0]) >> 1


def expected(
    edges: list[Edge], valid: float, test: float, relations: list[str] | None = None
) -> Counter[Edge]:
    per_lhs = defaultdict(list)
    for edge in edges:
        if relations is None or edge[1] in relations:
            per_lhs[edge[0]].append((draw_of(edge), edge))
    split = {}
    for drawn in per_lhs.values():
        drawn.sort()
        num_valid, num_test = (math.floor(share * len(drawn) + 1e-9) for share in (valid, test))
        for name, count in (("test", num_valid + num_test), ("valid", num_valid)):
            while count and drawn[count - 1][0] == drawn[count][0]:
                count -= 1
            split |= {edge: name for _, edge in drawn[:count]}
    return Counter((*e, None, None, split.get(e, "train")) for e in edges)


def imported(folder: Path, edges: list[Edge], **settings: Any) -> Counter[Edge]:
    edges = [edge[:3] for edge in edges]
    write_edges(folder / "e.tsv", edges)
    import_graph(shop(folder, **settings), folder / "graph")
    return edges_of(Graph(folder / "graph"))


@pytest.mark.parametrize(("user", "item"), [(1, 1), (3, 3), (3, 1), (1, 3)])
@pytest.mark.parametrize("relations", [None, ["bought"], ["saw", "follows"], []])
def test_each_user_gives_a_share_of_the_edges(
    tmp_path: Path, user: int, item: int, relations: list[str] | None
) -> None:
    edges = [edge[:3] for edge in shop_edges(900, seed=user, users=25, items=30)]
    holdout = {"valid": 0.1, "test": 0.25, "by": "lhs", "relations": relations}
    found = imported(tmp_path, edges, user=user, item=item, holdout=holdout)
    assert found == expected(edges, 0.1, 0.25, relations)
    if relations is None:
        assert {edge[5] for edge in found} == {"train", "valid", "test"}


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["u1", "u2", "u3"]),
            st.sampled_from(["bought", "saw"]),
            st.sampled_from([f"i{n}" for n in range(8)]),
        ),
        min_size=1,
        max_size=60,
    ),
    st.floats(0, 0.49),
    st.floats(0.01, 0.49),
)
def test_any_users_and_shares_with_equal_edges(
    edges: list[Edge], valid: float, test: float
) -> None:
    holdout = {"valid": valid, "test": test, "by": "lhs"}
    with tempfile.TemporaryDirectory() as folder:
        found = imported(Path(folder), edges, holdout=holdout)
    assert found == expected(edges, valid, test)
    of_user: dict[str, Counter[str]] = defaultdict(Counter)
    for edge, times in found.items():
        of_user[edge[0]][edge[5]] += times
    for counts in of_user.values():
        held = counts["valid"] + counts["test"]
        assert held <= (valid + test) * counts.total() + 1e-6, "never more than the shares"


def test_the_order_of_the_input_does_not_matter(tmp_path: Path) -> None:
    edges = shop_edges(600, users=20)
    holdout = {"test": 0.3, "by": "lhs"}
    first = imported(tmp_path, edges, holdout=holdout)
    shuffled = [edges[at] for at in np.random.default_rng(2).permutation(len(edges))]
    assert imported(tmp_path, shuffled, holdout=holdout) == first
    other = imported(tmp_path, edges, holdout=holdout | {"seed": 2})
    assert other != first
    assert sum(n for e, n in other.items() if e[5] == "test") > 100


def test_users_of_few_edges_keep_them(tmp_path: Path) -> None:
    edges = [("few", "bought", f"i{n}") for n in range(4)]
    edges += [("enough", "bought", f"i{n}") for n in range(5)]
    found = imported(tmp_path, edges, holdout={"test": 0.2, "by": "lhs"})
    held = Counter(edge[0] for edge in found if edge[5] == "test")
    assert held == {"enough": 1}


def test_inputs_with_a_split_of_their_own_are_passed_over(tmp_path: Path) -> None:
    inputs = []
    for split in ("train", "valid", "test", None):
        write_edges(tmp_path / f"{split}.tsv", [("u", "bought", f"{split}{n}") for n in range(10)])
        inputs.append({"path": f"{split}.tsv", "split": split})
    config = shop(tmp_path, inputs=inputs, holdout={"valid": 0.2, "test": 0.3, "by": "lhs"})
    import_graph(config, tmp_path / "graph")
    found = edges_of(Graph(tmp_path / "graph"))
    for split in ("train", "valid", "test"):
        assert {e[5] for e in found if e[2].startswith(split)} == {split}
    assert Counter(e[5] for e in found if e[2].startswith("None")) == Counter(
        train=5, valid=2, test=3
    )


def test_buckets_read_in_pieces_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "READ_ROWS", 17)
    monkeypatch.setattr(graph_writer, "READ_ROWS", 23)
    edges = [edge[:3] for edge in shop_edges(500, seed=5, users=10)]
    found = imported(tmp_path, edges, user=2, item=2, holdout={"test": 0.3, "by": "lhs"})
    assert found == expected(edges, 0, 0.3)


def test_a_timestamp_does_not_matter_to_it(tmp_path: Path) -> None:
    edges = shop_edges(300, users=10)
    plain = imported(tmp_path, edges, holdout={"test": 0.3, "by": "lhs"})
    write_edges(tmp_path / "e.tsv", [(*e[:3], e[4]) for e in edges])
    inputs = [{"path": "e.tsv", "columns": columns("lhs", "rel", "rhs", "timestamp")}]
    config = shop(tmp_path, inputs=inputs, holdout={"test": 0.3, "by": "lhs"})
    import_graph(config, tmp_path / "graph")
    timed = edges_of(Graph(tmp_path / "graph"))
    assert Counter((*e[:3], e[5]) for e in timed.elements()) == Counter(
        (*e[:3], e[5]) for e in plain.elements()
    )
