"""The published version: the one contract between training and serving (this module owns it).

    CURRENT                               name of the live version, one line
    gate.jsonl                            what became of each version (releases.py)
    v000003/manifest.json                 what is below, with bytes and digests of every file
    v000003/config.json, metrics.json     resolved settings; offline evaluation
    v000003/card.json, CARD.md            what it was made of, and what the gate said of it
    v000003/golden.json                   queries with their exact offline answers
    v000003/relations.safetensors         operator parameters, one tensor per relation that has any
    v000003/entities/TYPE/keys-SSS.arrow        shard S: `key`, then attributes as text columns
    v000003/entities/TYPE/vectors-SSS.safetensors  shard S: `vectors` float32 [rows, dim]
    v000003/entities/TYPE/NAME.faiss            FAISS index over all shards
    v000003/seen/NNNN.arrow               of relation N: `rhs`: large_list<uint32>, row = lhs id
    v000003/tower.onnx                    what somebody had -> a vector to ask with, where learnt so
    v000003/tower_features.json           what it knows besides, where it does
    v000003/ranker/...                    a ranker (partitions/ranker_files.py), where there is one

tower.onnx: of a model of [output], for its relation. In: `history` int64 [n, L], ids of the rhs
type, the newest last, -1 for padding, L at least 1. Out: `x` float32 [n, dim - 1], `query` float32
[n, dim] = [x, 1], for the inner product with rows of the rhs, so for its `score` index. A history
is cut to as many of the newest as training looked at. There is none where rows exceed 2 GB. Where
the model knows features of who asks, one more input: `features` int64 [n, F], numbers of the values
of his attributes, -1 for one that is missing or not there; tower_features.json has them by column
and value, {"gender": {"F": 0, "M": 1}}, the columns in their order.

A version of a ranker alone has no entity types, no relations and no golden.json.

A version is immutable: it is written beside its place and renamed there. An entity's id is its row
over the shards laid end to end, and its row in each index. Every file is also described in blobs of
at most BLOB_BYTES, each with a digest: the unit in which a cache holds a version.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from partitions import durable, tensors
from partitions.errors import DataError, did_you_mean

FORMAT_VERSION = 1
CURRENT = "CURRENT"
MANIFEST = "manifest.json"
TOWER, TOWER_FEATURES = "tower.onnx", "tower_features.json"
# Just below 1 MiB with the store's own header, so that the allocator's class isn't overshot.
BLOB_BYTES = (1 << 20) - 64
_NAME = re.compile(r"v\d{6,}")
_REMEDY = "Publish again, or go back with embedsvc rollback --to another version."

Metric = Literal["dot", "cos", "l2"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PublishedFile(_Part):
    bytes: int
    sha256: str
    blobs: list[str]  # sha256 of each BLOB_BYTES piece


class Shard(_Part):
    rows: int
    keys: str  # file
    vectors: str  # file


class Index(_Part):
    file: str
    metric: Metric  # dot and cos: higher is nearer; l2: the negated distance is the score
    normalised: bool  # rows (and so queries) have unit length
    scale: float = 1.0  # what a similarity is multiplied by to be training's score
    kind: str


class PublishedEntities(_Part):
    name: str
    shards: list[Shard]
    indexes: dict[str, Index]  # `similar`: entities like this one; `score`: as training scores
    attributes: list[str]

    @property
    def num_rows(self) -> int:
        return sum(shard.rows for shard in self.shards)


class PublishedRelation(_Part):
    name: str
    lhs: str
    rhs: str
    operator: str
    has_params: bool
    seen: str | None  # file


class Manifest(_Part):
    format_version: int
    version: str
    created: str  # UTC, ISO 8601
    dim: int
    comparator: Metric
    graph_digest: str
    entity_types: list[PublishedEntities]
    relations: list[PublishedRelation]
    files: dict[str, PublishedFile]

    def entities(self, name: str) -> PublishedEntities:
        return _named(self.entity_types, name, "entity type")

    def relation(self, name: str) -> PublishedRelation:
        return _named(self.relations, name, "relation")


def _named(parts: list[Any], name: str, noun: str) -> Any:
    for part in parts:
        if part.name == name:
            return part
    raise DataError(
        f"There is no {noun} named {name}. {did_you_mean(name, [p.name for p in parts])}"
    )


Fetch = Callable[[str, PublishedFile], Any]  # (path, its description) -> verified bytes-like


class PublishedVersion:
    """A version's content, whatever it is fetched from. Nothing is read before it is asked for."""

    def __init__(self, manifest: Manifest, fetch: Fetch) -> None:
        self.manifest = manifest
        self._fetch = fetch

    @property
    def name(self) -> str:
        return self.manifest.version

    def file(self, path: str) -> Any:
        """The verified bytes of one file, as a buffer."""
        return self._fetch(path, self.manifest.files[path])

    def keys(self, entity_type: str) -> pa.Table:
        """`key` and the attribute columns, row = id."""
        shards = self.manifest.entities(entity_type).shards
        return pa.concat_tables([self._arrow(shard.keys) for shard in shards])

    def vectors(self, entity_type: str) -> NDArray[np.float32]:
        """float32 [entities, dim], row = id."""
        shards = self.manifest.entities(entity_type).shards
        parts = [self._tensors(shard.vectors)["vectors"] for shard in shards]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def index(self, entity_type: str, name: str) -> Any:
        """The serialised FAISS index, as a buffer."""
        return self.file(self.manifest.entities(entity_type).indexes[name].file)

    def operator_params(self, relation: str) -> NDArray[np.float32] | None:
        if not self.manifest.relation(relation).has_params:
            return None
        return self._tensors("relations.safetensors")[relation]

    def seen(self, relation: str) -> tuple[NDArray[np.int64], NDArray[np.uint32]] | None:
        """(starts int64 [lhs + 1], ids uint32): lhs i saw the rhs ids[starts[i]:starts[i + 1]]."""
        path = self.manifest.relation(relation).seen
        if path is None:
            return None
        lists = self._arrow(path).column("rhs").combine_chunks()
        return lists.offsets.to_numpy(), lists.values.to_numpy()

    def golden(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(bytes(self.file("golden.json")))
        return found

    def _arrow(self, path: str) -> pa.Table:
        return pa.ipc.open_file(pa.py_buffer(self.file(path))).read_all()

    def _tensors(self, path: str) -> Mapping[str, NDArray[Any]]:
        return tensors.parse(self.file(path), f"{self.name}/{path}").arrays


# --- reading -------------------------------------------------------------------------------------


def current(root: Path) -> str:
    """The name of the live version; DataError where nothing is published."""
    try:
        name = (root / CURRENT).read_text("utf-8", "replace").strip()
    except FileNotFoundError:
        raise DataError(f"{root} holds no published version. Run embedsvc publish.") from None
    if not _NAME.fullmatch(name):
        raise DataError(f"{root / CURRENT} does not name a version: {name[:40]!r}. {_REMEDY}")
    return name


def versions(root: Path) -> list[str]:
    """The names of all whole versions, oldest first."""
    if not root.is_dir():
        return []
    found = [p.name for p in root.iterdir() if _NAME.fullmatch(p.name)]
    return sorted(found, key=lambda name: int(name[1:]))


def read_manifest(root: Path, name: str) -> Manifest:
    path = root / name / MANIFEST
    return parse_manifest(json.dumps(durable.read_json(path, _REMEDY)).encode(), str(path))


def parse_manifest(text: bytes, name: str = MANIFEST) -> Manifest:
    """`name` says in errors what was read."""
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{name} was altered: {where}: {first['msg']}. {_REMEDY}") from None
    if manifest.format_version != FORMAT_VERSION:
        raise DataError(
            f"Version {manifest.version} is of format {manifest.format_version}, this program "
            f"reads {FORMAT_VERSION}. {_REMEDY}"
        )
    return manifest


def open_version(root: Path, name: str | None = None) -> PublishedVersion:
    """A version read from disk, memory-mapped; unset: the live one."""
    name = name or current(root)
    return PublishedVersion(read_manifest(root, name), disk(root / name))


def whole_version(root: Path, name: str | None = None) -> PublishedVersion:
    """The same with every file read and held against its digest; DataError names one that is
    not whole."""
    version = open_version(root, name)
    for path in version.manifest.files:
        version.file(path)
    return version


def check_known(root: Path, name: str) -> None:
    """DataError where there is no such version."""
    if name not in versions(root):
        raise DataError(f"{root} has no version {name}. {did_you_mean(name, versions(root))}")


def disk(folder: Path) -> Fetch:
    def fetch(path: str, file: PublishedFile) -> Any:
        entry = durable.FileEntry(path, file.bytes, file.sha256)
        whole = durable.verify(folder, entry, _REMEDY)
        return np.memmap(whole, np.uint8, "r") if file.bytes else b""

    return fetch


# --- writing -------------------------------------------------------------------------------------


@dataclass
class Draft:
    """A version being written: fill the folder by the methods, then `finish`."""

    root: Path
    name: str
    folder: Path

    def write_bytes(self, path: str, data: Any) -> str:
        with self._new(path).open("wb") as file:
            file.write(data)
        return path

    def write_json(self, path: str, value: Any) -> str:
        return self.write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())

    def write_arrow(self, path: str, table: pa.Table) -> str:
        with self._new(path).open("wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        return path

    def write_tensors(self, path: str, arrays: Mapping[str, NDArray[Any]]) -> str:
        with self._new(path).open("wb") as file:
            tensors.write(file, arrays)
        return path

    def write_shard(
        self, entity_type: str, at: int, keys: pa.Table, vectors: NDArray[np.float32]
    ) -> Shard:
        assert len(keys) == len(vectors)
        folder = f"entities/{entity_type}"
        return Shard(
            rows=len(keys),
            keys=self.write_arrow(f"{folder}/keys-{at:03}.arrow", keys),
            vectors=self.write_tensors(
                f"{folder}/vectors-{at:03}.safetensors", {"vectors": vectors}
            ),
        )

    def write_seen(self, at: int, starts: NDArray[np.int64], rhs: NDArray[np.uint32]) -> str:
        """at: the relation's place in the manifest; its name may not suit a file system."""
        lists = pa.LargeListArray.from_arrays(pa.array(starts), pa.array(rhs))
        return self.write_arrow(f"seen/{at:04}.arrow", pa.table({"rhs": lists}))

    def finish(self, **parts: Any) -> Manifest:
        """Digest every file and write the manifest; `parts` are the fields of `Manifest`."""
        files = {
            path.relative_to(self.folder).as_posix(): _describe(path)
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }
        manifest = Manifest(format_version=FORMAT_VERSION, version=self.name, files=files, **parts)
        self.write_json(MANIFEST, manifest.model_dump(mode="json"))
        return manifest

    def add(self, manifest: Manifest, files: Mapping[str, bytes]) -> Manifest:
        """After `finish`: more files, by path, and the manifest that names them too."""
        described = {
            path: _describe(self.folder / self.write_bytes(path, data))
            for path, data in files.items()
        }
        more = manifest.model_copy(update={"files": {**manifest.files, **described}})
        self.write_json(MANIFEST, more.model_dump(mode="json"))
        return more

    def _new(self, path: str) -> Path:
        new = self.folder / path
        new.parent.mkdir(parents=True, exist_ok=True)
        return new


def _describe(path: Path) -> PublishedFile:
    whole, blobs, size = hashlib.sha256(), [], 0
    with path.open("rb") as file:
        while blob := file.read(BLOB_BYTES):
            whole.update(blob)
            blobs.append(hashlib.sha256(blob).hexdigest())
            size += len(blob)
    return PublishedFile(bytes=size, sha256=whole.hexdigest(), blobs=blobs)


@contextmanager
def new_version(root: Path) -> Iterator[Draft]:
    """A draft of the next version, renamed into place if all goes well. CURRENT does not move."""
    root.mkdir(parents=True, exist_ok=True)
    with durable.only_writer(root, "publishing into"):
        for leftover in root.glob(f"v*{durable.TEMPORARY}*"):  # of a killed draft or removal
            shutil.rmtree(leftover, ignore_errors=True)
        known = versions(root)
        name = f"v{int(known[-1][1:]) + 1 if known else 1:06}"
        with durable.replacing_folder(root / name) as folder:
            yield Draft(root, name, folder)


def set_current(root: Path, name: str) -> None:
    """Make a version the live one. A server notices within its polling period. To move what is
    live with a line in the trace: releases.record."""
    check_known(root, name)
    with durable.replacing(root / CURRENT) as file:
        file.write(f"{name}\n".encode())


def remove_versions(root: Path, keep: int, spared: Collection[str] = ()) -> list[str]:
    """Delete all but the newest `keep` versions, the live one and the spared; returns what went."""
    try:
        live = current(root)
    except DataError:
        live = None
    gone = [name for name in versions(root)[:-keep] if name != live and name not in spared]
    for name in gone:
        # A rename first: a reader sees a whole version or none.
        doomed = durable.temporary_name(root / name)
        os.rename(root / name, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    return gone
