"""partitions.spool: rows come back in their order; a spool is cut back to what a journal says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from partitions.schema import SPLITS, Bucket
from partitions.spool import Spool


def filled(
    spool: Spool,
    lhs: list[int],
    rhs: list[int],
    split: list[int],
    numbers: list[int],
    **binds: bool,
) -> None:
    rows = np.empty(len(lhs), spool.dtype)
    rows["rel"], rows["number"] = 0, numbers
    places = np.array(lhs, np.int64), np.array(rhs, np.int64)
    both = {"lhs_binds": True, "rhs_binds": True} | binds
    spool.add(rows, *places, np.array(split, np.int8), **both)


def read(spool: Spool, split: str, bucket: Bucket, rows: int = 3) -> NDArray[Any]:
    pieces = list(spool.read(split, bucket, rows))
    assert all(len(piece) == rows for piece in pieces[:-1])
    return np.concatenate([np.empty(0, spool.dtype), *pieces])


ROWS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), st.integers(0, 9)),
    max_size=25,
)


@settings(max_examples=50)
@given(st.lists(st.tuples(ROWS, st.booleans()), max_size=5), st.booleans(), st.booleans())
def test_rows_come_back_bucket_by_bucket_in_the_order_they_came(
    tmp_path_factory: pytest.TempPathFactory,
    batches: list[tuple[list[tuple[int, int, int, int]], bool]],
    lhs_binds: bool,
    rhs_binds: bool,
) -> None:
    spool = Spool(tmp_path_factory.mktemp("spool"), 3, ["number"])
    expected: dict[tuple[str, Bucket], list[tuple[int, int, int]]] = {}
    number = 0
    for rows, flush in batches:
        sides: list[list[int]] = [[], [], [], []]
        for split, i, j, offset in rows:
            i, j = i * lhs_binds, j * rhs_binds  # a side of one partition lies in partition 0
            bucket = Bucket(i if lhs_binds else j, j if rhs_binds else i)
            expected.setdefault((SPLITS[split], bucket), []).append((offset, 9 - offset, number))
            values = (i << 32 | offset, j << 32 | 9 - offset, split, number)
            for side, value in zip(sides, values, strict=True):
                side.append(value)
            number += 1
        lhs, rhs, split_of, numbers = sides
        filled(spool, lhs, rhs, split_of, numbers, lhs_binds=lhs_binds, rhs_binds=rhs_binds)
        if flush:
            spool.flush()
    spool.flush()
    assert spool.buckets() == sorted({bucket for _, bucket in expected})
    for (split, bucket), rows_of in expected.items():
        found = read(spool, split, bucket)
        assert found[["lhs", "rhs", "number"]].tolist() == rows_of
        assert spool.num_rows_of(split, bucket) == len(rows_of)


def test_a_bucket_without_rows_reads_as_none(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 2, ["number"])
    spool.flush()
    assert (spool.buckets(), len(read(spool, "test", Bucket(1, 1)))) == ([], 0)


def test_restoring_forgets_what_came_after_the_journal(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 2, ["number"])
    filled(spool, [1, 2, 3], [1, 1, 1], [0, 0, 0], [0, 1, 2])
    spool.flush()
    noted = dict(spool.num_rows), dict(spool.checksums)
    filled(spool, [4, 1 << 32], [1, 1], [0, 2], [3, 4])
    spool.flush()
    again = Spool(tmp_path / "spool", 2, ["number"])
    assert again.holds(*noted)
    again.restore(*noted)
    assert read(again, "train", Bucket(0, 0))["number"].tolist() == [0, 1, 2]
    assert len(read(again, "test", Bucket(1, 0))) == 0
    filled(again, [4], [1], [0], [7])
    again.flush()
    assert read(again, "train", Bucket(0, 0))["number"].tolist() == [0, 1, 2, 7]
    assert again.holds(again.num_rows, again.checksums), "the checksum goes on too"


@pytest.mark.parametrize("damage", ["shorter", "missing", "flipped"])
def test_a_spool_that_lost_rows_does_not_hold_what_a_journal_says(
    tmp_path: Path, damage: str
) -> None:
    spool = Spool(tmp_path / "spool", 1, [])
    rows = np.zeros(3, spool.dtype)
    zeros = np.zeros(3, np.int64)
    spool.add(rows, zeros, zeros, np.zeros(3, np.int8), True, True)
    spool.flush()
    (file,) = (tmp_path / "spool").iterdir()
    assert spool.holds(spool.num_rows, spool.checksums)
    data = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(data[:-1] if damage == "shorter" else b"\x01" + data[1:])
    assert not spool.holds(spool.num_rows, spool.checksums)
