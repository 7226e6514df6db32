"""The tables of the config file that this floor owns: [model], [train], [eval], [publish]."""

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from partitions.config import Table
from partitions.errors import ConfigError
from partitions.order import ORDERS
from partitions.registry import Registry

Spec = str | dict[str, Any]  # "name" or {name = "...", key = value}, see partitions.registry


def _buildable(registry: Registry[Any], spec: Spec) -> Spec:
    """Build once to check the name and its keys, so that mistakes show before any work."""
    try:
        registry.build(spec)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    except TypeError as error:
        raise ValueError(f"{spec}: {error}") from None
    return spec


class ModelConfig(Table):
    """`[model]`: what is learnt."""

    dim: Annotated[int, Field(ge=1)] = 100
    """Numbers per entity; even for complex_diagonal."""
    operator: str = "identity"
    """How a relation moves a vector: identity, diagonal, translation, complex_diagonal."""
    operators: dict[str, str] = Field(default_factory=dict)
    """Relation -> operator, where it differs from `operator`."""
    reciprocal: bool = False
    """A second set of operator parameters per relation for predicting lhs from rhs."""
    comparator: Spec = "dot"
    """How two vectors are scored: dot, cos, l2."""
    loss: Spec = "softmax"
    """softmax, logistic or {name = "ranking", margin = 0.1}."""
    regularizer: Spec | None = None
    """Such as {name = "n3", weight = 0.01}."""
    init_scale: Annotated[float, Field(gt=0)] = 1e-3
    """Standard deviation of the first vectors."""

    @model_validator(mode="after")
    def _known(self) -> "ModelConfig":
        from embedsvc.graph.comparators import COMPARATORS
        from embedsvc.graph.losses import LOSSES, REGULARIZERS
        from embedsvc.graph.operators import OPERATORS

        _buildable(COMPARATORS, self.comparator)
        _buildable(LOSSES, self.loss)
        if self.regularizer is not None:
            _buildable(REGULARIZERS, self.regularizer)
        for name in {self.operator, *self.operators.values()}:
            _buildable(OPERATORS, name)
            try:
                OPERATORS.build(name).check(self.dim)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return self


class NegativesConfig(Table):
    """`[train.negatives]`: what each edge is told apart from, on either side."""

    in_batch: bool = True
    """The other entities of the edge's chunk."""
    uniform: Annotated[int, Field(ge=0)] = 50
    """Entities drawn evenly from the partition, shared by a chunk."""

    @model_validator(mode="after")
    def _some(self) -> "NegativesConfig":
        if not self.in_batch and not self.uniform:
            raise ValueError("negatives need in_batch = true or uniform above 0")
        return self


class TrainConfig(Table):
    """`[train]`: how it is learnt."""

    epochs: Annotated[int, Field(ge=1)] = 10
    lr: Annotated[float, Field(gt=0)] = 0.1
    """Step size of row-wise AdaGrad on vectors."""
    relation_lr: Annotated[float, Field(gt=0)] | None = None
    """Step size of AdaGrad on operator parameters; unset: `lr`."""
    batch_size: Annotated[int, Field(ge=1)] = 1000
    """Edges per update."""
    chunk_size: Annotated[int, Field(ge=1)] = 50
    """Edges that share their negatives."""
    negatives: NegativesConfig = NegativesConfig()
    buffer: Annotated[int, Field(ge=1)] = 2
    """Tables of partitioned types held in memory at once."""
    only_changed: bool = False
    """After embedsvc import --append: visit only the buckets that got edges."""
    order: Spec = "inside_out"
    """In which order an epoch visits its buckets: inside_out, random."""
    commit_every_s: Annotated[float, Field(ge=0)] = 30.0
    """A checkpoint at the end of the first bucket after this many seconds; 0: at every bucket."""
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] = 1
    threads: Annotated[int, Field(ge=1)] | None = None
    """Threads of the tensor library; unset: all cores."""
    memory_mb: Annotated[int, Field(ge=1)] | None = None
    """Most memory that training may plan for; unset: what the machine has free."""

    @field_validator("order")
    @classmethod
    def _known_order(cls, spec: Spec) -> Spec:
        return _buildable(ORDERS, spec)

    @model_validator(mode="after")
    def _fits(self) -> "TrainConfig":
        if self.batch_size < self.chunk_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be at least chunk_size ({self.chunk_size})"
            )
        return self


class EvalConfig(Table):
    """`[eval]`: what is measured."""

    split: Annotated[str, Field(pattern="^(train|valid|test)$")] = "test"
    links: bool = True
    """Filtered rank of each edge's lhs and rhs among all entities of their type."""
    relations: list[str] | None = None
    """Only edges of these relations; unset: of all."""
    recommend: list[str] = Field(default_factory=list)
    """Relations for which top-k lists are measured as well, beside a most-popular baseline."""
    k: Annotated[int, Field(ge=1)] = 20
    """Length of those lists."""
    max_edges: Annotated[int, Field(ge=1)] | None = None
    """Rank a seeded sample of the split's edges (said in the report); unset: all."""


class PublishConfig(Table):
    """`[publish]`: what is served."""

    recommend: list[str] | None = None
    """Relations whose seen lists go with the version; unset: all relations."""
    keep: Annotated[int, Field(ge=1)] = 3
    """Newest versions kept; the live one is kept in any case."""
    golden: Annotated[int, Field(ge=0)] = 64
    """Queries, over all relations, whose exact answers are stored and checked."""
