"""Features of who asks: text columns of his attributes. Each value has a learnt row, and what is
known of somebody is the sum of his, which a tower adds to what it makes of his history.

Values are those of entities that have training edges, in the order of the columns and of text;
where the graph grew, new ones come after those of before, so that rows stay where they are. A value
that is missing, or that training did not meet, tells nothing, and is counted.

    table TYPE.features     the rows, of which those that never learnt, which are 0, are not stored
    features.vocabulary     JSON of [[column, value], ...], row by row, among the parameters
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from partitions.checkpoint import Checkpoint
from partitions.durable import FileEntry
from partitions.errors import ConfigError, DataError, did_you_mean
from partitions.graph import Graph
from partitions.schema import RelationType, Slot

logger = logging.getLogger(__name__)

VOCABULARY = "features.vocabulary"
Value = tuple[str, str]  # (column, text)
Ids = NDArray[np.int64]


def features_slot(entity_type: str) -> Slot:
    """Under what type a checkpoint has the rows; no entity type has a dot in its name."""
    return Slot(f"{entity_type}.features", 0)


@dataclass(frozen=True)
class AskerFeatures:
    """values: of each row; ids: int64 [entities, columns], rows, -1 where there is none. missing
    and unknown: column -> how many entities have no value of it, or one without a row."""

    entity_type: str
    values: list[Value]
    ids: Ids
    missing: dict[str, int]
    unknown: dict[str, int]

    @staticmethod
    def learn(
        graph: Graph,
        entity_type: str,
        columns: Sequence[str],
        asked: NDArray[np.bool_],
        known: Sequence[Value] = (),
    ) -> "AskerFeatures":
        """asked: bool [entities], whose values have rows. known: values of before, which stay."""
        values = list(known)
        had = set(known)
        table = _table(graph, entity_type, columns).filter(pa.array(asked))
        for name in columns:
            found = sorted(pc.unique(table.column(name)).to_pylist())
            values += [(name, one) for one in found if one and (name, one) not in had]
        if not values:
            raise DataError(
                f"{graph.path} has no {entity_type} with training edges and a value of "
                f"{', '.join(columns)}: remove output.features."
            )
        return AskerFeatures.encode(graph, entity_type, columns, values)

    @staticmethod
    def encode(
        graph: Graph, entity_type: str, columns: Sequence[str], values: list[Value]
    ) -> "AskerFeatures":
        table = _table(graph, entity_type, columns)
        ids = np.empty((len(table), len(columns)), np.int64)
        missing, unknown = {}, {}
        for at, name in enumerate(columns):
            column = table.column(name).combine_chunks()
            rows = [row for row, (feature, _) in enumerate(values) if feature == name]
            known = pa.array([values[row][1] for row in rows], column.type)
            place = pc.fill_null(pc.index_in(column, value_set=known), -1).to_numpy()
            ids[:, at] = np.append(np.array(rows, np.int64), -1)[place]
            missing[name] = pc.sum(pc.equal(column, "")).as_py() or 0
            unknown[name] = int((ids[:, at] < 0).sum()) - missing[name]
        return AskerFeatures(entity_type, values, ids, missing, unknown)

    def say(self) -> None:
        for name, missing in self.missing.items():
            logger.info(
                "feature %s of %s: %s values; of %s entities %s have none, %s an unknown one",
                *(name, self.entity_type, f"{sum(one == name for one, _ in self.values):,}"),
                *(f"{n:,}" for n in (len(self.ids), missing, self.unknown[name])),
            )

    @property
    def numbered(self) -> dict[str, dict[str, int]]:
        """Column -> value -> row."""
        found: dict[str, dict[str, int]] = {name: {} for name in self.missing}
        for row, (name, value) in enumerate(self.values):
            found[name][value] = row
        return found

    @property
    def packed(self) -> NDArray[np.uint8]:
        """As the checkpoint's parameters have it."""
        return np.frombuffer(json.dumps(self.values).encode(), np.uint8)


def unpacked(arrays: Mapping[str, NDArray[Any]]) -> list[Value]:
    """The values of a checkpoint with these parameters; none where it has no features."""
    if VOCABULARY not in arrays:
        return []
    return [(name, value) for name, value in json.loads(arrays[VOCABULARY].tobytes())]


def stored_into(
    weight: NDArray[np.float32],
    state: NDArray[np.float32] | None,
    checkpoint: Checkpoint,
    entry: FileEntry | None,
    *,
    digest: bool,
) -> None:
    """Rows, and their optimizer's state if it is wanted, over the zeros of those that aren't
    stored."""
    if entry is None:
        return
    found = checkpoint.stored_rows(entry, len(weight), weight.shape[1], digest=digest)
    for block in found.blocks():
        rows = found.rows[block]
        weight[rows] = found.vectors[block]
        if state is not None and state.shape[1]:
            state[rows] = found.state[block].reshape(len(rows), -1)


def check_features(graph: Graph, relation: RelationType, columns: Sequence[str]) -> None:
    """ConfigError where they are no columns of who asks."""
    if not columns:
        return
    if relation.lhs == relation.rhs:
        raise ConfigError(
            f"[output] features are of who asks, and {relation.name} has {relation.lhs} on both "
            "sides: remove output.features."
        )
    table = graph.attributes(relation.lhs)
    if table is None:
        raise ConfigError(
            f"[output] features name attributes of {relation.lhs}, which {graph.path} has none of: "
            f"set graph.entities.{relation.lhs}.attributes and import anew."
        )
    for name in columns:
        if name not in table.column_names:
            raise ConfigError(
                f"[output] features name {name}, which is no attribute of {relation.lhs} in "
                f"{graph.path}. {did_you_mean(name, table.column_names)}"
            )


def text_bytes(graph: Graph, entity_type: str, columns: Sequence[str]) -> tuple[int, int]:
    """(bytes of the columns, distinct values at most)."""
    table = _table(graph, entity_type, columns)
    return table.nbytes, sum(pc.count_distinct(table.column(name)).as_py() for name in columns)


def _table(graph: Graph, entity_type: str, columns: Sequence[str]) -> pa.Table:
    table = graph.attributes(entity_type)
    if table is None or not set(columns) <= set(table.column_names):
        raise DataError(
            f"{graph.path} lacks attributes of {entity_type} that were learnt from: "
            f"{', '.join(columns)}. Import them again, or train anew."
        )
    return table.select(list(columns))
