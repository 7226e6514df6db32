"""The data gate as its callers see it: first use, last good batch, acceptance, command, import."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from partitions import readers, sources, validation
from partitions.config import GraphConfig
from partitions.errors import ConfigError, DataError
from partitions.gate import data_schema, statistics
from partitions.gate.anomalies import Cell, Report
from partitions.gate.data_files import Located
from partitions.validation import Gate
from scripts import event_log
from scripts.event_log import ENDPOINTS, Shop, end_of

SHOP = Shop(num_users=1_000, num_items=300)
ROWS = 10_000


def config_of(folder: Path, **more: Any) -> GraphConfig:
    return GraphConfig.model_validate(
        {
            "data": folder / "data",
            "entities": {"user": {}, "item": {}},
            "relations": {n: {"lhs": a, "rhs": b} for n, (a, b) in ENDPOINTS.items()},
            "inputs": [
                {
                    "path": "*.tsv",
                    "columns": {n: n for n in ("lhs", "rel", "rhs", "weight", "timestamp")},
                }
            ],
            **more,
        }
    )


def put(folder: Path, table: pa.Table) -> None:
    event_log.write(table.drop_columns(["device"]), folder / "data", "tsv")


def batch_of(table: pa.Table) -> pa.RecordBatch:
    return table.combine_chunks().to_batches()[0]


def files_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("schema.toml", "statistics.json")}


# --- first use, and what a clean batch leaves behind ----------------------------------------------


def test_the_first_batch_gives_the_schema_and_the_last_good_statistics(tmp_path: Path) -> None:
    put(tmp_path, SHOP.week(0, ROWS))
    report = validation.validate(config_of(tmp_path), tmp_path, as_of=end_of(0))
    assert report.first_use and report.clean and report.exit_code == 0
    schema = data_schema.read(tmp_path / "schema.toml").schema
    assert schema == report.schema
    assert statistics.read(tmp_path / "statistics.json") == report.statistics
    assert schema.columns["weight"].type == "number"
    assert schema.columns["timestamp"].max_lag_days == 0
    assert schema.entities["user"].prefix == "u"
    assert schema.entities["item"].prefix == "item-"
    assert schema.relations["follows"].self_loops is False
    assert schema.graph.final_newline


def test_one_flipped_figure_of_what_a_batch_leaves_is_refused(tmp_path: Path) -> None:
    put(tmp_path, SHOP.week(0, ROWS))
    validation.validate(config_of(tmp_path), tmp_path, as_of=end_of(0))
    path = tmp_path / "statistics.json"
    text = path.read_text()
    assert text.count(f'"rows": {ROWS}') == 1
    path.write_text(text.replace(f'"rows": {ROWS}', f'"rows": {ROWS + 1}'))
    with pytest.raises(DataError, match=r"statistics\.json was altered: .*digest.* Delete it"):
        validation.validate(config_of(tmp_path), tmp_path, as_of=end_of(0))


def test_a_clean_batch_becomes_the_last_good_one_and_another_does_not(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    put(tmp_path, SHOP.week(0, ROWS))
    validation.validate(config, tmp_path, as_of=end_of(0))
    before = files_of(tmp_path)
    put(tmp_path, SHOP.week(1, ROWS))
    assert validation.validate(config, tmp_path, as_of=end_of(1)).clean
    after = files_of(tmp_path)
    assert after["schema.toml"] == before["schema.toml"]
    assert after["statistics.json"] != before["statistics.json"]
    put(tmp_path, event_log.sentinel(SHOP.week(2, ROWS), np.random.default_rng(1)))
    report = validation.validate(config, tmp_path, as_of=end_of(2))
    assert [anomaly.name for anomaly in report.anomalies] == ["sentinel_value"]
    assert files_of(tmp_path) == after
    written = json.loads((tmp_path / "validation.json").read_text())
    assert written["anomalies"][0]["edits"] == ["[columns.weight] min = -1.0"]


def test_an_anomaly_says_what_where_and_how_much(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    put(tmp_path, SHOP.week(0, ROWS))
    validation.validate(config, tmp_path, as_of=end_of(0))
    path = tmp_path / "data" / "part-1.tsv"
    lines = path.read_text().splitlines()
    cells = lines[3].split("\t")
    lines[3] = "\t".join([*cells[:3], "-7.5", cells[4]])
    path.write_text("\n".join(lines) + "\n")
    report = validation.validate(config, tmp_path, as_of=end_of(0))
    (anomaly,) = report.anomalies
    assert anomaly.name == "out_of_range"
    assert str(anomaly.cells[0]) == f"{path} row 3: '-7.5'"  # the header is no row
    assert anomaly.what == (
        "weight is outside what is allowed in 1 of 10,000 rows, from -7.5 to -7.5."
    )
    assert (anomaly.rows, anomaly.observed, anomaly.expected) == (1, 1 / ROWS, 0)
    assert [str(edit) for edit in anomaly.edits] == ["[columns.weight] min = -7.5"]


def test_a_cell_without_text_has_no_quotes() -> None:
    assert str(Cell("tags.csv", 1, "")) == "tags.csv row 1"
    assert str(Cell("tags.csv", 1200, "x")) == "tags.csv row 1,200: 'x'"


def test_malformed_lines_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    put(tmp_path, SHOP.week(0, ROWS))
    validation.validate(config, tmp_path, as_of=end_of(0))
    path = tmp_path / "data" / "part-0.tsv"
    lines = path.read_text().splitlines()
    lines[7:7] = ["only\ttwo", "and\tthree\tcells"] * 10
    path.write_text("\n".join(lines) + "\n")
    report = validation.validate(config, tmp_path, as_of=end_of(0))
    assert [(anomaly.name, anomaly.rows) for anomaly in report.anomalies] == [
        ("malformed_rows", 20)
    ]
    assert report.anomalies[0].cells[0].row == 8


def test_acceptance_edits_the_schema_and_keeps_its_comments(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    put(tmp_path, SHOP.week(0, ROWS))
    validation.validate(config, tmp_path, as_of=end_of(0))
    path = tmp_path / "schema.toml"
    path.write_text(path.read_text().replace("min = 0.0", "min = 0.0  # says Anna", 1))
    rng = np.random.default_rng(2)
    put(tmp_path, event_log.wrong_unit(event_log.sentinel(SHOP.week(1, ROWS), rng), rng))
    report = validation.validate(config, tmp_path, as_of=end_of(1), accept=True)
    assert {anomaly.name for anomaly in report.anomalies} == {"wrong_unit"}
    assert "min = -100.0  # says Anna" in path.read_text()
    accepted = data_schema.read(path).schema
    assert accepted.columns["weight"].drift == 0.05  # drift is accepted by comparing
    assert validation.validate(config, tmp_path, as_of=end_of(1)).clean


def test_without_last_good_statistics_only_rules_are_checked(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    put(tmp_path, SHOP.week(0, ROWS))
    validation.validate(config, tmp_path, as_of=end_of(0))
    (tmp_path / "statistics.json").unlink()
    report = validation.validate(config, tmp_path, as_of=end_of(0))
    assert report.clean and report.distances == ()
    assert report.notes == ("There is no statistics.json: drift can't be checked this time.",)


def test_a_first_batch_that_looks_wrong_raises_doubts(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    table = event_log.sentinel(event_log.tenfold(SHOP.week(0, 2_000), rng), rng)
    put(tmp_path, event_log.mixed(table, rng))
    report = validation.validate(config_of(tmp_path), tmp_path, as_of=end_of(0) - 3 * 86_400)
    text = "\n".join(report.notes)
    assert report.clean
    for part in ("do not read as a number", "in the future", "repeat an earlier one"):
        assert part in text


def test_sentinel_among_few_values_raises_a_doubt() -> None:
    numbers = pa.record_batch({"age": pa.array([-1, *range(20, 60)] * 3)})
    report = validation.check([Located("x", 0, numbers)], None, None)
    assert '2.4% of age are -1, the only negative value: "unknown"?' in report.notes


@pytest.mark.parametrize("tail", ["pareto", "lognormal", "normal", "uniform"])
def test_the_range_leaves_room_for_the_tail(tail: str) -> None:
    batches = []
    for seed in range(31):
        rng = np.random.default_rng(seed)
        drawn = {
            "pareto": rng.pareto(1.1, 5_000),
            "lognormal": rng.lognormal(0, 1.5, 5_000),
            "normal": rng.normal(0, 1, 5_000),
            "uniform": rng.uniform(-1, 1, 5_000),
        }
        batches.append(pa.record_batch({"x": drawn[tail]}))
    first = validation.check([Located("x", 0, batches[0])], None, None)
    for batch in batches[1:]:
        report = validation.check([Located("x", 0, batch)], first.schema, first.statistics)
        assert [anomaly.what for anomaly in report.anomalies] == []


# --- a schema edited by hand is respected ---------------------------------------------------------


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / "schema.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("[columns.weight]", "[columns.weight]\nvalues = [1.0]", "out_of_range"),
        ('prefix = "item-"', 'prefix = "product-"', "key_format"),
        ("self_loops = false", "self_loops = false\nshare = [0.5, 1.0] #", "relation_share"),
        ("[relations.bought]", '[relations.gone]\nlhs = "user"\nrhs = "user"\nshare = [0.1, 1.0]\n'
         "[relations.bought]", "missing_relation"),
        ("[columns.rhs]", '[columns.colour]\ntype = "category"\npresence = 0.5\n'
         "[columns.rhs]", "missing_column"),
    ],
)  # fmt: skip
def test_rules_of_a_person_are_checked(tmp_path: Path, old: str, new: str, name: str) -> None:
    config = config_of(tmp_path)
    put(tmp_path, SHOP.week(0, ROWS))
    validation.validate(config, tmp_path, as_of=end_of(0))
    if "share" in new and "#" in new:
        text = (tmp_path / "schema.toml").read_text().split("[relations.follows]")
        text[1] = "\n".join(line for line in text[1].splitlines() if not line.startswith("share"))
        (tmp_path / "schema.toml").write_text("[relations.follows]\n".join(text))
    edit(tmp_path, old, new)
    report = validation.validate(config, tmp_path, as_of=end_of(0))
    assert [anomaly.name for anomaly in report.anomalies] == [name]


def test_a_new_relation_comes_with_the_lines_that_make_it_known(tmp_path: Path) -> None:
    put(tmp_path, event_log.dropped(SHOP.week(0, ROWS), np.random.default_rng(1)))
    relations = {n: {"lhs": a, "rhs": b} for n, (a, b) in ENDPOINTS.items()}
    relations["bought"] = {"lhs": "user", "rhs": "product"}
    config = config_of(
        tmp_path, relations=relations, entities={"user": {}, "item": {}, "product": {}}
    )
    validation.validate(config, tmp_path, as_of=end_of(0))
    put(tmp_path, SHOP.week(0, ROWS))
    report = validation.validate(config, tmp_path, as_of=end_of(0), accept=True)
    assert report.anomalies[0].name == "unknown_relation"
    schema = data_schema.read(tmp_path / "schema.toml").schema
    assert schema.endpoints["bought"] == ("user", "product")
    assert validation.validate(config, tmp_path, as_of=end_of(0)).clean


def test_star_stands_for_every_relation(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    put(tmp_path, event_log.dropped(SHOP.week(0, ROWS), np.random.default_rng(1)))
    validation.validate(config, tmp_path, as_of=end_of(0))
    put(tmp_path, SHOP.week(0, ROWS))
    names = [a.name for a in validation.validate(config, tmp_path, as_of=end_of(0)).anomalies]
    assert names[0] == "unknown_relation"
    text = (tmp_path / "schema.toml").read_text()
    star = '[relations."*"]\nlhs = "user"\nrhs = "item"\n'
    (tmp_path / "schema.toml").write_text(f"{text}\n{star}")
    names = [a.name for a in validation.validate(config, tmp_path, as_of=end_of(0)).anomalies]
    assert "unknown_relation" not in names


def test_other_entity_types_in_the_config_than_in_the_schema_are_named(tmp_path: Path) -> None:
    put(tmp_path, SHOP.week(0, ROWS))
    validation.validate(config_of(tmp_path), tmp_path, as_of=end_of(0))
    relations = {n: {"lhs": a, "rhs": b} for n, (a, b) in ENDPOINTS.items()}
    relations["bought"] = {"lhs": "item", "rhs": "user"}
    config = config_of(tmp_path, relations=relations)
    report = validation.validate(config, tmp_path, as_of=end_of(0))
    assert [anomaly.name for anomaly in report.anomalies] == ["endpoint_types"]


# --- streams, parts, kills ------------------------------------------------------------------------


@pytest.mark.parametrize(("cut", "step"), [(1, 5_000), (3_333, 700), (9_999, 1_234)])
def test_any_cuts_and_parts_give_the_same_report(cut: int, step: int) -> None:
    rng = np.random.default_rng(4)
    table = event_log.wrong_type(event_log.sentinel(SHOP.week(1, ROWS), rng), rng)
    first = validation.check([Located("x", 0, batch_of(SHOP.week(0, ROWS)))], None, None,
                             endpoints=ENDPOINTS, as_of=end_of(0))  # fmt: skip

    def gate_of(start: int, stop: int, step: int) -> Gate:
        gate = Gate(first.schema, first.statistics, ENDPOINTS, end_of(1))
        for at in range(start, stop, step):
            part = table.slice(at, min(step, stop - at))
            gate.add("log", at, batch_of(part))
        return gate

    whole = gate_of(0, ROWS, ROWS)
    left, right = gate_of(0, cut, step), gate_of(cut, ROWS, step)
    resumed = Gate(first.schema, first.statistics, ENDPOINTS, 0)
    resumed.restore(json.loads(json.dumps(left.state())))
    left.merge(right)
    for at in range(cut, ROWS, step):
        resumed.add("log", at, batch_of(table.slice(at, step)))
    assert left.statistics == whole.statistics == resumed.statistics
    expected = whole.finish()
    assert not expected.clean
    for found in (left.finish(), resumed.finish()):
        assert [(a.name, a.rows, a.cells[:1]) for a in found.anomalies] == [
            (a.name, a.rows, a.cells[:1]) for a in expected.anomalies
        ]


def test_a_relation_given_by_the_input_needs_no_column(tmp_path: Path) -> None:
    table = SHOP.week(0, ROWS).filter(pa.compute.equal(SHOP.week(0, ROWS)["rel"], "bought"))
    columns = {"lhs": "lhs", "rhs": "rhs", "weight": "weight"}
    inputs = [{"path": "*.tsv", "relation": "bought", "columns": columns}]
    config = config_of(tmp_path, inputs=inputs)
    put(tmp_path, table)
    assert validation.validate(config, tmp_path).first_use
    assert validation.validate(config, tmp_path).clean
    schema = data_schema.read(tmp_path / "schema.toml").schema
    assert set(schema.relations) == {"bought"} and "rel" not in schema.columns


def test_json_lines_and_uris_are_read_too(tmp_path: Path) -> None:
    rows = SHOP.week(0, 2_000).drop_columns(["device"]).to_pylist()
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "events.jsonl"
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    columns = {name: name for name in rows[0]}
    config = config_of(tmp_path, inputs=[{"path": path.as_uri(), "columns": columns}])
    assert validation.validate(config, tmp_path, as_of=end_of(0)).first_use
    assert validation.validate(config, tmp_path, as_of=end_of(0)).clean
    for at in range(5, 20):
        lines[at] = lines[at].replace('"weight": ', '"weight": "much", "old": ')
    path.write_text("\n".join(lines) + "\n")
    report = validation.validate(config, tmp_path, as_of=end_of(0))
    assert [anomaly.name for anomaly in report.anomalies] == ["malformed_rows"]
    assert report.anomalies[0].cells[0].row == 6


def test_own_buckets_are_not_for_this_command(tmp_path: Path) -> None:
    config = config_of(tmp_path, inputs=[], own_buckets="graph")
    with pytest.raises(DataError, match="own_buckets are checked where they are made"):
        validation.validate(config, tmp_path)


def test_an_empty_batch_is_an_error(tmp_path: Path) -> None:
    put(tmp_path, SHOP.week(0, ROWS).slice(0, 0))
    with pytest.raises(DataError, match="has no rows"):
        validation.validate(config_of(tmp_path), tmp_path)


def test_a_bad_schema_file_is_an_error(tmp_path: Path) -> None:
    put(tmp_path, SHOP.week(0, 100))
    (tmp_path / "schema.toml").write_text("rows = 3")
    with pytest.raises(ConfigError, match="rows is not a rule"):
        validation.validate(config_of(tmp_path), tmp_path)


def test_gate_of_an_import_takes_what_the_importer_reads(tmp_path: Path) -> None:
    put(tmp_path, SHOP.week(0, ROWS))
    config = config_of(tmp_path)
    validation.validate(config, tmp_path, as_of=end_of(0))
    gate = validation.gate(config, tmp_path, end_of(0))
    (source,) = config.inputs
    for file in sources.expand(config.data, source):
        rows = 0
        for batch in readers.read(
            file, source, source.resolved_columns, floats=("weight",), times=("timestamp",)
        ):
            gate.add(file.name, rows, batch, source.relation)
            rows += len(batch)
    report = gate.finish()
    assert report.clean, [anomaly.what for anomaly in report.anomalies]
    assert report.rows == ROWS


# --- what a first batch must not pass off as the rule ---------------------------------------------


def first_of(folder: Path, name: str, text: str, *columns: str) -> Report:
    (folder / "data").mkdir()
    (folder / "data" / name).write_text(text)
    inputs = [{"path": name, "columns": {c: c for c in columns}, "relation": "bought"}]
    return validation.validate(config_of(folder, inputs=inputs, skip_bad=True), folder)


def test_lines_that_are_no_rows_are_said_and_no_rule(tmp_path: Path) -> None:
    rows = ["lhs\trhs", *(f"u{i}\titem-{i}" for i in range(14)), "u3", "u4"]
    report = first_of(tmp_path, "ragged.tsv", "\n".join(rows) + "\n", "lhs", "rhs")
    (note,) = [note for note in report.notes if "no rows" in note]
    assert note.startswith("12.5% of the lines are no rows")
    assert "ragged.tsv" in note and "import refuses" in note
    assert report.schema is not None and report.schema.graph.malformed <= 0.05


def test_missing_cells_are_said(tmp_path: Path) -> None:
    rows = ["lhs\trhs\tweight", *(f"u{i}\titem-{i}\t{'' if i % 2 else 5}" for i in range(100))]
    rows += ["\titem-3\t1"] * 20
    report = first_of(tmp_path, "half.tsv", "\n".join(rows) + "\n", "lhs", "rhs", "weight")
    assert "41.7% of weight are missing." in report.notes
    (note,) = [note for note in report.notes if "no lhs" in note]
    assert note.startswith("20 rows have no lhs: import refuses")
    assert report.schema is not None and report.schema.columns["lhs"].presence >= 0.95


def test_a_column_without_any_value_is_said_and_no_news_next_time(tmp_path: Path) -> None:
    rows = ["lhs\trhs\tweight", *(f"u{i}\titem-{i}\t" for i in range(100))]
    report = first_of(tmp_path, "none.tsv", "\n".join(rows) + "\n", "lhs", "rhs", "weight")
    assert "100.0% of weight are missing." in report.notes
    batch = pa.record_batch(
        {
            "lhs": [f"u{i}" for i in range(100)],
            "rhs": [f"item-{i}" for i in range(100)],
            "weight": [""] * 100,
        }
    )
    gate = Gate(report.schema, report.statistics, ENDPOINTS)
    gate.add("x", 0, batch, "bought")
    assert gate.finish().clean
