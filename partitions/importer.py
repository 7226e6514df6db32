"""Raw files -> a graph directory, in one pass over the input and one over the spooled edges.

Pass 1 reads batches, gives each new key the next offset of its partition, and appends each edge to
a raw spool file of its (split, bucket). Pass 2 turns one spool at a time into a bucket file, now
that the number of relations and so the width of `rel` is known. Memory: the dictionaries, one batch
and one bucket. The whole graph is built beside its final place and renamed there at the end.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from partitions import dictionary, durable, edges, readers
from partitions.config import AttributesConfig, GraphConfig, InputConfig, RelationConfig
from partitions.dictionary import Dictionary
from partitions.edges import Edges
from partitions.errors import DataError, did_you_mean
from partitions.graph import MANIFEST, Graph, GraphManifest, slots_of
from partitions.hashing import hash_edges, hash_keys
from partitions.schema import SPLITS, Bucket, EntityType, RelationType, Slot

Progress = Callable[[str, int], None]  # (file, rows read from it since the last call)

_SPOOL_ROWS = 1 << 21  # rows held before they are appended to the spool files: 34 MB
_SPOOL = np.dtype([("lhs", "<u4"), ("rhs", "<u4"), ("rel", "<u4"), ("weight", "<f4")])


@dataclass(frozen=True)
class ImportReport:
    """What an import did, for people to read."""

    num_edges: dict[str, int]
    num_entities: dict[str, int]
    skipped_rows: int
    unmatched_attributes: dict[str, int] = field(default_factory=dict)


def import_graph(
    config: GraphConfig, path: Path, progress: Progress = lambda name, rows: None
) -> ImportReport:
    """Build the graph directory `path`, replacing one that is there only once all went well.

    Raises DataError for bad input; then `path` is as it was before.
    """
    with durable.replacing_folder(path) as folder:
        return _Importer(config, folder, progress).run()


def is_current(config: GraphConfig, path: Path) -> bool:
    """Whether `path` holds the graph that this config and these source files would give."""
    durable.recover_folder(path)
    if not (path / MANIFEST).exists():
        return False
    manifest = Graph(path).manifest
    if manifest.config != config.model_dump(mode="json"):
        return False
    try:  # a glob may match other files by now
        files = [str(file) for source in _sources(config) for file in source]
    except DataError:
        return False
    return files == [source["path"] for source in manifest.sources] and all(
        (file := Path(source["path"])).is_file()
        and file.stat().st_size == source["bytes"]
        and durable.sha256_of(file) == source["sha256"]
        for source in manifest.sources
    )


def _sources(config: GraphConfig) -> Iterator[list[Path]]:
    """The files of every input, then of every type's attributes: in the order they are read."""
    for source in config.inputs:
        yield readers.expand(config.data, source)
    for entity in config.entities.values():
        if entity.attributes is not None:
            yield readers.expand(config.data, entity.attributes)


class _Importer:
    def __init__(self, config: GraphConfig, folder: Path, progress: Progress) -> None:
        self.config, self.folder, self.progress = config, folder, progress
        self.types = {
            name: EntityType(name, entity.partitions) for name, entity in config.entities.items()
        }
        self.dictionaries = {t.name: Dictionary(t.num_partitions) for t in self.types.values()}
        self.relation_ids: dict[str, int] = {}  # in the order of first sight; sorted in pass 2
        for name in config.relations:
            if name != "*":
                self.relation_ids[name] = len(self.relation_ids)
        self.has_weights = any("weight" in s.resolved_columns for s in config.inputs)
        self.sources: list[dict[str, Any]] = []
        self.skipped = 0
        self.spool = _Spool(folder / "spool")

    def run(self) -> ImportReport:
        for source in self.config.inputs:
            for file in readers.expand(self.config.data, source):
                self._read_edges(file, source)
        self._check_sizes()
        self.spool.flush()
        manifest = self._write()
        durable.write_json(self.folder / MANIFEST, manifest.as_json())
        counts = {split: sum(manifest.relation_edges[split]) for split in SPLITS}
        return ImportReport(
            counts,
            {name: len(keys) for name, keys in self.dictionaries.items()},
            self.skipped,
            self.unmatched,
        )

    def _skip(self, count: int) -> None:
        self.skipped += count

    # --- pass 1 ---

    def _read_edges(self, file: Path, source: InputConfig) -> None:
        rows = 0
        batches = readers.read(
            file,
            source,
            source.resolved_columns,
            skip_bad=self.config.skip_bad,
            on_skipped=self._skip,
            floats=("weight",),
        )
        for batch in batches:
            rows += len(batch)
            self._add(batch, source)
            self.progress(file.name, len(batch))
        self._note_source(file, rows)

    def _note_source(self, file: Path, rows: int) -> None:
        self.sources.append(
            {
                "path": str(file),
                "bytes": file.stat().st_size,
                "sha256": durable.sha256_of(file),
                "rows": rows,
            }
        )

    def _add(self, batch: pa.RecordBatch, source: InputConfig) -> None:
        if source.relation is not None:
            self._add_relation(batch, source.relation, source)
            return
        for name in pc.unique(batch.column("rel")).to_pylist():
            chosen = batch.filter(pc.equal(batch.column("rel"), name))
            self._add_relation(chosen, name, source)

    def _add_relation(self, batch: pa.RecordBatch, name: str, source: InputConfig) -> None:
        relation = self._relation_config(name)
        rel = self.relation_ids.setdefault(name, len(self.relation_ids))
        lhs_part, lhs = self.dictionaries[relation.lhs].encode(batch.column("lhs"))
        rhs_part, rhs = self.dictionaries[relation.rhs].encode(batch.column("rhs"))
        if self.types[relation.lhs].num_partitions == 1:
            lhs_part = rhs_part
        elif self.types[relation.rhs].num_partitions == 1:
            rhs_part = lhs_part
        rows = np.empty(len(batch), _SPOOL)
        rows["lhs"], rows["rhs"], rows["rel"] = lhs, rhs, rel
        rows["weight"] = batch.column("weight").to_numpy() if "weight" in batch.schema.names else 1
        self.spool.add(rows, self._split(batch, name, source), lhs_part, rhs_part)

    def _relation_config(self, name: str) -> RelationConfig:
        found = self.config.relations.get(name) or self.config.relations.get("*")
        if found is None:
            hint = did_you_mean(name, list(self.config.relations))
            raise DataError(
                f"The data holds the relation {name}, which is not under [graph.relations]. {hint}"
            )
        return found

    def _split(self, batch: pa.RecordBatch, name: str, source: InputConfig) -> NDArray[np.int8]:
        """int8 [rows] places in SPLITS."""
        if source.split is not None:
            return np.full(len(batch), SPLITS.index(source.split), np.int8)
        holdout = self.config.holdout
        split = np.zeros(len(batch), np.int8)
        chosen = holdout.relations is None or name in holdout.relations
        if holdout.valid + holdout.test == 0 or not chosen:
            return split
        drawn = hash_edges(
            holdout.seed,
            hash_keys(batch.column("lhs")),
            np.broadcast_to(hash_keys(pa.array([name])), len(batch)),
            hash_keys(batch.column("rhs")),
        )
        share = (drawn >> np.uint64(11)).astype(np.float64) / (1 << 53)
        split[share < holdout.valid + holdout.test] = SPLITS.index("test")
        split[share < holdout.valid] = SPLITS.index("valid")
        return split

    def _check_sizes(self) -> None:
        for name, keys in self.dictionaries.items():
            parts = self.types[name].num_partitions
            if not len(keys):
                raise DataError(
                    f"The inputs hold no edge with an entity of type {name}. Mend graph.inputs, or "
                    f"remove [graph.entities.{name}] and the relations that name it."
                )
            if len(keys) < parts:
                raise DataError(
                    f"[graph.entities.{name}] asks for {parts} partitions of {len(keys)} entities: "
                    "each needs at least one. Lower graph.entities."
                    f"{name}.partitions (1 suits everything that fits in memory)."
                )

    # --- pass 2 ---

    def _write(self) -> GraphManifest:
        names = self._sorted_relations()
        new_id = np.empty(max(len(names), 1), np.uint32)
        for at, name in enumerate(names):
            new_id[self.relation_ids[name]] = at
        key_files, num_rows, attribute_files = self._write_entities()
        num_edges, edge_files = {}, {}
        per_relation = {split: np.zeros(len(names), np.int64) for split in SPLITS}
        for split, bucket in self.spool.files():
            rows = self.spool.read(split, bucket)
            rel = new_id[rows["rel"]]
            per_relation[split] += np.bincount(rel, minlength=len(names))
            weight = rows["weight"].copy() if self.has_weights else None
            path = self.folder / "edges" / split / f"{bucket.lhs:03}-{bucket.rhs:03}.arrow"
            path.parent.mkdir(parents=True, exist_ok=True)
            edges.write(
                path, Edges(rows["lhs"].copy(), rel, rows["rhs"].copy(), weight), len(names)
            )
            num_edges[split, bucket] = len(rows)
            edge_files[split, bucket] = durable.entry_of(self.folder, path)
        self.spool.remove()
        return GraphManifest(
            entity_types=list(self.types.values()),
            relations=[RelationType(n, (r := self._relation_config(n)).lhs, r.rhs) for n in names],
            num_rows=num_rows,
            key_files=key_files,
            attribute_files=attribute_files,
            num_edges=num_edges,
            relation_edges={split: counts.tolist() for split, counts in per_relation.items()},
            edge_files=edge_files,
            sources=self.sources,
            skipped_rows=self.skipped,
            config=self.config.model_dump(mode="json"),
        )

    def _sorted_relations(self) -> list[str]:
        """Declared relations first, as declared; then those found in the data, by name."""
        declared = [name for name in self.config.relations if name != "*"]
        return declared + sorted(set(self.relation_ids) - set(declared))

    def _write_entities(
        self,
    ) -> tuple[dict[Slot, durable.FileEntry], dict[Slot, int], dict[Slot, durable.FileEntry]]:
        key_files, num_rows, attribute_files = {}, {}, {}
        self.unmatched: dict[str, int] = {}
        for entity_type in self.types.values():
            folder = self.folder / "entities" / entity_type.name
            folder.mkdir(parents=True)
            tables = self._attributes(entity_type.name)
            for slot in slots_of(entity_type):
                keys = self.dictionaries[entity_type.name].keys(slot.partition)
                path = folder / f"keys-{slot.partition:03}.arrow"
                dictionary.write(path, keys)
                key_files[slot] = durable.entry_of(self.folder, path)
                num_rows[slot] = len(keys)
                if tables is not None:
                    path = folder / f"attributes-{slot.partition:03}.arrow"
                    table = tables[slot.partition]
                    with (
                        durable.replacing(path) as file,
                        pa.ipc.new_file(file, table.schema) as writer,
                    ):
                        writer.write_table(table)
                    attribute_files[slot] = durable.entry_of(self.folder, path)
        return key_files, num_rows, attribute_files

    def _attributes(self, entity_type: str) -> list[pa.Table] | None:
        """One table a partition, rows by offset; keys that no edge has are counted, not kept."""
        config: AttributesConfig | None = self.config.entities[entity_type].attributes
        if config is None:
            return None
        keys = self.dictionaries[entity_type]
        names = [name for name in config.columns if name != "key"]
        cells = [{name: [""] * rows for name in names} for rows in keys.num_rows]
        unmatched = 0
        for file in readers.expand(self.config.data, config):
            rows = 0
            batches = readers.read(
                file,
                config,
                config.columns,
                skip_bad=self.config.skip_bad,
                on_skipped=self._skip,
                optional=tuple(names),
            )
            for batch in batches:
                rows += len(batch)
                columns = {name: batch.column(name).to_pylist() for name in names}
                for row, key in enumerate(batch.column("key").to_pylist()):
                    if (place := keys.find(key)) is None:
                        unmatched += 1
                        continue
                    for name in names:
                        cells[place[0]][name][place[1]] = columns[name][row]
            self._note_source(file, rows)
        self.unmatched[entity_type] = unmatched
        schema = pa.schema([(name, pa.large_string()) for name in names])
        return [pa.table(columns, schema=schema) for columns in cells]


class _Spool:
    """Raw rows of every (split, bucket), appended file by file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._held: dict[tuple[int, int, int], list[NDArray[Any]]] = {}
        self._num_held = 0
        self.num_rows: Counter[tuple[int, int, int]] = Counter()

    def add(
        self,
        rows: NDArray[Any],
        split: NDArray[np.int8],
        lhs_part: NDArray[np.uint32],
        rhs_part: NDArray[np.uint32],
    ) -> None:
        if not len(rows):
            return
        place = np.stack([split.astype(np.int64), lhs_part.astype(np.int64), rhs_part], axis=1)
        span = place.max(axis=0) + 1
        code = np.ravel_multi_index(tuple(place.T), tuple(span))
        order = np.argsort(code, kind="stable")
        ends = np.flatnonzero(np.diff(code[order], append=-1)) + 1
        start = 0
        for end in ends.tolist():
            chosen = order[start:end]
            at = tuple(int(x) for x in place[chosen[0]])
            self._held.setdefault(at, []).append(rows[chosen])  # type: ignore[arg-type]
            start = end
        self._num_held += len(rows)
        if self._num_held >= _SPOOL_ROWS:
            self.flush()

    def flush(self) -> None:
        for at, pieces in self._held.items():
            with self._path(at).open("ab") as file:
                for piece in pieces:
                    file.write(piece.view(np.uint8).data)  # tofile would hide why a disk refuses
                    self.num_rows[at] += len(piece)
        self._held, self._num_held = {}, 0

    def files(self) -> list[tuple[str, Bucket]]:
        return [(SPLITS[split], Bucket(i, j)) for split, i, j in sorted(self.num_rows)]

    def read(self, split: str, bucket: Bucket) -> NDArray[Any]:
        return np.fromfile(self._path((SPLITS.index(split), *bucket)), _SPOOL)

    def remove(self) -> None:
        for at in self.num_rows:
            self._path(at).unlink()
        self.folder.rmdir()

    def _path(self, at: tuple[int, int, int]) -> Path:
        return self.folder / "-".join(map(str, at))
