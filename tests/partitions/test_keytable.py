"""partitions.keytable, partitions.dictionary: a plain dict's twin, whatever hashes collide."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from partitions import keytable
from partitions.dictionary import PARTITION_SHIFT, Dictionary, Workers
from partitions.hashing import hash_keys
from partitions.keytable import UNKNOWN, KeyTable

HALVES = st.sampled_from([0, 1, 7, 1024, 1025, 2048, 1 << 63, (1 << 64) - 1])  # many share a slot
PRINTS = st.lists(st.tuples(HALVES, HALVES), max_size=40)


class Twin:
    """What a KeyTable is, as a dict."""

    def __init__(self, num_partitions: int) -> None:
        self.places: dict[tuple[int, int], int] = {}
        self.counts = [0] * num_partitions

    def insert(self, prints: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
        """(places, rows of those seen for the first time)"""
        new_rows = []
        for row, key in enumerate(prints):
            if key not in self.places:
                partition = key[0] % len(self.counts)
                self.places[key] = partition << PARTITION_SHIFT | self.counts[partition]
                self.counts[partition] += 1
                new_rows.append(row)
        return [self.places[key] for key in prints], new_rows


def as_array(prints: list[tuple[int, int]]) -> NDArray[np.uint64]:
    return np.array(prints, np.uint64).reshape(-1, 2)


def insert(table: KeyTable, prints: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    places = np.empty(len(prints), np.int64)
    missing = table.find(as_array(prints), places)
    assert missing == (places == UNKNOWN).sum()
    new_rows = table.insert(as_array(prints), places, missing)
    return places.tolist(), new_rows.tolist()


@given(st.lists(PRINTS, max_size=5), st.integers(1, 5))
def test_any_fingerprints_are_told_apart_like_the_keys_of_a_dict(
    batches: list[list[tuple[int, int]]], num_partitions: int
) -> None:
    table, twin = KeyTable(num_partitions), Twin(num_partitions)
    for prints in batches:
        assert insert(table, prints) == twin.insert(prints)
        assert (table.counts.tolist(), len(table)) == (twin.counts, len(twin.places))


def test_growth_over_several_doublings_moves_no_place() -> None:
    table, twin = KeyTable(3), Twin(3)
    rng = np.random.default_rng(1)
    sizes = []
    for step in range(12):
        prints = list(map(tuple, rng.integers(0, 1 << 63, (50 << step, 2)).tolist()))
        prints += list(twin.places)[:: max(step, 1) * 7]
        assert insert(table, prints) == twin.insert(prints)
        sizes.append(len(table._slots))
    everything = list(twin.places)
    assert insert(table, everything) == (list(twin.places.values()), [])
    assert sizes[-1] >= 32 * sizes[0], "it grew five times at least"
    assert all(len(twin.places) * 4 <= size * 3 for size in sizes[-1:])


def test_forged_first_halves_are_told_apart_by_the_second() -> None:
    """Equal FNV-1a hashes are easy to forge; here 5,000 keys share one, slot and partition."""
    table = KeyTable(4)
    forged = [(42, second) for second in range(5000)]
    places, new_rows = insert(table, forged)
    assert places == [(42 % 4) << PARTITION_SHIFT | offset for offset in range(5000)]
    assert new_rows == list(range(5000))
    assert insert(table, forged[::-1]) == (places[::-1], [])
    out = np.empty(1, np.int64)
    assert table.find(as_array([(42, 5000)]), out) == 1 and out[0] == UNKNOWN


def test_keys_that_collide_in_their_slot_are_told_apart() -> None:
    """Keys whose hashes share the low 12 bits: one slot of the first tables, one partition of 4."""
    keys = pa.array([f"key {n}" for n in range(200_000)])
    hashes = hash_keys(keys)
    same = np.flatnonzero((hashes & np.uint64(0xFFF)) == (hashes[0] & np.uint64(0xFFF)))
    chosen = keys.take(pa.array(same))
    assert len(chosen) > 30
    dictionary = Dictionary(4)
    places, found = dictionary.encode(chosen)
    partition = int(hashes[0] % np.uint64(4))
    assert places.tolist() == [partition << PARTITION_SHIFT | n for n in range(len(chosen))]
    assert (found == hashes[same]).all()
    assert dictionary.keys(partition).equals(chosen.cast(pa.large_string()))


# --- fingerprints ---------------------------------------------------------------------------------


def test_both_halves_depend_on_every_byte_and_the_length() -> None:
    texts = ["", "\0", "\0\0", "a", "a\0", "\0a", "b", "ab", "ba", "é", "e\u0301", "A" * 1000]
    texts += ["A" * 999 + "B", "B" + "A" * 999]
    prints = KeyTable.fingerprints(pa.array(texts))
    assert len(set(prints[:, 0].tolist())) == len(set(prints[:, 1].tolist())) == len(texts)


def test_the_first_half_is_the_hash_of_the_format_and_the_second_is_seeded() -> None:
    keys = pa.array(["", "a", "Привет", "x" * 5000])
    prints = KeyTable.fingerprints(keys)
    assert (prints[:, 0] == hash_keys(keys)).all()
    data, offsets = keytable.text_buffers(keys)
    other = np.empty_like(prints)
    keytable.fingerprint(data, offsets, np.uint64(12345), other)
    assert (other[:, 0] == prints[:, 0]).all() and (other[:, 1] != prints[:, 1]).all()


def test_many_similar_keys_have_as_many_second_halves() -> None:
    for keys in (np.arange(300_000), np.arange(300_000) * 256 + (1 << 40)):
        prints = KeyTable.fingerprints(pa.array(keys).cast(pa.string()))
        assert len(np.unique(prints[:, 1])) == len(np.unique(prints[:, 0])) == 300_000


# --- the dictionary -------------------------------------------------------------------------------

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), max_size=30)


@settings(max_examples=50)
@given(st.lists(TEXTS, max_size=5), st.integers(1, 4), st.integers(1, 3))
def test_a_dictionary_is_a_dict_with_one_thread_and_several(
    batches: list[list[str]], num_partitions: int, threads: int
) -> None:
    with ThreadPoolExecutor(threads) as pool:
        workers = Workers(pool, threads)
        many, one = Dictionary(num_partitions), Dictionary(num_partitions)
        expected: dict[str, int] = {}
        counts = [0] * num_partitions
        for texts in batches:
            keys = pa.array(texts, pa.string())
            for key, hashed in zip(texts, hash_keys(keys).tolist(), strict=True):
                if key not in expected:
                    partition = hashed % num_partitions
                    expected[key] = partition << PARTITION_SHIFT | counts[partition]
                    counts[partition] += 1
            for dictionary in (many, one):
                places, _ = dictionary.encode(
                    keys, workers if dictionary is many else Workers(None, 1)
                )
                assert places.tolist() == [expected[key] for key in texts]
        assert many.num_rows == one.num_rows == counts


def test_several_slices_and_threads_give_the_places_of_one() -> None:
    rng = np.random.default_rng(2)
    batches = [pa.array(rng.integers(0, 60_000, 100_000)).cast(pa.string()) for _ in range(4)]
    alone = Dictionary(5)
    expected = [alone.encode(batch)[0] for batch in batches]
    for threads in (2, 4):
        with ThreadPoolExecutor(threads) as pool:
            dictionary = Dictionary(5)
            for batch, places in zip(batches, expected, strict=True):
                assert (dictionary.encode(batch, Workers(pool, threads))[0] == places).all()
        assert all(dictionary.keys(part).equals(alone.keys(part)) for part in range(5))


def test_keys_of_a_megabyte_and_the_empty_key_are_keys() -> None:
    texts = ["a" * (1 << 20), "a" * (1 << 20) + "b", "", "a" * (1 << 20), "é" * (1 << 19), ""]
    dictionary = Dictionary(2)
    places, _ = dictionary.encode(pa.array(texts))
    numbers = dict(zip(texts, places.tolist(), strict=True))
    assert len(dictionary) == len(set(numbers.values())) == 4
    assert [numbers[text] for text in texts] == places.tolist()
    assert sorted(dictionary.keys(0).to_pylist() + dictionary.keys(1).to_pylist()) == sorted(
        numbers
    )


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_an_empty_batch_changes_nothing(kind: pa.DataType) -> None:
    dictionary = Dictionary(3)
    for keys in (pa.array([], kind), pa.array(["a"], kind).slice(1)):
        places, hashes = dictionary.encode(keys)
        assert (places.tolist(), hashes.tolist(), dictionary.num_rows) == ([], [], [0, 0, 0])
    assert dictionary.keys(2).type == pa.large_string()


def test_keys_from_an_offset_on_are_the_tail_of_all_keys() -> None:
    dictionary = Dictionary(1)
    for start in range(0, 100, 7):
        dictionary.encode(pa.array([str(n) for n in range(start, start + 7)]))
    whole = dictionary.keys(0).to_pylist()
    assert whole == [str(n) for n in range(105)]
    assert all(dictionary.keys(0, at).to_pylist() == whole[at:] for at in range(107))


def test_a_failing_task_ends_before_its_error_is_heard() -> None:
    """Else a thread would still write into a folder that is being swept."""
    done: list[int] = []

    def work(item: int) -> int:
        if item == 1:
            raise ValueError("one")
        done.append(item)
        return item

    with ThreadPoolExecutor(2) as pool:
        workers = Workers(pool, 2)
        with pytest.raises(ValueError, match="one"):
            workers.map(work, range(50))
        finished = len(done)
        assert workers.map(lambda item: item, range(100)) == list(range(100))
        assert len(done) == finished
