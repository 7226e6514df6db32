"""Which files an input names, and how each is opened, wherever it lies.

A `path` is a file, a folder, a glob, or one of these as a URI that pyarrow.fs knows (file, s3, gs,
hdfs, ...). In a URI `?` begins the file system's settings, as URIs have it
(s3://bucket/events/*.parquet?region=eu-west-1), so its globs know `*`, `**` and `[...]` only.

Names that begin with `.` or `_` are other programs' notes (Spark's `_SUCCESS`, its `.crc` files):
no folder and no wildcard reaches them, only a pattern that spells the first character out.
"""

import errno
import gzip
import hashlib
import io
import logging
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.fs

from partitions.config import SourceConfig
from partitions.errors import DataError, did_you_mean

_ENDINGS = {  # of files, and the format of what is in them
    ".tsv": "text",
    ".csv": "text",
    ".txt": "text",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
}
_COMPRESSED = (".gz", ".zst")
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
_LISTED = 10  # of an archive's members, in a message
_READ_BYTES = 8 << 20  # one request to a remote store

_log = logging.getLogger(__name__)
_LOCAL = pyarrow.fs.LocalFileSystem()


@dataclass(frozen=True)
class InputFile:
    """A file on the local disk or in any store that pyarrow.fs reaches."""

    name: str  # in messages
    address: str  # in manifests: at(address) is this file again
    path: str = field(repr=False)  # inside the file system
    filesystem: Any = field(compare=False, repr=False)

    def __str__(self) -> str:
        return self.name

    @property
    def local(self) -> Path | None:
        return Path(self.path) if isinstance(self.filesystem, pyarrow.fs.LocalFileSystem) else None

    @property
    def suffixes(self) -> list[str]:
        return PurePosixPath(self.path).suffixes

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.path).suffix

    @property
    def base_name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def exists(self) -> bool:
        with _reaching(self.name):
            return bool(self.filesystem.get_file_info(self.path).is_file)

    @property
    def num_bytes(self) -> int:
        with _reaching(self.name):
            if self.local is not None:
                return self.local.stat().st_size
            return int(self.filesystem.get_file_info(self.path).size)

    @property
    def modified_ns(self) -> int:
        """When it was last written, in ns since 1970; 0 where its store can't say."""
        with _reaching(self.name):
            if self.local is not None:
                return self.local.stat().st_mtime_ns
            return int(self.filesystem.get_file_info(self.path).mtime_ns or 0)

    def sha256(self) -> str:
        digest = hashlib.sha256()
        with _reaching(self.name), self.open() as stream:
            while block := stream.read(_READ_BYTES):
                digest.update(block)
        return digest.hexdigest()

    def open(self) -> IO[bytes]:
        """The bytes as they lie there; seekable."""
        if self.local is not None:
            with _reaching(self.name):
                return self.local.open("rb")
        raw = self.filesystem.open_input_file(self.path)
        return io.BufferedReader(cast(Any, raw), _READ_BYTES)

    def open_random(self) -> pa.NativeFile:
        """For Arrow's own readers. Never memory-mapped: one who cuts the file meanwhile would kill
        the process (SIGBUS)."""
        if self.local is not None:
            with _reaching(self.name):
                return pa.OSFile(str(self.local))
        return self.filesystem.open_input_file(self.path)


def local(path: Path) -> InputFile:
    return InputFile(str(path), str(path), str(path), _LOCAL)


def at(address: str) -> InputFile:
    """The file that an InputFile's address names, whether it is there or not."""
    if "://" not in address:
        return local(Path(address))
    uri = address.partition("?")[0]
    filesystem, path = _filesystem_of(address, uri)
    return InputFile(uri, address, path, filesystem)


def expand(folder: Path, source: SourceConfig, starts_from: str = "graph.data") -> list[InputFile]:
    """The files that an input names, sorted; a DataError where there are none. starts_from: what
    `folder` is to the one who wrote the path."""
    root, pattern = _located(folder, source.path)
    if not pattern:
        kind = root.kind("")
        if kind == pyarrow.fs.FileType.File:
            return [root.file("")]
        if kind == pyarrow.fs.FileType.Directory:
            return _in_folder(root, source)
    else:
        literal = "/".join(pattern)
        if root.kind(literal) == pyarrow.fs.FileType.File:  # a name with brackets in it
            return [root.file(literal)]
        deep = len(pattern) > 1 or "**" in pattern
        found = [rest for rest in root.files(deep) if _matches(pattern, rest.split("/"))]
        if found:
            return [root.file(rest) for rest in found]
    start = "" if root.uri else f" (it starts from {starts_from})"
    named = "/".join([str(root), *pattern])
    raise DataError(f"{named} is missing: no such file. Mend the path{start}.")


def below(folder: Path, path: str) -> list[tuple[tuple[str, ...], InputFile]]:
    """Every file below a folder (a path or a URI) as (the names that lead to it, the file),
    sorted; hidden ones left out."""
    root, pattern = _located(folder, path, globs="")
    assert not pattern
    if root.kind("") != pyarrow.fs.FileType.Directory:
        raise DataError(f"{root} is missing: no such folder. Mend the path.")
    return [(tuple(rest.split("/")), root.file(rest)) for rest in root.files(True, hidden=False)]


def format_of(file: InputFile, source: SourceConfig) -> str:
    if source.format is not None:
        return source.format
    endings = PurePosixPath(source.member).suffixes if source.member else file.suffixes
    # The last ending that is known: events.json.tsv.gz is text.
    return next((_ENDINGS[end] for end in reversed(endings) if end in _ENDINGS), "text")


def _in_folder(root: "_Root", source: SourceConfig) -> list[InputFile]:
    files = root.files(True, hidden=False)
    known = [rest for rest in files if _is_known(rest.rpartition("/")[2], source)]
    if not known:
        endings = ", ".join(_ARCHIVES if source.member else _ENDINGS)
        raise DataError(
            f"{root} is a folder without files of a known ending ({endings}). "
            "Mend the path, or name the files' format beside it."
        )
    if len(known) < len(files):
        taken = set(known)
        odd = next(rest for rest in files if rest not in taken)
        count = len(files) - len(known)
        _log.warning("%s: left out %d files of unknown endings, such as %s", root, count, odd)
    return [root.file(rest) for rest in known]


def _is_known(name: str, source: SourceConfig) -> bool:
    if source.member is not None:
        return name.endswith(_ARCHIVES)
    if source.format is not None:
        return True
    path = PurePosixPath(name)
    ending = PurePosixPath(path.stem).suffix if path.suffix in _COMPRESSED else path.suffix
    return ending in _ENDINGS


# --- where a path leads -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Root:
    """The part of a path before its first wildcard."""

    filesystem: Any
    path: str
    uri: str = ""  # as the user wrote it, settings left out; empty for a local path
    settings: str = ""

    def __str__(self) -> str:
        return self.uri or self.path

    @cached_property
    def _prefix(self) -> str:
        return self.path if self.path in ("", "/") else self.path.rstrip("/") + "/"

    def _path(self, rest: str) -> str:
        return self._prefix + rest if rest else self.path

    def kind(self, rest: str) -> Any:
        with _reaching(str(self)):
            return self.filesystem.get_file_info(self._path(rest)).type

    def files(self, deep: bool, *, hidden: bool = True) -> list[str]:
        """The paths below this one, sorted name by name."""
        with _reaching(str(self)):
            if isinstance(self.filesystem, pyarrow.fs.LocalFileSystem):
                found = list(_local_files(self.path or ".", deep))
            else:
                selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True, recursive=deep)
                infos = self.filesystem.get_file_info(selector)
                found = [info.path for info in infos if info.is_file]
        rests = [path.removeprefix(self._prefix).removeprefix("./") for path in found]
        if not hidden:
            rests = [rest for rest in rests if not any(map(_is_hidden, rest.split("/")))]
        return sorted(rests, key=lambda rest: rest.split("/"))

    def file(self, rest: str) -> InputFile:
        if not self.uri:
            name = str(Path(self._path(rest)))
            return InputFile(name, name, name, self.filesystem)
        name = "/".join([self.uri.rstrip("/"), quote(rest, safe="/=")] if rest else [self.uri])
        address = f"{name}?{self.settings}" if self.settings else name
        return InputFile(name, address, self._path(rest), self.filesystem)


def _local_files(folder: str, deep: bool) -> Iterator[str]:
    """Links to folders are followed, but for those back to where they came from: the files there
    would come again and again."""

    def fail(error: OSError) -> None:
        raise cant_read(error.filename or folder, error)

    if not os.path.isdir(folder):
        return
    for root, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        for name in [*folders, *files]:
            if not name.isascii():
                _check_name(os.path.join(root, name))
        yield from (path for name in files if os.path.isfile(path := os.path.join(root, name)))
        here = os.path.realpath(root)
        folders[:] = [n for n in folders if deep and not _leads_back(os.path.join(root, n), here)]


def _leads_back(folder: str, here: str) -> bool:
    if not os.path.islink(folder):
        return False
    there = os.path.realpath(folder)
    return os.path.commonpath([here, there]) == there


def _check_name(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        odd = os.fsencode(path).decode("utf-8", "replace")
        raise DataError(f"{odd} can't be read: its name is not UTF-8. Rename it.") from None


def _located(folder: Path, path: str, globs: str = "*[") -> tuple[_Root, list[str]]:
    """(what comes before the first wildcard, the names from there on)"""
    if "://" not in path:
        literal, pattern = _split(path, globs and globs + "?")
        return _Root(_LOCAL, str(folder / literal)), pattern
    uri, _, settings = path.partition("?")
    scheme, _, place = uri.partition("://")
    literal, pattern = _split(place, globs)
    uri = f"{scheme}://{literal}"
    filesystem, inside = _filesystem_of(f"{uri}?{settings}" if settings else uri, uri)
    pattern = [unquote(name) for name in pattern]
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        return _Root(_LOCAL, inside), pattern
    return _Root(filesystem, inside, uri, settings), pattern


def _split(path: str, globs: str) -> tuple[str, list[str]]:
    names = path.split("/")
    first = next((n for n, name in enumerate(names) if set(name) & set(globs)), len(names))
    literal = "/".join(names[:first])
    return "/" if not literal and path.startswith("/") else literal, names[first:]


def _filesystem_of(address: str, uri: str) -> tuple[Any, str]:
    with _reaching(uri):
        return cast(tuple[Any, str], pyarrow.fs.FileSystem.from_uri(address))


@contextmanager
def _reaching(name: str) -> Iterator[None]:
    """What a disk or a remote store says when it can't be read -> one sentence."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ImportError, OSError) as error:
        if "://" not in name:
            raise (cant_read(name, error) if isinstance(error, OSError) else error) from None
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".:")
        raise DataError(
            f"{name} can't be reached: {reason}. Mend the URI, install what its file system needs, "
            "or copy the files to a local folder."
        ) from None
    except UnicodeError:
        _check_name(name)
        raise


_MENDABLE = {  # by the one who named the file; the rest is up to the machine
    errno.EACCES: "permission denied. Mend its permissions.",
    errno.EPERM: "permission denied. Mend its permissions.",
    errno.ENOENT: "it is not there, or vanished while it was needed. Put it back or mend the path.",
    errno.ENOTDIR: "a file is where the path names a folder. Mend the path.",
    errno.EISDIR: "it is a folder. Name a file, or a glob of files.",
    errno.ELOOP: "its links lead in a circle. Mend the path.",
    errno.ENAMETOOLONG: "the name is too long. Mend the path.",
}


def cant_read(name: object, error: OSError) -> Exception:
    """What the system said about a file that was to be read: one sentence, where a person can
    mend it; else the error with the name, which Arrow's and those of reads lack."""
    if error.errno is None:
        reason = (str(error).splitlines() or ["no reason given"])[0].rstrip(".:")
        return DataError(f"{name} can't be read: {reason}. Mend the path.")
    if reason := _MENDABLE.get(error.errno, ""):
        return DataError(f"{name} can't be read: {reason}")
    return OSError(error.errno, os.strerror(error.errno), str(name))


def _matches(pattern: Sequence[str], names: Sequence[str]) -> bool:
    """Name by name, so that `*` stays inside a folder; `**` stands for any number of folders."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        for end in range(len(names) + 1):
            if _matches(pattern[1:], names[end:]):
                return True
            if end < len(names) and _is_hidden(names[end]):
                return False
        return False
    if not names or not fnmatchcase(names[0], pattern[0]):
        return False
    reached = not _is_hidden(names[0]) or pattern[0][0] == names[0][0]
    return reached and _matches(pattern[1:], names[1:])


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_"))


def broken(file: InputFile, error: Exception) -> DataError:
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".:")
    return DataError(f"{file} can't be read: {reason}. Copy or export the file again.")


@contextmanager
def reading(file: InputFile) -> Iterator[None]:
    """What the libraries raise, as sentences that name the file."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.ReadError, zipfile.BadZipFile) as error:
        raise broken(file, error) from None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise cant_read(file, error) from None
        raise broken(file, error) from None


def line_of(file: InputFile, source: SourceConfig, number: int) -> str:
    inside = f"!{source.member}" if source.member else ""
    return f"{file}{inside}:{number}"


# --- what is in a file ----------------------------------------------------------------------------


@contextmanager
def opened(file: InputFile, member: str | None = None) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file or of one member of an archive."""
    with ExitStack() as stack:
        if member is not None:
            yield _member(stack, file, member)
        elif file.base_name.endswith(_ARCHIVES):
            raise _no_member(stack, file)
        elif file.suffix in _COMPRESSED and not file.num_bytes:
            raise EOFError("it is empty, where a compressed file has a beginning and an end")
        elif file.suffix == ".gz":
            raw = stack.enter_context(file.open())
            yield cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=raw, mode="rb")))
        elif file.suffix == ".zst":
            random = stack.enter_context(file.open_random())
            yield stack.enter_context(pa.CompressedInputStream(random, "zstd"))
        else:
            yield stack.enter_context(file.open())


def _member(stack: ExitStack, file: InputFile, member: str) -> IO[bytes]:
    archive, names = _archive(stack, file)
    if member in names:
        if isinstance(archive, tarfile.TarFile):
            if (content := archive.extractfile(member)) is not None:
                return stack.enter_context(content)
        else:
            try:
                return stack.enter_context(archive.open(member))
            except (RuntimeError, OSError) as error:  # encrypted, unknown compression, damaged
                raise zipfile.BadZipFile(str(error)) from None
    raise DataError(f"{file} has no member {member}. {did_you_mean(member, names)}")


def _archive(
    stack: ExitStack, file: InputFile
) -> tuple[tarfile.TarFile | zipfile.ZipFile, list[str]]:
    """The archive and the names of its files."""
    raw = stack.enter_context(file.open())
    if file.suffix == ".zip":
        archive = stack.enter_context(zipfile.ZipFile(raw))
        return archive, [info.filename for info in archive.infolist() if not info.is_dir()]
    tar = stack.enter_context(tarfile.TarFile.open(fileobj=raw))
    names = [info.name for info in tar.getmembers() if info.isfile()]
    while tar.fileobj is not None and tar.fileobj.read(_READ_BYTES):
        pass  # to the end, where the compressed file's checksum is
    return tar, names


def _no_member(stack: ExitStack, file: InputFile) -> DataError:
    _, names = _archive(stack, file)
    if not names:
        return DataError(f"{file} is an archive without files. Copy or export the file again.")
    listed = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
    return DataError(
        f"{file} is an archive: name one of its files as member, such as "
        f'member = "{names[0]}". It holds {listed}.'
    )
