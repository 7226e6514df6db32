"""What every call of the three services has around it: a request id, the time it queued, its errors
as statuses, a limit on its reply, and a polite refusal once the server is ending.
"""

import logging
import time
import uuid
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from serving import embedsvc_pb2 as pb
from serving.errors import ClientError, InvalidRequest, TooLarge, Unavailable, to_status
from serving.requests import check_request_id

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 16 << 20
_PACKAGE = f"/{pb.DESCRIPTOR.package}."


class Calls(grpc.ServerInterceptor):
    """An interceptor; calls of other services, such as health, pass by."""

    def __init__(self) -> None:
        self._refusing = False
        self._last_ns = 0  # when the last call arrived

    def refuse(self, quiet_s: float, at_most_s: float) -> None:
        """Refuse calls from now on; returns when none came for `quiet_s`.

        gRPC's own stop cancels what it has not handed over yet, which callers take for their own
        doing; UNAVAILABLE sends them elsewhere.
        """
        self._refusing = True
        start_ns = time.perf_counter_ns()
        while (now_ns := time.perf_counter_ns()) - start_ns < at_most_s * 1e9:
            if now_ns - max(self._last_ns, start_ns) >= quiet_s * 1e9:
                return
            time.sleep(quiet_s / 10)

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        arrived = time.perf_counter_ns()
        handler = continuation(details)
        if handler is None or not details.method.startswith(_PACKAGE):
            return handler
        self._last_ns = arrived

        def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
            queue_us = (time.perf_counter_ns() - arrived) // 1000
            request_id = str(uuid.uuid4())
            try:
                if self._refusing:
                    raise Unavailable("This server is ending. Ask another one, or try again later.")
                request = _parsed(handler.request_deserializer, data)
                check_request_id(request.request_id)
                request_id = request.request_id or request_id
                reply = handler.unary_unary(request, context)
                reply.request_id = request_id
                reply.server_time_us.queue = queue_us
                return _serialised(reply)
            except Exception as error:
                if not isinstance(error, ClientError):
                    log.exception("%s failed, request_id %r", details.method, request_id)
                context.abort_with_status(to_status(error, request_id))
                raise  # for the type checker: the line above never returns

        return grpc.unary_unary_rpc_method_handler(answer)  # bytes in, bytes out


def _parsed(parse: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return parse(data)
    except DecodeError:
        raise InvalidRequest("The request is not a message of this method.") from None


def _serialised(reply: Any) -> bytes:
    data: bytes = reply.SerializeToString()
    if len(data) > MAX_MESSAGE_BYTES:
        raise TooLarge(
            f"The reply has {len(data):,} bytes, more than {MAX_MESSAGE_BYTES:,}: send fewer "
            "queries, a smaller k, or leave out vectors and attributes."
        )
    return data
