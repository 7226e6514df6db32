"""The tables of the config file that this floor owns: [model], [output], [train], [eval], [publish]
and [gate]."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StrictBool, field_validator, model_validator

from partitions.config import Column, Table
from partitions.errors import ConfigError, did_you_mean
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


def _unset(value: Any) -> Any:
    """An optional table that the command line takes away, as train.early_stopping=false."""
    return None if value is False or value == "off" else value


class ModelConfig(Table):
    """`[model]`: what is learnt."""

    dim: Annotated[int, Field(ge=1)] = 100
    """Numbers per entity; even for complex_diagonal and rotate."""
    operator: str = "identity"
    """How a relation moves a vector: identity, diagonal, translation, complex_diagonal, rotate,
    linear, affine."""
    operators: dict[str, str] = Field(default_factory=dict)
    """Relation -> operator, where it differs from `operator`."""
    reciprocal: bool = False
    """A second set of operator parameters per relation for predicting lhs from rhs."""
    comparator: Spec = "dot"
    """How two vectors are scored: dot, cos, l2, squared_l2."""
    loss: Spec = "softmax"
    """softmax, sampled_softmax, logistic, {name = "ranking", margin = 0.1} or
    {name = "self_adversarial", gamma = 12.0, alpha = 1.0}."""
    relation_weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        default_factory=dict
    )
    """Relation -> what the loss of its edges is multiplied by; unset: 1."""
    regularizer: Spec | None = None
    """Such as {name = "n3", weight = 0.01}; or l2."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the numbers of each entity's vector that a batch does without."""
    relation_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The same of operator parameters."""
    init_scale: Annotated[float, Field(gt=0)] = 1e-3
    """Standard deviation of the first vectors."""
    operator_init_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """The same of the first operator parameters; unset: operators begin by moving nothing."""
    init_from: dict[str, Path] = Field(default_factory=dict)
    """Entity type -> file of vectors to begin with, by key, as `embedsvc export` writes them."""

    def operators_in_use(self, relations: Iterable[str] = ()) -> set[str]:
        """Of these relations; of any, where none are named."""
        used = {self.operators.get(name, self.operator) for name in relations}
        return used or {self.operator, *self.operators.values()}

    @model_validator(mode="after")
    def _known(self) -> "ModelConfig":
        from embedsvc.graph.comparators import COMPARATORS
        from embedsvc.graph.losses import LOSSES, REGULARIZERS
        from embedsvc.graph.operators import OPERATORS

        _buildable(COMPARATORS, self.comparator)
        _buildable(LOSSES, self.loss)
        if self.regularizer is not None:
            _buildable(REGULARIZERS, self.regularizer)
        for name in self.operators_in_use():
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
    degree: Annotated[int, Field(ge=0)] = 0
    """Entities drawn by count^alpha, of the bucket's edges that have them; shared by a chunk."""
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """How strongly `degree` prefers the frequent: 0 not at all, 1 as often as they occur."""
    all: StrictBool = False  # _all_alone sees it before pydantic could read 1 or "yes" as true
    """Every entity of the partition, in place of the other kinds; for small graphs."""

    @model_validator(mode="before")
    @classmethod
    def _all_alone(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("all") is not True:
            return value
        others = {"in_batch": False, "uniform": 0, "degree": 0}
        if odd := [name for name in others if value.get(name)]:
            raise ValueError(f"negatives.all takes every entity already: remove {', '.join(odd)}")
        return value | others

    @model_validator(mode="after")
    def _some(self) -> "NegativesConfig":
        if not (self.in_batch or self.uniform or self.degree or self.all):
            raise ValueError("negatives need in_batch = true, all = true, or uniform or degree")
        return self


class EarlyStoppingConfig(Table):
    """`[train.early_stopping]`: when epochs no longer help, judged by the validation split."""

    patience: Annotated[int, Field(ge=1)] = 3
    """Evaluations in a row that may be no better than the best before."""
    every_epochs: Annotated[int, Field(ge=1)] = 1
    """Epochs from one evaluation to the next."""
    metric: Literal["mrr", "hits1", "hits3", "hits10"] = "mrr"
    """Of the filtered ranks of both sides of each edge."""
    max_edges: Annotated[int, Field(ge=1)] | None = None
    """Judge by a seeded sample of the split's edges; unset: by all."""


GPU_BATCH_SIZE = 10_000  # edges: less than that is done before the host has asked for more


class TrainConfig(Table):
    """`[train]`: how it is learnt."""

    epochs: Annotated[int, Field(ge=1)] = 10
    lr: Annotated[float, Field(gt=0)] = 0.1
    """Step size of `optimizer` on vectors."""
    relation_lr: Annotated[float, Field(gt=0)] | None = None
    """Step size of AdaGrad on operator parameters; unset: `lr`."""
    optimizer: Spec = "rowwise_adagrad"
    """Of vectors: rowwise_adagrad, adagrad, sgd, {name = "adam", beta1 = 0.9, beta2 = 0.999},
    sm3."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of vectors in memory and on disk; the two short ones are rounded stochastically."""
    lr_schedule: Spec = "constant"
    """What both step sizes are multiplied by: constant, {name = "linear", epochs = 20},
    {name = "cosine", epochs = 20} or {name = "exponential", factor = 0.9}."""
    warmup_epochs: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Epochs over which the step sizes first grow from 0; fractions are allowed."""
    early_stopping: EarlyStoppingConfig | None = None
    """Stop when the validation split is ranked no better for some epochs, and keep the best; false:
    not, as where it is unset."""
    step: Literal["auto", "fast", "exact", "device"] = "auto"
    """fast (compiled kernels) or exact (autograd); auto: fast where it covers the model, and on a
    GPU device. device on the CPU is what a GPU would do, for tests."""
    device: Literal["cpu", "cuda"] = "cpu"
    """cuda: tables in memory lie on a GPU, and it trains them."""
    tf32: bool = False
    """Let a GPU multiply matrices in TF32, with 10 binary digits: faster, not as exact."""
    products: Literal["float32", "bfloat16"] = "float32"
    """Of the fast step's matrices. bfloat16: factors are rounded to 8 bits of precision, sums are
    float32, as are the vectors; where the processor is no faster at that, float32 all the same."""
    batch_size: Annotated[int, Field(ge=1)] = 1000
    """Edges per update; of the exact step, and of a GPU, where the default is 10,000. The fast
    step updates after each chunk."""
    chunk_size: Annotated[int, Field(ge=1)] = 50
    """Edges that share their negatives."""
    negatives: NegativesConfig = NegativesConfig()
    buffer: Annotated[int, Field(ge=1)] = 2
    """Tables of partitioned types held in memory at once."""
    prefetch: Annotated[int, Field(ge=0)] = 1
    """Tables loaded ahead beyond `buffer`, while others are trained; 0: training may wait."""
    page_cache: bool = True
    """false: ask the system not to keep table files in memory after they are read or written."""
    only_changed: bool = False
    """After embedsvc import --append: visit only the buckets that got edges."""
    order: Spec = "best"
    """In which order an epoch visits its buckets: best, beta, affinity, inside_out, outside_in,
    random. The first two know `buffer`; {name = "best", assign = "first"} plays each as soon as
    its tables are in memory, "random" (the default) at any time when they are."""
    commit_every_s: Annotated[float, Field(ge=0)] = 30.0
    """A checkpoint at the end of the first bucket after this many seconds; 0: at every bucket."""
    tensorboard: bool = False
    """Write the curves for TensorBoard as well, into checkpoint/tensorboard."""
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] = 1
    threads: Annotated[int, Field(ge=1)] | None = None
    """Threads that train side by side; 1: the same bits at every run; unset: all cores."""
    memory_mb: Annotated[int, Field(ge=1)] | None = None
    """Most memory that training may plan for; unset: what the machine has free."""

    @model_validator(mode="before")
    @classmethod
    def _large_batches_on_a_gpu(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("device") == "cuda":
            return {"batch_size": GPU_BATCH_SIZE} | value
        return value

    @field_validator("early_stopping", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return _unset(value)

    @field_validator("order")
    @classmethod
    def _known_order(cls, spec: Spec) -> Spec:
        return _buildable(ORDERS, spec)

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, spec: Spec) -> Spec:
        from embedsvc.graph.optimizers import OPTIMIZERS

        return _buildable(OPTIMIZERS, spec)

    @field_validator("lr_schedule")
    @classmethod
    def _known_schedule(cls, spec: Spec) -> Spec:
        from embedsvc.training.rates import RATES

        return _buildable(RATES, spec)

    @model_validator(mode="after")
    def _fits(self) -> "TrainConfig":
        if self.batch_size < self.chunk_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be at least chunk_size ({self.chunk_size})"
            )
        return self


_OF_LSH = ("head", "retrieved", "train_probes", "samples", "retriever", "sampler", "correction")


class OutputConfig(Table):
    """`[output]`: learn what comes next from sequences, by a softmax over all entities of a type,
    instead of vectors from single edges. Takes the place of `[model]`."""

    kind: Literal["lsh_softmax", "full_softmax"] | None = None
    """lsh_softmax looks at some classes a step, full_softmax at all; unset: no [output]."""
    relation: str | None = None
    """Whose rhs are the classes; unset: the graph's only one."""
    sequences: Spec = "histories"
    """histories (the rhs of each lhs, in the order of time) or {name = "walks", length = 40,
    per_entity = 10}: random walks over the graph, of which the classes are kept."""
    examples: Spec = "next_item"
    """{name = "next_item", max_history = 50} or {name = "skip_gram", window = 5}."""
    tower: Spec = "mean"
    """How a history becomes a vector: mean, recency, max, attention, gru."""
    features: list[str] = Field(default_factory=list)
    """Attributes of who asks, each value of which has a learnt row that is added to what was made
    of his history."""
    hidden: Annotated[int, Field(ge=0)] = 0
    """Units of a layer on top of that; 0: none."""
    dim: Annotated[int, Field(ge=1)] = 64
    """Numbers per history and per class, beside a class's bias."""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Examples per update."""
    optimizer: Spec = "rowwise_adagrad"
    """Of rows: rowwise_adagrad, adam_lite or sgd."""
    lr: Annotated[float, Field(gt=0)] = 0.1
    """Step size of classes' rows."""
    tower_lr: Annotated[float, Field(gt=0)] | None = None
    """Step size of the rows that histories are made of, and of the rest of the tower; unset: lr."""
    head: Annotated[int, Field(ge=0)] = 1024
    """lsh_softmax: most frequent classes that every step looks at."""
    retrieved: Annotated[int, Field(ge=0)] = 12
    """lsh_softmax: classes that the retriever finds for each example of a batch."""
    train_probes: Annotated[int, Field(ge=1)] | None = None
    """lsh_softmax: cells that it looks into for each; unset: as many as a step can afford."""
    samples: Annotated[int, Field(ge=0)] = 1024
    """lsh_softmax: classes drawn a step."""
    retriever: Spec = "partition"
    """lsh_softmax: partition, simhash, wta or exact, with settings; "none" goes without."""
    sampler: Spec = "unigram"
    """lsh_softmax: unigram or {name = "unigram", alpha = 0.75}, by frequency; log_uniform."""
    correction: Literal["log_q", "none"] = "log_q"
    """lsh_softmax: none counts a sample as itself alone, as in 2015."""
    mapped: bool | Literal["auto"] = "auto"
    """Rows in files mapped into memory, of which the parts in use stay there; auto: where they
    don't fit in memory otherwise."""

    @model_validator(mode="after")
    def _known(self) -> "OutputConfig":
        if self.kind is None:
            if self.model_fields_set - {"kind"}:
                raise ValueError("kind is missing: lsh_softmax or full_softmax")
            return self
        from embedsvc.outputs.retrievers import RETRIEVERS
        from embedsvc.outputs.sampling import SAMPLERS
        from embedsvc.outputs.sparse import ROW_OPTIMIZERS
        from embedsvc.ranking.examples import EXAMPLES
        from embedsvc.ranking.towers import POOLINGS
        from embedsvc.training.events import SEQUENCES

        _buildable(SEQUENCES, self.sequences)
        _buildable(EXAMPLES, self.examples)
        _buildable(POOLINGS, self.tower)
        _buildable(ROW_OPTIMIZERS, self.optimizer)
        _buildable(SAMPLERS, self.sampler)
        if self.retriever != "none":
            _known_or_none(RETRIEVERS, self.retriever)
            _buildable(RETRIEVERS, self.retriever)
        for name in _OF_LSH:
            changed = getattr(self, name) != type(self).model_fields[name].default
            if self.kind == "full_softmax" and changed:
                raise ValueError(f"{name} is of lsh_softmax: remove it, or choose that kind")
        if _name(self.examples) == "skip_gram" and (_name(self.tower) != "mean" or self.hidden):
            raise ValueError("skip_gram learns from one item at a time: remove tower and hidden")
        if len(set(self.features)) < len(self.features):
            raise ValueError("features are names of attributes, each once")
        if self.features and _name(self.examples) != "next_item":
            raise ValueError("features are of who asks for a next_item: remove them, or examples")
        if self.features and _name(self.sequences) != "histories":
            raise ValueError("features are of who has a history: remove them, or sequences")
        return self


def _known_or_none(registry: Registry[Any], spec: Spec) -> None:
    """ValueError that lists "none" among the names there are."""
    names = [*registry, "none"]
    if isinstance(spec, str) and spec not in names:
        hint = did_you_mean(spec, names)
        raise ValueError(f"There is no {registry.noun} named {spec}. {hint}")


def _name(spec: Spec) -> Any:
    return spec if isinstance(spec, str) else spec.get("name")


_KEY_AND_LABEL: dict[Literal["key", "label"], Column] = {"key": 0, "label": 1}


class ClassifyConfig(Table):
    """`[eval.classify]`: how well vectors tell labels that the graph does not have."""

    labels: str
    """File, folder or glob of (key, label) rows, relative to graph.data."""
    type: str
    """Entity type of the keys."""
    columns: dict[Literal["key", "label"], Column] = Field(
        default_factory=lambda: dict(_KEY_AND_LABEL)
    )
    """Name or position of each."""
    separator: Annotated[str, Field(min_length=1)] | None = None
    """Between the labels of a row; unset: a row has one, and a key may have several rows."""
    format: Literal["text", "parquet", "arrow", "json"] | None = None
    """Told from the file name's ending where unset; so are the next two."""
    delimiter: Annotated[str, Field(min_length=1)] | None = None
    header: bool | None = None
    shares: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1)] = Field(
        default_factory=lambda: [0.1, 0.5, 0.9]
    )
    """Of the labelled entities: how many teach the classifier; the others are judged."""
    repeats: Annotated[int, Field(ge=1)] = 10
    """Shuffles, each with its own draw of who teaches."""
    c: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Inverse strength of the logistic regressions' L2."""
    scale: Literal["standard", "unit", "none"] = "standard"
    """Of vectors, before: to mean 0 and deviation 1 of each number by those that teach; unit: each
    vector to length 1, then that; none: as they are."""
    seed: Annotated[int, Field(ge=0)] = 1
    """Of the shuffles."""

    @model_validator(mode="after")
    def _maps_both(self) -> "ClassifyConfig":
        if missing := {"key", "label"} - set(self.columns):
            raise ValueError(f"columns does not map {', '.join(sorted(missing))}")
        return self


class EvalConfig(Table):
    """`[eval]`: what is measured."""

    split: Literal["train", "valid", "test"] = "test"
    links: bool = True
    """Filtered rank of each edge's lhs and rhs among all entities of their type."""
    ties: Literal["pessimistic", "realistic"] = "pessimistic"
    """Of others that score the same all count, or half. Both are in the report; this is its mrr."""
    sampled_candidates: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """In place of ranks among all, metrics of links estimated from so many drawn candidates a type;
    their names begin with sampled_. Unset: exact."""
    relations: list[str] | None = None
    """Only edges of these relations; unset: of all."""
    recommend: list[str] = Field(default_factory=list)
    """Relations for which top-k lists are measured as well, beside a most-popular baseline."""
    k: Annotated[int, Field(ge=1)] = 20
    """Length of those lists."""
    max_edges: Annotated[int, Field(ge=1)] | None = None
    """Rank a seeded sample of the split's edges (said in the report); unset: all."""
    classify: ClassifyConfig | None = None
    """Labels of entities to tell from their vectors; unset, or false: none."""
    report: bool = True
    """Write evaluation.html, too: intervals, curves, neighbours, maps, what changed."""

    @field_validator("classify", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return _unset(value)


class PublishConfig(Table):
    """`[publish]`: what is served."""

    recommend: list[str] | None = None
    """Relations whose seen lists go with the version; unset: all relations."""
    keep: Annotated[int, Field(ge=1)] = 3
    """Newest versions kept; the live one is kept in any case."""
    golden: Annotated[int, Field(ge=0)] = 64
    """Queries, over all relations, whose exact answers are stored and checked."""
    prune: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Of a [ranker]: the share of its hidden layers' weights that are set to 0, the smallest ones;
    unset: none."""
    prune_epochs: Annotated[int, Field(ge=1)] = 1
    """Epochs over the training rows in which layers are pruned and learn on."""
    quantize: Literal["int8"] | None = None
    """Of a [ranker]: what its layers compute in; unset: float32."""

    OF_GRAPHS: ClassVar[frozenset[str]] = frozenset({"recommend", "golden"})
    OF_RANKERS: ClassVar[frozenset[str]] = frozenset({"prune", "prune_epochs", "quantize"})

    def check(self, name: str, odd: frozenset[str], model: str) -> None:
        """ConfigError where settings of the other kind of model were given. name: the file's."""
        if found := self.model_fields_set & odd:
            raise ConfigError(f"{name}: [publish] {min(found)} does not apply {model}: remove it.")


class GateConfig(Table):
    """`[gate]`: what a new version must be to go live in place of the one that is."""

    conditions: list[str] = Field(default_factory=list)
    """Such as "recall@20: new - old > 0.002 +- 0.001 at 0.999" and "changed@10 < 0.3"; all of them
    must hold. None: golden queries alone decide."""
    split: Literal["valid", "test"] = "test"
    """Whose held-out edges both versions are judged by."""
    mode: Literal["fp-free", "fn-free"] = "fp-free"
    """What an estimate within the tolerance of its threshold means: not live, or live."""
    adaptivity: Literal["full", "none"] = "full"
    """Whether verdicts change which model is tried next: those of people who read them do, those of
    a nightly job with the same settings do not."""
    max_uses: Annotated[int, Field(ge=1)] = 32
    """How often a test set may decide; more make every decision take more users."""

    @field_validator("conditions")
    @classmethod
    def _can_be_read(cls, conditions: list[str]) -> list[str]:
        from embedsvc.evaluation.conditions import parse

        for text in conditions:
            try:
                parse(text)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return conditions
