"""partitions.tables: trained rows are stored, untouched rows are made anew by their maker."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from partitions import durable, tables, tensors
from partitions.errors import DataError
from partitions.precision import DTYPES, nearest, widen
from partitions.schema import Slot
from partitions.tables import Form, Table

SLOT = Slot("movie", 3)
DIM = 6


def made(offsets: NDArray[np.int64]) -> NDArray[np.float32]:
    """What rows hold before training: a function of the offset alone."""
    return (offsets[:, None] * 100 + np.arange(DIM)).astype(np.float32)


def other(offsets: NDArray[np.int64]) -> NDArray[np.float32]:
    return -made(offsets) - 1


def trained(num_rows: int, touched: list[int]) -> Table:
    table = tables.fresh(num_rows, made)
    rows = np.array(touched, np.int64)
    table.vectors[rows] = np.sqrt(rows + 2)[:, None].astype(np.float32) / np.arange(1, DIM + 1)
    table.state[rows] = rows + 0.5
    return table


def test_a_fresh_table_is_made_and_untouched() -> None:
    table = tables.fresh(5, made)
    np.testing.assert_array_equal(table.vectors, made(np.arange(5)), strict=True)
    np.testing.assert_array_equal(table.state, np.zeros(5, np.float32), strict=True)
    assert table.num_bytes == 5 * (DIM + 1) * 4


@given(
    st.integers(0, 40).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.booleans(), min_size=n, max_size=n))
    )
)
def test_write_then_read_is_identity_and_untouched_rows_are_made(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[int, list[bool]]
) -> None:
    num_rows, flags = case
    touched = np.flatnonzero(np.array(flags, bool)).tolist()
    table = trained(num_rows, touched)
    folder = tmp_path_factory.getbasetemp() / "tables"
    folder.mkdir(exist_ok=True)
    entry = tables.write(folder, SLOT, 7, table)
    path = folder / "movie-003.0000000007.safetensors"
    assert folder.parent / entry.path == path

    found = tables.read(path, made, num_rows)
    np.testing.assert_array_equal(found.vectors, table.vectors, strict=True)
    np.testing.assert_array_equal(found.state, table.state, strict=True)
    assert found.vectors.flags.writeable and found.state.flags.writeable

    # Another maker shows which rows came from the file.
    by_other = tables.read(path, other, num_rows).vectors
    expected = other(np.arange(num_rows))
    expected[touched] = table.vectors[touched]
    np.testing.assert_array_equal(by_other, expected)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_untouched_rows_take_no_room(tmp_path: Path, share: float) -> None:
    num_rows = 10_000
    num_touched = int(num_rows * share)
    table = trained(
        num_rows, list(range(0, num_rows, num_rows // num_touched)) if num_touched else []
    )
    entry = tables.write(tmp_path, SLOT, 1, table)
    content = num_touched * (DIM + 1) * 4 + num_rows // 8
    assert content <= entry.bytes <= content + 8192


def test_the_file_is_a_safetensors_file_with_a_bitmap(tmp_path: Path) -> None:
    tables.write(tmp_path, SLOT, 1, trained(11, [0, 3, 10]))
    stored = safetensors.numpy.load_file(tmp_path / tables.file_name(SLOT, 1))
    assert stored["touched"].tolist() == [0b00001001, 0b00000100]
    assert stored["vectors"].shape == (3, DIM)
    assert stored["state"].tolist() == [0.5, 3.5, 10.5]


def test_file_names_sort_by_slot_then_token() -> None:
    names = [tables.file_name(Slot("user", p), t) for p in (2, 10) for t in (9, 10, 123_456_789)]
    assert names == sorted(names) and len(set(names)) == len(names)


def test_the_returned_entry_describes_the_file(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    entry = tables.write(tmp_path / "tables", SLOT, 1, trained(9, [1]))
    assert durable.verify(tmp_path, entry, "Copy it again.") == tmp_path / entry.path


def test_a_truncated_table_is_an_error_or_whole(tmp_path: Path) -> None:
    table = trained(64, list(range(0, 64, 3)))
    tables.write(tmp_path, SLOT, 1, table)
    path = tmp_path / tables.file_name(SLOT, 1)
    whole = path.read_bytes()
    num_errors = 0
    for length in range(0, len(whole), 13):
        path.write_bytes(whole[:length])
        try:
            np.testing.assert_array_equal(tables.read(path, made, 64).vectors, table.vectors)
        except DataError as error:
            num_errors += 1
            assert str(error).startswith(str(path))
    assert num_errors > 0.95 * len(range(0, len(whole), 13))


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({}, "is not an embedding table."),
        ({"format_version": "1", "rows": "x", "dim": "2"}, "is not an embedding table."),
        ({"format_version": "2", "rows": "1", "dim": "2"}, "is of format 2, this program reads 1."),
    ],
)
def test_another_file_is_refused(tmp_path: Path, metadata: dict[str, str], sentence: str) -> None:
    path = tmp_path / "x.safetensors"
    arrays = {
        "vectors": np.ones((1, 2), np.float32),
        "state": np.ones(1, np.float32),
        "touched": np.ones(1, np.uint8),
    }
    with path.open("wb") as file:
        tensors.write(file, arrays, metadata)
    with pytest.raises(DataError) as caught:
        tables.read(path, made, 1)
    assert str(caught.value) == f"{path} {sentence}"


@pytest.mark.parametrize("touched", [[], [1, 3], list(range(10))])
def test_rows_that_the_graph_has_got_since_are_made(tmp_path: Path, touched: list[int]) -> None:
    table = trained(10, touched)
    tables.write(tmp_path, SLOT, 1, table)
    grown = tables.read(tmp_path / tables.file_name(SLOT, 1), made, 14)
    np.testing.assert_array_equal(grown.vectors[:10], table.vectors)
    np.testing.assert_array_equal(grown.vectors[10:], made(np.arange(10, 14)))
    np.testing.assert_array_equal(grown.state, np.append(table.state, np.zeros(4, np.float32)))


def test_a_table_of_more_rows_than_the_partition_is_refused(tmp_path: Path) -> None:
    tables.write(tmp_path, SLOT, 1, trained(10, [2]))
    path = tmp_path / tables.file_name(SLOT, 1)
    with pytest.raises(DataError) as caught:
        tables.read(path, made, 9)
    assert str(caught.value) == f"{path} has 10 rows where its partition has 9 entities."


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    bad = Table(np.ones((2, DIM), np.complex64), np.ones(2, np.float32))  # type: ignore[arg-type]
    with pytest.raises(KeyError):
        tables.write(tmp_path, SLOT, 1, bad)
    assert list(tmp_path.iterdir()) == []


# --- what other optimizers keep -------------------------------------------------------------------

WIDE = Form("adam", (3,), 2)


def test_a_row_of_state_and_numbers_of_the_whole_table_come_back(tmp_path: Path) -> None:
    table = tables.fresh(40_000, made, WIDE)
    rows = np.arange(1, 40_000, 3)
    table.vectors[rows] = rows[:, None]
    table.state[rows, rows % 3] = rows + 0.5  # one number of three: any of them marks its row
    table.shared[:] = [7, 8]
    (tmp_path / "tables").mkdir()
    entry = tables.write(tmp_path / "tables", SLOT, 1, table)
    by_hand = safetensors.numpy.load_file(tmp_path / entry.path)
    assert by_hand["state"].shape == (len(rows), 3) and by_hand["shared"].tolist() == [7, 8]

    grown = tables.read(tmp_path / entry.path, made, 40_005)
    assert grown.optimizer == "adam"
    np.testing.assert_array_equal(grown.vectors[:40_000], table.vectors)
    np.testing.assert_array_equal(grown.vectors[40_000:], made(np.arange(40_000, 40_005)))
    np.testing.assert_array_equal(grown.state[:40_000], table.state)
    assert not grown.state[40_000:].any()
    np.testing.assert_array_equal(grown.shared, table.shared, strict=True)
    assert (grown.touched == np.isin(np.arange(40_005), rows)).all()


def test_what_a_form_takes_is_what_its_tables_take() -> None:
    for form in (Form(), WIDE):
        table = tables.fresh(50, made, form)
        assert table.num_bytes == 50 * form.row_bytes(DIM) + 4 * form.num_shared


def test_a_file_that_does_not_say_its_optimizer_is_of_row_wise_adagrad(tmp_path: Path) -> None:
    """Bytes as they were written before there was a choice."""
    path = tmp_path / "old.safetensors"
    vectors, state = made(np.array([0, 2])) + 1, np.array([0.5, 2], np.float32)
    with path.open("wb") as file:
        tensors.write(
            file,
            {"vectors": vectors, "state": state, "touched": np.array([0b101], np.uint8)},
            {"format_version": "1", "rows": "3", "dim": str(DIM)},
        )
    table = tables.read(path, made, 3)
    assert table.optimizer == "rowwise_adagrad" and table.state.tolist() == [0.5, 0, 2]
    np.testing.assert_array_equal(table.vectors[[0, 2]], vectors)


def test_a_state_that_is_not_a_number_counts_as_touched() -> None:
    for form in (Form(), WIDE):
        table = tables.fresh(3, made, form)
        table.state[1] = np.nan
        assert table.touched.tolist() == [False, True, False]


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_short_numbers_take_half_the_room_and_come_back(name: str, tmp_path: Path) -> None:
    num_rows, dtype = 50_000, DTYPES[name]
    table = tables.fresh(num_rows, made, Form(precision=name))
    assert table.num_bytes == num_rows * (2 * DIM + 4)
    np.testing.assert_array_equal(table.vectors, nearest(made(np.arange(num_rows)), dtype))
    rows = np.arange(0, num_rows, 7)
    table.vectors[rows] = nearest(np.float32(rows[:, None] / 7), dtype)
    table.state[rows] = 0.5
    (tmp_path / "tables").mkdir()
    entry = tables.write(tmp_path / "tables", SLOT, 1, table)
    by_hand = safetensors.torch.load_file(tmp_path / entry.path)["vectors"]
    assert by_hand.dtype == getattr(torch, name)
    np.testing.assert_array_equal(by_hand.float(), widen(table.vectors[rows]))
    found = tables.read(tmp_path / entry.path, made, num_rows)
    np.testing.assert_array_equal(found.vectors, table.vectors, strict=True)
    np.testing.assert_array_equal(found.state, table.state, strict=True)


# --- rows that need not be in memory -------------------------------------------------------------


class Asked:
    """A tensors.Source that counts how many rows it was asked for at once."""

    def __init__(self, array: NDArray[np.float32]) -> None:
        self.array, self.most = array, 0
        self.dtype, self.shape = array.dtype, array.shape

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[np.float32]:
        self.most = max(self.most, len(rows))
        return self.array[rows]


def test_rows_written_block_by_block_are_the_table_written_whole(tmp_path: Path) -> None:
    num_rows = 300_000
    table = trained(num_rows, list(range(0, num_rows, 3)))
    vectors, state = Asked(table.vectors), Asked(table.state)
    folder = tmp_path / "tables"
    folder.mkdir()
    whole = tables.write(folder, SLOT, 1, table)
    rows = tables.write_rows(folder, SLOT, 2, vectors, state, table.touched, table.optimizer)
    assert (rows.bytes, rows.sha256) == (whole.bytes, whole.sha256)
    assert vectors.most * DIM * 4 <= 1 << 20 and state.most * 4 <= 1 << 20
    assert vectors.most < num_rows / 3  # else this shows nothing


def test_stored_rows_are_those_that_were_touched(tmp_path: Path) -> None:
    table = trained(9, [0, 4, 8])
    folder = tmp_path / "tables"
    folder.mkdir()
    path = tmp_path / tables.write(folder, SLOT, 1, table).path
    found = tables.stored_rows(path, 12, DIM)  # as many as there are now
    assert found.rows.tolist() == [0, 4, 8]
    np.testing.assert_array_equal(found.vectors, table.vectors[found.rows])
    np.testing.assert_array_equal(found.state, table.state[found.rows])
    assert not found.vectors.flags.writeable
    with pytest.raises(DataError, match=r"movie-003\S* was altered: .* 8 rows of 6"):
        tables.stored_rows(path, 8, DIM)
    with pytest.raises(DataError, match=r"movie-003\S* was altered: .* 9 rows of 7"):
        tables.stored_rows(path, 9, DIM + 1)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"movie-003\S* is not a safetensors file"):
        tables.stored_rows(path, 9, DIM)
