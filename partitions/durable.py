"""Writes that survive a kill: temporary name, fsync, rename, fsync of the folder.

A reader sees the whole old file or the whole new one. What a killed writer leaves behind carries
TEMPORARY in its name and is swept by the next only writer of its folder. Every file that a manifest
names has a `FileEntry` (bytes and sha256), so that a truncated or altered file is told from a whole
one.
"""

import ctypes
import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from partitions.errors import BusyError, DataError

TEMPORARY = ".tmp-"
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class FileEntry:
    """How a manifest names a file: path relative to the manifest, size, digest (hex)."""

    path: str
    bytes: int
    sha256: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def entry_of(folder: Path, path: Path) -> FileEntry:
    return FileEntry(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_of(path))


def verify(folder: Path, entry: FileEntry, remedy: str, *, digest: bool = True) -> Path:
    """The path of a whole file; a DataError that names a missing, short or altered one.

    remedy: what the user should do, one clause. digest=False checks presence and size only.
    """
    path = folder / entry.path
    if not path.is_file():
        raise DataError(f"{path} is missing. {remedy}")
    size = path.stat().st_size
    if size != entry.bytes:
        raise DataError(
            f"{path} has {size:,} bytes where its manifest says {entry.bytes:,}: it was truncated "
            f"or altered. {remedy}"
        )
    if digest:
        check_digest(path, sha256_of(path), entry, remedy)
    return path


def check_digest(path: Path, found: str, entry: FileEntry, remedy: str) -> None:
    """For who has read the whole file anyway."""
    if found != entry.sha256:
        raise DataError(f"{path} was altered: its sha256 is not the manifest's. {remedy}")


def temporary_name(path: Path) -> Path:
    return path.with_name(f"{path.name}{TEMPORARY}{os.getpid()}")


def sweep_files(folder: Path) -> None:
    """Remove what killed writers of files left: temporary names of processes that are no more."""
    for leftover in folder.glob(f"*{TEMPORARY}*"):
        pid = leftover.name.rpartition(TEMPORARY)[2]
        if pid.isdigit() and leftover.is_file() and not _runs(int(pid)):
            leftover.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Make all files and names below `folder` survive a power cut."""
    for inside, _, files in os.walk(folder):
        for name in files:
            with (Path(inside) / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(inside))


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the place of `path` only when all went well."""
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    with replacing(path) as file:
        file.write(json_bytes(value))


def without_nan(value: Any) -> Any:
    """The same with null for not-a-number, which JSON doesn't have: the mean of nothing."""
    if isinstance(value, dict):
        return {key: without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def json_bytes(value: Any) -> bytes:
    """What `write_json` writes."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def read_json(path: Path, remedy: str) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path} is missing. {remedy}") from None
    except ValueError:
        raise DataError(
            f"{path} is not valid JSON: it was truncated or altered. {remedy}"
        ) from None


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` only when all went well.

    Linux exchanges the two in one step. Elsewhere the old one is first renamed aside; a kill
    between the two renames is mended by `recover_folder`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep_folder(folder)
    fresh, old = temporary_name(folder), _old_name(folder)
    fresh.mkdir()
    try:
        yield fresh
        sync_tree(fresh)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    if not (folder.exists() and _exchange(fresh, folder)):
        if folder.exists():
            os.rename(folder, old)
        os.rename(fresh, folder)
    sync_folder(folder.parent)
    shutil.rmtree(fresh, ignore_errors=True)  # the old one, where they were exchanged
    shutil.rmtree(old, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step; False where system or file system can't."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0


def recover_folder(folder: Path) -> None:
    """Undo a `replacing_folder` that was killed between its two renames."""
    old = _old_name(folder)
    if old.exists() and not folder.exists():
        os.rename(old, folder)


def _old_name(folder: Path) -> Path:
    return folder.with_name(folder.name + ".old")


def sweep_folder(folder: Path) -> None:
    """Remove what a killed `replacing_folder` left."""
    recover_folder(folder)
    shutil.rmtree(_old_name(folder), ignore_errors=True)
    for leftover in folder.parent.glob(f"{folder.name}{TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def only_writer(folder: Path, doing: str) -> Iterator[None]:
    """Hold `folder` for this process; BusyError names the process that holds it already.

    doing: what this process is about to do, such as "training into".

    The lock is the kernel's (flock): it ends with its process, however that ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process is using"
            raise BusyError(
                f"{folder} is in use: {holder} it. Wait for it to end, or choose another [run] dir."
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} is {doing}")
        file.flush()
        sweep_files(folder)
        try:
            yield
        except OSError as error:
            if error.errno is not None and error.filename is None:  # as writes leave it
                error.filename = str(folder)
            raise


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Hold a file that is read and written again; who comes second waits. Its lock lies beside it,
    since the file itself is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sweep_files(path.parent)
        yield
