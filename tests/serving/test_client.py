"""What the client repeats, and what it makes of the ends of calls."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from serving.client import Client, ClientError, InvalidRequest, NotFound, Unavailable


@contextmanager
def ending_with(code: grpc.StatusCode) -> Iterator[tuple[Client, list[str]]]:
    """A client of a server that ends every call so, and the calls it got."""
    calls: list[str] = []

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            def end(_: bytes, context: grpc.ServicerContext) -> None:
                calls.append(details.method)
                context.abort(code, "because")

            return grpc.unary_unary_rpc_method_handler(end)

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with Client(f"127.0.0.1:{port}") as client:
        yield client, calls
    server.stop(None).wait()


@pytest.mark.parametrize(
    ("code", "kind", "times"),
    [
        (grpc.StatusCode.UNAVAILABLE, Unavailable, 3),
        (grpc.StatusCode.CANCELLED, Unavailable, 1),
        (grpc.StatusCode.NOT_FOUND, NotFound, 1),
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest, 1),
        (grpc.StatusCode.DEADLINE_EXCEEDED, ClientError, 1),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ClientError, 1),
        (grpc.StatusCode.INTERNAL, ClientError, 1),
        (grpc.StatusCode.UNIMPLEMENTED, ClientError, 1),
    ],
)
def test_only_an_absent_server_is_asked_again(
    code: grpc.StatusCode, kind: type[ClientError], times: int
) -> None:
    with ending_with(code) as (client, calls):
        with pytest.raises(ClientError) as caught:
            client.find_neighbors("item", "item00")
        assert (type(caught.value), len(calls)) == (kind, times)


def test_no_server_is_one_sentence() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(Unavailable) as caught:
        client.get_embeddings("item", "item00")
    assert str(caught.value) == "No server answers at 127.0.0.1:1. Start one: embedsvc serve."


def test_a_call_has_a_time_limit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        with Client(target, timeout_s=0.1) as client, pytest.raises(ClientError, match="in time"):
            client.find_neighbors("item", "item00")
