"""What a request may ask: each check raises InvalidRequest naming the field, or NotFound."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from partitions.errors import did_you_mean
from serving import embedsvc_pb2 as pb
from serving.errors import InvalidRequest, NotFound
from serving.index import SearchIndex
from serving.loaded import Entities, LoadedVersion

DEFAULT_K = 10
MAX_K = 1000
MAX_QUERIES = 1000  # vectors or keys
MAX_EXCLUDED = 10_000
MAX_REQUEST_ID = 64  # characters

_DTYPES: Mapping[int, np.dtype[Any]] = {
    pb.Vectors.FLOAT32: np.dtype("<f4"),
    pb.Vectors.FLOAT16: np.dtype("<f2"),
}
_DEFAULT_INDEX = "similar"
T = TypeVar("T")


def check_request_id(request_id: str) -> None:
    if len(request_id) > MAX_REQUEST_ID:
        raise InvalidRequest(
            f"request_id has {len(request_id)} characters: at most {MAX_REQUEST_ID}.", "request_id"
        )


def check_version(live: LoadedVersion, name: str) -> None:
    if name and name != live.name:
        raise NotFound(
            f"Version {name} is not loaded: {live.name} is. Leave version unset.", "version", name
        )


def number_of_results(k: int) -> int:
    if not 0 <= k <= MAX_K:
        raise InvalidRequest(f"k = {k}: ask for 1 to {MAX_K} results (0: {DEFAULT_K}).", "k")
    return k or DEFAULT_K


def named(known: Mapping[str, T], name: str, noun: str) -> T:
    if name not in known:
        raise NotFound(
            f"There is no {noun} named {name}. {did_you_mean(name, list(known))}", noun, name
        )
    return known[name]


def entities_and_index(live: LoadedVersion, path: str) -> tuple[Entities, SearchIndex]:
    """path: "TYPE" or "TYPE/INDEX"."""
    entity_type, _, index = path.partition("/")
    entities = named(live.entities, entity_type, "entity type")
    return entities, named(entities.indexes, index or _DEFAULT_INDEX, f"index of {entity_type}")


def check_keys(keys: Sequence[str], field: str) -> None:
    if not 0 < len(keys) <= MAX_QUERIES:
        raise InvalidRequest(f"{field} holds {len(keys)} keys: send 1 to {MAX_QUERIES}.", field)


def missing(keys: Sequence[str], ids: NDArray[np.int64]) -> list[str]:
    """The unknown keys, each once, in the order of the request."""
    return list(dict.fromkeys(key for key, id in zip(keys, ids, strict=True) if id < 0))


def id_of(entities: Entities, key: str) -> int:
    found = int(entities.keys.ids([key])[0])
    if found < 0:
        near = entities.keys.near(key)
        hint = f" Did you mean {near}?" if near else ""
        raise NotFound(f"There is no {entities.name} {key}.{hint}", entities.name, key)
    return found


def excluded_ids(entities: Entities, keys: Sequence[str]) -> NDArray[np.int64]:
    """Each once. Unknown keys can't be returned anyway."""
    if len(keys) > MAX_EXCLUDED:
        raise InvalidRequest(
            f"exclude_keys holds {len(keys)} keys: at most {MAX_EXCLUDED}.", "exclude_keys"
        )
    ids = entities.keys.ids(keys)
    return np.unique(ids[ids >= 0])


def query_vectors(vectors: pb.Vectors, dim: int) -> NDArray[np.float32]:
    """float32 [Q, dim], finite."""
    if vectors.dim != dim:
        raise InvalidRequest(
            f"vectors.dim = {vectors.dim}: the vectors here have dimension {dim}.", "vectors.dim"
        )
    if vectors.dtype not in _DTYPES:
        raise InvalidRequest(
            f"vectors.dtype = {vectors.dtype}: send FLOAT32 or FLOAT16.", "vectors.dtype"
        )
    dtype = _DTYPES[vectors.dtype]
    rows, rest = divmod(len(vectors.data), dim * dtype.itemsize)
    if rest or not 0 < rows <= MAX_QUERIES:
        raise InvalidRequest(
            f"vectors.data has {len(vectors.data)} bytes: send 1 to {MAX_QUERIES} rows of "
            f"{dim} x {dtype.itemsize} bytes.",
            "vectors.data",
        )
    queries = np.frombuffer(vectors.data, dtype).reshape(rows, dim).astype(np.float32)
    with np.errstate(over="ignore"):
        bad = np.flatnonzero(~np.isfinite(np.einsum("qd,qd->q", queries, queries)))
    if len(bad):
        raise InvalidRequest(
            f"vectors.data: row {bad[0]} holds NaN, infinity or a number too large to square.",
            "vectors.data",
        )
    return queries
