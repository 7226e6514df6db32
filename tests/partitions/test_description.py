"""partitions.description: degrees, hubs and bands are those of a plain loop over the edges."""

from collections import Counter
from pathlib import Path
from statistics import fmean, median

import pytest

from partitions.description import band_name, describe_types
from partitions.graph import Graph
from partitions.importer import import_graph
from partitions.schema import SPLITS
from tests.partitions.import_cases import (
    NAMES,
    columns,
    edges_in_order,
    shop,
    shop_edges,
    write_edges,
)


@pytest.mark.parametrize(("user", "item"), [(1, 1), (3, 3), (3, 1), (1, 3)])
def test_it_is_what_a_plain_loop_counts(tmp_path: Path, user: int, item: int) -> None:
    edges = shop_edges(500, seed=user, users=70, items=30)
    edges += [("hub", "bought", f"i{n % 30}", 1.0, 0) for n in range(300)]
    write_edges(tmp_path / "e.tsv", edges)
    inputs = [{"path": "e.tsv", "columns": columns(*NAMES)}]
    config = shop(
        tmp_path, user=user, item=item, inputs=inputs, holdout={"valid": 0.2, "test": 0.1}
    )
    import_graph(config, tmp_path / "graph")
    graph = Graph(tmp_path / "graph")
    degrees: dict[str, Counter[str]] = {"user": Counter(), "item": Counter()}
    for split in SPLITS:
        for lhs, rel, rhs, *_ in edges_in_order(graph, split):
            degrees["user"][lhs] += 1
            degrees["user" if rel == "follows" else "item"][rhs] += 1
    described = {found.name: found for found in describe_types(graph, num_hubs=5)}
    assert list(described) == ["user", "item"]
    for name, found in described.items():
        counts = [degrees[name][key] for key in graph.all_keys(name).to_pylist()]
        assert (found.num_entities, sum(found.rows)) == (len(counts), len(counts))
        assert len(found.rows) == {"user": user, "item": item}[name]
        assert found.median_degree == median(counts)
        assert found.mean_degree == pytest.approx(fmean(counts))
        bands = Counter(0 if not count else count.bit_length() for count in counts)
        assert found.degree_histogram == [bands[band] for band in range(max(bands) + 1)]
        assert [hub.degree for hub in found.hubs] == sorted(counts, reverse=True)[:5]
        assert all(degrees[name][hub.key] == hub.degree for hub in found.hubs)
    assert described["user"].hubs[0].key == "hub"


def test_fewer_entities_than_hubs_are_all_named(tmp_path: Path) -> None:
    write_edges(tmp_path / "e.tsv", [("a", "bought", "x"), ("b", "bought", "x")])
    import_graph(shop(tmp_path), tmp_path / "graph")
    users, items = describe_types(Graph(tmp_path / "graph"))
    assert [(hub.key, hub.degree) for hub in users.hubs] == [("a", 1), ("b", 1)]
    assert [(hub.key, hub.degree) for hub in items.hubs] == [("x", 2)]
    assert (users.degree_histogram, items.degree_histogram) == ([0, 2], [0, 0, 1])


def test_a_self_loop_counts_at_both_its_ends(tmp_path: Path) -> None:
    write_edges(tmp_path / "e.tsv", [("a", "follows", "a"), ("a", "bought", "x")])
    import_graph(shop(tmp_path), tmp_path / "graph")
    assert describe_types(Graph(tmp_path / "graph"))[0].hubs[0].degree == 3


def test_bands_name_the_degrees_they_hold() -> None:
    assert [band_name(band) for band in range(5)] == ["0", "1", "2-3", "4-7", "8-15"]
    assert band_name(11) == "1,024-2,047"
    for degree in range(1, 5000):
        low, _, high = band_name(degree.bit_length()).replace(",", "").partition("-")
        assert int(low) <= degree <= int(high or low)
