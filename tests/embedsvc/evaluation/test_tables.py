"""Tables in a terminal: names as they are, and no interval where there is none to say."""

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from embedsvc import inspection
from embedsvc.evaluation import compare_page
from embedsvc.evaluation.links import SIDES, LinkRanks, SideRanks
from embedsvc.evaluation.links import report as links_report
from embedsvc.evaluation.nodes import NodesReport, ShareReport
from embedsvc.evaluation.recommend import RecommendReport
from embedsvc.evaluation.significance import FEWEST, interval, paired
from embedsvc.evaluation.tables import classify_table, links_notes, links_table, lists_table
from partitions.graph import Graph

ODD = "a[/b] [red]c"


def shown(table: Table) -> str:
    console = Console(width=200, no_color=True)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def link_report(edges: int, names: list[str]) -> dict[str, object]:
    rng = np.random.default_rng(0)
    higher = rng.integers(0, 5, (2, edges))
    sides = {
        side: SideRanks(own, none, none, none, none + 9, none > 0, none > 0)
        for side, own, none in zip(SIDES, higher, np.zeros_like(higher), strict=True)
    }
    ranks = LinkRanks(sides, rng.integers(0, len(names), edges))
    return links_report(ranks, names, np.ones((2, edges), np.int64), "pessimistic")


@pytest.mark.parametrize("name", [ODD, "[bold]", "x[/]"])
def test_a_name_with_brackets_is_shown_as_it_is(name: str) -> None:
    assert name in shown(links_table(link_report(30, [name, "other"]), "test"))
    share = ShareReport(0.5, 5, 5, *[interval(np.ones(20))] * 2, None)
    nodes = NodesReport(name, 10, 2, 0, 20, "test", (share,))
    assert name in shown(classify_table(nodes, name))
    lists = RecommendReport(name, 5, 0, *[math.nan] * 5)
    assert name in shown(lists_table(asdict(lists)))


def test_a_relation_with_brackets_is_inspected_and_compared(
    make_graph: Callable[..., Graph], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = [("a", ODD, "b")]
    graph = make_graph({"train": odd}, {ODD: ("x", "x")})
    inspection.show(graph.path)
    said = capsys.readouterr().out
    assert ODD in said
    title = shown(compare_page._table(f"Top-5 lists of 1 for {ODD}", "old"))
    assert ODD in " ".join(title.split())  # a narrow table's title has lines


def test_edges_that_were_known_before_are_told() -> None:
    found = link_report(30, ["buys"])
    assert links_notes(found) == links_notes(found | {"repeats": 0}) == []
    [note] = links_notes(found | {"repeats": 12})
    assert note.startswith("12 of 30 edges are edges of a split before, too")


@pytest.mark.parametrize(("units", "has_one"), [(FEWEST - 1, False), (FEWEST, True)])
def test_few_units_have_no_interval(units: int, has_one: bool) -> None:
    values = np.zeros(units)
    for found in (interval(values), paired(values, values).difference):
        assert found.value == 0
        assert (found.low == found.high == 0) if has_one else math.isnan(found.low + found.high)
    share = ShareReport(0.5, 5, 5, interval(values), interval(values), None)
    table = shown(classify_table(NodesReport("user", 10, 2, 0, units, "test", (share,)), "user"))
    assert ("0.0000 [0.0000, 0.0000]" in table) == has_one and ("—" in table) != has_one
    table = shown(links_table(link_report(units, ["buys"]), "test"))
    assert ("—" in table) != has_one and "nan" not in table
