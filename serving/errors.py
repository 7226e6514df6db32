"""How a call can end without an answer. The same classes on both ends of the wire: the server
raises one, `to_status` packs it as a google.rpc.Status, and in the client `from_rpc` makes it
again, with the server's sentence.
"""

from collections.abc import Mapping
from typing import Any

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from partitions.errors import InputError

DOMAIN = "embedsvc"


class ClientError(InputError):
    """Any end of a call but an answer; `request_id` finds it in the server's log."""

    request_id: str = ""


class InvalidRequest(ClientError):
    """A field of the request breaks a rule."""

    def __init__(self, sentence: str, field: str = "") -> None:
        super().__init__(sentence)
        self.field = field


class NotFound(ClientError):
    """A key, entity type, index, relation or version (the `noun`) that the server doesn't have."""

    def __init__(self, sentence: str, noun: str = "", name: str = "") -> None:
        super().__init__(sentence)
        self.noun = noun
        self.name = name


class TooLarge(ClientError):
    """The reply would not fit into a message."""


class Unavailable(ClientError):
    """No server, or one that is ending. Try again later."""


_CODES: Mapping[type[ClientError], tuple[int, str]] = {
    InvalidRequest: (code_pb2.INVALID_ARGUMENT, "INVALID_REQUEST"),
    NotFound: (code_pb2.NOT_FOUND, "NOT_FOUND"),
    TooLarge: (code_pb2.RESOURCE_EXHAUSTED, "REPLY_TOO_LARGE"),
    Unavailable: (code_pb2.UNAVAILABLE, "UNAVAILABLE"),
}
_MISTAKE = (code_pb2.INTERNAL, "INTERNAL")
_MISTAKE_SENTENCE = "The server made a mistake; its log has the details under this request_id."


def shortened(text: str, num_chars: int = 500) -> str:
    return text if len(text) <= num_chars else f"{text[: num_chars // 2]} ... {text[-100:]}"


def to_status(error: Exception, request_id: str) -> grpc.Status:
    """What a call that raised `error` ends with; nothing of an unexpected error leaks."""
    code, reason = _CODES.get(type(error), _MISTAKE)  # type: ignore[arg-type]
    # gRPC carries it in headers of a few kilobytes, so a sentence about a huge key is cut.
    sentence = _MISTAKE_SENTENCE if code == code_pb2.INTERNAL else shortened(str(error))
    status = status_pb2.Status(code=code, message=sentence)
    metadata = {"request_id": request_id}
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)
    )
    if isinstance(error, InvalidRequest):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=sentence
        )
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, NotFound):
        status.details.add().Pack(
            error_details_pb2.ResourceInfo(
                resource_type=error.noun, resource_name=shortened(error.name)
            )
        )
    if isinstance(error, Unavailable):
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay={"seconds": 1}))
    return rpc_status.to_status(status)


def from_rpc(error: grpc.RpcError, target: str) -> ClientError:
    """The error of a finished call, as the server raised it."""
    code, sentence = error.code(), error.details() or ""
    details = _details(error)
    if code is grpc.StatusCode.NOT_FOUND:
        resource = details.get("ResourceInfo", error_details_pb2.ResourceInfo())
        found: ClientError = NotFound(sentence, resource.resource_type, resource.resource_name)
    elif code is grpc.StatusCode.INVALID_ARGUMENT:
        violations = details.get("BadRequest", error_details_pb2.BadRequest()).field_violations
        found = InvalidRequest(sentence, violations[0].field if violations else "")
    elif code is grpc.StatusCode.UNAVAILABLE and "ErrorInfo" in details:
        found = Unavailable(sentence)
    elif code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):  # or one just ended
        found = Unavailable(f"No server answers at {target}. Start one: embedsvc serve.")
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
        found = ClientError(f"{target} gave no answer in time. Ask for less, or wait longer.")
    elif code is grpc.StatusCode.RESOURCE_EXHAUSTED and "ErrorInfo" in details:
        found = TooLarge(sentence)
    elif "ErrorInfo" in details:
        found = ClientError(sentence)
    else:
        found = ClientError(f"{target} ended the call with {code.name}: {sentence}")
    if "ErrorInfo" in details:
        found.request_id = details["ErrorInfo"].metadata["request_id"]
    return found


def _details(error: grpc.RpcError) -> dict[str, Any]:
    """Name of the message -> message, of those that this server sends."""
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # the details contradict the code: another program's
        status = None
    found = {}
    for packed in status.details if status else ():
        for kind in ("ErrorInfo", "BadRequest", "ResourceInfo"):
            message = getattr(error_details_pb2, kind)()
            if packed.Unpack(message):
                found[kind] = message
    return found
