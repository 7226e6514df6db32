"""The edges that a holdout chooses from once pass 1 has read them all: of its relations, and of
inputs without a split of their own, whose `number` is -1 where some input has one."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partitions.config import HoldoutConfig
from partitions.imported import Imported
from partitions.schema import Bucket
from partitions.spool import READ_ROWS


class Candidates:
    def __init__(self, holdout: HoldoutConfig, imported: Imported) -> None:
        relations = imported.relations
        self._imported = imported
        self._lhs_type = np.array([imported.relation_config(name).lhs for name in relations])
        self._chosen = np.array(
            [holdout.relations is None or name in holdout.relations for name in relations]
        )

    def entities(self) -> dict[str, list[int]]:
        """Each lhs type -> how many entities its partitions have."""
        types = dict.fromkeys(self._lhs_type.tolist())
        return {name: self._imported.dictionaries[name].num_rows for name in types}

    def read(self) -> Iterator[tuple[NDArray[Any], Bucket]]:
        """The spooled rows among which they are, bucket by bucket and in pieces."""
        spool = self._imported.spool
        for bucket in spool.buckets():
            for rows in spool.read("train", bucket, READ_ROWS):
                yield rows, bucket

    def among(self, rows: NDArray[Any]) -> NDArray[np.bool_]:
        """bool [rows]"""
        found: NDArray[np.bool_] = self._chosen[rows["rel"]]
        return found & (rows["number"] >= 0) if "number" in (rows.dtype.names or ()) else found

    def by_lhs(
        self, rows: NDArray[Any], bucket: Bucket
    ) -> Iterator[tuple[str, int, NDArray[np.int64]]]:
        """(lhs type, its partition, the rows whose lhs lies there)."""
        among = self.among(rows)
        for name, parts in self.entities().items():
            of_type = (self._lhs_type == name)[rows["rel"]]
            yield name, bucket.lhs if len(parts) > 1 else 0, np.flatnonzero(of_type & among)
