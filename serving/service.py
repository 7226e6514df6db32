"""The three services: a request's checks, a search, a reply in columns.

A method only answers; what can go wrong it raises. `calls.py` does the rest of a call.
"""

import time
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serving import embedsvc_pb2 as pb
from serving import embedsvc_pb2_grpc
from serving.errors import InvalidRequest, NotFound
from serving.index import unit_length
from serving.loaded import Entities
from serving.requests import (
    check_keys,
    check_version,
    entities_and_index,
    excluded_ids,
    id_of,
    missing,
    named,
    number_of_results,
    query_vectors,
)
from serving.versions import Versions

Found = TypeVar("Found", pb.FindNeighborsResponse, pb.RecommendResponse)
Reply = TypeVar(
    "Reply", pb.FindNeighborsResponse, pb.RecommendResponse, pb.BatchGetEmbeddingsResponse
)


class NearestNeighbors(embedsvc_pb2_grpc.NearestNeighborsServicer):
    def __init__(self, versions: Versions) -> None:
        self._versions = versions

    def FindNeighbors(self, request: pb.FindNeighborsRequest, _: Any) -> pb.FindNeighborsResponse:
        stages, live = Stages(), self._versions.live
        check_version(live, request.version)
        entities, index = entities_and_index(live, request.index)
        k = number_of_results(request.k)
        excluded = excluded_ids(entities, request.exclude_keys)
        reply = pb.FindNeighborsResponse(version=live.name, dim=live.dim)
        own = None
        match request.WhichOneof("queries"):
            case "vectors":
                queries = query_vectors(request.vectors, live.dim)
                known = np.ones(len(queries), bool)
            case "keys":
                ids = _ids_or_missing(entities, request.keys.keys, "keys", reply)
                known = ids >= 0
                own = ids[known]
                queries = entities.vectors[own]
            case _:
                raise InvalidRequest("queries is unset: send vectors or keys.", "queries")
        stages.end("lookup")
        found, scores = index.search(queries, k, excluded, own)
        stages.end("search")
        counts = np.zeros(len(known), np.int64)
        counts[known] = (found >= 0).sum(axis=1)
        reply.counts.extend(counts.tolist())
        ids = _add_results(reply, entities, found, scores, request.return_attributes)
        if request.return_vectors:
            reply.vectors = _packed(entities.vectors[ids])
        return _finished(reply, entities, stages)


class Embeddings(embedsvc_pb2_grpc.EmbeddingsServicer):
    def __init__(self, versions: Versions) -> None:
        self._versions = versions

    def BatchGetEmbeddings(
        self, request: pb.BatchGetEmbeddingsRequest, _: Any
    ) -> pb.BatchGetEmbeddingsResponse:
        stages, live = Stages(), self._versions.live
        check_version(live, request.version)
        entities = named(live.entities, request.entity_type, "entity type")
        check_keys(request.keys, "keys")
        ids = entities.keys.ids(request.keys)
        stages.end("lookup")
        reply = pb.BatchGetEmbeddingsResponse(
            version=live.name,
            dim=live.dim,
            vectors=_packed(entities.vectors[ids[ids >= 0]]),
            missing_keys=missing(request.keys, ids),
        )
        return _finished(reply, entities, stages)


class Recommender(embedsvc_pb2_grpc.RecommenderServicer):
    def __init__(self, versions: Versions) -> None:
        self._versions = versions

    def Recommend(self, request: pb.RecommendRequest, _: Any) -> pb.RecommendResponse:
        stages, live = Stages(), self._versions.live
        check_version(live, request.version)
        relation = named(live.relations, request.relation, "relation")
        k = number_of_results(request.k)
        index = relation.rhs.indexes["score"]
        excluded = [excluded_ids(relation.rhs, request.exclude_keys)]
        reply = pb.RecommendResponse(version=live.name)
        match request.WhichOneof("query"):
            case "key":
                lhs = id_of(relation.lhs, request.key)
                query = relation.query(lhs)
                if not request.HasField("exclude_seen") or request.exclude_seen:
                    excluded.append(relation.seen_by(lhs))
            case "history":
                ids = _ids_or_missing(relation.rhs, request.history.keys, "history", reply)
                history = ids[ids >= 0]
                if not len(history):
                    raise NotFound(
                        f"No key of the history is a known {relation.rhs.name}.", relation.rhs.name
                    )
                vectors = relation.rhs.vectors[history]
                vectors = vectors if index.metric == "l2" else unit_length(vectors)
                query = vectors.mean(axis=0)
                excluded.append(history)
            case _:
                raise InvalidRequest("query is unset: send a key or a history.", "query")
        stages.end("lookup")
        found, scores = index.search(query[None], k, np.unique(np.concatenate(excluded)))
        stages.end("search")
        _add_results(reply, relation.rhs, found, scores, request.return_attributes)
        return _finished(reply, relation.rhs, stages)


def _ids_or_missing(
    entities: Entities, keys: Sequence[str], field: str, reply: Found
) -> NDArray[np.int64]:
    """int64 [len(keys)]; -1 for unknown keys, which the reply lists. One alone is NotFound."""
    check_keys(keys, field)
    if len(keys) == 1:
        return np.array([id_of(entities, keys[0])])
    ids = entities.keys.ids(keys)
    reply.missing_keys.extend(missing(keys, ids))
    return ids


def _add_results(
    reply: Found,
    entities: Entities,
    found: NDArray[np.int64],
    scores: NDArray[np.float32],
    with_attributes: bool,
) -> NDArray[np.int64]:
    """Fill in the columns; returns the ids in them, query after query."""
    ids = found[found >= 0]
    reply.keys.extend(entities.keys.texts(ids))
    reply.scores = _packed(scores[found >= 0])
    if with_attributes:
        rows = entities.attributes.take(pa.array(ids))
        for name in rows.column_names:
            texts = [text or "" for text in rows.column(name).to_pylist()]
            reply.attributes.add(name=name, values=texts)
    return ids


def _packed(numbers: NDArray[np.float32]) -> bytes:
    return numbers.astype("<f4", copy=False).tobytes()


class Stages:
    """Where a call's time goes."""

    def __init__(self) -> None:
        self.us = pb.ServerTime()
        self._last = time.perf_counter_ns()

    def end(self, stage: str) -> None:
        last, self._last = self._last, time.perf_counter_ns()
        setattr(self.us, stage, (self._last - last) // 1000)


def _finished(reply: Reply, entities: Entities, stages: Stages) -> Reply:
    shards = entities.num_shards
    reply.coverage.CopyFrom(pb.Coverage(searched_shards=shards, total_shards=shards, fraction=1))
    stages.end("encode")
    reply.server_time_us.CopyFrom(stages.us)
    return reply
