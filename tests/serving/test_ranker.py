"""The ranker as a service asks it: Python lists in, what training said out."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from partitions import published, ranker_files
from partitions.errors import DataError
from partitions.ranker_files import RankerFiles
from serving.ranker import Ranker
from tests.toy_ranker import clicks, road, write_rows

FILES = ["ranker.json", "ranker.onnx", "features.json", "features.arrow", "golden.arrow"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranker")
    write_rows(folder)
    made = road(folder)
    made.train()
    made.publish()
    return made.published


@pytest.fixture
def folder(root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(root / published.current(root) / "ranker", tmp_path / "ranker"))


def test_rows_are_scored_in_whatever_form_they_come(root: Path) -> None:
    ranker = Ranker.live(root)
    rows, right = ranker.files.golden()
    lists = rows.to_pydict()
    arrays = lists | {name: np.array(lists[name]) for name in ("item", "age")}
    for form in (rows, pa.Table.from_batches([rows]), lists, arrays):
        found = ranker.score(form)
        assert found.dtype == np.float32 and np.abs(found - right).max() < 1e-5
    some = ranker.score({name: values[10:20] for name, values in lists.items()})
    assert np.abs(some - right[10:20]).max() < 1e-5
    assert ranker.score({name: [] for name in lists}).shape == (0, 2)


def test_what_is_missing_is_counted_and_has_its_default(root: Path) -> None:
    ranker = Ranker.live(root)
    whole = {"user": ["u1", "u2"], "item": [3, 4], "tags": ["t1", "t2"], "age": [40.0, 40.0]}
    right = ranker.score(whole)
    assert dict(ranker.missing) == {}
    less = whole | {"age": [None, float("nan")], "more": [1, 2]}
    assert np.array_equal(ranker.score(less), right)
    assert dict(ranker.missing) == {"age": 2}
    without = ranker.score({"item": [3, 4]})
    assert np.isfinite(without).all() and not np.array_equal(without, right)
    assert dict(ranker.missing) == {"age": 4, "user": 2, "tags": 2}


def test_a_value_that_cannot_be_read_names_feature_and_row(root: Path) -> None:
    with pytest.raises(DataError, match="feature item, row 2"):
        Ranker.live(root).score({"item": [3, "three"]})


def test_calls_side_by_side_say_what_they_say_alone(root: Path) -> None:
    ranker = Ranker.live(root)
    batches = [clicks(seed, 50) for seed in range(8)]
    right = [ranker.score(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for found, alone in zip(pool.map(ranker.score, batches * 5), right * 5, strict=True):
            assert np.array_equal(found, alone)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_one_sentence_that_names_it(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=name) as found:
        Ranker.open(folder)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("content", [b"", b"no graph"])
def test_what_is_no_graph_is_refused_by_name(folder: Path, content: bytes) -> None:
    """Even where the digests say that it was written so."""
    about = RankerFiles(folder).about
    (folder / "ranker.onnx").write_bytes(content)
    (folder / "ranker.json").unlink()
    ranker_files.finish(folder, **about.model_dump(exclude={"files"}))
    with pytest.raises(DataError, match=r"ranker\.onnx") as found:
        Ranker.open(folder)
    assert "\n" not in str(found.value)


def test_a_version_without_a_ranker_says_so(tmp_path: Path) -> None:
    (tmp_path / "v000001").mkdir()
    published.set_current(tmp_path, "v000001")
    with pytest.raises(DataError, match="v000001 holds no ranker"):
        Ranker.live(tmp_path)
