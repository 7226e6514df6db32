"""The best classes of queries, among the cells that each visits.

    choose    the cells of each query                        by slices of queries
    known     the best of the pinned classes, for all        by slices of queries
    visit     the best of the cells, query groups at a time  by cells
    finish    exact scores of what was found, the best first by slices of queries

A cell is left out that would have to hold a row further from its mean than almost any is, to be
among the best found with the pinned classes. A thread takes a slice. Rows may be rounded to
bfloat16, so that a few more than asked for are found and scored anew.

Letters: C classes, D dimension, K cells, N found, P probes, Q queries.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from embedsvc.compiled import jit
from embedsvc.outputs.retrievers import Floats, Ids
from embedsvc.outputs.retrievers.proposals import rank
from embedsvc.outputs.retrievers.threads import in_parallel, num_threads
from embedsvc.outputs.retrievers.visits import (
    Centers,
    Source,
    choose,
    group_by_cell,
    list_visits,
    merge,
    visit,
)
from embedsvc.outputs.sparse import in_threads

_ALL = np.iinfo(np.int32).max
_SEED = np.uint64(0)
_SLACK = 0.6  # reaches by which a cell may exceed what it promises


def top(
    queries_QD: Floats,
    probes: int,
    centers: Centers,
    source: Source,
    threads: int,
    ids: Ids,
    scores: Floats,
) -> None:
    """ids, scores: [Q, k], written; -1 and -inf where there are fewer."""
    num_queries, k = ids.shape
    spare = k + 3 + k // 2  # hold the k best by exact scores, almost surely
    if num_threads(num_queries, threads) == 1:
        _top(queries_QD, probes, centers, source, spare, ids, scores)
        return
    best, which = _heaps(num_queries, spare)
    probe = np.full((num_queries, probes), -1, np.int64)

    def begin(part: slice) -> None:
        _begin(queries_QD[part], centers, source, probe[part], best[part], which[part])

    def finish(part: slice) -> None:
        rank(
            source.centered.weight,
            source.centered.bias,
            which[part],
            queries_QD[part],
            ids[part],
            scores[part],
        )

    in_parallel(num_queries, begin, threads)
    grouped = np.empty(probe.size + num_queries, np.int32)
    ends = group_by_cell(probe, len(centers.offset), grouped)
    _visit(queries_QD, grouped, ends, source, _ALL, _SEED, threads, best, which)
    in_parallel(num_queries, finish, threads)


def hard(
    queries_QD: Floats,
    num_best: int,
    probes: int,
    centers: Centers,
    source: Source,
    most_rows: int,
    seed: int,
    threads: int,
) -> Ids:
    """int64 [Q, N]: the best of those that are not pinned, in any order; padded with -1.

    Of each cell `most_rows` are looked at, from a place on that the seed decides.
    """
    best, which = _heaps(len(queries_QD), num_best)
    probe = np.full((len(queries_QD), probes), -1, np.int64)

    def begin(part: slice) -> None:
        _choose(queries_QD[part], centers, probe[part])

    in_parallel(len(queries_QD), begin, threads)
    grouped = np.empty(probe.size + len(queries_QD), np.int32)
    ends = group_by_cell(probe, len(centers.offset), grouped)
    _visit(queries_QD, grouped, ends, source, most_rows, np.uint64(seed), threads, best, which)
    return which


def _heaps(num_queries: int, size: int) -> tuple[Floats, Ids]:
    shape = num_queries, size
    return np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int64)


def _visit(
    queries_QD: Floats,
    grouped: NDArray[np.int32],
    ends: Ids,
    source: Source,
    most_rows: int,
    seed: np.uint64,
    threads: int,
    best: Floats,
    which: Ids,
) -> None:
    """All cells but the last, a share for each thread, into the heaps."""
    size = source.space.size
    visits = list_visits(ends, size, 0, len(size) - 1)
    rows = np.minimum(size[visits[:, 0]], most_rows)
    done = np.cumsum((visits[:, 2] - visits[:, 1] + 16) * rows)
    threads = max(1, min(num_threads(len(queries_QD), threads), len(visits)))
    total = done[-1] if len(done) else 0
    edges = np.searchsorted(done, [total * i // threads for i in range(threads + 1)])
    edges[0], edges[-1] = 0, len(visits)
    known = best[:, 0].copy()
    heaps = [(best, which), *(_heaps(*best.shape) for _ in range(threads - 1))]

    def work(thread: int, first: int, last: int) -> None:
        visit(
            *(visits[first:last], grouped, source, queries_QD, most_rows, seed, known),
            *heaps[thread],
        )

    in_threads(work, list(pairwise(edges.tolist())))
    for other in heaps[1:]:
        merge(*other, best, which)


@jit
def _choose(queries, centers, probe):  # type: ignore[no-untyped-def]
    """probe: [Q, P], written; returns their scores, and of each query what its length is there.

    The extra of a query is its length, that of a cell its reach.
    """
    extra = np.zeros((queries.shape[0], 2), np.float32)
    for q in range(queries.shape[0]):
        for d in range(queries.shape[1]):
            extra[q, 0] += queries[q, d] * queries[q, d]
        extra[q, 0] = np.sqrt(extra[q, 0])
    best = np.full(probe.shape, -np.inf, np.float32)
    choose(queries, extra, centers, best, probe)
    return best, extra


@jit
def _begin(queries, centers, source, probe, best, which):  # type: ignore[no-untyped-def]
    """What is found among the pinned, and which cells may hold a better one."""
    promised, extra = _choose(queries, centers, probe)
    num_queries, last = queries.shape[0], source.space.size.size - 1
    ends = np.zeros(last + 1, np.int64)
    ends[last] = num_queries
    everyone = np.arange(num_queries).astype(np.int32)
    known = np.full(num_queries, -np.inf, np.float32)
    pinned = list_visits(ends, source.space.size, last, last + 1)
    visit(pinned, everyone, source, queries, _ALL, _SEED, known, best, which)
    for q in range(num_queries):
        for p in range(probe.shape[1]):
            more = _SLACK * extra[q, 0] * centers.extra[0, max(probe[q, p], 0)]
            if promised[q, p] + more <= best[q, 0]:
                probe[q, p] = -1


@jit
def _top(queries, probes, centers, source, spare, ids, scores):  # type: ignore[no-untyped-def]
    """The same in one call: of a single query, calls would take half of the time."""
    num_queries = queries.shape[0]
    best = np.full((num_queries, spare), -np.inf, np.float32)
    which = np.full((num_queries, spare), -1, np.int64)
    probe = np.full((num_queries, probes), -1, np.int64)
    _begin(queries, centers, source, probe, best, which)
    grouped = np.empty(probe.size + num_queries, np.int32)
    ends = group_by_cell(probe, centers.offset.size, grouped)
    visits = list_visits(ends, source.space.size, 0, centers.offset.size)
    visit(visits, grouped, source, queries, _ALL, _SEED, best[:, 0].copy(), best, which)
    rank(source.centered.weight, source.centered.bias, which, queries, ids, scores)
