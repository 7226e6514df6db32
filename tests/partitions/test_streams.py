"""partitions.streams: bytes and digest in one pass; what is counted is what was moved."""

import errno
import hashlib
import resource
from pathlib import Path

import numpy as np
import pytest

from partitions import durable, streams
from partitions.errors import DataError
from partitions.streams import Traffic

SIZES = [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5_000_000]


@pytest.mark.parametrize("keep_cached", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_what_is_written_is_read_digested_and_counted(
    size: int, keep_cached: bool, tmp_path: Path
) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    traffic = Traffic()
    path = tmp_path / "file"
    with streams.writing(tmp_path, path, traffic, keep_cached=keep_cached) as file:
        file.write(b"head")
        file.write(data.data)
    assert file.entry == durable.entry_of(tmp_path, path)
    assert (traffic.written_bytes, traffic.read_bytes) == (size + 4, 0)
    found = np.empty_like(data)
    with streams.reading(path, traffic, keep_cached=keep_cached) as incoming:
        assert incoming.read(4) == b"head"
        incoming.read_into(found.data)
        assert incoming.at == size + 4
        assert incoming.sha256() == file.entry.sha256
    assert (found == data).all()
    assert traffic.io_bytes == 2 * traffic.read_bytes == 2 * (size + 4)


def test_the_digest_is_of_the_whole_file_however_little_was_read(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(data)
    with streams.reading(tmp_path / "file") as file:
        file.read(100)
        assert file.sha256() == hashlib.sha256(data).hexdigest()


def test_a_file_that_ends_too_early_or_is_gone_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(DataError) as caught, streams.reading(path):
        pass
    assert str(caught.value) == f"{path} is missing."
    path.write_bytes(b"123")
    with pytest.raises(DataError) as caught, streams.reading(path) as file:
        file.read(4)
    assert str(caught.value) == f"{path} was truncated or altered: it ends too early."


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError) as caught, streams.writing(tmp_path, path) as file:
            file.write(bytes(5_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert not list(tmp_path.iterdir())
