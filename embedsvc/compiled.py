"""Compilation by numba, kept on disk until any file that went into it changes.

Numba renews a kernel that it kept when the kernel's own file changed. But a kernel inlines what it
calls, and that may stand in another file: `every.train_chunks` is made of functions of kernels.py,
products.py, rounding.py and partitions/hashing.py. So what numba calls the stamp of the source is
here a digest of the file and of all it imports that are compiled themselves, and so on.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any

import numba
from numba.core import event

# Sums may be reordered and multiplications fused; NaN and infinity keep their meaning, since they
# are how divergence shows.
LOOSE_SUMS: Any = {
    "fastmath": {"contract", "reassoc", "nsz", "arcp"},
    "error_model": "numpy",
}

_COMPILES = re.compile(r"\b(?:numba|embedsvc\.compiled)\b")
_IMPORT = re.compile(r"^from ((?:embedsvc|partitions)[\w.]*) import (\([^)]*\)|.*)", re.MULTILINE)


def jit(function: Any = None, **options: Any) -> Any:
    """numba.njit without the GIL, kept on disk; `@jit`, or `@jit(error_model="numpy")`."""
    if function is None:
        return lambda found: jit(found, **options)
    kernel = numba.njit(nogil=True, cache=True, **options)(function)
    path = Path(function.__code__.co_filename)
    if hasattr(kernel, "_cache") and path.exists():  # not where compiling is off, or in a zip
        root = path.resolve().parents[function.__module__.count(".")]
        kernel._cache._cache_file._source_stamp = _digest(path.resolve(), root)
    return kernel


class _Compiling(event.Listener):
    """Hears of each kernel that is compiled; those that were kept on disk are not."""

    said = False  # by anyone, in this process

    def __init__(self, logger: logging.Logger, after_s: float) -> None:
        self._logger, self._after_s = logger, after_s
        self._begun: float | None = None

    def on_start(self, event: event.Event) -> None:
        if self._begun is None:
            self._begun = monotonic()
        if not _Compiling.said and monotonic() - self._begun >= self._after_s:
            _Compiling.said = True
            self._logger.info(
                "compiling kernels for the first step; the next run finds them on disk"
            )

    def on_end(self, event: event.Event) -> None:
        pass


@contextmanager
def telling_of_compiling(logger: logging.Logger, after_s: float = 1.0) -> Iterator[None]:
    """Says once, in a line, why what is inside begins slowly: after so many seconds in which it
    came to compile more than one kernel."""
    with event.install_listener("numba:compile", _Compiling(logger, after_s)):
        yield


def sources_of(path: Path, root: Path) -> set[Path]:
    """The files whose code may be in what is compiled of this one, itself included.

    root: the folder of the packages.
    """
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        path = waiting.pop()
        if path not in found and _COMPILES.search(text := _text(path)):
            found.add(path)
            waiting += _imported(text, root)
    return found


def _imported(text: str, root: Path) -> list[Path]:
    paths = []
    for package, names in _IMPORT.findall(text):
        module = root.joinpath(*package.split("."))
        paths += [module.with_suffix(".py")]
        paths += [module / f"{name}.py" for name in re.findall(r"\w+", names)]
    return [path for path in paths if path.exists()]


_text: Callable[[Path], str] = cache(lambda path: path.read_text("utf-8"))


@cache
def _digest(path: Path, root: Path) -> str:
    sha = hashlib.sha256()
    for source in sorted(sources_of(path, root) | {path}):
        sha.update(_text(source).encode())
    return sha.hexdigest()
