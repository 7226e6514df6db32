"""First vectors are a pure function of seed and key."""

import numpy as np
import pyarrow as pa
import pytest

from embedsvc.graph.initial import initial_vectors
from partitions.hashing import hash_keys

KEYS = [f"key-{i}" for i in range(2000)]


def first(keys: list[str], seed: int = 1, dim: int = 8, scale: float = 1e-3) -> np.ndarray:
    return initial_vectors(seed, hash_keys(pa.array(keys)), dim, scale)


# Worked out from the docstring with Python integers: FNV-1a, splitmix64, four 16-bit fields.
_MASK = (1 << 64) - 1


def _mix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return x ^ x >> 31


def _first_in_plain_integers(key: str, seed: int, dim: int, scale: float) -> list[np.float32]:
    h = 0xCBF29CE484222325
    for byte in key.encode():
        h = (h ^ byte) * 0x100000001B3 & _MASK
    state = _mix(_mix(h) ^ _mix(seed))
    numbers = []
    for _ in range(dim):
        state = state + 0x9E3779B97F4A7C15 & _MASK
        bits = _mix(state)
        total = sum(bits >> shift & 0xFFFF for shift in (0, 16, 32, 48))
        numbers.append(np.float32(total - 131070) * np.float32(scale * 3**0.5 / 65536))
    return numbers


@pytest.mark.parametrize("key", ["", "a", "/m/027rn", "ключ", "x" * 300])
@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_a_first_vector_follows_the_documented_formula(key: str, seed: int) -> None:
    found = first([key], seed, dim=5, scale=0.01)[0]
    assert found.tolist() == [float(x) for x in _first_in_plain_integers(key, seed, 5, 0.01)]


def test_the_first_vectors_of_two_keys_are_what_they_have_always_been() -> None:
    """Stored tables leave untouched rows out: a change here needs a new format version."""
    found = first(["alice", "/m/027rn"], seed=1, dim=4, scale=1.0)
    pinned = [
        [0.23844242, 0.47873485, 0.27472943, -0.33855546],
        [0.92377275, -0.3187073, -1.693993, -0.37227887],
    ]
    assert found.tolist() == np.array(pinned, np.float32).tolist()


def test_a_first_vector_does_not_depend_on_its_neighbours() -> None:
    whole = first(KEYS)
    order = np.random.default_rng(3).permutation(len(KEYS))
    shuffled = first([KEYS[i] for i in order])
    assert np.array_equal(shuffled, whole[order])
    assert np.array_equal(first(KEYS[7:8]), whole[7:8])


def test_a_longer_vector_begins_with_the_shorter_one() -> None:
    assert np.array_equal(first(KEYS, dim=8)[:, :5], first(KEYS, dim=5))


@pytest.mark.parametrize("scale", [1e-3, 0.5])
def test_first_vectors_have_mean_zero_and_the_deviation_asked_for(scale: float) -> None:
    found = first(KEYS, dim=50, scale=scale).astype(np.float64)
    n = found.size
    assert abs(found.mean()) < 5 * scale / np.sqrt(n)
    assert found.std() == pytest.approx(scale, rel=5 / np.sqrt(2 * n))
    assert abs(found).max() <= scale * 2 * np.sqrt(3)
    # Columns, and neighbouring keys, know nothing of each other.
    assert abs(np.corrcoef(found.T) - np.eye(50)).max() < 5.5 / np.sqrt(len(KEYS))


def test_first_vectors_differ_between_keys_and_between_seeds() -> None:
    found = np.concatenate([first(KEYS, seed) for seed in range(3)])
    assert len(np.unique(found, axis=0)) == len(found)


def test_no_keys_have_no_vectors() -> None:
    assert first([]).shape == (0, 8)
