"""Queries, or rows, shared out among threads."""

from collections.abc import Callable
from itertools import pairwise

from embedsvc.outputs.sparse import in_threads

_FEW = 32  # queries that one thread answers sooner than two


def num_threads(count: int, most: int) -> int:
    return max(1, min(most, count // _FEW))


def in_parallel(count: int, work: Callable[[slice], None], most: int) -> None:
    """work(slice) of range(count), a slice for each thread, of which there are `most` at most."""
    threads = num_threads(count, most)
    edges = [count * i // threads for i in range(threads + 1)]
    in_threads(lambda _, first, last: work(slice(first, last)), list(pairwise(edges)))
