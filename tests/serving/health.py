"""What grpc.health.v1 says, once or as it changes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def check(target: str, service: str) -> int:
    with grpc.insecure_channel(target) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return int(health_pb2_grpc.HealthStub(channel).Check(request).status)


@contextmanager
def watching(target: str, service: str) -> Iterator[list[int]]:
    """The states that health told so far."""
    states: list[int] = []
    with grpc.insecure_channel(target) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        stream = health_pb2_grpc.HealthStub(channel).Watch(request)

        def listen() -> None:
            with pytest.raises(grpc.RpcError):  # cancelled below
                states.extend(reply.status for reply in stream)

        thread = threading.Thread(target=listen)
        thread.start()
        yield states
        stream.cancel()
        thread.join()
