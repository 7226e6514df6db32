"""The AND of several features' values, hashed: "genre=comedy AND hour=20" is one id.

    id = combine(fingerprints of the parts, in the order of `of`) mod buckets

A value out of the vocabulary has its own fingerprint here, missing has one too. With lists among
the parts a row has all combinations of one value from each, the last part's turning fastest; no
value in one of them, no ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from partitions.features.fingerprints import Fingerprints, Prints


@dataclass(frozen=True)
class Part:
    """What a feature gives to its slot and to crosses.

    ids: int32 [values]; prints: uint64 [values], empty where no cross wants them; starts: int64
    [rows + 1] of a list's values, None where each row has one.
    """

    ids: NDArray[np.int32]
    prints: Prints
    starts: NDArray[np.int64] | None = None


def crossed(parts: Sequence[Part], rows: int, buckets: int, fingerprints: Fingerprints) -> Part:
    """The ids of a cross; no prints, as no cross is of crosses."""
    owners: NDArray[np.int64] | None = None  # the row of each combination, once there are lists
    so_far = fingerprints.start(rows)
    for part in parts:
        prints = part.prints
        if part.starts is not None:
            before = np.arange(rows) if owners is None else owners
            counts = part.starts[before + 1] - part.starts[before]
            firsts = np.cumsum(counts) - counts
            places = np.repeat(part.starts[before] - firsts, counts) + np.arange(counts.sum())
            so_far, owners = np.repeat(so_far, counts), np.repeat(before, counts)
            prints = prints[places]
        elif owners is not None:
            prints = prints[owners]
        so_far = fingerprints.combine(so_far, prints)
    ids = (so_far % np.uint64(buckets)).astype(np.int32)
    nothing = np.empty(0, np.uint64)
    if owners is None:
        return Part(ids, nothing)
    starts = np.zeros(rows + 1, np.int64)
    np.cumsum(np.bincount(owners, minlength=rows), out=starts[1:])
    return Part(ids, nothing, starts)
