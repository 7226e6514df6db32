"""Queries, or rows, shared out among cores."""

from collections.abc import Callable
from itertools import pairwise

from embedsvc.graph.fast import num_cores
from embedsvc.outputs.sparse import in_threads

_FEW = 32  # queries that one thread answers sooner than two


def num_threads(count: int) -> int:
    return max(1, min(num_cores(), count // _FEW))


def in_parallel(count: int, work: Callable[[slice], None]) -> None:
    """work(slice) of range(count), a slice for each core."""
    threads = num_threads(count)
    edges = [count * i // threads for i in range(threads + 1)]
    in_threads(lambda _, first, last: work(slice(first, last)), list(pairwise(edges)))
