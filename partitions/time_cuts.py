"""Cuts in time at a share of the edges: the newest are for the test, those before for validation.

A cut is the least time that no more than the share asked for is later than. Edges at the cut itself
stay before it, as with valid_after and test_after: equal times are never parted. It is found
exactly, by counting times in 65,536 ranges between the first and the last, then within the range
that the cut lies in, until that is one second: two or three passes over the spool, no memory.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from partitions.candidates import Candidates
from partitions.config import HoldoutConfig
from partitions.errors import DataError
from partitions.schema import SPLITS, Bucket

_RANGES = 1 << 16
_ROUNDING = 1e-9  # 0.29 * 100 is 28.999999999999996

Times = Callable[[], Iterator[NDArray[np.int64]]]  # read anew at every call


@dataclass(frozen=True)
class Cuts:
    """Seconds since 1970 UTC after which edges are held out; None: not for this split."""

    valid_after: int | None
    test_after: int | None

    def __str__(self) -> str:
        named = {"validation": self.valid_after, "test": self.test_after}
        return ", ".join(
            f"{name} after {_moment(cut)}" for name, cut in named.items() if cut is not None
        )


def _moment(seconds: int) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (OverflowError, ValueError, OSError):  # beyond the year 9999, or before the year 1
        return f"{seconds:,} seconds"


@numba.njit(nogil=True, cache=True)
def _count(times, first, width, counts):  # type: ignore[no-untyped-def]
    """counts[r] += the times from first + r * width on; what lies outside counts nowhere."""
    for time in times:
        if time >= first:
            place = (np.uint64(time) - np.uint64(first)) // width
            if place < np.uint64(counts.size):
                counts[place] += 1


def newest_after(times: Times, first: int, last: int, most: Sequence[int]) -> list[int]:
    """For each of `most`: the least time that at most so many are later than.

    first, last: of all times; most: each less than the number of times."""
    windows = [(first, last, 0) for _ in most]  # and how many are later than the last
    while any(first < last for first, last, _ in windows):
        open_windows = {(first, last) for first, last, _ in windows if first < last}
        counted = dict(zip(open_windows, _counted(times, open_windows), strict=True))
        windows = [
            _narrowed(window, counted[window[:2]], wanted) if window[:2] in counted else window
            for window, wanted in zip(windows, most, strict=True)
        ]
    return [first for first, _, _ in windows]


def _width(first: int, last: int) -> int:
    return (last - first) // _RANGES + 1


def _counted(times: Times, windows: set[tuple[int, int]]) -> list[NDArray[np.int64]]:
    found = [
        np.zeros((last - first) // _width(first, last) + 1, np.int64) for first, last in windows
    ]
    for piece in times():
        for (first, last), counts in zip(windows, found, strict=True):
            _count(piece, first, np.uint64(_width(first, last)), counts)
    return found


def _narrowed(
    window: tuple[int, int, int], counts: NDArray[np.int64], most: int
) -> tuple[int, int, int]:
    """The range in which the edges that are later come to be more than `most`."""
    first, last, later = window
    width = _width(first, last)
    sums = later + np.cumsum(counts[::-1])
    from_top = int(np.searchsorted(sums, most, side="right"))
    at = len(counts) - 1 - from_top
    later = int(sums[from_top - 1]) if from_top else later
    return first + at * width, min(first + (at + 1) * width - 1, last), later


class TimeCuts:
    def __init__(self, holdout: HoldoutConfig, candidates: Candidates) -> None:
        """DataError where times are too few to part a share."""
        self._candidates = candidates
        found = [(len(t), int(t.min()), int(t.max())) for t in self._times() if len(t)]
        self.cuts, self._held_after, self._test_after = Cuts(None, None), 0, 0
        if not found:
            return
        num_edges = sum(count for count, _, _ in found)
        first, last = min(low for _, low, _ in found), max(high for _, _, high in found)
        test, held = (
            int(np.floor(share * num_edges + _ROUNDING))
            for share in (holdout.test, holdout.valid + holdout.test)
        )
        cuts = newest_after(self._times, first, last, [held, test])
        self._held_after, self._test_after = cuts
        self.cuts = Cuts(cuts[0] if holdout.valid else None, cuts[1] if holdout.test else None)
        # So many edges of one time that a split would be empty which should not be:
        if test and self._test_after == last:
            raise self._unparted("test", holdout.test, last)
        if held > test and self._held_after == self._test_after:
            raise self._unparted("valid", holdout.valid, self._held_after)

    def _times(self) -> Iterator[NDArray[np.int64]]:
        for rows, _ in self._candidates.read():
            yield np.ascontiguousarray(rows["time"][self._candidates.among(rows)])

    @staticmethod
    def _unparted(split: str, share: float, time: int) -> DataError:
        return DataError(
            f"So many edges are of {_moment(time)} that a cut in time leaves none for "
            f"graph.holdout.{split} = {share}. Raise the share, or set graph.holdout.by = "
            '"edge" to draw by a hash of the edge.'
        )

    def split_of(self, rows: NDArray[Any], bucket: Bucket) -> NDArray[np.int8]:
        """int8 [rows] places in SPLITS."""
        among = self._candidates.among(rows)
        split = np.zeros(len(rows), np.int8)
        split[among & (rows["time"] > self._held_after)] = SPLITS.index("valid")
        split[among & (rows["time"] > self._test_after)] = SPLITS.index("test")
        return split
