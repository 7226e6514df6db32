"""A ranker's folder: written and read is the same, and damage is a sentence that names the file."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions import ranker_files
from partitions.errors import DataError
from partitions.features import Encoded, Features, FeaturesConfig
from partitions.ranker_files import RankerFiles, fed, inputs_of

ROWS = pa.record_batch(
    {
        "user": ["a", "b", None, "a"],
        "tags": pa.array([["x"], None, [], ["y", "x"]]),
        "age": [1.5, None, 3.0, 4.0],
        "unread": [1, 2, 3, 4],
    }
)
SAID = np.array([[0.1, 1.0], [0.2, 0.0], [1 / 3, 0.5], [0.4, 0.25]])
FILES = ["ranker.json", "ranker.onnx", "features.json", "features.arrow", "golden.arrow"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    features = {
        "user": {"kind": "category"},
        "tags": {"kind": "category", "list": True},
        "age": {"kind": "number"},
    }
    fitted = Features.fit(FeaturesConfig.model_validate({"features": features}), [ROWS])
    folder = tmp_path_factory.mktemp("ranker")
    (folder / ranker_files.MODEL).write_bytes(b"a graph")
    fitted.save(folder)
    ranker_files.write_golden(folder, ROWS, SAID)
    ranker_files.finish(
        folder,
        labels=["click", "like"],
        inputs=inputs_of(fitted.layout),
        features_digest=fitted.digest,
        options={"prune": 0.8},
        metrics={"variants": [1.5, None]},
        golden_gap=1e-7,
    )
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "ranker"))


def test_what_was_written_is_read(folder: Path) -> None:
    found = RankerFiles(folder)
    assert sorted([*found.about.files, "ranker.json"]) == sorted(FILES)
    assert found.about.labels == ["click", "like"] and found.about.options == {"prune": 0.8}
    assert found.about.metrics == {"variants": [1.5, None]} and found.about.golden_gap == 1e-7
    assert found.about.inputs["single"] == ["user"] and found.about.inputs["bag0"] == ["tags"]
    rows, said = found.golden()
    assert rows.schema.metadata is None and rows.equals(ROWS)
    assert np.array_equal(said, SAID)
    right = found.features.encode(ROWS)
    assert np.array_equal(found.features.encode(rows).dense, right.dense)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(folder: Path, name: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    for damaged in (whole[:-2], whole[: len(whole) // 2], b"", whole[:-9] + b"x" + whole[-8:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=name):
            RankerFiles(folder)
    path.unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        RankerFiles(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format_version": 2}, "not of the ranker's format 1, found 2"),
        ({"labels": ["click"]}, "was altered"),
        ({"digest": "0"}, "was altered"),
    ],
)
def test_an_altered_description_is_refused(
    folder: Path, change: dict[str, object], sentence: str
) -> None:
    path = folder / ranker_files.DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=sentence):
        RankerFiles(folder)


def test_features_of_another_ranker_are_refused(folder: Path) -> None:
    spec = {"features": {"user": {"kind": "hash", "buckets": 9}}}
    other = Features.fit(FeaturesConfig.model_validate(spec), [ROWS])
    other.save(folder)
    about = ranker_files._described(folder / ranker_files.DESCRIPTION)
    (folder / ranker_files.DESCRIPTION).unlink()
    ranker_files.finish(folder, **about.model_dump(exclude={"files"}))
    with pytest.raises(DataError, match="of other features"):
        RankerFiles(folder)


@given(bags=st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=5), max_size=8))
def test_a_padded_bag_holds_each_rows_ids(bags: list[list[int]]) -> None:
    ends = np.cumsum([0, *map(len, bags)]).astype(np.int64)
    values = np.array([one for bag in bags for one in bag], np.int32)
    nothing = np.empty((len(bags), 0))
    rows = Encoded(nothing.astype(np.int32), ((values, ends),), nothing.astype(np.float32))
    found = fed(rows)
    assert list(found) == ["bag0"]
    assert found["bag0"].shape == (len(bags), max([1, *map(len, bags)]))
    for row, bag in zip(found["bag0"].tolist(), bags, strict=True):
        assert row == bag + [-1] * (len(row) - len(bag))
