"""First vectors: a pure function of the seed and the key's hash.

An entity starts at the same place whatever its partition, its offset and the order of the input,
and a row that training never touched need not be stored. The sum of four 16-bit uniforms from one
64-bit hash is bell-shaped (variance 4/12), needs no logarithm, and so has the same bits everywhere.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from embedsvc.compiled import jit
from embedsvc.config import ModelConfig
from partitions.graph import Graph
from partitions.hashing import GOLDEN, hash_keys, mix
from partitions.schema import Slot
from partitions.tables import Fresh

FreshOf = Callable[[Slot], Fresh]

_GOLDEN = np.uint64(GOLDEN)
_LOW = np.uint64(0xFFFF)


@jit
def _fill(seed, hashes, scale, out):  # type: ignore[no-untyped-def]
    # The four fields sum to [0, 4 * 65535]: centre at 131070, deviation 65536 / sqrt(3).
    unit = np.float32(scale * np.sqrt(3.0) / 65536.0)
    start = mix(np.uint64(seed))
    for row in range(out.shape[0]):
        state = mix(hashes[row] ^ start)
        for column in range(out.shape[1]):
            state += _GOLDEN
            bits = mix(state)
            total = np.int64(0)
            for shift in range(0, 64, 16):
                total += np.int64((bits >> np.uint64(shift)) & _LOW)
            out[row, column] = np.float32(total - 131070) * unit


def initial_vectors(
    seed: int, hashes: NDArray[np.uint64], dim: int, scale: float
) -> NDArray[np.float32]:
    """float32 [len(hashes), dim], mean 0 and standard deviation `scale`."""
    out = np.empty((len(hashes), dim), np.float32)
    _fill(np.uint64(seed), hashes, scale, out)
    return out


def fresh_maker(graph: Graph, model: ModelConfig, seed: int) -> FreshOf:
    """How a slot's untouched rows come about: from the seed and the keys' hashes."""

    def fresh(slot: Slot) -> Fresh:
        @cache  # for as long as `make` lives: rows may be asked for block by block
        def hashes() -> NDArray[np.uint64]:
            return hash_keys(graph.keys(slot))

        def make(offsets: NDArray[np.int64]) -> NDArray[np.float32]:
            return initial_vectors(seed, hashes()[offsets], model.dim, model.init_scale)

        return make

    return fresh
