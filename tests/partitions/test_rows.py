"""partitions.rows: the same rows from every format, and errors that name file and row."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from partitions import rows
from partitions.config import SourceConfig
from partitions.errors import DataError
from partitions.features import Features, FeaturesConfig

TEXT = "user,age,more\nu1,3,x\nü,,y\nu3,4.5,z\n"
TABLE = pa.table({"user": ["u1", "ü", "u3"], "age": [3.0, None, 4.5], "more": ["x", "y", "z"]})
FEATURES = FeaturesConfig.model_validate(
    {"features": {"user": {"kind": "category"}, "age": {"kind": "number"}}}
)


def make(folder: Path, name: str) -> Path:
    path = folder / name
    if name.endswith(".parquet"):
        pq.write_table(TABLE, path)
    elif name.endswith(".arrow"):
        with pa.ipc.new_file(str(path), TABLE.schema) as writer:
            writer.write_table(TABLE, 2)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(TEXT.replace(",", "\t").encode()))
    else:
        path.write_text(TEXT)
    return path


def read(folder: Path, path: str, columns: Any = ("user", "age"), **more: Any) -> list[Any]:
    return list(rows.batches(folder, SourceConfig(path=path, **more), columns))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv.gz", "a.parquet", "a.arrow"])
def test_features_are_the_same_from_every_format(name: str, tmp_path: Path) -> None:
    make(tmp_path, name)
    found = read(tmp_path, "a.*")
    assert [batch.schema.names for batch in found] == [["user", "age"]] * len(found)
    features = Features.fit(FEATURES, found)
    expected = Features.fit(FEATURES, [TABLE])
    assert features.digest == expected.digest
    encoded = features.encode(pa.Table.from_batches(found))
    assert encoded.single.tolist() == expected.encode(TABLE).single.tolist()
    assert encoded.dense.tolist() == expected.encode(TABLE).dense.tolist()


def test_files_come_in_the_order_of_their_names_and_columns_by_position(tmp_path: Path) -> None:
    (tmp_path / "b.dat").write_text("1::x\n2::y\n")
    (tmp_path / "a.dat").write_text("0::w\n")
    found = read(tmp_path, "*.dat", {"word": 1, "id": 0}, delimiter="::", format="text")
    assert [batch.to_pydict() for batch in found] == [
        {"word": ["w"], "id": ["0"]},
        {"word": ["x", "y"], "id": ["1", "2"]},
    ]


def test_an_error_about_a_value_names_file_and_row(tmp_path: Path) -> None:
    make(tmp_path, "a.csv")
    (tmp_path / "b.csv").write_text(TEXT.replace("4.5", "old"))
    with pytest.raises(DataError, match=r"b\.csv: feature age, row 3: found 'old', expected a num"):
        Features.fit(FEATURES, rows.batches(tmp_path, SourceConfig(path="*.csv"), ["user", "age"]))
    features = Features.fit(FEATURES, read(tmp_path, "a.csv"))
    with pytest.raises(DataError, match=r"b\.csv: feature age, row 3: found 'old'"):
        features.encode(read(tmp_path, "b.csv")[0])


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", "", "a.csv has no rows. Remove it, or export it again."),
        ("a.csv", "user,age\n", "a.csv has no rows."),
        ("a.csv", "usr,age\nx,1\n", "a.csv:1: the header has no column user. Did you mean usr?"),
        ("a.csv", "user,age\nx,1\ny\n", "a.csv:3: expected 2 comma-separated columns"),
        ("a.tsv.gz", gzip.compress(b"user\tage\n" * 99)[:-9], "a.tsv.gz can't be read"),
        ("a.jsonl", json.dumps({"user": 1, "age": 2}), "a.jsonl is JSON, which is not read"),
        ("a.parquet", b"PAR1 and more", "a.parquet can't be read"),
        ("b.csv", "user,age\nx,1\n", "a.* is missing: no such file"),
    ],
)
def test_what_can_not_be_read_is_named(
    name: str, content: str | bytes, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError) as error:
        read(tmp_path, "a.*")
    assert sentence in str(error.value) and "skip_bad" not in str(error.value)


def test_a_parquet_file_without_rows_or_without_a_column_is_named(tmp_path: Path) -> None:
    pq.write_table(TABLE.slice(0, 0), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet has no rows"):
        read(tmp_path, "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet has no column usr\. Did you mean user\?"):
        read(tmp_path, "a.parquet", ["usr"])
