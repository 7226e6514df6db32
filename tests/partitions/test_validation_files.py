"""What the data gate says of files that can't be read to their end."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from partitions import validation
from partitions.config import SourceConfig
from partitions.errors import DataError
from partitions.gate.anomalies import Anomaly, Report
from partitions.gate.data_files import Input
from partitions.validation import Gate


def anomalies_of(path: Path) -> list[Anomaly]:
    given = Input(path.parent, SourceConfig(path=path.name), {"lhs": 0, "rhs": 1}, "knows")
    gate = Gate(None, None, {"knows": ("user", "user")}, 1_700_000_000)
    return list(validation.stream(gate, [given]).anomalies)


@pytest.mark.parametrize("name", ["e.csv", "e.csv.gz"])
def test_a_quote_that_is_never_closed_makes_a_file_unreadable(tmp_path: Path, name: str) -> None:
    text = b"".join(b"a%d,%sb%d\n" % (n, b'"' * (n == 5), n) for n in range(99))
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    (found,) = anomalies_of(tmp_path / name)
    assert (found.name, found.fatal) == ("unreadable_file", True)
    assert found.what.startswith(f"{tmp_path / name}:6: a quoted cell begins here and holds whole")


@pytest.mark.parametrize("name", ["e.tsv.gz", "e.tsv.zst"])
def test_a_compressed_file_of_no_bytes_is_truncated(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    (found,) = anomalies_of(tmp_path / name)
    assert (found.name, found.fatal) == ("truncated_file", True)


@pytest.mark.parametrize("unit", ["ns", "us"])
def test_an_anomaly_among_times_that_python_can_not_hold_shows_them(
    tmp_path: Path, unit: str
) -> None:
    columns = {name: name for name in ("lhs", "rhs", "timestamp")}
    given = Input(tmp_path, SourceConfig(path="e.parquet"), dict(columns), "knows")

    def report_of(times: list[int]) -> Report:
        keys = [f"k{n % 50}" for n in range(len(times))]
        table = {
            "lhs": keys,
            "rhs": [f"i{key}" for key in keys],
            "timestamp": pa.array(times, pa.timestamp(unit)),
        }
        pq.write_table(pa.table(table), tmp_path / "e.parquet")
        gate = Gate(schema, None, {"knows": ("user", "user")}, 1_000_000)
        return validation.stream(gate, [given])

    schema = None
    ticks = {"us": 10**6, "ns": 10**9}[unit]
    times = [n * 100 * ticks + 1 for n in range(9000)]
    schema = report_of(times).schema
    found = report_of([*times, *[2**63 - 1] * 60])
    cells = " ".join(str(cell) for anomaly in found.anomalies for cell in anomaly.cells)
    assert ("2262-04-11" if unit == "ns" else "out of range") in cells


def test_columns_that_a_table_lacks_or_has_twice_are_named_as_the_import_names_them(
    tmp_path: Path,
) -> None:
    path = tmp_path / "e.parquet"
    pq.write_table(pa.table({"lhs": ["a"]}), path)
    (found,) = anomalies_of(path)
    assert (
        found.name == "missing_column" and "so there is no column 1 (counted from 0)" in found.what
    )
    pq.write_table(pa.table([["a"], ["b"]], names=["key", "key"]), path)
    (found,) = anomalies_of(path)
    assert found.name == "unreadable_file" and "has 2 columns key. Rename all but one" in found.what


EDGE = {"lhs": ["a", "b"], "rhs": ["x", "y"], "weight": [1.0, 2.0], "timestamp": [1, 2]}


@pytest.mark.parametrize("part", EDGE)
@pytest.mark.parametrize(
    "column",
    [
        pa.array([b"\xff\xfe", b"b"]),
        pa.array([b"\xff\xfe", b"bc"], pa.binary(2)),
        pa.array([b"\xff\xfe", b"b"]).dictionary_encode(),
        pa.array([["a"], ["b"]]),
        pa.array([{"a": 1}] * 2),
    ],
    ids=lambda column: str(column.type).split("<")[0],
)
def test_a_column_that_no_part_of_an_edge_can_be_is_one_sentence(
    tmp_path: Path, part: str, column: pa.Array
) -> None:
    pq.write_table(pa.table({**EDGE, part: column}), tmp_path / "e.parquet")
    given = Input(tmp_path, SourceConfig(path="e.parquet"), dict(zip(EDGE, EDGE, strict=True)), "r")
    report = validation.stream(Gate(None, None, {"r": ("user", "user")}, 1_700_000_000), [given])
    (found,) = report.anomalies
    assert (found.name, report.exit_code) == ("unreadable_file", 2)
    assert found.what.startswith(f"{tmp_path}/e.parquet: column {part} ")


def test_a_first_batch_without_one_whole_edge_gives_no_schema(tmp_path: Path) -> None:
    pq.write_table(pa.table({**EDGE, "lhs": pa.nulls(2), "rel": ["r"] * 2}), tmp_path / "e.parquet")
    columns = {name: name for name in ("lhs", "rel", "rhs")}
    given = Input(tmp_path, SourceConfig(path="e.parquet"), dict(columns))
    with pytest.raises(DataError, match=r"^No row of the batch has both keys and a relation"):
        validation.stream(Gate(None, None, {"*": ("user", "user")}, 1_700_000_000), [given])
