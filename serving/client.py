"""The Python client: numpy in, numpy out.

    with Client("localhost:50051") as client:
        print(client.find_neighbors("symbol", "numpy.array").hits[0].keys)
        print(client.recommend("uses", history=["numpy.array", "numpy.dot"]).hits.keys)

A call ends in a result or in a `ClientError`. One that finds no server is tried three times; no
other is repeated. A client may be shared by threads.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray

from serving import embedsvc_pb2 as pb
from serving import embedsvc_pb2_grpc
from serving.errors import (
    ClientError,
    InvalidRequest,
    NotFound,
    TooLarge,
    Unavailable,
    from_rpc,
)

__all__ = [
    "Client",
    "ClientError",
    "Embeddings",
    "Hits",
    "InvalidRequest",
    "Neighbors",
    "NotFound",
    "Recommendations",
    "TooLarge",
    "Unavailable",
]

_RETRIES = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
_OPTIONS = [
    ("grpc.service_config", json.dumps(_RETRIES)),
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.enable_http_proxy", 0),  # a proxy for the web can't reach one's own machines
]
T = TypeVar("T")


@dataclass(frozen=True)
class Hits:
    """The results of one query, best first. Scores: higher is better."""

    keys: list[str]
    scores: NDArray[np.float32]  # [keys]
    vectors: NDArray[np.float32] | None  # [keys, D], if asked for
    attributes: dict[str, list[str]]  # name -> one text per key, if asked for


@dataclass(frozen=True)
class Reply:
    """What every reply says about itself."""

    version: str
    request_id: str
    coverage: float  # share of the index that was searched
    server_time_us: dict[str, int]  # stage -> microseconds
    missing_keys: list[str]  # keys that the server doesn't know


@dataclass(frozen=True)
class Neighbors(Reply):
    hits: list[Hits]  # one per query


@dataclass(frozen=True)
class Recommendations(Reply):
    hits: Hits


@dataclass(frozen=True)
class Embeddings(Reply):
    keys: list[str]  # those found, in the order asked
    vectors: NDArray[np.float32]  # [keys, D]


class Client:
    """target: "host:port"; timeout_s: for each call, retries included."""

    def __init__(self, target: str, timeout_s: float = 10.0) -> None:
        self.target = target
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(target, _OPTIONS)
        self._neighbors = embedsvc_pb2_grpc.NearestNeighborsStub(self._channel)
        self._embeddings = embedsvc_pb2_grpc.EmbeddingsStub(self._channel)
        self._recommender = embedsvc_pb2_grpc.RecommenderStub(self._channel)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def find_neighbors(
        self,
        index: str,
        keys: str | Sequence[str] | None = None,
        *,
        vectors: ArrayLike | None = None,
        k: int = 10,
        exclude_keys: str | Sequence[str] = (),
        version: str = "",
        return_vectors: bool = False,
        return_attributes: bool = False,
        request_id: str = "",
    ) -> Neighbors:
        """The k nearest entities of each key, or of each vector.

        index: an entity type, or "TYPE/INDEX". vectors: [Q, D] or [D]; float16 travels as such,
        everything else as float32. A key alone that is unknown raises NotFound; in a batch it gets
        empty hits and is listed in `missing_keys`.
        """
        queries: dict[str, Any] = {}
        if keys is not None:
            queries["keys"] = pb.Keys(keys=_listed(keys))
        if vectors is not None:
            queries["vectors"] = _packed(vectors)
        if len(queries) != 1:
            raise InvalidRequest("find_neighbors takes either keys or vectors.", "queries")
        reply = self._call(
            self._neighbors.FindNeighbors,
            pb.FindNeighborsRequest(
                index=index,
                k=k,
                exclude_keys=_listed(exclude_keys),
                version=version,
                return_vectors=return_vectors,
                return_attributes=return_attributes,
                request_id=request_id,
                **queries,
            ),
        )
        ends = np.cumsum(reply.counts, dtype=np.int64).tolist()
        starts = [0, *ends[:-1]]
        hits = [_hits(reply, start, end) for start, end in zip(starts, ends, strict=True)]
        return Neighbors(**_about(reply), hits=hits)

    def get_embeddings(
        self,
        entity_type: str,
        keys: str | Sequence[str],
        *,
        version: str = "",
        request_id: str = "",
    ) -> Embeddings:
        """The vectors of keys; unknown ones have no row and are listed in `missing_keys`."""
        wanted = _listed(keys)
        request = pb.BatchGetEmbeddingsRequest(
            entity_type=entity_type, keys=wanted, version=version, request_id=request_id
        )
        reply = self._call(self._embeddings.BatchGetEmbeddings, request)
        missing = set(reply.missing_keys)
        return Embeddings(
            **_about(reply),
            keys=[key for key in wanted if key not in missing],
            vectors=_floats(reply.vectors).reshape(-1, reply.dim),
        )

    def recommend(
        self,
        relation: str,
        key: str | None = None,
        *,
        history: Sequence[str] | None = None,
        k: int = 10,
        exclude_keys: str | Sequence[str] = (),
        exclude_seen: bool = True,
        version: str = "",
        return_attributes: bool = False,
        request_id: str = "",
    ) -> Recommendations:
        """The k best right-hand sides of a relation, for a known left-hand `key`, or for someone
        unknown who has seen the right-hand sides in `history`."""
        if (key is None) == (history is None):
            raise InvalidRequest("recommend takes either a key or a history.", "query")
        request = pb.RecommendRequest(
            relation=relation,
            key=key,
            history=None if history is None else pb.Keys(keys=_listed(history)),
            k=k,
            exclude_keys=_listed(exclude_keys),
            exclude_seen=exclude_seen,
            version=version,
            return_attributes=return_attributes,
            request_id=request_id,
        )
        reply = self._call(self._recommender.Recommend, request)
        return Recommendations(**_about(reply), hits=_hits(reply, 0, len(reply.keys)))

    def _call(self, method: Callable[..., T], request: Any) -> T:
        try:
            return method(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise from_rpc(error, self.target) from None


def _listed(keys: str | Sequence[str]) -> list[str]:
    return [keys] if isinstance(keys, str) else list(keys)


def _packed(vectors: ArrayLike) -> pb.Vectors:
    rows = np.atleast_2d(np.asarray(vectors))
    half = rows.dtype == np.float16
    return pb.Vectors(
        data=rows.astype("<f2" if half else "<f4").tobytes(),
        dtype=pb.Vectors.FLOAT16 if half else pb.Vectors.FLOAT32,
        dim=rows.shape[-1],
    )


def _floats(data: bytes) -> NDArray[np.float32]:
    return np.frombuffer(data, "<f4").astype(np.float32, copy=False)


def _hits(reply: Any, start: int, end: int) -> Hits:
    """Results start to end of the reply's columns."""
    asked = isinstance(reply, pb.FindNeighborsResponse) and reply.vectors
    vectors = _floats(reply.vectors).reshape(-1, reply.dim)[start:end] if asked else None
    return Hits(
        keys=list(reply.keys[start:end]),
        scores=_floats(reply.scores)[start:end],
        vectors=vectors,
        attributes={column.name: list(column.values[start:end]) for column in reply.attributes},
    )


def _about(reply: Any) -> dict[str, Any]:
    """The fields of `Reply`."""
    stages = reply.server_time_us
    return {
        "version": reply.version,
        "request_id": reply.request_id,
        "coverage": reply.coverage.fraction,
        "server_time_us": {f.name: getattr(stages, f.name) for f in stages.DESCRIPTOR.fields},
        "missing_keys": list(reply.missing_keys),
    }
