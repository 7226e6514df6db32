"""partitions.hashing: the hash is part of the graph format, so its values are fixed for ever."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.hashing import hash_edges, hash_keys

MASK = (1 << 64) - 1


def mixed(x: int) -> int:
    """splitmix64's finaliser in plain Python."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def hashed(key: str) -> int:
    """FNV-1a over UTF-8, then the finaliser, in plain Python."""
    h = 0xCBF29CE484222325
    for byte in key.encode():
        h = (h ^ byte) * 0x100000001B3 & MASK
    return mixed(h)


@pytest.mark.parametrize(
    ("key", "answer"),
    [
        ("", 0xF52A15E9A9B5E89B),
        ("a", 0x02C0BDBF481420F8),
        ("movie/1", 0xCBC1445C003F5A65),
        ("zażółć", 0xCEE8E9A15795C512),
        ("東京", 0xE9088BDD85D61035),
        ("🜁", 0x571738DA58623C69),
    ],
)
def test_known_answers_never_change(key: str, answer: int) -> None:
    assert hash_keys(pa.array([key])).tolist() == [answer]


def test_the_published_fnv1a_vector_holds() -> None:
    # FNV-1a 64 of "foobar" is 0x85944171f73967e8 (the authors' test vectors).
    assert hash_keys(pa.array(["foobar"])).tolist() == [mixed(0x85944171F73967E8)]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_hash_equals_plain_python(keys: list[str]) -> None:
    hashes = hash_keys(pa.array(keys, pa.string()))
    assert hashes.dtype == np.uint64
    assert hashes.tolist() == [hashed(key) for key in keys]


@pytest.mark.parametrize("dtype", [pa.string(), pa.large_string()], ids=str)
def test_a_slice_hashes_like_its_own_keys(dtype: pa.DataType) -> None:
    keys = ["zero", "", "żółw", "three", "four", ""]
    sliced = pa.array(keys, dtype).slice(1, 4)
    assert hash_keys(sliced).tolist() == [hashed(key) for key in keys[1:5]]
    assert hash_keys(sliced.slice(2, 1)).tolist() == [hashed("three")]
    assert hash_keys(sliced.slice(4)).tolist() == []


@pytest.mark.parametrize("num_partitions", [2, 3, 8, 10])
def test_partitions_fill_evenly(num_partitions: int) -> None:
    # Keys that differ in their last characters only: FNV-1a alone is weak there.
    num_keys = 40_000
    hashes = hash_keys(pa.array([f"user/{n:07}" for n in range(num_keys)]))
    assert len(np.unique(hashes)) == num_keys
    counts = np.bincount((hashes % np.uint64(num_partitions)).astype(int), minlength=num_partitions)
    expected = num_keys / num_partitions
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    assert chi2 < num_partitions - 1 + 5 * (2 * (num_partitions - 1)) ** 0.5


def test_every_bit_is_set_half_of_the_time() -> None:
    hashes = hash_keys(pa.array([str(n) for n in range(20_000)]))
    shares = [float((hashes >> np.uint64(bit) & np.uint64(1)).mean()) for bit in range(64)]
    assert max(abs(share - 0.5) for share in shares) < 0.02  # 5.6 standard deviations


@given(
    st.integers(0, 2**63 - 1),
    st.lists(st.tuples(*[st.integers(0, MASK)] * 3), max_size=5),
)
def test_edge_hash_equals_plain_python(seed: int, edges: list[tuple[int, int, int]]) -> None:
    def one(edge: tuple[int, int, int]) -> int:
        h = mixed(seed)
        for part in edge:
            h = mixed(h * 0x9E3779B97F4A7C15 + part & MASK)
        return h

    parts = np.array(edges, np.uint64).reshape(-1, 3).T
    assert hash_edges(seed, *parts).tolist() == [one(edge) for edge in edges]


def test_edge_hash_tells_direction_and_relation_apart() -> None:
    a, b, r, s = (np.array([value], np.uint64) for value in (1, 2, 3, 4))
    hashes = [hash_edges(1, *e)[0] for e in [(a, r, b), (b, r, a), (a, s, b), (r, a, b)]]
    hashes.append(hash_edges(2, a, r, b)[0])
    assert len(set(hashes)) == 5
