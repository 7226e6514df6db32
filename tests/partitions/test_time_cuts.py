"""partitions.time_cuts: the newest share of the edges is what a plain sort says."""

import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from partitions import candidates, graph_writer
from partitions.errors import DataError
from partitions.graph import Graph
from partitions.importer import ImportReport, import_graph
from partitions.time_cuts import Cuts, newest_after
from tests.partitions.import_cases import (
    NAMES,
    Edge,
    columns,
    edges_of,
    shop,
    shop_edges,
    write_edges,
)

LEAST, MOST = -(1 << 63), (1 << 63) - 1
TIMES = st.lists(
    st.one_of(st.integers(LEAST, MOST), st.integers(-3, 3), st.sampled_from([LEAST, MOST, 70_000])),
    min_size=1,
    max_size=60,
)


# --- the cut --------------------------------------------------------------------------------------


@given(TIMES, st.lists(st.floats(0, 0.999), min_size=1, max_size=3), st.integers(1, 20))
def test_a_cut_is_the_time_that_a_sort_has_at_its_place(
    times: list[int], shares: list[float], piece: int
) -> None:
    def read() -> Iterator[NDArray[np.int64]]:
        for start in range(0, len(times), piece):
            yield np.array(times[start : start + piece], np.int64)

    most = [int(share * len(times)) for share in shares]
    newest = sorted(times, reverse=True)
    assert newest_after(read, min(times), max(times), most) == [newest[n] for n in most]


def test_a_million_times_in_a_few_passes() -> None:
    times = np.random.default_rng(1).integers(0, 2_000_000_000, 1_000_000)
    passes = 0

    def read() -> Iterator[NDArray[np.int64]]:
        nonlocal passes
        passes += 1
        yield from np.array_split(times, 7)

    most = [50_000, 150_000]
    found = newest_after(read, int(times.min()), int(times.max()), most)
    assert found == np.sort(times)[::-1][most].tolist() and passes == 2


# --- the import -----------------------------------------------------------------------------------


def expected(
    edges: list[Edge], valid: float, test: float, relations: list[str] | None = None
) -> Counter[Edge]:
    chosen = [relations is None or edge[1] in relations for edge in edges]
    newest = sorted((e[4] for e, is_in in zip(edges, chosen, strict=True) if is_in), reverse=True)
    split = ["train"] * len(edges)
    if newest:
        held, test_after = (
            newest[math.floor(share * len(newest) + 1e-9)] for share in (valid + test, test)
        )
        for at, edge in enumerate(edges):
            if chosen[at] and edge[4] > held:
                split[at] = "test" if edge[4] > test_after else "valid"
    return Counter((*edge, part) for edge, part in zip(edges, split, strict=True))


def imported(folder: Path, edges: list[Edge], **settings: Any) -> tuple[Graph, ImportReport]:
    write_edges(folder / "e.tsv", edges)
    inputs = [{"path": "e.tsv", "columns": columns(*NAMES)}]
    report = import_graph(shop(folder, **{"inputs": inputs} | settings), folder / "graph")
    return Graph(folder / "graph"), report


@pytest.mark.parametrize(("user", "item"), [(1, 1), (3, 3), (3, 1), (1, 3)])
@pytest.mark.parametrize("relations", [None, ["bought"], ["saw", "follows"], []])
def test_the_newest_edges_are_held_out_where_there_are_times(
    tmp_path: Path, user: int, item: int, relations: list[str] | None
) -> None:
    edges = shop_edges(900, seed=user + 2 * item)  # times from 0 to 199: many ties
    holdout = {"valid": 0.1, "test": 0.2, "relations": relations}
    graph, report = imported(tmp_path, edges, user=user, item=item, holdout=holdout)
    assert edges_of(graph) == expected(edges, 0.1, 0.2, relations)
    if relations is None:
        times = {s: [e[4] for e in edges_of(graph) if e[5] == s] for s in ("train", "valid")}
        assert report.cuts == Cuts(max(times["train"]), max(times["valid"]))
        assert 0.18 < report.num_edges["test"] / len(edges) <= 0.2, "never more than the share"
    else:
        assert report.cuts is not None


@settings(max_examples=40)
@given(
    st.lists(
        st.sampled_from([LEAST, -5, 0, 1, 2, 3, 70_000, 1 << 40, MOST]), min_size=1, max_size=25
    ),
    st.floats(0, 0.45),
    st.floats(0, 0.45),
)
def test_any_times_and_shares(times: list[int], valid: float, test: float) -> None:
    edges = [("u", "bought", f"i{at}", 1.0, seconds) for at, seconds in enumerate(times)]
    held = {edge[5] for edge in expected(edges, valid, test)}
    holdout = {"valid": valid, "test": test}
    wanted_test = math.floor(test * len(times) + 1e-9)
    wanted_both = math.floor((valid + test) * len(times) + 1e-9)
    unparted = wanted_test and "test" not in held
    unparted = unparted or (wanted_both > wanted_test and "valid" not in held)
    with tempfile.TemporaryDirectory() as folder:
        if unparted:
            with pytest.raises(DataError, match=r"So many edges are of .* Raise the share"):
                imported(Path(folder), edges, item=1, holdout=holdout)
            return
        graph, _ = imported(Path(folder), edges, holdout=holdout)
        assert edges_of(graph) == expected(edges, valid, test)


def test_without_times_edges_are_drawn_by_their_hash(tmp_path: Path) -> None:
    edges = shop_edges(900)
    shares = {"valid": 0.1, "test": 0.1}
    _, report = imported(tmp_path, [e[:3] for e in edges], inputs=[{"path": "e.tsv"}])
    assert report.cuts is None
    drawn = []
    for holdout in (shares, {**shares, "by": "edge"}):
        inputs = [{"path": "e.tsv"}]
        graph, report = imported(tmp_path, [e[:3] for e in edges], inputs=inputs, holdout=holdout)
        assert report.cuts is None
        drawn.append(Counter((*e[:3], e[5]) for e in edges_of(graph).elements()))
    graph, report = imported(tmp_path, edges, holdout={**shares, "by": "edge"})
    assert report.cuts is None
    drawn.append(Counter((*e[:3], e[5]) for e in edges_of(graph).elements()))
    assert drawn[0] == drawn[1] == drawn[2]


def test_inputs_with_a_split_of_their_own_do_not_move_the_cut(tmp_path: Path) -> None:
    inputs = []
    for at, split in enumerate(("train", None, "test")):
        edges = [("u", "bought", f"i{at}-{n}", 1.0, 1000 * at + n) for n in range(10)]
        write_edges(tmp_path / f"{at}.tsv", edges)
        inputs.append({"path": f"{at}.tsv", "columns": columns(*NAMES)} | {"split": split})
    config = shop(tmp_path, inputs=inputs, holdout={"valid": 0.2, "test": 0.1})
    report = import_graph(config, tmp_path / "graph")
    found = {edge[2]: edge[5] for edge in edges_of(Graph(tmp_path / "graph"))}
    given_split = {f"i{at}-{n}": s for at, s in ((0, "train"), (2, "test")) for n in range(10)}
    drawn = {f"i1-{n}": "train" if n < 7 else "valid" if n < 9 else "test" for n in range(10)}
    assert found == given_split | drawn
    assert report.cuts == Cuts(1006, 1008)


def test_buckets_read_in_pieces_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "READ_ROWS", 17)
    monkeypatch.setattr(graph_writer, "READ_ROWS", 23)
    edges = shop_edges(500, seed=5)
    graph, _ = imported(tmp_path, edges, user=2, item=2, holdout={"test": 0.3})
    assert edges_of(graph) == expected(edges, 0, 0.3)


def test_edges_of_one_time_are_never_parted(tmp_path: Path) -> None:
    edges = [("u", "bought", f"i{n}", 1.0, 86_400 * (n // 10)) for n in range(100)]
    _, report = imported(tmp_path, edges, holdout={"test": 0.27, "valid": 0.18})
    assert report.num_edges == {"train": 60, "valid": 20, "test": 20}, "less rather than more"
    assert (
        str(report.cuts) == "validation after 1970-01-06T00:00:00Z, test after 1970-01-08T00:00:00Z"
    )
    for holdout, split in (({"test": 0.07}, "test"), ({"test": 0.1, "valid": 0.07}, "valid")):
        with pytest.raises(DataError, match=f"leaves none for graph.holdout.{split} = 0.07"):
            imported(tmp_path, edges, holdout=holdout)


def test_one_of_the_shares_may_stand_alone(tmp_path: Path) -> None:
    edges = [("u", "bought", f"i{n}", 1.0, n) for n in range(10)]
    _, report = imported(tmp_path, edges, holdout={"test": 0.2})
    assert (report.num_edges["test"], report.cuts) == (2, Cuts(None, 7))
    _, report = imported(tmp_path, edges, holdout={"valid": 0.3, "by": "time"})
    assert (report.num_edges["valid"], report.cuts) == (3, Cuts(6, None))


# --- growing --------------------------------------------------------------------------------------


def grown(folder: Path, *days: list[Edge], **settings: Any) -> tuple[Graph, list[ImportReport]]:
    inputs = [{"path": "day*.tsv", "columns": columns(*NAMES)}]
    config = shop(folder, **{"inputs": inputs} | settings)
    reports = []
    for at, edges in enumerate(days):
        write_edges(folder / f"day{at}.tsv", edges)
        reports.append(import_graph(config, folder / "graph", append=at > 0))
    return Graph(folder / "graph"), reports


def at_times(name: str, times: range) -> list[Edge]:
    return [("u", "bought", f"{name}{n}", 1.0, n) for n in times]


def test_a_graph_that_grows_keeps_its_cuts(tmp_path: Path) -> None:
    days = at_times("a", range(100)), at_times("b", range(50, 150)), at_times("c", range(95))
    graph, reports = grown(tmp_path, *days, holdout={"valid": 0.1, "test": 0.1})
    assert [report.cuts for report in reports] == [Cuts(79, 89)] * 3
    assert [report.cuts_kept for report in reports] == [False, True, True]
    for *_, time, split in edges_of(graph):
        assert split == ("train" if time <= 79 else "valid" if time <= 89 else "test")


def test_a_graph_that_was_drawn_by_hashes_goes_on_so(tmp_path: Path) -> None:
    days = [shop_edges(300, seed=at) for at in range(2)]
    shares = {"valid": 0.2, "test": 0.2}
    inputs = [{"path": "day*.tsv", "columns": columns(*NAMES)}]
    write_edges(tmp_path / "day0.tsv", days[0])
    by_edge = shop(tmp_path, inputs=inputs, holdout={**shares, "by": "edge"})
    import_graph(by_edge, tmp_path / "graph")
    write_edges(tmp_path / "day1.tsv", days[1])
    unset = shop(tmp_path, inputs=inputs, holdout=shares)
    assert import_graph(unset, tmp_path / "graph", append=True).cuts is None
    import_graph(by_edge, tmp_path / "whole")
    assert edges_of(Graph(tmp_path / "graph")) == edges_of(Graph(tmp_path / "whole"))


def test_cuts_of_its_own_come_with_the_first_batch_that_has_shares(tmp_path: Path) -> None:
    inputs = [{"path": "day*.tsv", "columns": columns(*NAMES)}]
    write_edges(tmp_path / "day0.tsv", at_times("a", range(100)))
    import_graph(shop(tmp_path, inputs=inputs), tmp_path / "graph")
    write_edges(tmp_path / "day1.tsv", at_times("b", range(100, 200)))
    config = shop(tmp_path, inputs=inputs, holdout={"test": 0.1})
    report = import_graph(config, tmp_path / "graph", append=True)
    assert (report.cuts, report.cuts_kept) == (Cuts(None, 189), False)
    assert report.num_edges == {"train": 90, "valid": 0, "test": 10}
