"""A published version's files, blob by blob: from the cache where it has them, else from disk.

A blob is named `embedsvc:{VERSION-DIGEST/PATH}:NNNN` in the cache. DIGEST is the first 12 digits of
the manifest's sha256, so that a name never means two contents; the braces keep the blobs of a file
on one node of a Redis Cluster. No blob is believed before its sha256 is the manifest's.
"""

import hashlib
import logging
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from partitions import durable
from partitions.errors import DataError
from partitions.published import BLOB_BYTES, Manifest, PublishedFile
from serving.cache import BlobCache

log = logging.getLogger(__name__)

GROUP = 16  # blobs in one message to the cache
_REMEDY = "Publish again, or go back with embedsvc rollback --to another version."


class VersionBlobs:
    """The blobs of one version: `names` are those fetched so far, which a cache should hold."""

    def __init__(self, folder: Path, manifest: Manifest, cache: BlobCache | None) -> None:
        digest = hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()[:12]
        self._folder = folder
        self._files = manifest.files
        self._cache = cache
        self._tag = f"{manifest.version}-{digest}"
        self._places: dict[str, tuple[str, int]] = {}  # name -> path, place in the file
        self.from_cache = self.from_disk = 0

    @property
    def names(self) -> list[str]:
        return list(self._places)

    def fetch(self, path: str, file: PublishedFile) -> NDArray[np.uint8]:
        """The verified bytes of a file. Raises DataError if neither cache nor disk has them."""
        if len(file.blobs) != math.ceil(file.bytes / BLOB_BYTES):
            raise DataError(f"The manifest of {self._folder} was altered at {path}. {_REMEDY}")
        whole = np.empty(file.bytes, np.uint8)
        damaged = 0
        for start in range(0, len(file.blobs), GROUP):
            group = range(start, min(start + GROUP, len(file.blobs)))
            names = [f"embedsvc:{{{self._tag}/{path}}}:{at:04}" for at in group]
            self._places |= {name: (path, at) for name, at in zip(names, group, strict=True)}
            cached = self._cache.get(names) if self._cache else [None] * len(names)
            absent = {}
            for at, name, blob in zip(group, names, cached, strict=True):
                if blob is None or _sha256(blob) != file.blobs[at]:
                    damaged += blob is not None
                    blob = absent[name] = self.read(name)
                whole[at * BLOB_BYTES : (at + 1) * BLOB_BYTES] = np.frombuffer(blob, np.uint8)
            if self._cache and absent:
                self._cache.put(absent)
            self.from_disk += len(absent)
            self.from_cache += len(group) - len(absent)
        if damaged and self._cache:
            log.warning("%s held %d damaged blobs of %s: mended", self._cache.name, damaged, path)
        return whole

    def read(self, name: str) -> bytes:
        """A verified blob of a fetched file, from disk; DataError names a missing, short or altered
        file."""
        path, at = self._places[name]
        file = self._files[path]
        entry = durable.FileEntry(path, file.bytes, file.sha256)
        whole = durable.verify(self._folder, entry, _REMEDY, digest=False)
        with whole.open("rb") as opened:
            opened.seek(at * BLOB_BYTES)
            blob = opened.read(BLOB_BYTES)
        if _sha256(blob) != file.blobs[at]:
            raise DataError(f"{whole} was altered: its sha256 is not the manifest's. {_REMEDY}")
        return blob


def _sha256(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()
