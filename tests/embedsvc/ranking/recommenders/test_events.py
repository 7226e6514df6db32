"""Reading the LightGCN layout: what is there is read, what is wrong is named."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from embedsvc.ranking.recommenders.events import read_lists, read_split
from partitions.errors import DataError


def test_a_split_is_read_with_one_shape(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("0 3 1\n1 0\n2\n")
    with gzip.open(tmp_path / "test.txt.gz", "wt") as file:
        file.write("1 4 4\n")
    split = read_split(tmp_path)
    np.testing.assert_array_equal(
        split.train.toarray(), [[0, 1, 0, 1, 0], [1, 0, 0, 0, 0]]
    )  # user 2 has no events anywhere
    np.testing.assert_array_equal(split.test.toarray(), [[0] * 5, [0, 0, 0, 0, 1]])
    assert split.valid.shape == (2, 5) and split.valid.nnz == 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0 1\n1 x\n", r"train.txt:2: expected whole numbers.*'1 x'"),
        ("0 -1\n", r"train.txt:1: expected whole numbers"),
        ("0 99999999999999999999\n", r"train.txt:1: expected whole numbers"),
        ("0 4294967296\n", r"train.txt:1: expected whole numbers"),
        ("", "has no events"),
        ("5\n", "has no events"),
    ],
)
def test_a_malformed_file_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(DataError, match=sentence):
        read_lists(tmp_path / "train.txt")


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train.txt.gz"
    path.write_bytes(gzip.compress(b"0 1 2\n" * 999)[:-9])
    with pytest.raises(DataError, match=r"train.txt.gz was truncated"):
        read_lists(path)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("0 1\n")
    with pytest.raises(DataError, match=r"has no test.txt"):
        read_split(tmp_path)


def test_numbers_with_large_gaps_are_refused_before_they_take_memory(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("0 1 2\n1 2000000000\n")
    (tmp_path / "test.txt").write_text("0 3\n")
    with pytest.raises(DataError, match=r"items are numbered up to 2000000000, but there are 4"):
        read_split(tmp_path)
