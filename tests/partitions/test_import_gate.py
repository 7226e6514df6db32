"""The data gate as an import runs it, and the rows that an import leaves out."""

import errno
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from partitions import importer, spool
from partitions.config import GraphConfig
from partitions.errors import ConfigError, DataError
from partitions.gate import data_schema
from partitions.gate.anomalies import Refused
from partitions.graph import Graph
from partitions.graph_writer import GraphWriter
from partitions.importer import import_graph
from partitions.skipped import path_of
from partitions.validation import REPORT, SCHEMA, STATISTICS
from tests.partitions.import_cases import (
    NAMES,
    Edge,
    columns,
    edges_of,
    full_disk,
    shop,
    shop_edges,
    tree,
    write_edges,
)

AS_OF = 1_700_000_000


def config_of(folder: Path, **settings: Any) -> GraphConfig:
    inputs = [{"path": "?.tsv", "columns": columns(*NAMES)}]
    return shop(folder, **{"user": 2, "item": 2, "gate": True, "inputs": inputs} | settings)


def negated(edges: list[Edge]) -> list[Edge]:
    """Every fifth weight is -1."""
    return [(*e[:3], e[3] if at % 5 else -1.0, e[4]) for at, e in enumerate(edges)]


def notes(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in (SCHEMA, STATISTICS, REPORT)}


def test_the_first_import_infers_a_schema_and_the_next_is_held_to_it(tmp_path: Path) -> None:
    write_edges(tmp_path / "a.tsv", shop_edges(4000))
    report = import_graph(config_of(tmp_path), tmp_path / "graph", as_of=AS_OF)
    assert report.gate is not None and report.gate.first_use
    first = notes(tmp_path)
    write_edges(tmp_path / "a.tsv", shop_edges(4000, seed=1))
    report = import_graph(config_of(tmp_path), tmp_path / "graph", as_of=AS_OF)
    assert report.gate is not None and report.gate.clean and not report.gate.first_use
    second = notes(tmp_path)
    assert second[SCHEMA] == first[SCHEMA]
    assert second[STATISTICS] != first[STATISTICS]  # the newest clean batch is the last good one


def test_one_flipped_figure_of_what_an_import_leaves_is_refused(tmp_path: Path) -> None:
    write_edges(tmp_path / "a.tsv", shop_edges(4000))
    import_graph(config_of(tmp_path), tmp_path / "graph", as_of=AS_OF)
    text = (tmp_path / STATISTICS).read_text()
    assert text.count('"rows": 4000') == 1
    (tmp_path / STATISTICS).write_text(text.replace('"rows": 4000', '"rows": 4001'))
    with pytest.raises(DataError, match=rf"{STATISTICS} was altered: .*digest.* Delete it"):
        import_graph(config_of(tmp_path), tmp_path / "graph", as_of=AS_OF)


def test_without_the_gate_nothing_is_checked_or_noted(tmp_path: Path) -> None:
    write_edges(tmp_path / "a.tsv", shop_edges(100))
    report = import_graph(config_of(tmp_path, gate=False), tmp_path / "graph")
    assert report.gate is None
    assert {path.name for path in tmp_path.iterdir()} == {"a.tsv", "graph"}


@pytest.mark.parametrize("append", [False, True])
def test_what_the_gate_refuses_changes_nothing_until_it_is_accepted(
    tmp_path: Path, append: bool
) -> None:
    write_edges(tmp_path / "a.tsv", shop_edges(4000))
    import_graph(config_of(tmp_path), tmp_path / "graph", as_of=AS_OF)
    graph, before = tree(tmp_path / "graph"), notes(tmp_path)
    bad = negated(shop_edges(4000, seed=1))
    write_edges(tmp_path / ("b.tsv" if append else "a.tsv"), bad)
    sentence = rf"sentinel_value.* nothing was imported.*{SCHEMA}.*--accept.*{REPORT}"
    with pytest.raises(Refused, match=sentence) as refused:
        import_graph(config_of(tmp_path), tmp_path / "graph", append=append, as_of=AS_OF)
    assert [anomaly.column for anomaly in refused.value.report.anomalies] == ["weight"]
    assert tree(tmp_path / "graph") == graph
    after = notes(tmp_path)
    assert {n: after[n] for n in (SCHEMA, STATISTICS)} == {
        n: before[n] for n in (SCHEMA, STATISTICS)
    }
    named = json.loads(after[REPORT])["anomalies"]
    assert [anomaly["name"] for anomaly in named] == ["sentinel_value"]

    report = import_graph(
        config_of(tmp_path), tmp_path / "graph", append=append, accept=True, as_of=AS_OF
    )
    assert report.resumed  # what the gate had refused was not read again
    assert notes(tmp_path)[SCHEMA] != before[SCHEMA]
    found = edges_of(Graph(tmp_path / "graph"))
    assert sum(found.values()) == (8000 if append else 4000)
    assert sum(count for edge, count in found.items() if edge[3] == -1) == 800
    if not append:  # accepted once, it is what later ones are held to
        again = import_graph(config_of(tmp_path), tmp_path / "graph", as_of=AS_OF)
        assert again.gate is not None and again.gate.clean


def test_an_edited_schema_is_another_import(tmp_path: Path) -> None:
    write_edges(tmp_path / "a.tsv", shop_edges(4000))
    import_graph(config_of(tmp_path), tmp_path / "graph", as_of=AS_OF)
    write_edges(tmp_path / "a.tsv", negated(shop_edges(4000)))
    with pytest.raises(Refused):
        import_graph(config_of(tmp_path), tmp_path / "graph", as_of=AS_OF)
    text = (tmp_path / SCHEMA).read_text()
    head, _, weight = text.partition("[columns.weight]")
    rules, _, tail = weight.partition("\n\n")
    kept = [line for line in rules.splitlines() if line.split(" ")[0] not in ("min", "drift")]
    (tmp_path / SCHEMA).write_text(f"{head}[columns.weight]\n" + "\n".join(kept) + "\n\n" + tail)
    with pytest.raises(Refused) as refused:  # of the drift there is a default threshold
        import_graph(config_of(tmp_path), tmp_path / "graph", as_of=AS_OF)
    assert {a.name for a in refused.value.report.anomalies}.isdisjoint({"out_of_range"})
    report = import_graph(config_of(tmp_path), tmp_path / "graph", accept=True, as_of=AS_OF)
    assert report.resumed


def refused_then(folder: Path) -> None:
    """A first batch that is in, and a second one that was refused."""
    write_edges(folder / "a.tsv", shop_edges(4000))
    import_graph(config_of(folder), folder / "graph", as_of=AS_OF)
    write_edges(folder / "a.tsv", negated(shop_edges(4000)))
    with pytest.raises(Refused):
        import_graph(config_of(folder), folder / "graph", as_of=AS_OF)


def accepted(folder: Path, as_of: int | None = AS_OF) -> bool:
    return import_graph(config_of(folder), folder / "graph", accept=True, as_of=as_of).resumed


def test_only_the_batch_that_was_refused_is_accepted(tmp_path: Path) -> None:
    refused_then(tmp_path)
    write_edges(tmp_path / "a.tsv", [*negated(shop_edges(4000)), *[("u1", "saw", "i1", 1.0, 5)]])
    before = tree(tmp_path / "graph")
    with pytest.raises(Refused, match=r"not the batch that was refused before.*once more") as again:
        accepted(tmp_path)
    assert again.value.report.rows == 4001
    assert tree(tmp_path / "graph") == before
    assert accepted(tmp_path), "now it was shown"


def test_a_batch_that_nobody_saw_refused_is_not_accepted(tmp_path: Path) -> None:
    write_edges(tmp_path / "a.tsv", shop_edges(4000))
    accepted(tmp_path)  # a clean one needs no seeing
    write_edges(tmp_path / "a.tsv", negated(shop_edges(4000)))
    with pytest.raises(Refused, match="not the batch that was refused before"):
        accepted(tmp_path)


def test_accepting_keeps_the_day_that_the_batch_was_refused_with(tmp_path: Path) -> None:
    refused_then(tmp_path)
    with pytest.raises(Refused):  # another day is another check
        accepted(tmp_path, AS_OF + 86_400)
    refused_then_again = json.loads((tmp_path / REPORT).read_text())
    assert refused_then_again["anomalies"]
    assert accepted(tmp_path, None)
    assert json.loads((tmp_path / STATISTICS).read_text())["as_of"] == AS_OF + 86_400


@pytest.mark.parametrize("kind", ["inline tables", "relation names"])
def test_an_edit_is_made_before_anything_is_committed(tmp_path: Path, kind: str) -> None:
    write_edges(tmp_path / "a.tsv", shop_edges(4000))
    odd = "saw\u2028again\x85"
    relations = {
        name: {"lhs": "user", "rhs": "user" if name == "follows" else "item"}
        for name in ("bought", "saw", "follows", odd)
    }
    config = config_of(tmp_path, relations=relations)
    import_graph(config, tmp_path / "graph", as_of=AS_OF)
    if kind == "inline tables":
        text = (tmp_path / SCHEMA).read_text()
        values = data_schema.parse(text, SCHEMA).columns["weight"].model_dump(exclude_none=True)
        inline = ", ".join(f"{key} = {data_schema.toml_of(v)}" for key, v in values.items())
        head, _, rest = text.partition("[columns.weight]\n")
        rest = rest.partition("\n\n")[2]
        (tmp_path / SCHEMA).write_text(f"columns.weight = {{{inline}}}\n{head}{rest}")
        bad = negated(shop_edges(4000))
    else:
        bad = [(e[0], odd if e[1] == "saw" else e[1], *e[2:]) for e in shop_edges(4000)]
    write_edges(tmp_path / "a.tsv", bad)
    before = tree(tmp_path / "graph") | {SCHEMA: (tmp_path / SCHEMA).read_bytes()}
    with pytest.raises(Refused):
        import_graph(config, tmp_path / "graph", as_of=AS_OF)
    if kind == "inline tables":
        with pytest.raises(ConfigError, match="can't change it by itself"):
            import_graph(config, tmp_path / "graph", as_of=AS_OF, accept=True)
        after = tree(tmp_path / "graph") | {SCHEMA: (tmp_path / SCHEMA).read_bytes()}
        assert after == before
        return
    import_graph(config, tmp_path / "graph", as_of=AS_OF, accept=True)
    schema = data_schema.read(tmp_path / SCHEMA).schema
    assert odd in schema.relations
    again = import_graph(config, tmp_path / "graph", as_of=AS_OF)
    assert again.gate is not None and again.gate.clean


def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal entry after every piece."""
    monkeypatch.setattr(importer, "_JOURNAL_S", 0)
    monkeypatch.setattr(importer, "_JOURNAL_SHARE", 0)
    monkeypatch.setattr(spool, "HELD_ROWS", 1)
    monkeypatch.setattr("partitions.columnar._BATCH_ROWS", 100)


def test_the_gate_of_a_broken_off_import_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off after every third piece, it leaves behind what an undisturbed one does."""
    often(monkeypatch)
    inputs = [{"path": "?.parquet", "columns": {name: name for name in NAMES}}]
    for folder in ("whole", "broken"):
        (tmp_path / folder).mkdir()
        for at, name in enumerate("ab"):
            edges = shop_edges(450, seed=at)
            table = {name: [edge[n] for edge in edges] for n, name in enumerate(NAMES)}
            pq.write_table(pa.table(table), tmp_path / folder / f"{name}.parquet")
    whole = config_of(tmp_path / "whole", inputs=inputs)
    import_graph(whole, tmp_path / "whole" / "graph", as_of=AS_OF)
    broken = config_of(tmp_path / "broken", inputs=inputs)
    took = importer._Reading._take
    breaks = 0
    for _ in range(20):
        left = [3]

        def taking(*arguments: Any, left: list[int] = left) -> None:
            if not left[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            left[0] -= 1
            took(*arguments)

        monkeypatch.setattr(importer._Reading, "_take", taking)
        try:
            import_graph(broken, tmp_path / "broken" / "graph", as_of=AS_OF)
            break
        except OSError:
            breaks += 1
    assert breaks >= 2
    assert notes(tmp_path / "broken") == notes(tmp_path / "whole")


# --- rows that are left out -----------------------------------------------------------------------


def skipped(graph: Path) -> list[tuple[str, str, str]]:
    lines = path_of(graph).read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [(Path(row["file"]).name, row["why"], row["row"]) for row in rows]


def test_bad_rows_of_every_format_are_kept_aside(tmp_path: Path) -> None:
    good = [("u1", "bought", "i1", 1.0, 5), ("u2", "saw", "i2", 2.0, 6)]
    write_edges(tmp_path / "a.tsv", [*good, ("u3", "bough\u00e9"), ("", "saw", "i3", 1.0, 7)])
    write_edges(tmp_path / "b.tsv", [*good, ("u3", "saw", "i3", "much", 7)])
    lines = [dict(zip(NAMES, edge, strict=True)) for edge in good]
    text = [*map(json.dumps, lines), '{"lhs": "u4"', json.dumps(lines[0] | {"weight": "x"})]
    (tmp_path / "c.jsonl").write_text("\n".join(text))
    table = [*lines, lines[0] | {"rhs": None}]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "d.parquet")
    named = {name: name for name in NAMES}
    inputs = [
        {"path": "?.tsv", "columns": columns(*NAMES)},
        {"path": "c.jsonl", "columns": named},
        {"path": "d.parquet", "columns": named},
    ]
    config = config_of(tmp_path, inputs=inputs, skip_bad=True, gate=False)
    report = import_graph(config, tmp_path / "graph")
    assert report.skipped_rows == 6 and report.skipped_file == path_of(tmp_path / "graph")
    assert sum(report.num_edges.values()) == 8
    found = skipped(tmp_path / "graph")
    assert [row[:2] for row in found] == [
        ("a.tsv", "lhs is missing or empty"),
        ("a.tsv", "expected 5 columns, found 2"),
        ("b.tsv", "weight is 'much', expected a number"),
        (
            "c.jsonl",
            "line 3: expected a JSON object, found something else (Expecting ',' delimiter)",
        ),
        ("c.jsonl", "weight is 'x', expected a number"),
        ("d.parquet", "rhs is missing or empty"),
    ]
    assert found[1][2] == "u3\tbough\u00e9"
    assert json.loads(found[2][2]) == dict(
        zip(NAMES, ("u3", "saw", "i3", "much", "7"), strict=True)
    )

    (tmp_path / "a.tsv").unlink()  # and an import without bad rows takes the file away
    clean = [{"path": "d.parquet", "columns": named}]
    pq.write_table(pa.Table.from_pylist(lines), tmp_path / "d.parquet")
    report = import_graph(config_of(tmp_path, inputs=clean, gate=False), tmp_path / "graph")
    assert report.skipped_file is None and not path_of(tmp_path / "graph").exists()


def test_an_import_that_goes_on_keeps_each_bad_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often(monkeypatch)
    for at in range(3):
        write_edges(tmp_path / f"{at}.tsv", [*shop_edges(200, seed=at), (f"bad{at}",)])
    config = config_of(tmp_path, skip_bad=True)
    with full_disk(monkeypatch, GraphWriter, "_write_buckets"):
        import_graph(config, tmp_path / "graph")
    report = import_graph(config, tmp_path / "graph")
    assert report.resumed and report.skipped_rows == 3
    assert [row[2] for row in skipped(tmp_path / "graph")] == ["bad0", "bad1", "bad2"]


def test_the_gate_counts_lines_that_are_no_rows_and_sees_bad_cells_itself(tmp_path: Path) -> None:
    write_edges(tmp_path / "a.tsv", shop_edges(4000))
    import_graph(config_of(tmp_path, skip_bad=True), tmp_path / "graph", as_of=AS_OF)
    bad = [("u1", "bought")] * 300 + [("u1", "bought", "i1", "much", 7)] * 300
    write_edges(tmp_path / "a.tsv", [*shop_edges(4000), *bad])
    with pytest.raises(Refused) as refused:
        import_graph(config_of(tmp_path, skip_bad=True), tmp_path / "graph", as_of=AS_OF)
    found = {anomaly.name: anomaly.rows for anomaly in refused.value.report.anomalies}
    assert (found["malformed_rows"], found["mixed_types"]) == (300, 300)


def test_rows_of_a_relation_that_the_config_lacks_are_named_or_kept_aside(tmp_path: Path) -> None:
    edges = shop_edges(50)
    edges[6] = ("u1", "bohgt", "i1", 1.0, 5)
    text = "".join("\t".join(map(str, edge)) + "\n" for edge in [("a", "b", "c", "d", "e"), *edges])
    (tmp_path / "a.tsv").write_text(text.replace("\n", "\n\n", 3))  # blank lines are no rows
    inputs = [{"path": "a.tsv", "header": True, "columns": columns(*NAMES)}]
    config = config_of(tmp_path, inputs=inputs, gate=False)
    sentence = (
        r"a\.tsv row 7: the relation bohgt is not under \[graph\.relations\]\. Did you mean bought"
    )
    with pytest.raises(DataError, match=sentence):
        import_graph(config, tmp_path / "graph")
    config = config_of(tmp_path, inputs=inputs, gate=False, skip_bad=True)
    report = import_graph(config, tmp_path / "graph")
    assert (report.skipped_rows, sum(report.num_edges.values())) == (1, 49)
    ((_, why, row),) = skipped(tmp_path / "graph")
    assert why == "the relation bohgt is not under [graph.relations]"
    assert json.loads(row)["rel"] == "bohgt"
    assert Graph(tmp_path / "graph").manifest.sources[0]["rows"] == 49


def test_lines_that_are_no_rows_are_counted_however_much_memory_they_would_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("partitions.delimited._MOST_BYTES", 10 * (200 + 1000))
    write_edges(tmp_path / "a.tsv", [*shop_edges(50), *[("b" * 1000,)] * 25])
    report = import_graph(config_of(tmp_path, skip_bad=True), tmp_path / "graph")
    assert report.skipped_rows == 25
    assert [row[2] for row in skipped(tmp_path / "graph")].count("b" * 1000) == 10


def test_without_skip_bad_the_first_bad_row_stops_the_import(tmp_path: Path) -> None:
    write_edges(tmp_path / "a.tsv", [*shop_edges(50), ("bad",)])
    with pytest.raises(DataError, match=r"a\.tsv:51: expected 5 .*found 1"):
        import_graph(config_of(tmp_path), tmp_path / "graph")
    assert {path.name for path in tmp_path.iterdir()} == {"a.tsv"}
