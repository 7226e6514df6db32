"""Pass 2 of an import: spooled edges and dictionaries -> the files and manifest of a graph.

Buckets are written one by one, several at a time; what a bucket becomes depends on its own rows
only, so neither order nor number of threads shows in the result. An append writes files with its
batch number in their names beside the old ones and then renames the manifest over the old one.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from partitions import bag_import, dictionary, durable, edges, provenance, readers, sources
from partitions.attributes import Attributes
from partitions.config import GraphConfig
from partitions.dictionary import Workers
from partitions.durable import FileEntry
from partitions.edges import Edges
from partitions.errors import DataError
from partitions.graph import MANIFEST, Graph, GraphManifest, slots_of
from partitions.holdout import Chooser, Way, chooser
from partitions.imported import Imported
from partitions.schema import SPLITS, Bucket, RelationType, Slot
from partitions.spool import READ_ROWS
from partitions.time_cuts import Cuts, TimeCuts

WRITING = "writing buckets"  # what progress hears in this pass instead of a file's name


@dataclass(frozen=True)
class WriteReport:
    num_edges: dict[str, int]
    skipped_rows: int
    dropped_edges: int
    untrained_entities: dict[str, int]
    unmatched_attributes: dict[str, int]
    cuts: Cuts | None  # in time, that this import chose


@dataclass(frozen=True)
class _Written:
    """One bucket of one split, as written."""

    split: str
    bucket: Bucket
    file: FileEntry
    per_relation: NDArray[np.int64]


class GraphWriter:
    def __init__(
        self,
        config: GraphConfig,
        imported: Imported,
        way: Way,
        workers: Workers,
        base: Graph | None,
        progress: Callable[[str, int], None],
    ) -> None:
        self.config, self.imported, self.workers, self.base = config, imported, workers, base
        self.way, self.progress = way, progress
        self.cuts: Cuts | None = None
        self.batch = len(base.manifest.batches) if base else 0
        self.suffix = f".{self.batch}" if self.batch else ""
        self.skipped, self.dropped = imported.skipped, 0
        self.relations = self._sorted_relations()
        self.sources = list(imported.sources)
        self.unmatched: dict[str, int] = {}
        # Of each relation, by its number in the spool:
        configs = [imported.relation_config(name) for name in imported.relations]
        self.types = {
            side: np.array([getattr(c, side) for c in configs]) for side in ("lhs", "rhs")
        }
        self.of_type = {
            side: {name: types == name for name in dict.fromkeys(types.tolist())}
            for side, types in self.types.items()
        }
        self.types_equal = self.types["lhs"] == self.types["rhs"]
        single = [imported.types[c.lhs].num_partitions == 1 for c in configs]
        self.single_type = np.array(single)
        self.trained = {
            name: [np.zeros(rows, np.bool_) for rows in keys.num_rows]
            for name, keys in imported.dictionaries.items()
        }

    def write(self, folder: Path) -> WriteReport:
        """Fill `folder`, which its caller makes durable."""
        manifest, report = self._write(folder)
        durable.write_json(folder / MANIFEST, manifest.as_json())
        return report

    def append(self, folder: Path, before_commit: Callable[[str], None]) -> WriteReport:
        """Add files to the graph in `folder`; it is the old graph until the manifest is renamed.

        before_commit: called with the sha256 that the new manifest will have."""
        assert self.base is not None
        named = self.base.manifest.paths()
        for path in [*folder.glob("entities/*/*"), *folder.glob("edges/*/*")]:
            if path.relative_to(folder).as_posix() not in named:  # what a killed append left
                path.unlink()
        for path in folder.glob(f"{MANIFEST}{durable.TEMPORARY}*"):
            path.unlink()
        manifest, report = self._write(folder)
        durable.sync_tree(folder)
        value = manifest.as_json()
        before_commit(hashlib.sha256(durable.json_bytes(value)).hexdigest())
        durable.write_json(folder / MANIFEST, value)
        return report

    def _write(self, folder: Path) -> tuple[GraphManifest, WriteReport]:
        self._check_sizes()
        key_files, attribute_files = self._write_entities(folder)
        bag_files = bag_import.write(folder, self.imported.bags, self.suffix)
        written = self._write_buckets(folder)
        bag_import.mark_trained(self.imported.bags, self.trained)
        num_edges = dict.fromkeys(SPLITS, 0)
        relation_edges = {split: np.zeros(len(self.relations), np.int64) for split in SPLITS}
        for part in written:
            num_edges[part.split] += int(part.per_relation.sum())
            relation_edges[part.split] += part.per_relation
        manifest = GraphManifest(
            entity_types=list(self.imported.types.values()),
            relations=[
                RelationType(name, (c := self.imported.relation_config(name)).lhs, c.rhs)
                for name in self.relations
            ],
            num_rows={
                slot: self.imported.dictionaries[slot.entity_type].num_rows[slot.partition]
                for slot in key_files
            },
            key_files=key_files,
            attribute_files=attribute_files,
            num_edges={(p.split, p.bucket): int(p.per_relation.sum()) for p in written},
            relation_edges={split: counts.tolist() for split, counts in relation_edges.items()},
            edge_files={(part.split, part.bucket): [part.file] for part in written},
            batches=[
                {
                    "sources": self.sources,
                    "skipped_rows": self.skipped.count,
                    "dropped_edges": self.dropped,
                    "edges": num_edges,
                    "buckets": sorted({part.bucket for part in written}),
                }
                | ({} if self.cuts is None else {"cuts": asdict(self.cuts)})
            ],
            config=self.config.content,
            bag_files=bag_files,
        )
        if self.base is not None:
            manifest = _joined(self.base, manifest)
        untrained = {
            name: sum(
                int((~rows[start:]).sum())
                for rows, start in zip(parts, self._known(name), strict=True)
            )
            for name, parts in self.trained.items()
        }
        return manifest, WriteReport(
            num_edges, self.skipped.count, self.dropped, untrained, self.unmatched, self.cuts
        )

    def _sorted_relations(self) -> list[str]:
        """Those of the base first; then as declared; then those found in the data, by name."""
        first = [relation.name for relation in self.base.relations] if self.base else []
        known = set(first)
        first += [n for n in self.config.relations if n != "*" and n not in known]
        return first + sorted(set(self.imported.relations) - set(first))

    def _check_sizes(self) -> None:
        for name, keys in self.imported.dictionaries.items():
            if not len(keys):
                raise DataError(
                    f"The inputs hold no edge with an entity of type {name}. Mend graph.inputs, or "
                    f"remove [graph.entities.{name}] and the relations that name it."
                )
            if len(keys) < keys.num_partitions:
                raise DataError(
                    f"[graph.entities.{name}] asks for {keys.num_partitions} partitions of "
                    f"{len(keys)} entities: each needs at least one. Lower graph.entities."
                    f"{name}.partitions (1 suits everything that fits in memory)."
                )

    # --- edges ---

    def _write_buckets(self, folder: Path) -> list[_Written]:
        new_id = np.empty(max(len(self.imported.relations), 1), np.uint32)
        place_of = {name: at for at, name in enumerate(self.relations)}
        for at, name in enumerate(self.imported.relations):
            new_id[at] = place_of[name]
        for split in SPLITS:
            (folder / "edges" / split).mkdir(parents=True, exist_ok=True)
        choice = chooser(self.config, self.way, self.imported)
        if isinstance(choice, TimeCuts):
            self.cuts = choice.cuts

        def write(bucket: Bucket) -> tuple[list[_Written], int]:
            found, num_kept = [], 0
            for split in SPLITS:
                if (
                    written := self._write_bucket(folder, split, bucket, choice, new_id)
                ) is not None:
                    found.append(written)
                    num_kept += int(written.per_relation.sum())
            spool = self.imported.spool
            num_rows = sum(spool.num_rows_of(split, bucket) for split in SPLITS)
            self.progress(WRITING, num_rows)
            return found, num_rows - num_kept

        results = self.workers.map(write, self.imported.spool.buckets())
        self.dropped = sum(dropped for _, dropped in results)
        written = [part for parts, _ in results for part in parts]
        return sorted(written, key=lambda part: (SPLITS.index(part.split), part.bucket))

    def _kept(self, split: str, bucket: Bucket, choice: Chooser | None) -> Iterator[NDArray[Any]]:
        """The rows of a bucket that stay, in their order and in pieces; in one piece where
        duplicates are looked for."""
        pieces = self._of_split(split, bucket, choice)
        if self.config.duplicates != "keep":
            pieces = iter([np.concatenate([np.empty(0, self.imported.spool.dtype), *pieces])])
        return map(partial(self._policies, bucket=bucket), pieces)

    def _of_split(
        self, split: str, bucket: Bucket, choice: Chooser | None
    ) -> Iterator[NDArray[Any]]:
        at, spool = SPLITS.index(split), self.imported.spool
        if choice is not None:
            for rows in spool.read("train", bucket, READ_ROWS):
                yield rows[choice.split_of(rows, bucket) == at]
        if choice is None or at:
            yield from spool.read(split, bucket, READ_ROWS)

    def _policies(self, rows: NDArray[Any], bucket: Bucket) -> NDArray[Any]:
        """The rows that stay, in their order."""
        if self.config.self_loops == "drop" and len(rows):
            same_type = self.types_equal[rows["rel"]]
            single = self.single_type[rows["rel"]]
            same_part = single | (bucket.lhs == bucket.rhs)
            rows = rows[~(same_type & same_part & (rows["lhs"] == rows["rhs"]))]
        if self.config.duplicates == "keep" or not len(rows):
            return rows
        order = np.lexsort((np.arange(len(rows)), rows["rhs"], rows["rel"], rows["lhs"]))
        ordered = rows[order]
        new = np.ones(len(rows), np.bool_)
        for name in ("lhs", "rel", "rhs"):
            differs = ordered[name][1:] != ordered[name][:-1]
            new[1:] = differs if name == "lhs" else new[1:] | differs
        starts = np.flatnonzero(new)
        kept = ordered[starts]
        if self.config.duplicates == "sum" and "weight" in self.imported.spool.optional:
            kept["weight"] = self._summed(ordered, starts, bucket)
        return kept[np.argsort(order[starts], kind="stable")]

    def _summed(self, ordered: NDArray[Any], starts: NDArray[np.int64], bucket: Bucket) -> Any:
        """float32: the weights of equal edges, which begin at `starts`, as one."""
        with np.errstate(over="ignore"):
            total = np.add.reduceat(ordered["weight"].astype(np.float64), starts).astype("<f4")
        if np.isfinite(total).all():
            return total
        row = ordered[starts[np.flatnonzero(~np.isfinite(total))[0]]]
        names = [self._key(side, row, bucket) for side in ("lhs", "rhs")]
        raise DataError(
            f"The weights of the edge {names[0]} {self.imported.relations[row['rel']]} {names[1]} "
            "add up to more than a float32 holds (3.4e38). Scale the weights down, or set "
            'graph.duplicates to "keep" or "drop".'
        )

    def _key(self, side: str, row: Any, bucket: Bucket) -> str:
        keys = self.imported.dictionaries[self.types[side][row["rel"]]]
        part = getattr(bucket, side) if keys.num_partitions > 1 else 0
        return str(keys.keys(part, int(row[side]))[0].as_py())

    def _write_bucket(
        self,
        folder: Path,
        split: str,
        bucket: Bucket,
        choice: Chooser | None,
        new_id: NDArray[np.uint32],
    ) -> _Written | None:
        """None where no edge stays. Memory: READ_ROWS edges, or all where duplicates matter."""
        small = sum(self.imported.spool.num_rows_of(s, bucket) for s in SPLITS) <= READ_ROWS
        if small or self.config.duplicates != "keep":
            held = [rows for rows in self._kept(split, bucket, choice) if len(rows)]
            held = [np.concatenate(held)] if len(held) > 1 else held
            pieces, num_edges = iter(held), sum(map(len, held))
        else:
            num_edges = sum(len(rows) for rows in self._kept(split, bucket, choice))
            pieces = self._kept(split, bucket, choice)
        if not num_edges:
            return None
        counts = np.zeros(len(self.relations), np.int64)
        names = self.imported.spool.optional

        def as_edges(rows: NDArray[Any]) -> Edges:
            rel = new_id[rows["rel"]]
            counts[:] += np.bincount(rel, minlength=len(counts))
            if split == "train":
                self._mark_trained(rows, bucket)
            return Edges(
                np.ascontiguousarray(rows["lhs"]),
                rel,
                np.ascontiguousarray(rows["rhs"]),
                np.ascontiguousarray(rows["weight"]) if "weight" in names else None,
                np.ascontiguousarray(rows["time"]) if "time" in names else None,
            )

        path = folder / "edges" / split / f"{bucket.lhs:03}-{bucket.rhs:03}{self.suffix}.arrow"
        edges.write_pieces(path, num_edges, map(as_edges, pieces), len(self.relations))
        return _Written(split, bucket, durable.entry_of(folder, path), counts)

    def _mark_trained(self, rows: NDArray[Any], bucket: Bucket) -> None:
        # Threads may set the same flag at once: to the same value.
        for side, part in (("lhs", bucket.lhs), ("rhs", bucket.rhs)):
            for entity_type, of_type in self.of_type[side].items():
                chosen = rows[side] if of_type.all() else rows[side][of_type[rows["rel"]]]
                parts = self.trained[entity_type]
                parts[part if len(parts) > 1 else 0][chosen] = True

    # --- entities ---

    def _write_entities(
        self, folder: Path
    ) -> tuple[dict[Slot, list[FileEntry]], dict[Slot, list[FileEntry]]]:
        """Of this batch: the keys that are new, and their attributes."""
        key_files: dict[Slot, list[FileEntry]] = {}
        attribute_files: dict[Slot, list[FileEntry]] = {}
        for entity_type in self.imported.types.values():
            name = entity_type.name
            keys = self.imported.dictionaries[name]
            (folder / "entities" / name).mkdir(parents=True, exist_ok=True)
            known = self._known(name)
            attributes = self._attributes(name, known)
            for slot, start in zip(slots_of(entity_type), known, strict=True):
                stem = folder / "entities" / name
                key_files[slot] = []
                if attributes is not None:
                    attribute_files[slot] = []
                if start and start == keys.num_rows[slot.partition]:
                    continue  # nothing new here
                path = stem / f"keys-{slot.partition:03}{self.suffix}.arrow"
                dictionary.write(path, keys.keys(slot.partition, start))
                key_files[slot] = [durable.entry_of(folder, path)]
                if attributes is not None:
                    path = stem / f"attributes-{slot.partition:03}{self.suffix}.arrow"
                    table = attributes.take(slot.partition)
                    with path.open("wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                        writer.write_table(table)
                    attribute_files[slot] = [durable.entry_of(folder, path)]
        return key_files, attribute_files

    def _known(self, entity_type: str) -> list[int]:
        """How many rows of each partition the graph has that is appended to."""
        slots = slots_of(self.imported.types[entity_type])
        known = self.base is not None and entity_type in self.base.entity_types
        return [self.base.num_rows(slot) if self.base and known else 0 for slot in slots]

    def _attributes(self, entity_type: str, known: list[int]) -> Attributes | None:
        """What the type's files say of its entities; keys that no edge has are counted."""
        config = self.config.entities[entity_type].attributes
        if config is None:
            return None
        names = [name for name in config.columns if name != "key"]
        found = Attributes(names, self.imported.dictionaries[entity_type], known)
        for file in sources.expand(self.config.data, config):
            stamp, rows = provenance.stamp_of(file), 0
            pieces = readers.read_pieces(
                file,
                config,
                config.columns,
                skip_bad=self.config.skip_bad,
                optional=tuple(names),
            )
            for _, batch, bad in pieces:
                self.skipped.add(file.address, bad)
                if len(batch):
                    found.add(batch)
                    rows += len(batch)
            self.sources.append(provenance.record(file, stamp, rows))
        self.unmatched[entity_type] = found.unmatched
        return found


def _joined(base: Graph, new: GraphManifest) -> GraphManifest:
    """The manifest of a graph and a batch appended to it."""
    old = base.manifest
    key_files = {
        slot: [*old.key_files.get(slot, []), *files] for slot, files in new.key_files.items()
    }
    attribute_files = {
        slot: [*old.attribute_files.get(slot, []), *files]
        for slot, files in new.attribute_files.items()
    }
    bag_files = {
        slot: [*old.bag_files.get(slot, []), *files] for slot, files in new.bag_files.items()
    }
    edge_files = {at: list(files) for at, files in old.edge_files.items()}
    num_edges = dict(old.num_edges)
    for at, files in new.edge_files.items():
        edge_files.setdefault(at, []).extend(files)
        num_edges[at] = num_edges.get(at, 0) + new.num_edges[at]
    relation_edges = {}
    for split, counts in new.relation_edges.items():
        before = [*old.relation_edges[split], *[0] * (len(counts) - len(old.relations))]
        relation_edges[split] = [a + b for a, b in zip(before, counts, strict=True)]
    return replace(
        new,
        key_files=key_files,
        attribute_files=attribute_files,
        bag_files=bag_files,
        edge_files=edge_files,
        num_edges=num_edges,
        relation_edges=relation_edges,
        batches=[*old.batches, *new.batches],
        ancestors=[*old.ancestors, base.digest],
    )
