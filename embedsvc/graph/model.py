"""The model of a graph: how edges are scored, and what a batch of them costs. The exact twin.

    score(lhs, rel, rhs) = comparator(operator_rel(lhs), rhs)

To predict rhs, the moved lhs is compared with candidates. To predict lhs, either candidates are
moved and compared with rhs, or, with reciprocal parameters (Lacroix et al. 2018), rhs is moved by a
second operator and compared with candidates. Everything here is plain torch in any float dtype,
differentiated by autograd: any faster step must give the same loss and gradients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedsvc.config import ModelConfig
from embedsvc.graph.batches import Batch
from embedsvc.graph.comparators import COMPARATORS, Comparator
from embedsvc.graph.initial import initial_vectors
from embedsvc.graph.losses import (
    LOSSES,
    REGULARIZERS,
    Loss,
    Regularizer,
    SampledSoftmaxLoss,
)
from embedsvc.graph.operators import OPERATORS, Operator
from partitions.errors import ConfigError, did_you_mean
from partitions.graph import Graph
from partitions.hashing import hash_keys

CPU = torch.device("cpu")


@dataclass
class RelationParameters:
    """Operator parameters of all relations, and their AdaGrad state: float32 [R, P] each.

    One pair of tables per operator and direction; rows of relations with another operator idle.
    """

    values: dict[str, Tensor]
    state: dict[str, Tensor]

    @staticmethod
    def initial(
        operators: Mapping[str, Operator], num_relations: int, dim: int, reciprocal: bool
    ) -> "RelationParameters":
        values = {
            table_name(name, reverse): operator.initial(dim).repeat(num_relations, 1)
            for name, operator in operators.items()
            for reverse in ((False, True) if reciprocal else (False,))
        }
        return RelationParameters(
            values, {name: torch.zeros_like(table) for name, table in values.items()}
        )

    def draw(self, relations: Sequence[str], scale: float, seed: int) -> None:
        """Set all to random numbers of mean 0 and this standard deviation; a relation's are the
        same whatever others there are."""
        for name, table in self.values.items():
            keys = pa.array([f"{name} {relation}" for relation in relations], pa.string())
            drawn = initial_vectors(seed, hash_keys(keys), table.shape[1], scale)
            table.copy_(torch.from_numpy(drawn))

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """For the checkpoint."""
        tables = {f"{name}.values": table.numpy() for name, table in self.values.items()}
        return tables | {f"{name}.state": table.numpy() for name, table in self.state.items()}

    def load(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """Relations beyond the stored ones, which a graph may have got since, stay initial."""
        for name in self.values:
            for tables, part in ((self.values, "values"), (self.state, "state")):
                stored = arrays.get(f"{name}.{part}")
                if stored is not None:
                    tables[name][: len(stored)] = torch.from_numpy(stored)


def table_name(operator: str, reverse: bool) -> str:
    return f"{operator}.reverse" if reverse else operator


@dataclass(frozen=True)
class GraphModel:
    dim: int
    operators: Mapping[str, Operator]  # those in use
    operator_of: tuple[str, ...]  # relation -> operator's name
    comparator: Comparator
    loss: Loss
    regularizer: Regularizer | None
    reciprocal: bool
    parameters: RelationParameters
    relation_weights: NDArray[np.float32] | None = None  # of each relation's edges; None: 1
    dropout: float = 0.0  # share of the numbers of an entity's vector that a batch does without
    relation_dropout: float = 0.0  # the same of operator parameters

    @staticmethod
    def build(config: ModelConfig, graph: Graph, seed: int = 0) -> "GraphModel":
        """seed: of the first operator parameters, where they are random."""
        names = [relation.name for relation in graph.relations]
        for table in ("operators", "relation_weights"):
            for name in getattr(config, table):
                if name not in names:
                    hint = did_you_mean(name, names)
                    raise ConfigError(f"[model.{table}] {name} is not a relation. {hint}")
        operator_of = tuple(config.operators.get(name, config.operator) for name in names)
        operators = {name: OPERATORS.build(name) for name in sorted(set(operator_of))}
        parameters = RelationParameters.initial(
            operators, len(names), config.dim, config.reciprocal
        )
        if config.operator_init_scale is not None:
            parameters.draw(names, config.operator_init_scale, seed)
        return GraphModel(
            dim=config.dim,
            operators=operators,
            operator_of=operator_of,
            comparator=COMPARATORS.build(config.comparator),
            loss=LOSSES.build(config.loss),
            regularizer=REGULARIZERS.build(config.regularizer) if config.regularizer else None,
            reciprocal=config.reciprocal,
            parameters=parameters,
            relation_weights=np.array(
                [config.relation_weights.get(name, 1.0) for name in names], np.float32
            )
            if config.relation_weights
            else None,
            dropout=config.dropout,
            relation_dropout=config.relation_dropout,
        )

    @property
    def moves_candidates(self) -> bool:
        """Whether predicting lhs applies the operator to candidates, relation by relation."""
        return not self.reciprocal and any(name != "identity" for name in self.operators)

    @property
    def chunks_by_relation(self) -> bool:
        """Whether the edges of a chunk have to be of one relation: where candidates are moved, and
        where a relation has too many parameters to repeat them for every edge."""
        return self.moves_candidates or any(op.matrix for op in self.operators.values())

    @property
    def corrects_sampling(self) -> bool:
        """Whether batches have to tell how often each candidate is expected."""
        return isinstance(self.loss, SampledSoftmaxLoss)

    @property
    def drops(self) -> bool:
        """Whether batches need a seed."""
        return self.dropout > 0 or self.relation_dropout > 0

    def move(self, x: Tensor, rel: Tensor, *, reverse: bool = False) -> Tensor:
        """x: [N, D] vectors, rel: int64 [N]; each moved by its relation's own operator."""
        moved = torch.empty_like(x)
        names = np.array(self.operator_of)[rel.numpy()]
        for name, operator in self.operators.items():
            rows = torch.from_numpy(np.flatnonzero(names == name))
            table = self.parameters.values[table_name(name, reverse)]
            if not operator.matrix:
                moved[rows] = operator(x[rows], table[rel[rows]].to(x.dtype))
                continue
            for one in rel[rows].unique():
                at = rows[rel[rows] == one]
                # Summed in float64: what else is in the product must not show in a float32.
                moved[at] = operator(x[at].double(), table[one].double()).to(x.dtype)
        return moved


@dataclass(frozen=True)
class BatchTensors:
    """A batch's arrays on one device; on the CPU they are shared."""

    lhs_KC: Tensor
    rel_KC: Tensor
    rhs_KC: Tensor
    real_KC: Tensor
    weight_KC: Tensor
    neg_lhs_KU: Tensor
    neg_rhs_KU: Tensor
    log_q_lhs: Tensor | None
    log_q_rhs: Tensor | None

    @staticmethod
    def of(batch: Batch, device: torch.device = CPU) -> "BatchTensors":
        def onto(array: NDArray[Any] | None) -> Any:
            if array is None:
                return None
            tensor = torch.from_numpy(array)
            # Elsewhere from pinned memory, so that the host does not wait for it.
            return tensor if device == CPU else tensor.pin_memory().to(device, non_blocking=True)

        names = [field.name for field in fields(BatchTensors)]
        return BatchTensors(**{name: onto(getattr(batch, name)) for name in names})


@dataclass(frozen=True)
class BatchVectors:
    """The vectors a batch works on, gathered from the tables; leaves of the autograd graph."""

    lhs_KCD: Tensor
    rhs_KCD: Tensor
    neg_lhs_KUD: Tensor
    neg_rhs_KUD: Tensor
    # Operator parameters of each edge's relation; [K, 1, P] where a chunk has but one.
    forward_KCP: Tensor
    reverse_KCP: Tensor | None  # the same for the other direction, with reciprocal parameters


def batch_loss(
    model: GraphModel,
    batch: Batch,
    vectors: BatchVectors,
    in_batch: bool,
    arrays: BatchTensors | None = None,
) -> Tensor:
    """The summed, weighted loss of a batch over both sides; a scalar.

    arrays: the batch's own, where they are on the vectors' device already.
    """
    a = arrays or BatchTensors.of(batch, vectors.lhs_KCD.device)
    operator = model.operators[batch.group.operator]
    compare = model.comparator
    v = _dropped(model, batch, vectors) if model.drops else vectors
    query_KCD = operator(v.lhs_KCD, v.forward_KCP)
    pos_KC = compare.pairs(query_KCD, v.rhs_KCD)
    neg_rhs = _negatives(a.rhs_KC, a.neg_rhs_KU, a.real_KC, in_batch, a.log_q_rhs)
    cand_rhs = torch.cat([v.rhs_KCD, v.neg_rhs_KUD], dim=1) if in_batch else v.neg_rhs_KUD
    rhs_loss_KC = model.loss(pos_KC, compare.blocks(query_KCD, cand_rhs) + neg_rhs)

    neg_lhs = _negatives(a.lhs_KC, a.neg_lhs_KU, a.real_KC, in_batch, a.log_q_lhs)
    cand_lhs = torch.cat([v.lhs_KCD, v.neg_lhs_KUD], dim=1) if in_batch else v.neg_lhs_KUD
    if v.reverse_KCP is not None:
        back_KCD = operator(v.rhs_KCD, v.reverse_KCP)
        back_KC = compare.pairs(back_KCD, v.lhs_KCD)
        lhs_loss_KC = model.loss(back_KC, compare.blocks(back_KCD, cand_lhs) + neg_lhs)
    else:
        # A chunk has one relation here unless its operator is the identity.
        moved = operator(cand_lhs, v.forward_KCP[:, :1])
        lhs_loss_KC = model.loss(pos_KC, compare.blocks(v.rhs_KCD, moved) + neg_lhs)

    loss_KC = rhs_loss_KC + lhs_loss_KC
    if model.regularizer is not None:
        whole = vectors  # what is dropped is not forgotten
        loss_KC = loss_KC + model.regularizer(whole.lhs_KCD) + model.regularizer(whole.rhs_KCD)
        for params in (whole.forward_KCP, whole.reverse_KCP):
            if params is not None and params.shape[-1] and not operator.angles:
                loss_KC = loss_KC + model.regularizer(params)
    return (loss_KC * a.weight_KC.to(loss_KC.dtype)).sum()


def _negatives(
    true_KC: Tensor, drawn_KU: Tensor, real_KC: Tensor, in_batch: bool, log_q: Tensor | None
) -> Tensor:
    """[K, C, C + U] to add to scores: -inf masks an edge's own entity and padding; elsewhere 0, or
    what corrects for the sampling."""
    candidates = torch.cat([true_KC, drawn_KU], dim=1) if in_batch else drawn_KU
    masked = true_KC[:, :, None] == candidates[:, None, :]
    if in_batch:
        masked[:, :, : true_KC.shape[1]] |= ~real_KC[:, None, :]
    added = torch.zeros(masked.shape, device=masked.device)
    if log_q is not None:
        added -= log_q[:, None]
    return added.masked_fill_(masked, -torch.inf)


def _dropped(model: GraphModel, batch: Batch, v: BatchVectors) -> BatchVectors:
    """The vectors of a batch without a random share of their numbers (Srivastava et al. 2014); the
    others are scaled up, so that sums keep their mean. Of angles, which add up to no sum, the
    dropped ones turn nothing and the others stay."""
    device = v.lhs_KCD.device
    generator = torch.Generator(device).manual_seed(batch.seed)
    scaled = not model.operators[batch.group.operator].angles

    def drop(x: Tensor, share: float, scaled: bool = True) -> Tensor:
        kept = torch.rand(x.shape, generator=generator, device=device) >= share
        return x * (kept.to(x.dtype) / (1 - share if scaled else 1))

    def drop_parameters(params: Tensor) -> Tensor:
        if model.moves_candidates:  # the chunk's relation: one draw, so that all its scores agree
            params = params[:, :1]
        return drop(params, model.relation_dropout, scaled)

    return BatchVectors(
        drop(v.lhs_KCD, model.dropout),
        drop(v.rhs_KCD, model.dropout),
        drop(v.neg_lhs_KUD, model.dropout),
        drop(v.neg_rhs_KUD, model.dropout),
        drop_parameters(v.forward_KCP),
        None if v.reverse_KCP is None else drop_parameters(v.reverse_KCP),
    )
