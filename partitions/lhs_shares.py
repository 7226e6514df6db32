"""Shares of each lhs's own edges, drawn by a hash of the edge.

An lhs with n edges gives the floor(valid * n) of smallest draws for validation and the next
floor(test * n) for the test, so one with few edges keeps them all. `number` is the draw. Equal
edges draw alike and share a split: where such a group lies across the end of a share, it stays
outside, so an lhs never gives more than its shares. Two passes over the spool, the first to count.
Memory: 48 bytes an entity of the lhs types and 8 bytes an edge held out.
"""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from partitions.candidates import Candidates
from partitions.config import HoldoutConfig
from partitions.schema import SPLITS, Bucket

_ROUNDING = 1e-9  # 0.29 * 100 is 28.999999999999996


@numba.njit(nogil=True, cache=True)
def _offer(held, starts, filled, lhs, draws):  # type: ignore[no-untyped-def]
    """Keep the smallest draws of each lhs in held[starts[lhs] : starts[lhs + 1]], a heap with the
    largest on top."""
    for row in range(lhs.size):
        first, room = starts[lhs[row]], starts[lhs[row] + 1] - starts[lhs[row]]
        draw = draws[row]
        if filled[lhs[row]] < room:
            at = filled[lhs[row]]
            filled[lhs[row]] += 1
            while at and held[first + (at - 1) // 2] < draw:
                held[first + at] = held[first + (at - 1) // 2]
                at = (at - 1) // 2
            held[first + at] = draw
        elif room and draw < held[first]:
            at = 0
            while 2 * at + 1 < room:
                below = 2 * at + 1
                if below + 1 < room and held[first + below + 1] > held[first + below]:
                    below += 1
                if held[first + below] <= draw:
                    break
                held[first + at] = held[first + below]
                at = below
            held[first + at] = draw


@numba.njit(nogil=True, cache=True)
def _limits(held, starts, shares, limits):  # type: ignore[no-untyped-def]
    """limits[lhs, s]: the draw up to which the first shares[lhs, s] are taken; -1: none."""
    for lhs in range(len(limits)):
        ordered = np.sort(held[starts[lhs] : starts[lhs + 1]])
        for s in range(2):
            last = shares[lhs, s] - 1
            if last >= 0:
                beyond = ordered[last + 1]
                while last >= 0 and ordered[last] == beyond:
                    last -= 1
            limits[lhs, s] = ordered[last] if last >= 0 else -1


class LhsShares:
    def __init__(self, holdout: HoldoutConfig, candidates: Candidates) -> None:
        self._candidates = candidates
        entities = candidates.entities()
        counts = {name: [np.zeros(n, np.int64) for n in parts] for name, parts in entities.items()}
        for rows, bucket in candidates.read():
            for name, part, at in candidates.by_lhs(rows, bucket):
                np.add.at(counts[name][part], rows["lhs"][at], 1)
        found = {
            name: [_Smallest(part, holdout) for part in parts] for name, parts in counts.items()
        }
        for rows, bucket in candidates.read():
            for name, part, at in candidates.by_lhs(rows, bucket):
                found[name][part].offer(rows["lhs"][at], rows["number"][at])
        self._limits = {name: [part.limits() for part in parts] for name, parts in found.items()}

    def split_of(self, rows: NDArray[Any], bucket: Bucket) -> NDArray[np.int8]:
        """int8 [rows] places in SPLITS."""
        split = np.zeros(len(rows), np.int8)
        for name, part, at in self._candidates.by_lhs(rows, bucket):
            limits, draws = self._limits[name][part][rows["lhs"][at]], rows["number"][at]
            split[at[draws <= limits[:, 1]]] = SPLITS.index("test")
            split[at[draws <= limits[:, 0]]] = SPLITS.index("valid")
        return split


class _Smallest:
    """The smallest draws of each lhs of one partition, one more than its shares take."""

    def __init__(self, counts: NDArray[np.int64], holdout: HoldoutConfig) -> None:
        """counts: int64 [lhs], its edges."""
        valid, test = (
            np.floor(share * counts + _ROUNDING).astype(np.int64)
            for share in (holdout.valid, holdout.test)
        )
        self.shares = np.stack([valid, valid + test], axis=1)
        room = np.where(self.shares[:, 1] > 0, self.shares[:, 1] + 1, 0)
        self._starts = np.concatenate([[0], np.cumsum(room)])
        self._filled = np.zeros(len(counts), np.int64)
        self._held = np.empty(int(self._starts[-1]), np.int64)

    def offer(self, lhs: NDArray[np.uint32], draws: NDArray[np.int64]) -> None:
        _offer(self._held, self._starts, self._filled, lhs, draws)

    def limits(self) -> NDArray[np.int64]:
        """int64 [lhs, 2]: up to which draw edges are for validation, and are held out at all."""
        limits = np.empty((len(self.shares), 2), np.int64)
        _limits(self._held, self._starts, self.shares, limits)
        return limits
