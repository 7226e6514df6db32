"""One update: gather rows, differentiate the batch's loss by autograd, write the rows back."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from embedsvc.config import NegativesConfig
from embedsvc.graph import rounding
from embedsvc.graph.bags import FeatureBags, pooled
from embedsvc.graph.batches import Batch, Batcher, Group
from embedsvc.graph.model import BatchVectors, GraphModel, batch_loss, table_name
from embedsvc.graph.negatives import Sampling
from embedsvc.graph.optimizers import Optimizer, RowwiseAdagrad
from partitions.edges import Edges
from partitions.schema import Slot
from partitions.tables import Table

_EPSILON = 1e-10
_DEFAULT = RowwiseAdagrad()

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

    def __init__(
        self,
        model: GraphModel,
        lr: float,
        relation_lr: float,
        in_batch: bool,
        optimizer: Optimizer = _DEFAULT,
        bags: Mapping[Slot, FeatureBags] | None = None,
    ) -> None:
        """bags: of the slots whose vectors are means of rows of another one's table."""
        self.model, self.lr, self.relation_lr, self.in_batch = model, lr, relation_lr, in_batch
        self.optimizer, self.bags = optimizer, bags or {}

    def __call__(
        self, tables: Mapping[Slot, Table], batch: Batch, key: int = 0, number: int = 0
    ) -> float:
        """Train on one batch; returns its loss before the update, summed over edges.

        key, of the bucket, and the batch's number in it: what rounding draws from.
        """
        group = batch.group
        rows = _Rows(tables, batch, self.bags)
        forward = _Parameters(self.model, group.operator, False, batch)
        reverse = _Parameters(self.model, group.operator, True, batch)
        lhs, rhs, neg_lhs, neg_rhs = rows.vectors()
        vectors = BatchVectors(
            lhs, rhs, neg_lhs, neg_rhs, forward.gathered(), reverse.gathered_or_none()
        )
        loss = batch_loss(self.model, batch, vectors, self.in_batch)
        loss.backward()
        keys = [rounding.key_of(np.uint64(key), number, side) for side in (0, 1)]
        rows.update(self.optimizer, self.lr, keys)
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
    optimizer: Optimizer = _DEFAULT
    bags: Mapping[Slot, FeatureBags] = field(default_factory=dict)

    def __call__(
        self,
        tables: Mapping[Slot, Table],
        edges: Edges,
        groups: Sequence[Group],
        seeds: Sequence[int],
        rate: Rate = constant,
    ) -> Generator[tuple[int, float], None, None]:
        in_batch = self.negatives.in_batch
        step = ExactStep(self.model, self.lr, self.relation_lr, in_batch, self.optimizer, self.bags)
        num_rows = {slot: len(table.state) for slot, table in tables.items()}
        num_rows |= {slot: len(found.bags) for slot, found in self.bags.items()}
        batcher = batcher_of(
            self.model, self.negatives, self.batch_size, self.chunk_size, groups, num_rows
        )
        key = rounding_key(seeds)
        for number, batch in enumerate(batcher.batches(edges, np.random.default_rng(seeds))):
            factor = rate(batch.num_edges)
            step.lr, step.relation_lr = factor * self.lr, factor * self.relation_lr
            yield batch.num_edges, step(tables, batch, key, number)


def batcher_of(
    model: GraphModel,
    negatives: NegativesConfig,
    batch_size: int,
    chunk_size: int,
    groups: Sequence[Group],
    num_rows: dict[Slot, int],
) -> Batcher:
    by_relation = model.chunks_by_relation
    # Where all are candidates there is nothing to share by chunks.
    whole = negatives.all and not by_relation
    return Batcher(
        groups,
        num_rows,
        batch_size,
        batch_size if whole else chunk_size,
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


def rounding_key(seeds: Sequence[int]) -> int:
    """Of a bucket."""
    [key] = np.random.SeedSequence(seeds, spawn_key=(1,)).generate_state(1, np.uint64)
    return int(key)


class _Rows:
    """The distinct table rows of a batch as autograd leaves, one per table."""

    def __init__(
        self, tables: Mapping[Slot, Table], batch: Batch, bags: Mapping[Slot, FeatureBags]
    ) -> None:
        self.tables, self.batch = tables, batch
        group = batch.group
        wanted: dict[Slot, list[np.ndarray]] = {group.lhs: [], group.rhs: []}
        wanted[group.lhs] += [batch.lhs_KC, batch.neg_lhs_KU]
        wanted[group.rhs] += [batch.rhs_KC, batch.neg_rhs_KU]
        self._places: dict[Slot, list[Tensor]] = {}
        distinct: dict[Slot, Tensor] = {}
        for slot, parts in wanted.items():
            flat = torch.from_numpy(np.concatenate([part.ravel() for part in parts]))
            distinct[slot], inverse = torch.unique(flat, return_inverse=True)
            ends = np.cumsum([part.size for part in parts])[:-1].tolist()
            split = torch.tensor_split(inverse, ends)
            self._places[slot] = [
                places.view(part.shape) for places, part in zip(split, parts, strict=True)
            ]
        self.leaves: dict[Slot, tuple[Tensor, Tensor]] = {}
        self._vectors = self._gathered(distinct, bags)

    def _gathered(
        self, distinct: Mapping[Slot, Tensor], bags: Mapping[Slot, FeatureBags]
    ) -> dict[Slot, Tensor]:
        """The vectors of each slot's distinct entities; fills `leaves`."""
        table_of = {slot: bags[slot].table if slot in bags else slot for slot in distinct}
        # Of each slot: rows of its table, and where in them each entity's features begin.
        needs = {
            slot: bags[slot].of(rows) if slot in bags else (rows, None)
            for slot, rows in distinct.items()
        }
        for table in dict.fromkeys(table_of.values()):
            wants = [rows for slot, (rows, _) in needs.items() if table_of[slot] == table]
            rows = torch.unique(torch.cat(wants)) if bags else wants[0]  # which is distinct
            leaf = _tensor(self.tables[table].vectors)[rows].float().requires_grad_()
            self.leaves[table] = (rows, leaf)
        vectors = {}
        for slot, (wanted, starts) in needs.items():
            rows, leaf = self.leaves[table_of[slot]]
            if starts is not None:
                vectors[slot] = pooled(leaf, torch.searchsorted(rows, wanted), starts)
            else:
                whole = len(wanted) == len(rows)
                vectors[slot] = leaf if whole else leaf[torch.searchsorted(rows, wanted)]
        return vectors

    def vectors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """lhs, rhs, neg_lhs, neg_rhs."""
        group = self.batch.group
        of_lhs, of_rhs = self._vectors[group.lhs], self._vectors[group.rhs]
        lhs, neg_lhs = self._places[group.lhs][:2]
        rhs, neg_rhs = self._places[group.rhs][-2:]
        return (
            functional.embedding(lhs, of_lhs),
            functional.embedding(rhs, of_rhs),
            functional.embedding(neg_lhs, of_lhs),
            functional.embedding(neg_rhs, of_rhs),
        )

    def update(self, optimizer: Optimizer, lr: float, keys: Sequence[int]) -> None:
        """keys: of the rounding of each table."""
        for (slot, (rows, leaf)), key in zip(self.leaves.items(), keys, strict=False):
            if leaf.grad is not None:
                table = self.tables[slot]
                state, shared = torch.from_numpy(table.state), torch.from_numpy(table.shared)
                own = state[rows]
                updated = leaf.detach() - optimizer.step(leaf.grad, own, shared, lr)
                state[rows] = own
                if table.vectors.dtype == np.float32:
                    torch.from_numpy(table.vectors)[rows] = updated
                else:
                    offsets = rows.numpy()
                    table.vectors[offsets] = rounding.stochastic(
                        updated.numpy(), table.vectors.dtype, key, offsets
                    )


def _tensor(vectors: NDArray[Any]) -> Tensor:
    tensor = torch.from_numpy(vectors)
    return tensor.view(torch.bfloat16) if vectors.dtype == np.uint16 else tensor


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
