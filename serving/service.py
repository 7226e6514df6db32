"""The three services: a request's checks, a search, a reply in columns.

A method only answers; what can go wrong it raises. `Calls` around it, an interceptor, gives every
call its request id and its queueing time, and turns errors into statuses.
"""

import logging
import time
import uuid
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from serving import embedsvc_pb2 as pb
from serving import embedsvc_pb2_grpc
from serving.errors import ClientError, InvalidRequest, NotFound, TooLarge, to_status
from serving.index import unit_length
from serving.loaded import Entities, LoadedVersion, Relation
from serving.requests import (
    check_keys,
    check_request_id,
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

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 16 << 20
_PACKAGE = f"/{pb.DESCRIPTOR.package}."


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
                ids, unknown = _known_or_missing(entities, request.keys.keys)
                reply.missing_keys.extend(unknown)
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
                query = relation.operator(relation.lhs.vectors[lhs])
                if not request.HasField("exclude_seen") or request.exclude_seen:
                    excluded.append(relation.seen_by(lhs))
                if relation.lhs is relation.rhs:  # nobody is recommended to themselves
                    excluded.append(np.array([lhs]))
            case "history":
                history, unknown = _known_or_missing(relation.rhs, request.history.keys, "history")
                ...
                query = index.centre(relation.rhs.vectors[history])
                excluded.append(history)
            case _:
                raise InvalidRequest("query is unset: send a key or a history.", "query")
        stages.end("lookup")
        found, scores = index.search(query[None], k, np.unique(np.concatenate(excluded)))
        stages.end("search")
        _add_results(reply, relation.rhs, found, scores, request.return_attributes)
        return _finished(reply, relation.rhs, stages)
