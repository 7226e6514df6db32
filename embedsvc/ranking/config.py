"""`[ranker]`: what a Wide & Deep model learns, from which files."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from partitions.config import SourceConfig, Table
from partitions.errors import ConfigError, did_you_mean
from partitions.features import CrossSpec, FeaturesConfig, FeatureSpec

Positive = Annotated[float, Field(gt=0)]
AtLeast0 = Annotated[float, Field(ge=0)]


def _as_sources(value: Any) -> Any:
    """A path, or a list of paths and of what SourceConfig has."""
    found = value if isinstance(value, list) else [value]
    return [{"path": one} if isinstance(one, str) else one for one in found]


def _or_unset(value: Any) -> Any:
    """An empty name is none: so an override can unset it, as in ranker.weight=""."""
    return None if value == "" else value


def _is_weight(value: Any) -> Any:
    if value == "balanced" or (type(value) in (int, float) and 0 < value < math.inf):
        return value
    raise ValueError(f'expected a number above 0, or "balanced", found {value!r}')


Sources = Annotated[list[SourceConfig], BeforeValidator(_as_sources)]
Name = Annotated[str | None, BeforeValidator(_or_unset)]


class WideConfig(Table):
    """`[ranker.wide]`: the linear part, learnt by FTRL-proximal."""

    enabled: bool = True
    features: list[str] | None = None
    """Features and crosses with a weight for each of their values; unset: all."""
    alpha: Positive = 0.05
    """Step size."""
    beta: AtLeast0 = 1.0
    """Keeps the first steps of a weight small."""
    l1: AtLeast0 = 0.0
    """Sets weights to 0 whose gradients don't add up to more."""
    l2: AtLeast0 = 0.0


class DeepConfig(Table):
    """`[ranker.deep]`: embeddings and layers, learnt by AdaGrad."""

    enabled: bool = True
    features: list[str] | None = None
    """Features that have embeddings, or are numbers; unset: all, but no crosses. Those that dims or
    towers name are among them."""
    dim: Annotated[int, Field(ge=1)] = 16
    """Numbers of an embedding."""
    dims: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Feature -> numbers of its embeddings, where that differs."""
    hidden: list[Annotated[int, Field(ge=1)]] = Field(default=[256, 128])
    """Units of each layer."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the units of a layer that a step does without."""
    optimizer: Literal["adagrad", "adam"] = "adagrad"
    """Of the layers."""
    lr: Positive = 0.02
    """Step size of the layers."""
    row_optimizer: str | dict[str, Any] = "rowwise_adagrad"
    """Of embeddings: rowwise_adagrad, adam_lite or sgd."""
    row_lr: Positive = 0.05
    """Step size of embeddings."""
    l2: AtLeast0 = 0.0
    """Of embeddings, each time that an example looks one up."""
    init_scale: Positive = 0.01
    """Embeddings are at first even within it."""
    towers: list[list[str]] | None = None
    """[[features of one side], [those of the other]]: two towers of `hidden`, whose vectors'
    product is the score; unset: one body that sees all."""

    @model_validator(mode="after")
    def _known(self) -> "DeepConfig":
        from embedsvc.outputs.sparse import ROW_OPTIMIZERS

        try:
            ROW_OPTIMIZERS.build(self.row_optimizer)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        if self.towers is not None:
            if len(self.towers) != 2 or not all(self.towers):
                raise ValueError("towers are two lists of features")
            if both := set(self.towers[0]) & set(self.towers[1]):
                raise ValueError(f"{min(both)} is on both sides of towers")
        return self

    def dim_of(self, slot: str, crosses: frozenset[str]) -> int:
        """Numbers of an embedding of this slot; 0: it has none."""
        in_towers = self.towers is not None and any(slot in side for side in self.towers)
        if not self.enabled or (self.towers is not None and not in_towers):
            return 0
        chosen = slot in self.features if self.features is not None else slot not in crosses
        return self.dims.get(slot, self.dim if chosen or in_towers else 0)

    @property
    def numbers(self) -> set[str] | None:
        """Features whose numbers the layers read; None: of all."""
        if self.features is None:
            return None
        return {*self.features, *(name for side in self.towers or [] for name in side)}


class RankerConfig(Table):
    """`[ranker]`: learn the probability of labels from rows of features, by Wide & Deep."""

    train: Sources = Field(default_factory=list)
    """Rows to learn from: a path or several, of Parquet, Arrow, CSV or TSV (also .gz), with * and
    **; or {path = "rows.txt", delimiter = ";"} with the keys of a graph's inputs. Unset: no
    [ranker]."""
    valid: Sources = Field(default_factory=list)
    """Rows for early stopping, and for calibration."""
    test: Sources = Field(default_factory=list)
    """Rows that `embedsvc eval` judges by."""
    labels: list[str] = Field(default=["label"])
    """Columns of 0 and 1, each a task of its own; missing: not known of that row."""
    weight: Name = None
    """Column of what a row counts; unset: 1."""
    user: Name = None
    """Column of whose row it is, for metrics by user and intervals."""
    positive_weight: Annotated[float | Literal["balanced"], BeforeValidator(_is_weight)] = 1.0
    """What a row of label 1 counts in training; balanced: as much as all others together.
    Probabilities are mended afterwards."""
    calibration: Literal["none", "platt", "isotonic"] = "none"
    """Fitted on the validation rows, after training."""
    batch_size: Annotated[int, Field(ge=1)] = 2048
    """Rows per update."""
    start_from: Path | None = None
    """Folder of an earlier run's checkpoint: begin with its vocabularies and weights."""
    wide: WideConfig = WideConfig()
    deep: DeepConfig = DeepConfig()
    features: dict[str, FeatureSpec] = Field(default_factory=dict)
    """Name -> how a column is encoded."""
    crosses: dict[str, CrossSpec] = Field(default_factory=dict)
    """Name -> features whose combinations are one more feature."""

    @property
    def encoding(self) -> FeaturesConfig:
        return FeaturesConfig(features=self.features, crosses=self.crosses)

    @model_validator(mode="after")
    def _whole(self) -> "RankerConfig":
        if not self.train:
            if self.model_fields_set:
                raise ValueError("train is missing: the files of rows to learn from")
            return self
        if not self.features:
            raise ValueError("features are missing: what to learn from")
        try:
            _ = self.encoding
        except ValidationError as error:  # of another model: its whole report would be the text
            message = error.errors(include_url=False)[0]["msg"]
            raise ValueError(message.removeprefix("Value error, ")) from None
        if not all(self.labels) or not self.labels or len(set(self.labels)) < len(self.labels):
            raise ValueError("labels are names of columns, each once")
        if self.calibration != "none" and not self.valid:
            raise ValueError("calibration needs rows: set valid")
        if not (self.wide.enabled or self.deep.enabled):
            raise ValueError("wide and deep are both disabled: nothing is left to learn")
        known = [*self.features, *self.crosses]
        named = [*(self.wide.features or []), *(self.deep.features or []), *self.deep.dims]
        named += [name for side in self.deep.towers or [] for name in side]
        for name in named:
            if name not in known:
                raise ValueError(f"there is no feature {name}. {did_you_mean(name, known)}")
        return self
