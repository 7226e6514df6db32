"""Fitted features on disk: two files of one folder.

    features.json    {"format_version": 1, "digest": sha256 of the rest of this object, as JSON
                     with sorted keys and no spaces; "hash": {"name", "seed"};
                     "features": {NAME: {"settings", "fitted"}}, "crosses": {NAME: settings},
                     "order": names of features and of crosses, "layout": slots and dense columns,
                     "arrow": path, bytes and sha256 of the other}
    features.arrow   Arrow IPC, one array a record batch of one row: `feature`, `part`
                     (vocabulary | keys | vectors | quantiles | edges), and the array as a list in
                     the column of its type, the others null: `texts`, `integers`, `doubles`,
                     `floats`

The digest of features.json covers the other's sha256, so it is the digest of both. Each file takes
its place whole; who is killed between the two, in a folder that had features before, leaves a pair
that is refused. Vectors and vocabularies are memory-mapped when read: servers on one machine share
them.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from partitions import durable
from partitions.durable import FileEntry
from partitions.errors import DataError
from partitions.features.config import CrossSpec, FeaturesConfig, FeatureSpec
from partitions.features.encoders import Encoder, restored
from partitions.features.fingerprints import NAME as HASH
from partitions.features.fingerprints import Fingerprints
from partitions.features.layout import Layout

FORMAT_VERSION = 1
MANIFEST, ARRAYS = "features.json", "features.arrow"
_REMEDY = "Fit the features again, or restore the file."
_LISTS = {
    "texts": pa.large_list(pa.large_string()),
    "integers": pa.large_list(pa.int64()),
    "doubles": pa.large_list(pa.float64()),
    "floats": pa.large_list(pa.float32()),
}
_SCHEMA = pa.schema({"feature": pa.string(), "part": pa.string(), **_LISTS})


class Found(NamedTuple):
    config: FeaturesConfig
    encoders: list[Encoder]
    fingerprints: Fingerprints
    digest: str


def write(
    folder: Path,
    config: FeaturesConfig,
    encoders: Sequence[Encoder],
    layout: Layout,
    seed: int,
) -> str:
    """The arrays first, then the manifest that names them; returns the digest."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ARRAYS
    with durable.replacing(path) as file:
        _write_arrays(encoders, file)
    manifest = _manifest(config, encoders, layout, seed, durable.entry_of(folder, path))
    durable.write_json(folder / MANIFEST, manifest)
    return manifest["digest"]


def digest_of(
    config: FeaturesConfig, encoders: Sequence[Encoder], layout: Layout, seed: int
) -> str:
    """What `write` would return."""
    sink = _Hashed()
    _write_arrays(encoders, sink)
    entry = FileEntry(ARRAYS, sink.tell(), sink.sha256.hexdigest())
    return _manifest(config, encoders, layout, seed, entry)["digest"]


class _Hashed(io.RawIOBase):
    """A file that is only hashed."""

    def __init__(self) -> None:
        self.sha256, self._bytes = hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._bytes

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self._bytes += len(data)
        return len(data)


def _write_arrays(encoders: Sequence[Encoder], file: Any) -> None:
    with pa.ipc.new_file(file, _SCHEMA) as writer:
        for encoder in encoders:
            for part, values in encoder.arrays().items():
                writer.write_batch(_row(encoder.name, part, values))


def _row(feature: str, part: str, values: pa.Array) -> pa.RecordBatch:
    kind = pa.large_list(values.type)
    ends = pa.array([0, len(values)], pa.int64())
    columns = [pa.array([feature]), pa.array([part])]
    for wanted in _LISTS.values():
        whole = pa.LargeListArray.from_arrays(ends, values) if wanted == kind else None
        columns.append(pa.nulls(1, wanted) if whole is None else whole)
    return pa.record_batch(columns, schema=_SCHEMA)


def _manifest(
    config: FeaturesConfig,
    encoders: Sequence[Encoder],
    layout: Layout,
    seed: int,
    arrays: FileEntry,
) -> dict[str, Any]:
    content = {
        "format_version": FORMAT_VERSION,
        "hash": {"name": HASH, "seed": seed},
        "order": {"features": list(config.features), "crosses": list(config.crosses)},
        "features": {
            encoder.name: {
                "settings": encoder.spec.model_dump(mode="json"),
                "fitted": encoder.about(),
            }
            for encoder in encoders
        },
        "crosses": {name: cross.model_dump(mode="json") for name, cross in config.crosses.items()},
        "layout": {
            "slots": [{"name": s.name, "size": s.size, "bag": s.bag} for s in layout.slots],
            "dense": list(layout.dense),
        },
        "arrow": arrays.as_json(),
    }
    return {**content, "digest": _digest(content)}


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read(folder: Path) -> Found:
    path = folder / MANIFEST
    manifest = durable.read_json(path, _REMEDY)
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path} is not of the features' format {FORMAT_VERSION}, found {version}. {_REMEDY}"
        )
    digest = manifest.pop("digest", None)
    if digest != _digest(manifest):
        raise DataError(f"{path} was altered: its digest is not that of its content. {_REMEDY}")
    arrays = _read_arrays(durable.verify(folder, FileEntry(**manifest["arrow"]), _REMEDY))
    prints = Fingerprints(manifest["hash"]["seed"])
    features, crosses = manifest["features"], manifest["crosses"]
    specs = {n: FeatureSpec(**features[n]["settings"]) for n in manifest["order"]["features"]}
    config = FeaturesConfig(
        features=specs,
        crosses={name: CrossSpec(**crosses[name]) for name in manifest["order"]["crosses"]},
    )
    encoders = [
        restored(name, spec, features[name]["fitted"], arrays.get(name, {}), prints)
        for name, spec in specs.items()
    ]
    return Found(config, encoders, prints, digest)


def _read_arrays(path: Path) -> dict[str, dict[str, pa.Array]]:
    found: dict[str, dict[str, pa.Array]] = {}
    with pa.memory_map(str(path)) as file:
        reader = pa.ipc.open_file(file)
        for at in range(reader.num_record_batches):
            batch = reader.get_batch(at)
            feature, part = batch.column("feature")[0].as_py(), batch.column("part")[0].as_py()
            lists = next(batch.column(name) for name in _LISTS if not batch.column(name).null_count)
            found.setdefault(feature, {})[part] = lists.flatten()
    return found
