"""The server process: versions, cache, health and the gRPC server, started and ended in order.

Health (grpc.health.v1): "" and the three services are SERVING from the first call to the drain.
`embedsvc.store` is Redis: SERVING while it works, NOT_SERVING while it is away, unknown where none
is configured.
"""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from partitions.errors import InputError
from serving import embedsvc_pb2 as pb
from serving import embedsvc_pb2_grpc
from serving.cache import RedisCache
from serving.calls import MAX_MESSAGE_BYTES, Calls
from serving.config import EMBEDDED, ServeConfig
from serving.embedded import EmbeddedRedis
from serving.keeper import Keeper
from serving.service import Embeddings, NearestNeighbors, Recommender
from serving.versions import Versions

SERVICES = tuple(service.full_name for service in pb.DESCRIPTOR.services_by_name.values())
STORE = "embedsvc.store"
_QUIET_S = 0.1  # without a new call, after which callers have gone elsewhere
_REFUSE_S = 2.0  # at most, for callers that don't
_DRAIN_S = 5.0  # what running calls, and watchers of health, get at the end


@contextlib.contextmanager
def serving(root: Path, config: ServeConfig) -> Iterator[tuple[str, Versions]]:
    """Serve the published folder `root` inside the block; gives "host:port" and the versions.

    Leaving the block drains: health says NOT_SERVING, new calls are refused, running ones end.
    Raises DataError where no whole version is published, InputError where the port is taken.
    """
    status = health.HealthServicer()
    with contextlib.ExitStack() as stack:
        cache = _cache(config, status, stack)
        versions = Versions(root, cache, config.poll_s)
        calls = Calls()
        server = grpc.server(
            # OpenMP's setting is per thread; a search must not take the cores of the others.
            ThreadPoolExecutor(config.threads, "call", faiss.omp_set_num_threads, (1,)),
            interceptors=[calls],
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ],
        )
        embedsvc_pb2_grpc.add_NearestNeighborsServicer_to_server(NearestNeighbors(versions), server)
        embedsvc_pb2_grpc.add_EmbeddingsServicer_to_server(Embeddings(versions), server)
        embedsvc_pb2_grpc.add_RecommenderServicer_to_server(Recommender(versions), server)
        health_pb2_grpc.add_HealthServicer_to_server(status, server)
        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        address = _listen(server, config)
        versions.start()
        stack.callback(versions.close)
        if cache is not None:
            keeper = Keeper(cache, lambda: versions.live.blobs)
            keeper.start()
            stack.callback(keeper.close)
        server.start()
        for name in SERVICES:
            status.set(name, health_pb2.HealthCheckResponse.SERVING)
        stack.callback(_drain, server, calls, status)
        yield address, versions


def _drain(server: grpc.Server, calls: Calls, status: health.HealthServicer) -> None:
    status.enter_graceful_shutdown()
    calls.refuse(_QUIET_S, _REFUSE_S)
    server.stop(_DRAIN_S).wait()


def _cache(
    config: ServeConfig, status: health.HealthServicer, stack: contextlib.ExitStack
) -> RedisCache | None:
    if config.redis is None:
        return None
    url = config.redis.get_secret_value()
    if url == EMBEDDED:
        url = stack.enter_context(EmbeddedRedis()).url

    def on_state(up: bool) -> None:
        answer = health_pb2.HealthCheckResponse
        status.set(STORE, answer.SERVING if up else answer.NOT_SERVING)

    cache = RedisCache(url, config.redis_ttl_s, on_state)
    stack.callback(cache.close)
    cache.ping()
    return cache


def _listen(server: grpc.Server, config: ServeConfig) -> str:
    host = f"[{config.host}]" if ":" in config.host else config.host
    try:
        port = server.add_insecure_port(f"{host}:{config.port}")
    except RuntimeError:
        raise InputError(
            f"{host}:{config.port} can't be listened on: another program does, or the host is not "
            "this machine. Choose another --port (0: any free one)."
        ) from None
    return f"{host}:{port}"
