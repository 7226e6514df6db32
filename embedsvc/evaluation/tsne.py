"""t-SNE (van der Maaten and Hinton 2008) of a map's points: exact, and deterministic.

With p[i, j] how likely i picks j among its neighbours, made symmetric, and q[i, j] the same of the
places y by Student's t, places are moved so that KL(p | q) falls:

    w = 1 / (1 + |y_i - y_j|^2)        q = w / sum of w
    gradient_i = 4 sum over j of (p_ij - q_ij) w_ij (y_i - y_j)

All N^2 pairs are gone through, without a tree: for the few points that a map holds that is faster,
and it needs no library that takes seconds to load.
"""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from embedsvc.compiled import LOOSE_SUMS, jit
from embedsvc.graph.fast import num_cores
from embedsvc.outputs.sparse import in_threads, slices

Floats = NDArray[np.float32]

_EXAGGERATED = 250  # rounds, in which p counts 12 times, so that groups form
_EARLY = 12.0
_HALVINGS = 40  # of a width's interval


def kl_divergence(p: Floats, places: NDArray[np.floating]) -> float:
    """KL(p | q) of places [N, 2]; p: `picked`."""
    apart = ((places[:, None].astype(np.float64) - places[None]) ** 2).sum(axis=2)
    w = 1 / (1 + apart)
    np.fill_diagonal(w, 0)
    some = p > 0
    return float((p[some] * np.log(p[some] / (w / w.sum())[some])).sum())


def picked(vectors: Floats, perplexity: float) -> Floats:
    """p, float32 [N, N], sum 1: of each point a Gaussian whose entropy is that of `perplexity`
    neighbours, symmetric as (p + p') / 2 N."""
    lengths = (vectors**2).sum(axis=1)
    apart = np.maximum(lengths[:, None] + lengths[None] - 2 * (vectors @ vectors.T), 0)
    p = np.empty_like(apart)
    wanted = np.float32(np.log(perplexity))
    in_threads(
        lambda _, first, last: _pick(first, last, apart, wanted, p),
        slices(len(p), num_cores()),
    )
    return np.asarray((p + p.T) / (2 * len(p)), np.float32)


def placed(p: Floats, start: NDArray[np.floating], rounds: int) -> NDArray[np.float64]:
    """float64 [N, 2]: from `start`, which should be small, by gradient descent with momentum and a
    step of its own for each number (Jacobs 1988)."""
    y = np.array(start.T, np.float32, order="C")
    gains, step, force = np.ones_like(y), np.zeros_like(y), np.empty((5, len(p)), np.float32)
    rate = max(len(p) / _EARLY / 4, 50.0)
    parts = slices(len(p), num_cores())
    for at in range(rounds):
        early = at < _EXAGGERATED
        in_threads(partial(_forces, y, p, force), parts)
        pull, push, total = force[:2], force[2:4], force[4].sum(dtype=np.float64)
        gradient = 4 * ((_EARLY if early else 1.0) * pull - push / total)
        gains = np.where(gradient * step > 0, gains * 0.8, gains + 0.2).clip(0.01)
        step = (0.5 if early else 0.8) * step - rate * gains * gradient
        y = np.ascontiguousarray(y + step, np.float32)
    return np.asarray(y.T, np.float64)


def _forces(y: Floats, p: Floats, force: Floats, _: int, first: int, last: int) -> None:
    _pull_and_push(first, last, y, p, force)


@jit(error_model="numpy")
def _pick(first, last, apart, wanted, p):  # type: ignore[no-untyped-def]
    """Rows of p, each with sum 1, by halving an interval of the Gaussian's 1 / (2 width^2)."""
    num = apart.shape[0]
    for i in range(first, last):
        least = np.float32(np.inf)
        for j in range(num):
            if j != i and apart[i, j] < least:
                least = apart[i, j]
        low, high, sharp = np.float32(0), np.float32(np.inf), np.float32(1)
        for _ in range(_HALVINGS):
            total = mean = np.float32(0)
            for j in range(num):
                away = apart[i, j] - least
                share = np.float32(0) if j == i else np.exp(-away * sharp)
                p[i, j] = share
                total += share
                mean += share * away
            for j in range(num):
                p[i, j] /= total
            entropy = np.log(total) + sharp * mean / total
            if abs(entropy - wanted) < 1e-5:
                break
            if entropy > wanted:
                low = sharp
                sharp = sharp * 2 if high == np.inf else (low + high) / 2
            else:
                high = sharp
                sharp = (low + high) / 2


@jit(**LOOSE_SUMS)
def _pull_and_push(first, last, y, p, force):  # type: ignore[no-untyped-def]
    """force[:2, i]: sum of p w (y_i - y_j); [2:4, i]: of w^2 (y_i - y_j); [4, i]: of w."""
    one, num = np.float32(1), y.shape[1]
    left, up = y[0], y[1]
    for i in range(first, last):
        row, x0, x1 = p[i], left[i], up[i]
        pull0 = pull1 = push0 = push1 = total = np.float32(0)
        for j in range(num):
            d0, d1 = x0 - left[j], x1 - up[j]
            w = one / (one + d0 * d0 + d1 * d1)
            pull0 += row[j] * w * d0
            pull1 += row[j] * w * d1
            push0 += w * w * d0
            push1 += w * w * d1
            total += w
        force[0, i], force[1, i], force[2, i], force[3, i] = pull0, pull1, push0, push1
        force[4, i] = total - one
