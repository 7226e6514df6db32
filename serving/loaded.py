"""A version in memory, checked to fit together: everything that a request needs."""

import dataclasses
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from partitions.errors import DataError, did_you_mean
from partitions.published import (
    Fetch,
    PublishedEntities,
    PublishedFile,
    PublishedRelation,
    PublishedVersion,
    read_manifest,
)
from serving.blobs import VersionBlobs
from serving.cache import BlobCache
from serving.index import SearchIndex
from serving.keys import KeyTable
from serving.operators import OPERATORS, Operator, num_params

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entities:
    """One entity type."""

    name: str
    keys: KeyTable
    attributes: pa.Table  # row = id
    vectors: NDArray[np.float32]  # [entities, D], row = id
    indexes: Mapping[str, SearchIndex]
    num_shards: int


@dataclass(frozen=True)
class Relation:
    name: str
    lhs: Entities
    rhs: Entities
    operator: Operator
    params: NDArray[np.float32]  # of the operator, flat
    starts: NDArray[np.int64]  # [lhs entities + 1]
    seen: NDArray[np.uint32]  # lhs i saw seen[starts[i]:starts[i + 1]]

    def query(self, lhs: int) -> NDArray[np.float32]:
        """float32 [D]: what the rhs vectors are compared with."""
        return self.operator(self.lhs.vectors[lhs], self.params)

    def seen_by(self, lhs: int) -> NDArray[np.int64]:
        """What `lhs` had edges to; and itself, where it is of the rhs type."""
        seen = self.seen[self.starts[lhs] : self.starts[lhs + 1]].astype(np.int64)
        return np.append(seen, lhs) if self.lhs is self.rhs else seen


@dataclass(frozen=True)
class LoadedVersion:
    name: str
    dim: int
    entities: Mapping[str, Entities]
    relations: Mapping[str, Relation]
    blobs: VersionBlobs


def load(root: Path, name: str, cache: BlobCache | None) -> LoadedVersion:
    """Raises DataError for a version that is incomplete, altered, or whose parts don't fit."""
    started = time.perf_counter()
    manifest = read_manifest(root, name)
    blobs = VersionBlobs(root / name, manifest, cache)
    version = PublishedVersion(manifest, _keeping_last(blobs.fetch))
    entities = {part.name: _entities(version, part) for part in manifest.entity_types}
    params = {part.name: version.operator_params(part.name) for part in manifest.relations}
    relations = {
        part.name: _relation(version, part, entities, params[part.name])
        for part in manifest.relations
    }
    cached = f"{blobs.from_cache} blobs from {cache.name}, " if cache else ""
    seconds = time.perf_counter() - started
    log.info("loaded %s: %s%d blobs from disk, %.1f s", name, cached, blobs.from_disk, seconds)
    return LoadedVersion(name, manifest.dim, entities, relations, blobs)


def _entities(version: PublishedVersion, part: PublishedEntities) -> Entities:
    table, vectors = version.keys(part.name), version.vectors(part.name)
    shape = (part.num_rows, version.manifest.dim)
    _check(table.num_rows == shape[0], version, f"{part.name} has {table.num_rows} keys")
    _check(
        vectors.shape == shape and vectors.dtype == np.float32,
        version,
        f"the vectors of {part.name} are {vectors.dtype} {vectors.shape}, not float32 {shape}",
    )
    parsed: dict[str, SearchIndex] = {}  # by file: two names may share one
    for name, described in part.indexes.items():
        if described.file not in parsed:
            parsed[described.file] = SearchIndex.parse(version.index(part.name, name), described)
        index = parsed[described.file].faiss
        found = (index.ntotal, index.d)
        _check(found == shape, version, f"{described.file} is of {found}, not {shape}")
    return Entities(
        name=part.name,
        keys=KeyTable(table.column("key")),
        attributes=table.select(part.attributes).combine_chunks(),
        vectors=vectors,
        indexes={
            name: dataclasses.replace(parsed[described.file], scale=described.scale)
            for name, described in part.indexes.items()
        },
        num_shards=len(part.shards),
    )


def _relation(
    version: PublishedVersion,
    part: PublishedRelation,
    entities: Mapping[str, Entities],
    params: NDArray[np.float32] | None,
) -> Relation:
    for side in (part.lhs, part.rhs):
        _check(side in entities, version, f"{part.name} names the unknown entity type {side}")
    lhs, rhs = entities[part.lhs], entities[part.rhs]
    _check("score" in rhs.indexes, version, f"{rhs.name} has no index `score`")
    if part.operator not in OPERATORS:
        raise DataError(
            f"{version.name}: {part.name} uses the operator {part.operator}, which this server "
            f"doesn't know. {did_you_mean(part.operator, list(OPERATORS))}"
        )
    shape = (num_params(part.operator, version.manifest.dim),)
    params = np.empty(0, np.float32) if params is None else params
    _check(params.shape == shape, version, f"{part.name} has parameters of shape {params.shape}")
    starts, seen = version.seen(part.name) or (np.zeros(len(lhs.keys) + 1, np.int64), _NONE_SEEN)
    _check(
        len(starts) == len(lhs.keys) + 1 and seen.max(initial=0) < max(len(rhs.keys), 1),
        version,
        f"the seen lists of {part.name} are of other entities",
    )
    return Relation(part.name, lhs, rhs, OPERATORS[part.operator], params, starts, seen)


_NONE_SEEN = np.empty(0, np.uint32)


def _check(holds: bool, version: PublishedVersion, problem: str) -> None:
    if not holds:
        raise DataError(f"{version.name} doesn't fit together: {problem}. Publish again.")


def _keeping_last(fetch: Fetch) -> Fetch:
    """Fetch the one file of parameters once, which every relation asks for."""
    last: tuple[str, Any] = ("", None)

    def fetch_anew(path: str, file: PublishedFile) -> Any:
        nonlocal last
        if path != last[0]:
            last = ("", None)  # frees it first
            last = (path, fetch(path, file))
        return last[1]

    return fetch_anew
