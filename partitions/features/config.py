"""`[ranker.features]` and `[ranker.crosses]`: what a row's columns are to the model."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from partitions.config import Table
from partitions.errors import did_you_mean

Kind = Literal["category", "hash", "number", "time", "vector"]
MAX_IDS = (1 << 31) - 1  # ids are int32

_COMMON = {"kind", "column", "default"}
_LISTS = {"list", "separator", "type"}
_OF_KIND: dict[str, set[str]] = {  # which settings beside the common ones
    "category": {"min_count", "max_size"} | _LISTS,
    "hash": {"buckets"} | _LISTS,
    "number": {"scale", "quantiles", "buckets", "dense"},
    "time": {"part"},
    "vector": {"file"},
}
_Default = bool | int | float | str | list[str] | list[int] | None
_NAME = re.compile(r"[\w-]+")


class FeatureSpec(Table):
    """`[ranker.features]` NAME = { kind = ..., ... }"""

    kind: Kind
    column: str | None = None
    """Of the rows; unset: the feature's name."""
    default: _Default = None
    """What a missing value becomes, in training and in serving; unset: it stays missing."""
    type: Literal["text", "integer"] | None = None
    """Of a category's or hash's values; unset: as the first training rows have it."""
    list: bool = False
    """A row has any number of values: a column of lists, or text with a separator."""
    separator: Annotated[str, Field(min_length=1)] | None = None
    """Between the values of a list that is text."""
    min_count: Annotated[int, Field(ge=1)] = 1
    """A value seen less often in training is out of the vocabulary."""
    max_size: Annotated[int, Field(ge=1, le=MAX_IDS - 2)] | None = None
    """Most values in the vocabulary, the frequent ones first; unset: all."""
    buckets: Annotated[int, Field(ge=2, le=MAX_IDS)] | None = None
    """Of a hash: ids, missing included. Of a number: quantile buckets, as ids beside the number."""
    scale: Literal["quantile", "log", "standard", "raw"] = "quantile"
    """How a number becomes a dense column."""
    quantiles: Annotated[int, Field(ge=2, le=10_000)] = 64
    """Steps of the scale `quantile`."""
    dense: bool = True
    """Whether a number is a dense column at all."""
    part: Literal["hour", "weekday", "day", "month"] | None = None
    """Of a time, UTC; weekday 0 is Monday, day is that of the month."""
    file: str | None = None
    """Of vectors by key, as `embedsvc export` writes them."""

    @model_validator(mode="after")
    def _fits_its_kind(self) -> "FeatureSpec":
        known = _COMMON | _OF_KIND[self.kind]
        for key, field in type(self).model_fields.items():
            if key not in known and getattr(self, key) != field.default:
                hint = did_you_mean(key, sorted(known))
                raise ValueError(f"{key} is not a setting of kind {self.kind}. {hint}")
        needed = {"hash": "buckets", "time": "part", "vector": "file"}.get(self.kind)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"kind {self.kind} needs the setting {needed}")
        if self.separator is not None and not self.list:
            raise ValueError("separator is of lists: set list = true beside it")
        if not self.dense and self.buckets is None:
            raise ValueError("a number with dense = false needs buckets, or it is nothing")
        self._check_default()
        return self

    def _check_default(self) -> None:
        value: Any = self.default
        if isinstance(value, list) and not self.list:
            raise ValueError("default is a list: set list = true beside it, or give one value")
        if self.kind == "number" and isinstance(value, str | bool):
            raise ValueError(f"default = {value!r}: expected a number")
        if self.kind != "number" and isinstance(value, float):
            raise ValueError(f"default = {value!r}: expected text or a whole number")

    @property
    def has_ids(self) -> bool:
        """Whether the feature is a slot of ids, so that a cross can be of it."""
        return self.kind != "vector" and (self.kind != "number" or self.buckets is not None)


class CrossSpec(Table):
    """`[ranker.crosses]` NAME = { of = [...], buckets = ... }: the AND of features' values."""

    of: Annotated[list[str], Field(min_length=2)]
    """Names of features with ids: category, hash, time, number with buckets."""
    buckets: Annotated[int, Field(ge=1, le=MAX_IDS)]
    """Ids that the combinations are hashed to."""


class FeaturesConfig(Table):
    """What of a row the model sees."""

    features: dict[str, FeatureSpec] = Field(default={})
    """In the order of the columns that they become."""
    crosses: dict[str, CrossSpec] = Field(default={})
    """After the features."""

    @model_validator(mode="after")
    def _fits_together(self) -> "FeaturesConfig":
        for table, names in (("features", self.features), ("crosses", self.crosses)):
            for name in names:
                if not _NAME.fullmatch(name):
                    raise ValueError(
                        f"{table}.{name!r}: a name is made of letters, digits, - and _"
                    )
        crossable = [name for name, spec in self.features.items() if spec.has_ids]
        for name, cross in self.crosses.items():
            if name in self.features:
                raise ValueError(f"crosses.{name} is the name of a feature too: rename one")
            if len(set(cross.of)) < len(cross.of):
                raise ValueError(f"crosses.{name} names a feature twice")
            for part in cross.of:
                if part in crossable:
                    continue
                if part in self.features:
                    remedy = "give it buckets" if self.features[part].kind == "number" else ""
                    remedy = remedy or f"choose from {', '.join(crossable) or 'none'}"
                    raise ValueError(f"crosses.{name}: the feature {part} has no ids: {remedy}")
                hint = did_you_mean(part, crossable)
                raise ValueError(f"crosses.{name} names {part}, which is not a feature. {hint}")
        return self
