"""Vectors of users and items, propagated over events and trained on the softmax over all items.

    x = mean over layers 0 .. K of A^k e       LightGCN (He et al. 2020): A is the normalised
                                               matrix N as a graph, users one side, items the other
    s[u, i] = <x_u, x_i> / |x_u| |x_i|         cosine
    loss = - sum over events (u, i): log of exp(s[u, i] / t) / (exp(s[u, i] / t) + Z_u)
    Z_u = sum over all items j: exp(s[u, j] / t)

Sampled negatives make gradients so noisy that Adam needs ten times the steps; all items for a batch
of thousands of users cost less: three products of matrices and one exp each (docs/log.md). Where
the processor multiplies bfloat16 fast, these round to it, sums stay float32.

A user without a row of their own in e has the vector that their items pass on: so anybody is folded
in from events alone, with `own = false` exactly as in training.

As A is symmetric, the gradient goes back by the same propagation. One batch of users is one step
of Adam, on all rows; the step size rises for some steps and then falls to 0 over the run.

The search for settings on Gowalla's validation part is in docs/log.md.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from embedsvc.compiled import LOOSE_SUMS, jit
from embedsvc.graph.products import fast_bfloat16
from embedsvc.ranking.recommenders import RECOMMENDERS, Floats, Ids, Vectors
from embedsvc.ranking.recommenders.products import over_rows, times
from embedsvc.ranking.recommenders.spectral import normalised, right_singular
from partitions.errors import ConfigError

_log = logging.getLogger(__name__)
_TILE = 1024  # users whose scores of all items are held at once
_START = 0.1  # root of the mean squared length of rows before the first step
_RISE = 10  # steps
_KEEP_FIRST, _KEEP_SECOND = 0.9, 0.98  # of Adam's moments


class Sides(NamedTuple):
    """One table of users and one of items."""

    users: Floats
    items: Floats


class Graph:
    """Events as a graph whose edges are weighed by the degrees of both ends."""

    def __init__(self, matrix: sp.csr_matrix, layers: int) -> None:
        self.matrix, self.layers = matrix, layers
        self.normal, self.root_I = normalised(matrix)
        self.turned = self.normal.T.tocsr()

    def propagate(self, e: Sides, layers: int | None = None) -> Sides:
        """The mean over layers; it is its own transpose, so gradients take the same way back."""
        users, items = e
        layers = self.layers if layers is None else layers
        sum_users, sum_items = users.copy(), items.copy()
        for _ in range(layers):
            users, items = times(self.normal, items), times(self.turned, users)
            sum_users += users
            sum_items += items
        share = np.float32(1 / (layers + 1))
        return Sides(sum_users * share, sum_items * share)


class Unit(NamedTuple):
    """Rows of length 1, and what they were divided by."""

    rows: Floats
    length: Floats  # [rows, 1]

    @classmethod
    def of(cls, rows: Floats) -> "Unit":
        length = np.sqrt(np.einsum("rd,rd->r", rows, rows))[:, None] + np.float32(1e-8)
        return cls(rows / length, length)

    def back(self, gradient: Floats) -> Floats:
        along = np.einsum("rd,rd->r", gradient, self.rows)[:, None]
        return (gradient - self.rows * along) / self.length


class Softmax:
    """The loss of a batch of users, and its gradients by unit vectors."""

    def __init__(self, matrix: sp.csr_matrix, temperature: float, rounded: bool) -> None:
        self.matrix, self.temperature = matrix, temperature
        self.dtype = torch.bfloat16 if rounded else torch.float32
        self._exp = torch.empty(_TILE, matrix.shape[1], dtype=self.dtype)

    def gradients(self, users: Ids, unit: Sides) -> tuple[float, Sides]:
        """The sum of losses over the events of `users`; gradients, which are 0 for other users."""
        gradient = Sides(np.zeros_like(unit.users), np.zeros_like(unit.items))
        items = torch.from_numpy(unit.items).to(self.dtype)
        loss = 0.0
        for first in range(0, len(users), _TILE):
            some = users[first : first + _TILE]
            events, rows = self.matrix[some], torch.from_numpy(unit.users[some])
            exp = self._exp[: len(some)]
            torch.mm((rows / self.temperature).to(self.dtype), items.T, out=exp).exp_()
            total = exp.sum(1, dtype=torch.float32)
            tile_loss, pulls, push = self._of_events(events, rows.numpy(), unit.items, total)
            share = (torch.from_numpy(push) / total / self.temperature)[:, None]
            away_from = torch.mm(exp, items).float() * share
            away = torch.mm(exp.T, (rows * share).to(self.dtype)).float()
            gradient.users[some] = away_from.numpy() - times(pulls, unit.items)
            gradient.items[:] += away.numpy() - times(pulls.T.tocsr(), rows.numpy())
            loss += tile_loss
        return loss, gradient

    def _of_events(
        self, events: sp.csr_matrix, rows: Floats, items: Floats, total: Tensor
    ) -> tuple[float, sp.csr_matrix, Floats]:
        """The loss; how much each event pulls its ends together; how hard each user is pushed."""
        pull = np.empty(events.nnz, np.float32)
        push, loss = np.zeros(len(rows), np.float32), np.zeros(len(rows))
        parts = events.indptr, events.indices, rows, items, total.numpy()
        over_rows(events.indptr, _pull, *parts, np.float32(self.temperature), pull, push, loss)
        pull /= np.float32(self.temperature)
        pulls = sp.csr_matrix((pull, events.indices, events.indptr), events.shape)
        return float(loss.sum()), pulls, push


@jit(**LOOSE_SUMS)
def _pull(first, last, indptr, indices, rows, items, total, temperature, pull, push, loss):  # type: ignore[no-untyped-def]
    """Per event 1 - p, where p = exp / (exp + Z): its pull; per user their sum: the push."""
    for row in range(first, last):
        for at in range(indptr[row], indptr[row + 1]):
            item = indices[at]
            score = np.float32(0)
            for d in range(rows.shape[1]):
                score += rows[row, d] * items[item, d]
            exp = np.exp(score / temperature)
            pull[at] = total[row] / (exp + total[row])
            push[row] += pull[at]
            loss[row] += np.log1p(total[row] / exp)


class Adam:
    """Kingma and Ba 2015, on both tables, which it updates in place."""

    def __init__(self, tables: Sides) -> None:
        self._tables = [torch.from_numpy(table) for table in tables]
        self._first = [torch.zeros_like(table) for table in self._tables]
        self._second = [torch.zeros_like(table) for table in self._tables]
        self._step = 0

    def update(self, gradients: Sides, lr: float) -> None:
        self._step += 1
        mend = 1 - _KEEP_FIRST**self._step, 1 - _KEEP_SECOND**self._step
        for table, first, second, found in zip(
            self._tables, self._first, self._second, gradients, strict=True
        ):
            gradient = torch.from_numpy(found)
            first.lerp_(gradient, 1 - _KEEP_FIRST)
            second.mul_(_KEEP_SECOND).addcmul_(gradient, gradient, value=1 - _KEEP_SECOND)
            table.addcdiv_(first, (second / mend[1]).sqrt_().add_(1e-9), value=-lr / mend[0])


@RECOMMENDERS.add("propagation")
@dataclass(frozen=True)
class Propagation:
    dim: int = 128
    layers: int = 2
    temperature: float = 0.1  # of cosines
    epochs: int = 24
    lr: float = 0.02  # of Adam, at its highest; rows begin with a length of about 0.1
    batch: int = 4096  # users a step
    own: bool = True  # users have rows of e of their own, not only what comes from their items
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in [("dim", 1), ("layers", 1), ("epochs", 1), ("batch", 1)]:
            if (value := getattr(self, name)) < least:
                raise ConfigError(
                    f"recommender propagation: {name} = {value}: must be at least {least}."
                )
        for name, least_value in [("temperature", 0.03), ("lr", 1e-9)]:  # exp(1 / 0.03) is finite
            if (number := getattr(self, name)) < least_value:
                raise ConfigError(
                    f"recommender propagation: {name} = {number}: must be at least {least_value}."
                )

    def fit(self, matrix: sp.csr_matrix) -> "Propagated":
        graph = Graph(matrix, self.layers)
        tables = self._start(graph)
        adam, softmax = Adam(tables), Softmax(matrix, self.temperature, fast_bfloat16())
        start = perf_counter()
        for step, (users, lr) in enumerate(self._steps(matrix.shape[0]), 1):
            units = [Unit.of(rows) for rows in graph.propagate(tables)]
            loss, found = softmax.gradients(users, Sides(*(unit.rows for unit in units)))
            back = (
                unit.back(g) / np.float32(len(users)) for unit, g in zip(units, found, strict=True)
            )
            adam.update(self._own(graph.propagate(Sides(*back))), lr)
            _log.info("step=%d loss=%.3f s=%.1f", step, loss / len(users), perf_counter() - start)
        users_UD, items_ID = (Unit.of(rows).rows for rows in graph.propagate(tables))
        passed_on = graph.propagate(tables, self.layers - 1).items / graph.root_I[:, None]
        return Propagated(matrix, users_UD, items_ID, passed_on)

    def _start(self, graph: Graph) -> Sides:
        """The strongest singular vectors, small: Adam's first steps are as long as they are."""
        rank = min(self.dim, *graph.matrix.shape)
        values, vectors = right_singular(graph.normal, rank, self.seed)
        roots = np.sqrt(np.maximum(values, 1e-6))
        users, items = times(graph.normal, vectors) / roots, vectors * roots
        length = np.sqrt(np.mean(np.einsum("id,id->i", items, items)))
        size = _START / max(length, np.float32(1e-12))  # without events there is none
        rng = np.random.default_rng(self.seed)
        tables = []
        for found in (users, items):
            rows = rng.standard_normal((len(found), self.dim), np.float32) * np.float32(1e-3)
            rows[:, : found.shape[1]] += found * np.float32(size)
            tables.append(rows)
        return self._own(Sides(*tables))

    def _own(self, tables: Sides) -> Sides:
        return tables if self.own else Sides(np.zeros_like(tables.users), tables.items)

    def _steps(self, num_users: int) -> Iterator[tuple[Ids, float]]:
        """The users of each step, ascending, and its step size."""
        rng = np.random.default_rng(self.seed)
        per_epoch = max(1, round(num_users / self.batch))
        total = per_epoch * self.epochs
        for step in range(total):
            if step % per_epoch == 0:
                parts = np.array_split(rng.permutation(num_users), per_epoch)
            rise = min(1.0, (step + 1) / _RISE)
            yield np.sort(parts[step % per_epoch]), self.lr * rise * (1 - step / total)


@dataclass(frozen=True)
class Propagated(Vectors):
    """Users and items have unit vectors: scores are cosines."""

    passed_on: Floats  # [I, D], what an item hands to its users, through all layers

    def fold_in(self, histories: sp.csr_matrix) -> Floats:
        """x of users by what their items pass on; a row of e of their own is all they lack."""
        return Unit.of(times(histories, self.passed_on)).rows
