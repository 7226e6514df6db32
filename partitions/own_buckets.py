"""A graph that something else has partitioned (Spark, Ray, a warehouse) -> a graph directory.

    FOLDER/entities/TYPE/part=P/*.parquet
        key        text or whole numbers; its row, over the sorted files, is its offset
    FOLDER/edges/split=S/lhs_part=I/rhs_part=J/*.parquet
        lhs, rhs   whole numbers: offsets in the partitions that the folders name
        rel        a relation's name, or its number in the order of [graph.relations]; may be
                   absent where the config has one relation
        weight     optional number
        timestamp  optional: seconds since 1970, or a timestamp; in every file or in none

Rows are taken in the order of the sorted files; other columns are left alone. A side whose type has
one partition is of part 0, or of the other side's part (schema.Bucket).

Nothing is hashed into place, so keys may follow any rule. Where they don't follow ours, the
manifest says so: such a graph trains and serves like any other but can't be appended to, for nobody
knows where a new key belongs. Memory: one partition's keys a thread, and 8 bytes an entity of a
type to find keys that come twice.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from partitions import dictionary, durable, edges, sources
from partitions.cells import as_floats, as_seconds, as_strings
from partitions.config import GraphConfig, RelationConfig
from partitions.dictionary import Workers
from partitions.durable import FileEntry
from partitions.edges import Edges
from partitions.errors import DataError, did_you_mean
from partitions.graph import MANIFEST, GraphManifest, slots_of
from partitions.hashing import hash_keys
from partitions.own_files import (
    OwnFiles,
    Place,
    batches,
    check,
    files,
    keys_of,
    numbers_in,
    opened,
    wrong,
)
from partitions.schema import SPLITS, Bucket, EntityType, RelationType, Slot
from partitions.sources import InputFile


@dataclass(frozen=True)
class TakenReport:
    num_edges: dict[str, int]
    num_entities: dict[str, int]
    untrained_entities: dict[str, int]


class _Ends(NamedTuple):
    """What matters of a relation to say which bucket its edges belong to."""

    lhs_binds: bool
    rhs_binds: bool


class _Written(NamedTuple):
    split: str
    bucket: Bucket
    file: FileEntry
    per_relation: NDArray[np.int64]


class OwnBuckets:
    def __init__(
        self, config: GraphConfig, workers: Workers, progress: Callable[[str, int], None]
    ) -> None:
        self.config, self.workers, self.progress = config, workers, progress
        self.types = {
            name: EntityType(name, entity.partitions) for name, entity in config.entities.items()
        }
        self.files = OwnFiles(config, self.types)
        self._check_columns()
        self.num_rows: dict[Slot, int] = {}
        self.trained: dict[Slot, NDArray[np.bool_]] = {}

    def write(self, folder: Path) -> TakenReport:
        """Fill `folder`, which its caller makes durable."""
        key_files, hashed = self._write_entities(folder)
        self.trained = {slot: np.zeros(rows, np.bool_) for slot, rows in self.num_rows.items()}
        written = self._write_buckets(folder)
        num_edges = dict.fromkeys(SPLITS, 0)
        relation_edges = {split: np.zeros(len(self.relations), np.int64) for split in SPLITS}
        for part in written:
            num_edges[part.split] += int(part.per_relation.sum())
            relation_edges[part.split] += part.per_relation
        manifest = GraphManifest(
            entity_types=list(self.types.values()),
            relations=[
                RelationType(name, (c := self._relation(name)).lhs, c.rhs)
                for name in self.relations
            ],
            num_rows=self.num_rows,
            key_files=key_files,
            attribute_files={},
            num_edges={(p.split, p.bucket): int(p.per_relation.sum()) for p in written},
            relation_edges={split: counts.tolist() for split, counts in relation_edges.items()},
            edge_files={(part.split, part.bucket): [part.file] for part in written},
            batches=[
                {
                    "sources": [self._source(file) for file in files(self.config)],
                    "skipped_rows": 0,
                    "dropped_edges": 0,
                    "edges": num_edges,
                    "buckets": sorted({part.bucket for part in written}),
                }
            ],
            partitioning="hash" if hashed else "own",
            config=self.config.content,
        )
        durable.write_json(folder / MANIFEST, manifest.as_json())
        return TakenReport(
            num_edges,
            self._per_type(lambda slot: self.num_rows[slot]),
            self._per_type(lambda slot: int((~self.trained[slot]).sum())),
        )

    def _per_type(self, count: Callable[[Slot], int]) -> dict[str, int]:
        return {name: sum(map(count, slots_of(t))) for name, t in self.types.items()}

    def _source(self, file: InputFile) -> dict[str, Any]:
        with sources.reading(file), opened(file) as table:
            rows = table.metadata.num_rows
        digest, size = file.sha256(), file.num_bytes
        return {"path": file.address, "bytes": size, "sha256": digest, "rows": rows}

    # --- entities ---

    def _write_entities(self, folder: Path) -> tuple[dict[Slot, list[FileEntry]], bool]:
        """The key files, and whether every key lies where our hash would put it."""
        key_files: dict[Slot, list[FileEntry]] = {}
        hashed = True
        for entity_type in self.types.values():
            (folder / "entities" / entity_type.name).mkdir(parents=True, exist_ok=True)
            slots = slots_of(entity_type)
            found = self.workers.map(partial(self._write_keys, folder), slots)
            for slot, (entry, hashes) in zip(slots, found, strict=True):
                key_files[slot] = [entry]
                self.num_rows[slot] = len(hashes)
                places = hashes % np.uint64(len(slots))
                hashed = hashed and bool((places == slot.partition).all())
            self._check_unique(entity_type, np.concatenate([hashes for _, hashes in found]))
        return key_files, hashed

    def _write_keys(self, folder: Path, slot: Slot) -> tuple[FileEntry, NDArray[np.uint64]]:
        parts = [pa.array([], pa.large_string())]
        own = self.files.of_entities[slot]
        for file in own:
            for _, keys in keys_of(file):
                parts.append(keys.cast(pa.large_string()))
                self.progress(file.base_name, len(keys))
        keys = pa.concat_arrays(parts)
        if not len(keys):
            raise DataError(
                f"{own[0]}: part {slot.partition} of {slot.entity_type} has no "
                f"keys, and each needs at least one. Lower graph.entities.{slot.entity_type}."
                "partitions."
            )
        path = folder / "entities" / slot.entity_type / f"keys-{slot.partition:03}.arrow"
        dictionary.write(path, keys)
        return durable.entry_of(folder, path), hash_keys(keys)

    def _check_unique(self, entity_type: EntityType, hashes: NDArray[np.uint64]) -> None:
        hashes.sort()
        twice = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
        if not len(twice):
            return
        seen: dict[str, str] = {}
        for slot in slots_of(entity_type):
            for file in self.files.of_entities[slot]:
                for start, keys in keys_of(file):
                    for row in np.flatnonzero(np.isin(hash_keys(keys), twice)).tolist():
                        key, where = keys[row].as_py(), f"{file}, row {start + row}"
                        if key in seen:
                            what = f"the key {key} is there twice: also in {seen[key]}"
                            raise wrong(file, start + row, what)
                        seen[key] = where

    # --- relations ---

    @cached_property
    def relations(self) -> list[str]:
        """As declared; then those found in the data, by name."""
        declared = [name for name in self.config.relations if name != "*"]
        if "*" not in self.config.relations:
            return declared
        found: set[str] = set()
        for file in self._all_edge_files():
            for _, batch in batches(file, ["rel"]):
                if not pa.types.is_integer(batch.column("rel").type):
                    names = as_strings(batch.column("rel"), file, "rel")
                    found.update(pc.unique(names).to_pylist())
        return declared + sorted(found - {*declared, None})

    def _relation(self, name: str) -> RelationConfig:
        return self.config.relations.get(name) or self.config.relations["*"]

    @cached_property
    def _ends(self) -> list[_Ends]:
        """Of each relation."""
        many = {name: t.num_partitions > 1 for name, t in self.types.items()}
        configs = map(self._relation, self.relations)
        return [_Ends(many[config.lhs], many[config.rhs]) for config in configs]

    # --- edges ---

    def _all_edge_files(self) -> list[InputFile]:
        return [file for found in self.files.of_edges.values() for file in found]

    def _check_columns(self) -> None:
        """Which columns there are, and that one file does not contradict another."""
        timed: dict[bool, InputFile] = {}
        weighted = False
        one = len(self.config.relations) == 1 and "*" not in self.config.relations
        for file in self._all_edge_files():
            with sources.reading(file), opened(file) as table:
                schema = table.schema_arrow
            for name in ("lhs", "rhs") if one else ("lhs", "rel", "rhs"):
                if name not in schema.names:
                    hint = did_you_mean(name, schema.names)
                    raise DataError(f"{file} has no column {name}. {hint}")
            timed["timestamp" in schema.names] = file
            weighted = weighted or "weight" in schema.names
        if len(timed) > 1:
            raise DataError(
                f"{timed[True]} has a column timestamp and {timed[False]} has none: all edge files "
                "need one or none may have one. Mend either."
            )
        self.weighted, self.timed = weighted, True in timed

    def _write_buckets(self, folder: Path) -> list[_Written]:
        for split in SPLITS:
            (folder / "edges" / split).mkdir(parents=True, exist_ok=True)
        wanted: dict[tuple[str, Bucket], list[Place]] = {}
        for place in sorted(self.files.of_edges):
            for ends in dict.fromkeys(self._ends):
                places = wanted.setdefault((place.split, _bucket(place, ends)), [])
                places += [place] if place not in places else []
        order = sorted(wanted, key=lambda at: (SPLITS.index(at[0]), at[1]))
        written = self.workers.map(
            lambda at: self._write_bucket(folder, at[0], at[1], wanted[at]), order
        )
        return [part for part in written if part is not None]

    def _write_bucket(
        self, folder: Path, split: str, bucket: Bucket, places: list[Place]
    ) -> _Written | None:
        mixed = len(set(self._ends)) > 1
        num_edges = sum(self._count(place, bucket, mixed) for place in places)
        if not num_edges:
            return None
        counts = np.zeros(len(self.relations), np.int64)

        def pieces() -> Iterator[Edges]:
            for place in places:
                for file in self.files.of_edges[place]:
                    for piece in self._edges_of(file, place):
                        kept = self._kept(piece, place, bucket) if mixed else piece
                        counts[:] += np.bincount(kept.rel, minlength=len(counts))
                        if split == "train":
                            self._mark_trained(kept, bucket)
                        self.progress(file.base_name, len(kept))
                        if len(kept):
                            yield kept

        path = folder / "edges" / split / f"{bucket.lhs:03}-{bucket.rhs:03}.arrow"
        edges.write_pieces(path, num_edges, pieces(), len(self.relations))
        return _Written(split, bucket, durable.entry_of(folder, path), counts)

    def _count(self, place: Place, bucket: Bucket, mixed: bool) -> int:
        """How many edges of a place belong to the bucket."""
        total = 0
        for file in self.files.of_edges[place]:
            if mixed:
                for start, batch in batches(file, ["rel"]):
                    here = self._belongs(place, bucket)[self._rel(batch, file, start)]
                    total += int(here.sum())
            else:
                with sources.reading(file), opened(file) as table:
                    total += table.metadata.num_rows
        return total

    def _belongs(self, place: Place, bucket: Bucket) -> NDArray[np.bool_]:
        """bool [relations]: whether a relation's edges in the place are the bucket's."""
        return np.array([_bucket(place, ends) == bucket for ends in self._ends])

    def _kept(self, piece: Edges, place: Place, bucket: Bucket) -> Edges:
        here = self._belongs(place, bucket)[piece.rel]
        return Edges(
            piece.lhs[here],
            piece.rel[here],
            piece.rhs[here],
            None if piece.weight is None else piece.weight[here],
            None if piece.time is None else piece.time[here],
        )

    def _mark_trained(self, piece: Edges, bucket: Bucket) -> None:
        # Threads may set the same flag at once: to the same value.
        for at, name in enumerate(self.relations):
            config = self._relation(name)
            chosen = piece.rel == at
            for offsets, entity_type, part in (
                (piece.lhs, config.lhs, bucket.lhs),
                (piece.rhs, config.rhs, bucket.rhs),
            ):
                self.trained[self._slot(entity_type, part)][offsets[chosen]] = True

    def _slot(self, entity_type: str, part: int) -> Slot:
        return Slot(entity_type, part if self.types[entity_type].num_partitions > 1 else 0)

    # --- one file of edges ---

    def _edges_of(self, file: InputFile, place: Place) -> Iterator[Edges]:
        """The file's edges, all of them checked."""
        with opened(file) as table:
            known = table.schema_arrow.names
        names = [n for n in ("lhs", "rhs", "rel", "weight", "timestamp") if n in known]
        for start, batch in batches(file, names):
            rel = self._rel(batch, file, start)
            self._check_place(rel, place, file, start)
            sides = {}
            for name, part in (("lhs", place.lhs_part), ("rhs", place.rhs_part)):
                ends = [getattr(self._relation(r), name) for r in self.relations]
                rows = np.array([self.num_rows[self._slot(end, part)] for end in ends], np.int64)
                sides[name] = self._offsets(batch.column(name), rows[rel], file, start, name)
            weight = time = None
            if self.weighted:
                weight = np.ones(len(batch), np.float32)
                if "weight" in names:
                    numbers = numbers_in(batch.column("weight"), file, "weight")
                    values = as_floats(numbers, file, "weight")
                    fine = pc.fill_null(pc.is_finite(values), False)
                    check(fine, batch.column("weight"), file, start, "weight", "a finite number")
                    weight = values.to_numpy()
            if self.timed:
                column = batch.column("timestamp")
                seconds = as_seconds(column, file, "timestamp")
                check(seconds.is_valid(), column, file, start, "timestamp", "a time")
                time = seconds.to_numpy()
            yield Edges(sides["lhs"], rel, sides["rhs"], weight, time)

    def _rel(self, batch: pa.RecordBatch, file: InputFile, start: int) -> NDArray[Any]:
        """The relation of each row, as its place in self.relations."""
        dtype = edges.relation_dtype(len(self.relations))
        if "rel" not in batch.schema.names:
            return np.zeros(len(batch), dtype)
        column = batch.column("rel")
        if pa.types.is_integer(column.type):
            declared = len([name for name in self.config.relations if name != "*"])
            wanted = f"a number from 0 to {declared - 1} (the order of [graph.relations])"
            check(column.is_valid(), column, file, start, "rel", wanted)
            numbers = column.to_numpy(zero_copy_only=False)
            check((numbers >= 0) & (numbers < declared), column, file, start, "rel", wanted)
            return numbers.astype(dtype)
        texts = as_strings(column, file, "rel")
        check(texts.is_valid(), column, file, start, "rel", "a relation")
        coded = texts.dictionary_encode()
        place_of = {name: at for at, name in enumerate(self.relations)}
        codes = [place_of.get(name, -1) for name in coded.dictionary.to_pylist()]
        rel = np.array([*codes, 0], np.int64)[coded.indices.to_numpy()]
        if (rel < 0).any():
            row = int(np.flatnonzero(rel < 0)[0])
            name = texts[row].as_py()
            hint = did_you_mean(name, self.relations)
            what = f"the relation {name} is not under [graph.relations]"
            raise DataError(f"{file}: row {start + row} (counted from 0): {what}. {hint}")
        return rel.astype(dtype)

    def _check_place(self, rel: NDArray[Any], place: Place, file: InputFile, start: int) -> None:
        """That a side which does not bind names no partition it does not have."""
        fits = np.array([_fits(place, ends) for ends in self._ends])[rel]
        if fits.all():
            return
        row = int(np.flatnonzero(~fits)[0])
        name = self.relations[rel[row]]
        side = "rhs" if self._ends[rel[row]].lhs_binds else "lhs"
        entity_type = getattr(self._relation(name), side)
        what = (
            f"an edge of {name} lies in {side}_part={getattr(place, side + '_part')}, but "
            f"{entity_type} has one partition, 0"
        )
        raise wrong(file, start + row, what)

    def _offsets(
        self,
        column: pa.Array,
        num_rows: NDArray[np.int64],
        file: InputFile,
        start: int,
        name: str,
    ) -> NDArray[np.uint32]:
        if not pa.types.is_integer(column.type):
            raise DataError(
                f"{file}: column {name} is of type {column.type}, expected whole numbers: the "
                "offsets of keys in their partition. Export it so."
            )
        check(column.is_valid(), column, file, start, name, "an offset")
        offsets = column.to_numpy(zero_copy_only=False)
        fine = (offsets >= 0) & (offsets < num_rows)
        if not fine.all():
            row = int(np.flatnonzero(~fine)[0])
            wanted = f"an offset from 0 to {num_rows[row] - 1} (its partition's keys)"
            check(fine, column, file, start, name, wanted)
        return offsets.astype(np.uint32)


def _bucket(place: Place, ends: _Ends) -> Bucket:
    if not ends.lhs_binds and not ends.rhs_binds:
        return Bucket(0, 0)
    lhs = place.lhs_part if ends.lhs_binds else place.rhs_part
    return Bucket(lhs, place.rhs_part if ends.rhs_binds else lhs)


def _fits(place: Place, ends: _Ends) -> bool:
    _, lhs, rhs = place
    if not ends.lhs_binds and not ends.rhs_binds:
        return lhs == rhs == 0
    return (ends.lhs_binds or lhs in (0, rhs)) and (ends.rhs_binds or rhs in (0, lhs))
