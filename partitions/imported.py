"""What pass 1 of an import hands to pass 2."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from partitions.bag_import import NewBags
from partitions.config import RelationConfig
from partitions.dictionary import Dictionary
from partitions.schema import EntityType
from partitions.skipped import SkippedRows
from partitions.spool import Spool


@dataclass(frozen=True)
class Imported:
    """What pass 1 found."""

    types: Mapping[str, EntityType]
    dictionaries: Mapping[str, Dictionary]
    relations: Sequence[str]  # in the order of first sight: the numbers in the spool
    relation_config: Callable[[str], RelationConfig]
    spool: Spool
    sources: list[dict[str, Any]]
    skipped: SkippedRows
    bags: Mapping[str, NewBags] = field(default_factory=dict)  # of each type that has features
