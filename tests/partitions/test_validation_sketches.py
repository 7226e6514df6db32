"""Bounded summaries: what is kept is exact, estimates are near, halves merge to the whole."""

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.gate import key_traits, sketches
from partitions.gate.columns import Keys
from partitions.gate.key_traits import TRAITS, scan, traits_of
from partitions.gate.sketches import CategoryCounts, KeySample, bins_of, mix_all, unmix
from partitions.hashing import hash_keys

words = st.lists(st.text(max_size=6), max_size=60)


def sample_of(hashes: list[int], size: int = 16) -> KeySample:
    sample = KeySample(size)
    sample.add(np.array(hashes, np.uint64))
    return sample


def counts_of(names: list[str], size: int = 8) -> CategoryCounts:
    made = CategoryCounts(size)
    for name in names:  # one at a time: cuts must not matter
        made.add(pa.array([name], pa.large_string()), np.array([1]))
    return made


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 40), max_size=200))
def test_a_sample_keeps_the_smallest_hashes_with_exact_counts(hashes: list[int]) -> None:
    sample = sample_of(hashes)
    smallest = sorted(Counter(hashes).items())[:16]
    exact = len(set(hashes)) <= 16
    assert sample.exact == exact
    kept = smallest if exact else smallest[:-1]
    assert list(zip(*[x.tolist() for x in sample.kept], strict=True)) == kept
    if exact:
        assert sample.distinct == len(set(hashes))


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 99), max_size=300), st.integers(0, 300))
def test_halves_of_a_sample_merge_to_the_whole(hashes: list[int], cut: int) -> None:
    whole, left, right = sample_of(hashes), sample_of(hashes[:cut]), sample_of(hashes[cut:])
    left.merge(right)
    assert left.as_json() == whole.as_json()
    again = KeySample.from_json(json.loads(json.dumps(whole.as_json())))
    assert again.as_json() == whole.as_json()
    again.merge(right)
    left.merge(right)
    assert again.as_json() == left.as_json()


@given(st.lists(st.integers(0, 2**64 - 1), max_size=60), st.integers(2, 20))
def test_a_shrunk_sample_is_as_if_it_had_always_been_so_small(hashes: list[int], size: int) -> None:
    shrunk, small = sample_of(hashes, 24), sample_of(hashes, size)
    shrunk.shrink(size)
    assert shrunk.as_json() == small.as_json()


@given(st.sets(st.integers(0, 2**64 - 1), min_size=17, max_size=40), st.integers(0, 3))
def test_an_overfull_sample_stays_inexact_in_a_merge(hashes: set[int], few: int) -> None:
    ordered = sorted(hashes)
    left = sample_of(ordered[:few])
    left.merge(sample_of(ordered[few:]))
    assert left.as_json() == sample_of(ordered).as_json()
    assert not left.exact


@pytest.mark.parametrize("distinct", [3_000, 100_000, 1_000_000])
def test_the_estimate_of_distinct_values_is_within_its_error(distinct: int) -> None:
    errors = []
    for seed in range(5):
        values = np.arange(distinct, dtype=np.uint64) + np.uint64(seed * 10**9)
        sample = KeySample(2048)
        sample.add(mix_all(values))
        errors.append(sample.distinct / distinct - 1)
    assert np.abs(errors).max() < 4 / np.sqrt(2046)


@given(words, st.integers(0, 60))
def test_halves_of_category_counts_merge_to_the_whole(names: list[str], cut: int) -> None:
    whole, left, right = counts_of(names), counts_of(names[:cut]), counts_of(names[cut:])
    left.merge(right)
    assert left.as_json() == whole.as_json()
    assert CategoryCounts.from_json(whole.as_json()).as_json() == whole.as_json()
    assert whole.total == len(names)
    assert all(whole.counts[name] == names.count(name) for name in whole.counts)
    assert whole.exact == (len(set(names)) <= 8)
    assert len(whole.counts) == min(8, len(set(names)))


@given(st.lists(st.integers(0, 2**64 - 1), max_size=50))
def test_unmix_undoes_the_hash(bits: list[int]) -> None:
    assert unmix(mix_all(np.array(bits, np.uint64))).tolist() == bits


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=64), max_size=50))
def test_bins_keep_the_order_of_numbers(values: list[float]) -> None:
    ordered = np.array(sorted(values)) + 0.0
    bins = bins_of(ordered)
    assert (np.diff(bins) >= 0).all()
    assert ((bins == 0) == (ordered == 0)).all()
    assert (bins_of(-ordered) == -bins).all()


def test_a_bin_is_two_percent_wide() -> None:
    assert bins_of(np.array([1.0, 1.01, 1.03])).tolist() == [40_000, 40_000, 40_001]


# --- how keys are spelt ---------------------------------------------------------------------------


@given(st.lists(st.text(max_size=12), max_size=30))
def test_scan_gives_the_hash_of_the_graph(names: list[str]) -> None:
    text = pa.array(names, pa.large_string())
    keys = Keys(text, np.empty(len(text), np.uint64), np.empty(len(text), np.uint16))
    scan(*keys.slices, keys.hashes, keys.traits)
    assert keys.hashes.tolist() == hash_keys(text).tolist()
    assert keys.traits.tolist() == traits_of(text).tolist()


@pytest.mark.parametrize(
    ("key", "traits"),
    [
        ("", set()),
        ("u123", {"lower", "digits"}),
        ("/m/0_A-b", {"slash", "lower", "digits", "underscore", "upper", "dash"}),
        ("New York, N.Y.", {"upper", "lower", "space", "punctuation", "dot"}),
        ("a:b", {"lower", "colon"}),
        ("café", {"lower", "non-ascii"}),
        ("東京", {"non-ascii"}),
        ("SÃO", {"upper", "non-ascii"}),
        ("café".encode().decode("latin-1"), {"lower", "non-ascii", "broken"}),
        ("l\u2019été".encode().decode("cp1252"), {"lower", "non-ascii", "punctuation", "broken"}),
        ("caf�", {"lower", "non-ascii", "broken"}),
        ("tab\tseparated", {"lower", "broken"}),
        ("nul\0", {"lower", "broken"}),
    ],
)
def test_traits_of_a_key(key: str, traits: set[str]) -> None:
    found = int(traits_of(pa.array([key]))[0])
    assert {name for bit, name in enumerate(TRAITS) if found >> bit & 1} - {"punctuation"} == (
        traits - {"punctuation"}
    )


@given(st.lists(st.text("ab1", max_size=6), min_size=1, max_size=20), st.text("ab1", max_size=4))
def test_shares_prefix_equals_startswith(names: list[str], prefix: str) -> None:
    keys = Keys(pa.array(names, pa.large_string()), np.empty(0, np.uint64), np.empty(0, np.uint16))
    out = np.empty(len(names), bool)
    wanted = np.frombuffer(prefix.encode(), np.uint8)
    shared = key_traits.shares_prefix(*keys.slices, np.arange(len(names)), wanted, out)
    assert out.tolist() == [name.startswith(prefix) for name in names]
    longest = [n for n in range(len(prefix) + 1) if all(x.startswith(prefix[:n]) for x in names)]
    assert shared == max(longest)


def test_memory_of_a_sample_is_bounded() -> None:
    sample = KeySample(2048)
    for part in range(20):
        sample.add(mix_all(np.arange(part * 50_000, (part + 1) * 50_000, dtype=np.uint64)))
    assert len(sample._keys) <= 4 * 4096
    assert len(sketches.packed(np.zeros(sketches.NUM_BUCKETS, np.int64))) < 4096
