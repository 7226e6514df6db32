"""Events in the LightGCN layout: a line a user, the user's number first, then its items'.

FOLDER/train.txt, valid.txt, test.txt, each maybe .gz; valid may be absent.
"""

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from embedsvc.ranking.recommenders import binary
from partitions.errors import DataError

_GAPS = 100  # numbers for each that is used, at most


@dataclass(frozen=True)
class Split:
    """Users x items, of one shape; empty where there is no such file."""

    train: sp.csr_matrix
    valid: sp.csr_matrix
    test: sp.csr_matrix


def read_split(folder: Path) -> Split:
    pairs = {}
    for name in ("train", "valid", "test"):
        path = next(
            (p for p in (folder / f"{name}.txt", folder / f"{name}.txt.gz") if p.exists()), None
        )
        if path is None and name != "valid":
            raise DataError(
                f"{folder} has no {name}.txt or {name}.txt.gz: name a folder with both."
            )
        pairs[name] = read_lists(path) if path else (np.empty(0, np.int64), np.empty(0, np.int64))
    num_users, num_items = (
        _counted(folder, noun, np.concatenate([pair[at] for pair in pairs.values()]))
        for at, noun in enumerate(("user", "item"))
    )
    return Split(
        **{
            name: binary(
                sp.csr_matrix((np.ones(len(users)), (users, items)), (num_users, num_items))
            )
            for name, (users, items) in pairs.items()
        }
    )


def _counted(folder: Path, noun: str, numbers: NDArray[np.int64]) -> int:
    """How many there are, gaps included, of which each costs a row."""
    highest, distinct = int(numbers.max()), len(np.unique(numbers))
    if highest > _GAPS * distinct + 1000:
        raise DataError(
            f"{folder}: {noun}s are numbered up to {highest}, but there are {distinct:,} of them: "
            "number them from 0 on, without large gaps."
        )
    return highest + 1


def read_lists(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The users and the items of all pairs, in the file's order."""
    users, items = [], []
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        try:
            for number, line in enumerate(file, 1):
                row = _numbers(path, number, line)
                if len(row) > 1:  # a user without items has a line of its own
                    users.append(np.full(len(row) - 1, row[0]))
                    items.append(row[1:])
        except (EOFError, gzip.BadGzipFile):
            raise DataError(f"{path} was truncated: fetch it again.") from None
    if not users:
        raise DataError(f"{path} has no events: a line is a user's number and its items'.")
    return np.concatenate(users), np.concatenate(items)


def _numbers(path: Path, number: int, line: str) -> NDArray[np.int64]:
    try:
        row = np.array(line.split(), np.int64)
    except (ValueError, OverflowError):
        row = np.array([-1])
    if (row < 0).any() or (row >= 2**31).any():
        raise DataError(
            f"{path}:{number}: expected whole numbers from 0 to 2147483647, a user's and its "
            f"items', found {line.strip()[:60]!r}."
        )
    return row
