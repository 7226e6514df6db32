"""Event files for TensorBoard (`train.tensorboard`): the curves of metrics.jsonl, as they grow.

    checkpoint/tensorboard/events.out.tfevents.<unix nanoseconds>

is a sequence of records, little-endian:

    uint64 length, uint32 mask(crc(length)), data, uint32 mask(crc(data))

where crc is CRC-32C and mask(c) = (c rotated right by 15 bits) + 0xa282ead8, and data is a protobuf
message of TensorFlow's event.proto:

    Event { double wall_time = 1; int64 step = 2; string file_version = 3;
            Summary summary = 5 { Value value = 1 { string tag = 1; float simple_value = 2 } }
            SessionLog session_log = 7 { int32 status = 1 } }

Ours, because the format is that small and has not changed since 2015, and the library that writes
it brings the viewer, a web server and an image library along. Who looks at curves has TensorBoard.

A step is the number of edges trained up to then. A run that goes on begins a new file with all that
counts: what was trained before and not committed, and so will come again, is left out, and the file
before is removed. Its first event, of a session's start at step 0, tells a TensorBoard that is open
to forget what it has read.
"""

import struct
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

FOLDER = "tensorboard"
_CURVES = ("loss", "edges_per_s", "wait_s", "lr")  # of a bucket's record


class Curves:
    """folder: of the checkpoint. records: of metrics.jsonl, so far. epoch, num_done: what of them
    is committed, whole epochs and buckets of the next one."""

    def __init__(
        self, folder: Path, records: Iterable[Mapping[str, Any]], epoch: int, num_done: int
    ) -> None:
        self._num_edges = 0
        (folder / FOLDER).mkdir(exist_ok=True)
        for path in (folder / FOLDER).glob("events.out.tfevents.*"):
            path.unlink()
        self.path = folder / FOLDER / f"events.out.tfevents.{time.time_ns()}"
        self._write(_event(time.time(), 0, _bytes(3, b"brain.Event:2")))
        self._write(_event(time.time(), 0, _bytes(7, _varint(1 << 3) + _varint(1))))
        for record in _that_count(records, epoch, num_done):
            self.add(record)

    def add(self, record: Mapping[str, Any]) -> None:
        """One of metrics.jsonl: of a bucket just trained, or of an evaluation."""
        if "bucket" in record:
            self._num_edges += record["edges"]
            values = {name: record[name] for name in _CURVES if name in record}
        else:
            names = record.keys() - {"epoch", "time"}
            values = {f"validation/{name}": record[name] for name in sorted(names)}
        summary = b"".join(
            _bytes(1, _bytes(1, name.encode()) + _varint(2 << 3 | 5) + struct.pack("<f", value))
            for name, value in values.items()
        )
        now = record.get("time", time.time())
        self._write(_event(now, self._num_edges, _bytes(5, summary)))

    def _write(self, data: bytes) -> None:
        length = struct.pack("<Q", len(data))
        with self.path.open("ab") as file:
            file.write(length + _masked_crc(length) + data + _masked_crc(data))


def _that_count(
    records: Iterable[Mapping[str, Any]], epoch: int, num_done: int
) -> list[Mapping[str, Any]]:
    """In the order of training. Of what came twice the last one counts; an evaluation follows the
    buckets of its epoch."""
    last: dict[tuple[int, float], Mapping[str, Any]] = {}
    for record in records:
        done = record["done"] if "bucket" in record else float("inf")
        if (record["epoch"] - 1, done) <= (epoch, num_done):
            last[record["epoch"], done] = record
    return [last[key] for key in sorted(last)]


def _event(wall_time: float, step: int, rest: bytes) -> bytes:
    return (
        _varint(1 << 3 | 1) + struct.pack("<d", wall_time) + _varint(2 << 3) + _varint(step) + rest
    )


def _bytes(number: int, data: bytes) -> bytes:
    """A protobuf field of that number."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _masked_crc(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_OF[crc & 255 ^ byte]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _crc_of(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ 0x82F63B78 * (byte & 1)
    return byte


_CRC_OF = [_crc_of(byte) for byte in range(256)]
