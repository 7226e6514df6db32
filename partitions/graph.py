"""The graph directory, and its manifest graph.json (this module owns its format).

graph.json                        format version, types, relations, counts, digests, sources;
                                  and a digest of its own content (older ones have none)
entities/TYPE/keys-PPP.arrow      dictionary of one partition (dictionary.py)
entities/TYPE/attributes-PPP.arrow  one row per key, columns of text to show; where given
entities/TYPE/bags-000.arrow      features of each entity (bags.py); of types that have features
edges/SPLIT/LLL-RRR.arrow         one bucket (edges.py); only buckets that have edges
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from partitions import bags as bag_files
from partitions import dictionary, durable
from partitions import edges as edge_files
from partitions.bags import Bags
from partitions.durable import FileEntry
from partitions.edges import Edges
from partitions.errors import DataError, did_you_mean
from partitions.schema import SPLITS, Bucket, EntityType, RelationType, Slot

FORMAT_VERSION = 1
MANIFEST = "graph.json"
_NAMES = {
    *("format_version", "entity_types", "relations", "buckets", "batches", "ancestors", "config"),
    "partitioning",
}
_REMEDY = "Import the graph again."


@dataclass(frozen=True)
class GraphManifest:
    entity_types: Sequence[EntityType]
    relations: Sequence[RelationType]
    num_rows: Mapping[Slot, int]
    # One file per import batch that had something for the place, in the order of batches.
    key_files: Mapping[Slot, Sequence[FileEntry]]
    attribute_files: Mapping[Slot, Sequence[FileEntry]]
    num_edges: Mapping[tuple[str, Bucket], int]
    relation_edges: Mapping[str, Sequence[int]]  # split -> edges of each relation
    edge_files: Mapping[tuple[str, Bucket], Sequence[FileEntry]]
    batches: Sequence[Mapping[str, Any]] = field(default_factory=list)  # sources and counts of each
    ancestors: Sequence[str] = field(default_factory=list)  # digests of the graphs it grew from
    config: Mapping[str, Any] = field(default_factory=dict)  # the [graph] table it was made from
    bag_files: Mapping[Slot, Sequence[FileEntry]] = field(default_factory=dict)
    partitioning: str = "hash"  # or "own": by a rule of those who partitioned it (own_buckets.py)

    @property
    def sources(self) -> list[Mapping[str, Any]]:
        return [source for batch in self.batches for source in batch["sources"]]

    @property
    def skipped_rows(self) -> int:
        return sum(batch["skipped_rows"] for batch in self.batches)

    def paths(self) -> set[str]:
        """Every file that belongs to the graph."""
        groups = [*self.key_files.values(), *self.attribute_files.values()]
        groups += self.bag_files.values()
        return {file.path for files in [*groups, *self.edge_files.values()] for file in files}

    def as_json(self) -> dict[str, Any]:
        value = self._as_json()
        return {**value, "digest": _digest_of(value)}

    def _as_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "entity_types": [
                {
                    "name": entity_type.name,
                    "partitions": [
                        {
                            "rows": self.num_rows[slot],
                            "keys": _as_json(self.key_files[slot]),
                            "attributes": _as_json(self.attribute_files.get(slot, [])),
                        }
                        | self._bags_as_json(slot)
                        for slot in slots_of(entity_type)
                    ],
                }
                | ({"features": entity_type.features} if entity_type.features else {})
                for entity_type in self.entity_types
            ],
            "relations": [
                {
                    "name": relation.name,
                    "lhs": relation.lhs,
                    "rhs": relation.rhs,
                    "edges": {split: counts[at] for split, counts in self.relation_edges.items()},
                }
                for at, relation in enumerate(self.relations)
            ],
            "buckets": [
                {
                    "split": split,
                    "lhs": bucket.lhs,
                    "rhs": bucket.rhs,
                    "edges": self.num_edges[split, bucket],
                    "files": _as_json(files),
                }
                for (split, bucket), files in self.edge_files.items()
            ],
            "batches": list(self.batches),
            "ancestors": list(self.ancestors),
            "config": dict(self.config),
            "partitioning": self.partitioning,
        }

    def _bags_as_json(self, slot: Slot) -> dict[str, Any]:
        return {"bags": _as_json(self.bag_files[slot])} if slot in self.bag_files else {}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "GraphManifest":
        """Raises KeyError, TypeError, ValueError or AttributeError for what is no manifest."""
        rest = {name: part for name, part in value.items() if name != "digest"}
        if odd := set(rest) - _NAMES:
            raise ValueError(f"{min(odd)} is not known here")
        if "digest" in value and value["digest"] != _digest_of(rest):  # older ones have none
            raise ValueError("its digest is not that of its content")
        types = [
            EntityType(t["name"], len(t["partitions"]), t.get("features"))
            for t in value["entity_types"]
        ]
        slots = {
            Slot(t["name"], at): part
            for t in value["entity_types"]
            for at, part in enumerate(t["partitions"])
        }
        buckets = {(b["split"], Bucket(b["lhs"], b["rhs"])): b for b in value["buckets"]}
        named = {end for r in value["relations"] for end in (r["lhs"], r["rhs"])}
        unknown = named - {t.name for t in types} or {split for split, _ in buckets} - {*SPLITS}
        if unknown:
            raise ValueError(f"{min(unknown)} is not known here")
        return GraphManifest(
            entity_types=types,
            relations=[RelationType(r["name"], r["lhs"], r["rhs"]) for r in value["relations"]],
            num_rows={slot: part["rows"] for slot, part in slots.items()},
            key_files={slot: _from_json(part["keys"]) for slot, part in slots.items()},
            attribute_files={
                slot: _from_json(part["attributes"])
                for slot, part in slots.items()
                if part["attributes"]
            },
            num_edges={at: bucket["edges"] for at, bucket in buckets.items()},
            relation_edges={
                split: [r["edges"].get(split, 0) for r in value["relations"]] for split in SPLITS
            },
            edge_files={at: _from_json(bucket["files"]) for at, bucket in buckets.items()},
            batches=value["batches"],
            ancestors=value["ancestors"],
            config=value["config"],
            bag_files={
                slot: _from_json(part["bags"]) for slot, part in slots.items() if "bags" in part
            },
            partitioning=value["partitioning"],
        )


def _digest_of(value: Mapping[str, Any]) -> str:
    """Of the content, however it is laid out: sha256 (hex) of its shortest JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _as_json(files: Sequence[FileEntry]) -> list[dict[str, Any]]:
    return [file.as_json() for file in files]


def _from_json(files: Sequence[Mapping[str, Any]]) -> list[FileEntry]:
    return [FileEntry(**file) for file in files]


def slots_of(entity_type: EntityType) -> list[Slot]:
    return [Slot(entity_type.name, at) for at in range(entity_type.num_partitions)]


class Graph:
    """A graph directory opened for reading. Each file's digest is checked before its first use."""

    def __init__(self, path: Path) -> None:
        durable.recover_folder(path)
        self.path = path
        manifest_path = path / MANIFEST
        if not manifest_path.exists():
            raise DataError(f"{path} holds no graph: {MANIFEST} is missing. Run embedsvc import.")
        value = durable.read_json(manifest_path, _REMEDY)
        version = value.get("format_version") if isinstance(value, dict) else None
        if version != FORMAT_VERSION:
            raise DataError(
                f"{manifest_path} is of format {version}, this program reads {FORMAT_VERSION}. "
                f"{_REMEDY}"
            )
        try:
            self.manifest = GraphManifest.from_json(value)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{manifest_path} was altered: {error!r}. {_REMEDY}") from None
        self.digest = durable.sha256_of(manifest_path)
        self.relations = self.manifest.relations
        self.entity_types = {t.name: t for t in self.manifest.entity_types}
        self._verified: set[str] = set()

    def grew_from(self, digest: str) -> bool:
        """Whether `digest` is this graph's, or that of one it was appended to."""
        return digest == self.digest or digest in self.manifest.ancestors

    def changed_buckets(self, split: str, since_batch: int) -> list[Bucket]:
        """The buckets of a split that import batches from `since_batch` on added edges to."""
        batches = self.manifest.batches[since_batch:]
        changed = {Bucket(*bucket) for batch in batches for bucket in batch["buckets"]}
        return [bucket for bucket in self.buckets(split) if bucket in changed]

    @property
    def has_times(self) -> bool | None:
        """Whether edges carry a time; None where there are none."""
        for split, bucket in self.manifest.edge_files:
            return self.edges(split, bucket).time is not None
        return None

    def relation_id(self, name: str) -> int:
        names = [relation.name for relation in self.relations]
        if name not in names:
            hint = did_you_mean(name, names)
            raise DataError(f"{self.path} has no relation {name}. {hint}")
        return names.index(name)

    def buckets(self, split: str) -> list[Bucket]:
        return sorted(bucket for at, bucket in self.manifest.edge_files if at == split)

    def num_edges(self, split: str, bucket: Bucket | None = None) -> int:
        counts = self.manifest.num_edges
        if bucket is not None:
            return counts.get((split, bucket), 0)
        return sum(count for (at, _), count in counts.items() if at == split)

    def edges(self, split: str, bucket: Bucket) -> Edges:
        files = self.manifest.edge_files[split, bucket]
        return edge_files.joined([edge_files.read(self._whole(file)) for file in files])

    def slots(self) -> list[Slot]:
        return [
            slot for entity_type in self.manifest.entity_types for slot in slots_of(entity_type)
        ]

    def num_rows(self, slot: Slot) -> int:
        return self.manifest.num_rows[slot]

    def num_entities(self, entity_type: str) -> int:
        return int(self.starts[entity_type][-1])

    @cached_property
    def starts(self) -> dict[str, NDArray[np.int64]]:
        """Entity type -> int64 [partitions + 1]: id = starts[partition] + offset."""
        return {
            t.name: np.cumsum([0] + [self.num_rows(slot) for slot in slots_of(t)])
            for t in self.manifest.entity_types
        }

    def slot_of(self, entity_type: str, partition: int) -> Slot:
        """The slot that a bucket's index means for this type: 0 where it has one partition."""
        single = self.entity_types[entity_type].num_partitions == 1
        return Slot(entity_type, 0 if single else partition)

    def slots_of_bucket(self, bucket: Bucket) -> list[Slot]:
        """The tables that training the bucket may touch, each once."""
        slots = [self.slot_of(r.lhs, bucket.lhs) for r in self.relations]
        slots += [self.slot_of(r.rhs, bucket.rhs) for r in self.relations]
        return list(dict.fromkeys(map(self.table_of, slots)))

    def table_of(self, slot: Slot) -> Slot:
        """The table that holds a slot's vectors, or those that they are the means of."""
        features = self.entity_types[slot.entity_type].features
        return slot if features is None else Slot(features, 0)

    def tables(self) -> list[Slot]:
        """The slots that have vectors of their own."""
        return [slot for slot in self.slots() if self.table_of(slot) == slot]

    def bags(self, entity_type: str) -> Bags | None:
        """The features of each entity as offsets in its table_of; None where it has no features."""
        if self.entity_types[entity_type].features is None:
            return None
        slot = Slot(entity_type, 0)
        files = self.manifest.bag_files.get(slot, [])
        bags = bag_files.joined([bag_files.read(self._whole(file)) for file in files])
        if len(bags) != self.num_rows(slot):
            raise DataError(
                f"{self.path / MANIFEST} was altered: it has {self.num_rows(slot)} {entity_type} "
                f"entities and features of {len(bags)}. {_REMEDY}"
            )
        return bags

    def keys(self, slot: Slot) -> pa.Array:
        parts = [dictionary.read(self._whole(file)) for file in self.manifest.key_files[slot]]
        return parts[0] if len(parts) == 1 else pa.concat_arrays(parts)

    def all_keys(self, entity_type: str) -> pa.Array:
        """large_string [entities], in the order of ids."""
        slots = slots_of(self.entity_types[entity_type])
        return pa.concat_arrays([self.keys(slot) for slot in slots])

    def attributes(self, entity_type: str) -> pa.Table | None:
        """Text columns in the order of ids, or None where the type has none."""
        slots = slots_of(self.entity_types[entity_type])
        if any(slot not in self.manifest.attribute_files for slot in slots):
            return None
        tables = []
        for slot in slots:
            for entry in self.manifest.attribute_files[slot]:
                with pa.memory_map(str(self._whole(entry))) as file:
                    tables.append(pa.ipc.open_file(file).read_all())
        return pa.concat_tables(tables)

    def _whole(self, entry: FileEntry) -> Path:
        fresh = entry.path not in self._verified
        path = durable.verify(self.path, entry, _REMEDY, digest=fresh)
        self._verified.add(entry.path)
        return path
