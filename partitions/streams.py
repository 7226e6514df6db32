"""Files written and read once, from their first byte to their last, and digested on the way.

No second pass for the digest, no copy of what is written or read: blocks go straight between the
disk and the arrays they belong to. `Traffic` counts the bytes where they cross that border.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from partitions import durable
from partitions.durable import FileEntry
from partitions.errors import DataError

_BLOCK_BYTES = 1 << 20  # digested while it is in the processor's cache


@dataclass
class Traffic:
    """Bytes read and written so far."""

    read_bytes: int = 0
    written_bytes: int = 0

    @property
    def io_bytes(self) -> int:
        return self.read_bytes + self.written_bytes


class Outgoing:
    """A file being written."""

    def __init__(self, file: BinaryIO, traffic: Traffic) -> None:
        self._file, self._traffic, self._digest = file, traffic, hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: Any) -> None:
        """data: bytes, or any buffer of them."""
        for block in _blocks(memoryview(data)):
            self._file.write(block)
            self._digest.update(block)
            self.num_bytes += len(block)
            self._traffic.written_bytes += len(block)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


class Incoming:
    """A file being read."""

    def __init__(self, file: BinaryIO, path: Path, traffic: Traffic) -> None:
        self._file, self.path, self._traffic = file, path, traffic
        self._digest = hashlib.sha256()
        self.at = 0

    def read_into(self, data: Any) -> None:
        """Fill any buffer of bytes. DataError where the file ends before."""
        for block in _blocks(memoryview(data)):
            done = 0
            while done < len(block):
                count = self._file.readinto(block[done:])  # type: ignore[attr-defined]
                if not count:
                    raise DataError(f"{self.path} was truncated or altered: it ends too early.")
                done += count
            self._digest.update(block)
            self.at += len(block)
            self._traffic.read_bytes += len(block)

    def read(self, num_bytes: int) -> bytearray:
        data = bytearray(num_bytes)
        self.read_into(data)
        return data

    def sha256(self) -> str:
        """Of the whole file: what is left is read for it."""
        while block := self._file.read(_BLOCK_BYTES):
            self._digest.update(block)
            self._traffic.read_bytes += len(block)
        return self._digest.hexdigest()


def _blocks(data: memoryview) -> Iterator[memoryview]:
    flat = data.cast("B") if data.nbytes else memoryview(b"")
    for start in range(0, len(flat), _BLOCK_BYTES):
        yield flat[start : start + _BLOCK_BYTES]


class Written:
    """What `writing` yields: the stream, and once it is closed the entry of the file."""

    def __init__(self, stream: Outgoing) -> None:
        self.write = stream.write
        self.entry: FileEntry


@contextmanager
def writing(
    folder: Path, path: Path, traffic: Traffic | None = None, *, keep_cached: bool = True
) -> Iterator[Written]:
    """A durable file below `folder`, where the manifest is that will name it by its entry.

    keep_cached=False: the system need not keep the file in its page cache.
    """
    try:
        with durable.replacing(path) as file:
            stream = Outgoing(file, traffic or Traffic())
            written = Written(stream)
            yield written
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say which file
        raise
    if not keep_cached:
        with path.open("rb") as file:
            _forget(file)
    name = path.relative_to(folder).as_posix()
    written.entry = FileEntry(name, stream.num_bytes, stream.sha256)


@contextmanager
def reading(
    path: Path, traffic: Traffic | None = None, *, keep_cached: bool = True
) -> Iterator[Incoming]:
    try:
        with path.open("rb", buffering=0) as file:
            yield Incoming(file, path, traffic or Traffic())
            if not keep_cached:
                _forget(file)
    except FileNotFoundError:
        raise DataError(f"{path} is missing.") from None
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _forget(file: Any) -> None:
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # advice only
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
