"""One update: gather rows, differentiate the batch's loss by autograd, write the rows back."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from embedsvc.config import NegativesConfig
from embedsvc.graph.batches import Batch, Batcher, Group
from embedsvc.graph.model import BatchVectors, GraphModel, batch_loss, table_name
from embedsvc.graph.negatives import Sampling
from partitions.edges import Edges
from partitions.schema import Slot
from partitions.tables import Table

_EPSILON = 1e-10


Rate = Callable[[int], float]  # what the step sizes of the next so many edges are multiplied by


def constant(num_edges: int) -> float:
    return 1.0


class Step(Protocol):
    def __call__(
        self,
        tables: Mapping[Slot, Table],
        edges: Edges,
        groups: Sequence[Group],
        seeds: Sequence[int],
        rate: Rate = constant,
    ) -> Generator[tuple[int, float], None, None]:
        """Train on a bucket's edges: mutates its tables, and the model's parameters.

        groups: of each relation, in this bucket. seeds: all randomness comes from them.
        rate: of the next so many edges, called once for each piece in turn.
        Yields (edges, their summed loss before the update), piece by piece, in a fixed order.
        """


class ExactStep:
    """The plain step, and the twin that faster ones are held to. Mutates the tables it is given."""

    def __init__(self, model: GraphModel, lr: float, relation_lr: float, in_batch: bool) -> None:
        self.model, self.lr, self.relation_lr, self.in_batch = model, lr, relation_lr, in_batch

    def __call__(self, tables: Mapping[Slot, Table], batch: Batch) -> float:
        """Train on one batch; returns its loss before the update, summed over edges."""
        group = batch.group
        rows = _Rows(tables, batch)
        forward = _Parameters(self.model, group.operator, False, batch)
        reverse = _Parameters(self.model, group.operator, True, batch)
        lhs, rhs, neg_lhs, neg_rhs = rows.vectors()
        vectors = BatchVectors(
            lhs, rhs, neg_lhs, neg_rhs, forward.gathered(), reverse.gathered_or_none()
        )
        loss = batch_loss(self.model, batch, vectors, self.in_batch)
        loss.backward()
        rows.update(self.lr)
        forward.update(self.relation_lr)
        reverse.update(self.relation_lr)
        return float(loss.detach())


@dataclass(frozen=True)
class ExactBatches:
    """The exact step over a bucket, batch by batch; a Step."""

    model: GraphModel
    lr: float
    relation_lr: float
    batch_size: int
    chunk_size: int
    negatives: NegativesConfig

    def __call__(
        self,
        tables: Mapping[Slot, Table],
        edges: Edges,
        groups: Sequence[Group],
        seeds: Sequence[int],
        rate: Rate = constant,
    ) -> Generator[tuple[int, float], None, None]:
        step = ExactStep(self.model, self.lr, self.relation_lr, self.negatives.in_batch)
        batcher = self._batcher(groups, {slot: len(table.state) for slot, table in tables.items()})
        for batch in batcher.batches(edges, np.random.default_rng(seeds)):
            factor = rate(batch.num_edges)
            step.lr, step.relation_lr = factor * self.lr, factor * self.relation_lr
            yield batch.num_edges, step(tables, batch)

    def _batcher(self, groups: Sequence[Group], num_rows: dict[Slot, int]) -> Batcher:
        model, negatives = self.model, self.negatives
        by_relation = model.chunks_by_relation
        # Where all are candidates there is nothing to share by chunks.
        whole = negatives.all and not by_relation
        return Batcher(
            groups,
            num_rows,
            self.batch_size,
            self.batch_size if whole else self.chunk_size,
            negatives.uniform,
            chunk_by_relation=by_relation,
            sampling=Sampling(
                degree=negatives.degree,
                alpha=negatives.alpha,
                every=negatives.all,
                in_batch=negatives.in_batch,
                log_q=model.corrects_sampling,
            ),
            relation_weights=model.relation_weights,
            seeded=model.drops,
        )


class _Rows:
    """The distinct table rows of a batch as autograd leaves, one per slot."""

    def __init__(self, tables: Mapping[Slot, Table], batch: Batch) -> None:
        self.tables, self.batch = tables, batch
        group = batch.group
        wanted: dict[Slot, list[np.ndarray]] = {group.lhs: [], group.rhs: []}
        wanted[group.lhs] += [batch.lhs_KC, batch.neg_lhs_KU]
        wanted[group.rhs] += [batch.rhs_KC, batch.neg_rhs_KU]
        self.leaves: dict[Slot, tuple[Tensor, Tensor]] = {}
        self._places: dict[Slot, list[Tensor]] = {}
        for slot, parts in wanted.items():
            flat = torch.from_numpy(np.concatenate([part.ravel() for part in parts]))
            rows, inverse = torch.unique(flat, return_inverse=True)
            leaf = torch.from_numpy(tables[slot].vectors)[rows].requires_grad_()
            self.leaves[slot] = (rows, leaf)
            ends = np.cumsum([part.size for part in parts])[:-1].tolist()
            split = torch.tensor_split(inverse, ends)
            self._places[slot] = [
                places.view(part.shape) for places, part in zip(split, parts, strict=True)
            ]

    def vectors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """lhs, rhs, neg_lhs, neg_rhs."""
        group = self.batch.group
        lhs_leaf, rhs_leaf = self.leaves[group.lhs][1], self.leaves[group.rhs][1]
        lhs, neg_lhs = self._places[group.lhs][:2]
        rhs, neg_rhs = self._places[group.rhs][-2:]
        return (
            functional.embedding(lhs, lhs_leaf),
            functional.embedding(rhs, rhs_leaf),
            functional.embedding(neg_lhs, lhs_leaf),
            functional.embedding(neg_rhs, rhs_leaf),
        )

    def update(self, lr: float) -> None:
        for slot, (rows, leaf) in self.leaves.items():
            if leaf.grad is not None:
                table = self.tables[slot]
                rowwise_adagrad(
                    torch.from_numpy(table.vectors),
                    torch.from_numpy(table.state),
                    rows,
                    leaf.grad,
                    lr,
                )


class _Parameters:
    """The distinct relations of a batch in one parameter table, as an autograd leaf."""

    def __init__(self, model: GraphModel, operator: str, reverse: bool, batch: Batch) -> None:
        self.name = table_name(operator, reverse)
        self.parameters = model.parameters
        self.leaf: Tensor | None = None
        if self.name in self.parameters.values:
            rel = torch.from_numpy(batch.rel_KC)
            if model.operators[operator].matrix and bool((rel == rel[:, :1]).all()):
                rel = rel[:, :1]
            self.rows, self.places = torch.unique(rel, return_inverse=True)
            self.leaf = self.parameters.values[self.name][self.rows].requires_grad_()

    def gathered(self) -> Tensor:
        assert self.leaf is not None
        return self.leaf[self.places]

    def gathered_or_none(self) -> Tensor | None:
        return None if self.leaf is None else self.gathered()

    def update(self, lr: float) -> None:
        if self.leaf is not None and self.leaf.grad is not None and self.leaf.numel():
            state = self.parameters.state[self.name]
            state[self.rows] += self.leaf.grad.square()
            step = lr * self.leaf.grad / (state[self.rows].sqrt() + _EPSILON)
            self.parameters.values[self.name][self.rows] -= step


def rowwise_adagrad(vectors: Tensor, state: Tensor, rows: Tensor, grad: Tensor, lr: float) -> None:
    """AdaGrad with one accumulator a row (Gupta et al. 2014; PyTorch-BigGraph's choice).

    state[r] += mean over d of grad[r, d]^2 ;  vectors[r] -= lr * grad[r] / (sqrt(state[r]) + 1e-10)

    vectors: float [E, D] and state: float [E], both mutated; rows: int64 [n], distinct;
    grad: float [n, D].
    A row whose state is still 0, its gradient being 0 or too small to square, stays as it is: state
    > 0 is what says that a row must be stored.
    """
    accumulated = state[rows] + grad.square().mean(-1)
    state[rows] = accumulated
    scale = torch.where(accumulated > 0, lr / (accumulated.sqrt() + _EPSILON), 0.0)
    vectors[rows] -= scale.unsqueeze(-1) * grad
