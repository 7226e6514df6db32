"""Raw files -> a graph directory: one pass over the input, one over the spooled edges.

Pass 1 reads batches, gives each new key the next offset of its partition, and appends each edge to
the spool file of its (split, bucket). Pass 2 (graph_writer.py) turns one spool file after another
into a bucket file, now that the number of relations and so the width of `rel` is known. Memory: the
dictionaries, some batches and some buckets, whatever the number of edges.

The work lies in GRAPH.importing until it is whole. A journal there says, every few seconds, how far
the spool and the dictionaries are good: a killed import goes on from it.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from partitions import (
    bag_import,
    durable,
    growth,
    holdout,
    notes,
    provenance,
    readers,
    sources,
    validation,
)
from partitions.ahead import ahead
from partitions.cells import as_strings
from partitions.config import GraphConfig, InputConfig, RelationConfig
from partitions.dictionary import Dictionary, Workers
from partitions.errors import BusyError, DataError, InputError, did_you_mean
from partitions.gate.anomalies import Refused, Report
from partitions.graph import MANIFEST, Graph
from partitions.graph_writer import GraphWriter
from partitions.hashing import hash_edges, hash_keys
from partitions.imported import Imported
from partitions.journal import Journal, JournalEntry
from partitions.own_buckets import OwnBuckets
from partitions.readers import BadRow, Piece
from partitions.schema import SPLITS, EntityType
from partitions.skipped import SkippedRows, path_of
from partitions.sources import InputFile
from partitions.spool import Spool
from partitions.time_cuts import Cuts
from partitions.validation import Gate

Progress = Callable[[str, int], None]  # (file or WRITING, rows done since the last call)

_JOURNAL_S = 10.0  # how much work a kill may cost,
_JOURNAL_SHARE = 20  # or this times what the last entry took: at most 5% go into entries


@dataclass(frozen=True)
class ImportReport:
    """What an import did, for people to read."""

    num_edges: dict[str, int]  # by split; of this import
    num_entities: dict[str, int]  # of the whole graph
    skipped_rows: int
    dropped_edges: int  # by the policies on duplicates and self-loops
    untrained_entities: dict[str, int]  # of the entities that are new: without a training edge
    unmatched_attributes: dict[str, int] = field(default_factory=dict)
    featureless_entities: dict[str, int] = field(default_factory=dict)  # new, with an empty bag
    changed_bags: dict[str, int] = field(default_factory=dict)  # of old entities: they stay
    resumed: bool = False
    skipped_file: Path | None = None  # that holds the rows skipped
    gate: Report | None = None  # None where the data was not checked
    cuts: Cuts | None = None  # in time, at the shares asked for
    cuts_kept: bool = False  # they are from an earlier import of the graph


def import_graph(
    config: GraphConfig,
    path: Path,
    progress: Progress = lambda name, rows: None,
    *,
    append: bool = False,
    accept: bool = False,
    as_of: int | None = None,
) -> ImportReport:
    """Build the graph directory `path`, replacing one that is there only once all went well.

    append: add what the config's inputs hold beyond the files that the graph was made from; old
    (partition, offset) pairs stay. With `config.gate` the data gate sees every row, with schema and
    statistics in the folder of `path`; unless `accept`, anomalies raise Refused. as_of: seconds
    since the epoch that the data should reach up to, now where unset.
    Raises DataError for bad input; then `path` is as it was.
    """
    work = notes.work_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _check_place(path, append=append)
    with ExitStack() as stack:
        stack.push(partial(_clear, work))
        stack.enter_context(durable.only_writer(work, "importing into"))
        notes.settle_held(path)
        base = Graph(path) if append else None
        if base is not None:
            growth.check(base, config)
        num_threads = config.threads or os.cpu_count() or 1
        pool = stack.enter_context(ThreadPoolExecutor(num_threads, "import"))
        workers = Workers(pool, num_threads)
        if config.own_buckets is not None:
            return _take_own(config, path, workers, progress)
        gate = validation.gate(config, path.parent, as_of) if config.gate else None
        reading = _Reading(config, work, workers, base, progress, gate, accept=accept)
        stack.callback(reading.skipped.close)
        imported = reading.run()
        judged = None if gate is None else _let_in(gate, reading.journal, accept=accept)
        left: dict[str, bytes] = {}
        if gate is not None and judged is not None:  # now: an edit that fails must commit nothing
            left = gate.notes(judged, accept=accept)

        def before_commit(digest: str) -> None:
            notes.prepare(path, digest, left, imported.skipped.kept())

        writer = GraphWriter(config, imported, reading.way, reading.workers, base, progress)
        if base is not None:
            report = writer.append(path, before_commit)
        else:
            with durable.replacing_folder(path) as folder:
                report = writer.write(folder)
                before_commit(durable.sha256_of(folder / MANIFEST))
        notes.publish(path)
    return ImportReport(
        num_edges=report.num_edges,
        num_entities={name: len(keys) for name, keys in imported.dictionaries.items()},
        skipped_rows=report.skipped_rows,
        dropped_edges=report.dropped_edges,
        untrained_entities=report.untrained_entities,
        unmatched_attributes=report.unmatched_attributes,
        featureless_entities={name: new.num_empty for name, new in imported.bags.items()},
        changed_bags={name: new.num_changed for name, new in imported.bags.items()},
        resumed=reading.resumed,
        skipped_file=path_of(path) if report.skipped_rows else None,
        gate=judged,
        cuts=reading.way.kept or report.cuts,
        cuts_kept=reading.way.kept is not None,
    )


def _let_in(gate: Gate, journal: Journal, *, accept: bool) -> Report:
    try:
        return gate.let_in(accept=accept, was_refused=journal.was_refused)
    except Refused:
        journal.note_refusal()
        raise


def _check_place(path: Path, *, append: bool) -> None:
    """A graph is a folder of its own, which another can take the place of in one step."""
    if path.is_symlink() and not append:
        raise DataError(
            f"{path} is a symbolic link, which a graph can't take the place of: remove it, or "
            "set [run] dir so that the graph lies where it leads."
        )
    if path.exists() and not path.is_dir():
        raise DataError(f"{path} is a file where the graph's folder belongs: move it away.")
    if path_of(path).is_dir():
        raise DataError(f"{path_of(path)} is a folder where a file belongs: move it away.")


def _take_own(
    config: GraphConfig, path: Path, workers: Workers, progress: Progress
) -> ImportReport:
    with durable.replacing_folder(path) as folder:
        taken = OwnBuckets(config, workers, progress).write(folder)
    return ImportReport(taken.num_edges, taken.num_entities, 0, 0, taken.untrained_entities)


def _clear(work: Path, kind: type[BaseException] | None, *_: object) -> None:
    """Keep what a later import can go on from: what a full disk broke off, or what the data gate
    refused and --accept may let in; not bad input."""
    if kind is BusyError:
        return  # another import's
    broken_off = kind is not None and (not issubclass(kind, InputError) or kind is Refused)
    worth_keeping = broken_off and Journal.exists(work)
    if not worth_keeping:
        shutil.rmtree(work, ignore_errors=True)


class _Reading:
    """Pass 1. Its state after any batch is what a journal entry holds."""

    def __init__(
        self,
        config: GraphConfig,
        work: Path,
        workers: Workers,
        base: Graph | None,
        progress: Progress,
        gate: Gate | None,
        *,
        accept: bool,
    ) -> None:
        self.accept = accept
        self.config, self.workers, self.base, self.progress = config, workers, base, progress
        self.gate = gate
        self.types = {
            name: EntityType(
                name, entity.partitions, entity.features.type if entity.features else None
            )
            for name, entity in config.entities.items()
        }
        self.way = holdout.way_of(config, base)
        self._begin()
        columns = {name for source in config.inputs for name in source.resolved_columns}
        optional = ["weight"] if "weight" in columns or config.duplicates == "sum" else []
        optional += ["time"] if "timestamp" in columns else []
        optional += ["number"] if holdout.needs_number(config, self.way) else []
        parts = max(t.num_partitions for t in self.types.values())
        self.spool = Spool(work / "spool", parts, optional)
        self.journal = Journal(work)
        files = [
            (source, file)
            for source in config.inputs
            for file in sources.expand(config.data, source)
        ]
        provenance.check_read_once(files)
        self._files = provenance.new_files(files, base) if base else files
        self._stamps = [provenance.stamp_of(file) for _, file in self._files]
        identity = {
            "config": config.content,
            "base": base.digest if base else None,
            "files": self._stamps,
            "gate": gate.identity if gate else None,
        }
        self._entry = self.journal.open(identity, self._restore)
        self._noted_at, self._note_s = monotonic(), 0.0
        self.skipped = SkippedRows(work / "skipped.jsonl")
        if self._entry is not None:
            self.skipped.restore(self._entry.skipped_bytes, self._entry.skipped)

    @property
    def resumed(self) -> bool:
        return self._entry is not None

    def _begin(self) -> None:
        """With nothing read."""
        self.dictionaries = {t.name: Dictionary(t.num_partitions) for t in self.types.values()}
        self.relations: list[str] = []  # in the order of first sight
        self._relation_ids: dict[str, int] = {}
        self._relation_hashes: list[np.uint64] = []
        self.sources: list[dict[str, Any]] = []
        self.num_read = 0
        if self.base is not None:
            for slot in self.base.slots():
                self.dictionaries[slot.entity_type].encode(self.base.keys(slot), self.workers)
            for relation in self.base.relations:
                self._add_relation(relation.name)
        for name in self.config.relations:
            if name != "*" and name not in self._relation_ids:
                self._add_relation(name)

    def run(self) -> Imported:
        begun = self._entry
        files_done, pieces_done = (begun.files_done, begun.pieces_done) if begun else (0, 0)
        for at, (source, file) in enumerate(self._files[files_done:], start=files_done):
            done = pieces_done if at == files_done else 0
            rows = num_good = 0
            with closing(ahead(self._pieces(file, source))) as pieces:
                for number, piece in enumerate(pieces, start=1):
                    if number > done:
                        self._take(piece, file, source, rows)
                    rows += len(piece.cells)
                    num_good += len(piece.rows)
                    if number == done and begun and rows != begun.rows_done:
                        raise DataError(
                            f"{self.journal.folder} was begun by another version of the libraries, "
                            "which cut the input otherwise. Remove it and import again."
                        )
                    self.progress(file.base_name, len(piece.cells))
                    if number > done:
                        self._save(at, number, rows)
            self.sources.append(provenance.record(file, self._stamps[at], num_good, source))
            if self.gate is not None:
                self.gate.end_file(file, source)
            self._save(at + 1, 0, 0)
        self._note(len(self._files), 0, 0)
        bags = bag_import.read(
            self.config, self.dictionaries, self.base, self.sources, self.skipped, self.workers
        )
        return Imported(
            self.types,
            self.dictionaries,
            self.relations,
            self._relation_config,
            self.spool,
            self.sources,
            self.skipped,
            bags,
        )

    def _pieces(self, file: InputFile, source: InputConfig) -> Iterator[Piece]:
        pieces = readers.read_pieces(
            file,
            source,
            source.resolved_columns,
            skip_bad=self.config.skip_bad,
            floats=("weight",),
            times=("timestamp",),
        )
        if source.relation is not None or "*" in self.config.relations:
            return pieces
        return self._of_known_relations(pieces, file)

    def _of_known_relations(self, pieces: Iterator[Piece], file: InputFile) -> Iterator[Piece]:
        """The pieces with their relations coded; rows of one that the config lacks are bad."""
        first_row = 0
        for piece in pieces:
            at = piece.rows.schema.get_field_index("rel")
            if len(piece.rows):
                coded = piece.rows.column(at).dictionary_encode()
                strange = set(coded.dictionary.to_pylist()) - self.config.relations.keys()
                if strange and not self.config.skip_bad:
                    raise self._strange(piece, file, first_row, strange)
                if strange:
                    piece = _without(piece, sorted(strange))
                else:
                    piece = piece._replace(rows=piece.rows.set_column(at, "rel", coded))
            first_row += len(piece.cells)
            yield piece

    def _strange(
        self, piece: Piece, file: InputFile, first_row: int, strange: set[str]
    ) -> DataError:
        cells = as_strings(piece.cells.column("rel"), file, "rel")
        row, name = min((pc.index(cells, name).as_py(), name) for name in strange)
        hint = did_you_mean(name, list(self.config.relations))
        return DataError(
            f"{file} row {first_row + row + 1:,}: the relation {name} is not under "
            f"[graph.relations]. {hint} Mend the row or the config, or import with "
            "graph.skip_bad=true to count and skip such rows."
        )

    def _take(self, piece: Piece, file: InputFile, source: InputConfig, first_row: int) -> None:
        """first_row: rows of the file before the piece."""
        self.skipped.add(file.address, piece.bad)
        if self.gate is not None:
            self.gate.skip(file.name, piece.bad)
            self.gate.add(file.name, first_row, piece.cells, source.relation)
        if len(piece.rows):
            self._add(piece.rows, source)

    # --- one batch ---

    def _add(self, batch: pa.RecordBatch, source: InputConfig) -> None:
        rel = self._relations_of(batch, source)
        configs = [self._relation_config(name) for name in self.relations]
        kinds = list(dict.fromkeys((c.lhs, c.rhs) for c in configs))
        kind_of_rel = np.array([kinds.index((c.lhs, c.rhs)) for c in configs])
        present = [0] if len(kinds) == 1 else np.unique(kind_of_rel[rel]).tolist()
        for kind in present:
            if len(present) == 1:
                places = np.arange(len(batch))
                self._add_kind(batch, rel, places, kinds[kind], source)
            else:
                places = np.flatnonzero(kind_of_rel[rel] == kind)
                chosen = batch.take(pa.array(places))
                self._add_kind(chosen, rel[places], places, kinds[kind], source)
        self.num_read += len(batch)

    def _relations_of(self, batch: pa.RecordBatch, source: InputConfig) -> NDArray[np.uint32]:
        if source.relation is not None:
            return np.full(len(batch), self._relation_id(source.relation), np.uint32)
        coded = batch.column("rel")
        if not isinstance(coded, pa.DictionaryArray):
            coded = coded.dictionary_encode()
        ids = [self._relation_id(name) for name in coded.dictionary.to_pylist()]
        return np.array(ids, np.uint32)[coded.indices.to_numpy()]

    def _relation_id(self, name: str) -> int:
        if name not in self._relation_ids:
            self._add_relation(name)
        return self._relation_ids[name]

    def _add_relation(self, name: str) -> None:
        self._relation_ids[name] = len(self.relations)
        self.relations.append(name)
        self._relation_hashes.append(hash_keys(pa.array([name]))[0])

    def _relation_config(self, name: str) -> RelationConfig:
        return self.config.relations.get(name) or self.config.relations["*"]

    def _add_kind(
        self,
        batch: pa.RecordBatch,
        rel: NDArray[np.uint32],
        places: NDArray[np.int64],
        kind: tuple[str, str],
        source: InputConfig,
    ) -> None:
        """Edges whose relations share their entity types, (lhs, rhs); places: in their batch."""
        lhs, lhs_hash = self.dictionaries[kind[0]].encode(batch.column("lhs"), self.workers)
        rhs, rhs_hash = self.dictionaries[kind[1]].encode(batch.column("rhs"), self.workers)
        rows = np.empty(len(batch), self.spool.dtype)
        rows["rel"] = rel
        names = batch.schema.names
        if "weight" in self.spool.optional:
            rows["weight"] = batch.column("weight").to_numpy() if "weight" in names else 1
        if "time" in self.spool.optional:
            rows["time"] = batch.column("timestamp").to_numpy()
        draws = np.empty(0, np.uint64)
        if self.way.name in ("edge", "lhs"):
            names_hash = np.array(self._relation_hashes, np.uint64)[rel]
            draws = hash_edges(self.config.holdout.seed, lhs_hash, names_hash, rhs_hash)
        if "number" in self.spool.optional:
            # A row whose split is given is not one to choose from: candidates.py passes it over.
            given = source.split is not None
            number = draws >> np.uint64(1) if self.way.name == "lhs" else self.num_read + places
            rows["number"] = -1 if given else number
        split = self._split(rel, draws, rows, source)
        lhs_binds, rhs_binds = (self.types[name].num_partitions > 1 for name in kind)
        self.spool.add(rows, lhs, rhs, split, lhs_binds, rhs_binds)

    def _split(
        self,
        rel: NDArray[np.uint32],
        draws: NDArray[np.uint64],
        rows: NDArray[Any],
        source: InputConfig,
    ) -> NDArray[np.int8]:
        """int8 [rows] places in SPLITS, as far as an edge alone decides it: see holdout.py."""
        if source.split is not None:
            return np.full(len(rel), SPLITS.index(source.split), np.int8)
        config, split = self.config.holdout, np.zeros(len(rel), np.int8)
        valid, test = SPLITS.index("valid"), SPLITS.index("test")
        if self.way.name == "edge":
            share = (draws >> np.uint64(11)).astype(np.float64) / (1 << 53)
            split[share < config.valid + config.test] = test
            split[share < config.valid] = valid
        elif self.way.name == "cuts":
            split[rows["time"] > self.way.cuts[0]] = valid
            split[rows["time"] > self.way.cuts[1]] = test
        if config.relations is not None:
            chosen = [at for at, name in enumerate(self.relations) if name in config.relations]
            split[~np.isin(rel, chosen)] = 0
        return split

    # --- the journal ---

    def _save(self, files_done: int, pieces_done: int, rows_done: int) -> None:
        """Flush what is held where it is much, and note how far all is where it is time to."""
        due = monotonic() - self._noted_at > max(_JOURNAL_S, _JOURNAL_SHARE * self._note_s)
        if due:
            self._note(files_done, pieces_done, rows_done)
        elif self.spool.is_full:
            self.spool.flush()

    def _note(self, files_done: int, pieces_done: int, rows_done: int) -> None:
        start = monotonic()
        self.spool.flush()
        self.spool.sync()
        self.journal.write(
            JournalEntry(
                files_done=files_done,
                pieces_done=pieces_done,
                rows_done=rows_done,
                spool_rows=dict(self.spool.num_rows),
                spool_checksums=dict(self.spool.checksums),
                relations=self.relations,
                sources=self.sources,
                skipped=self.skipped.count,
                skipped_bytes=self.skipped.sync(),
                num_read=self.num_read,
                gate=self.gate.state() if self.gate is not None else None,
            ),
            self.dictionaries,
        )
        self._noted_at = monotonic()
        self._note_s = self._noted_at - start

    def _restore(self, entry: JournalEntry, keys: Iterable[tuple[str, pa.Array]]) -> bool:
        """Whether the spool still holds what the entry says; else nothing is restored."""
        skipped = self.journal.folder / "skipped.jsonl"
        whole = skipped.is_file() and skipped.stat().st_size >= entry.skipped_bytes
        if not (whole and self.spool.holds(entry.spool_rows, entry.spool_checksums)):
            return False
        state = entry.gate
        if self.gate and state and not self.gate.is_asked_alike(state, accept=self.accept):
            return False
        try:
            for name, texts in keys:
                self.dictionaries[name].encode(texts, self.workers)
            for name in entry.relations:
                if name not in self._relation_ids:
                    self._add_relation(name)
            self.sources, self.num_read = list(entry.sources), entry.num_read
            self.spool.restore(entry.spool_rows, entry.spool_checksums)
            if self.gate and state:
                self.gate.restore(state)
        except Exception:
            self._begin()
            self.spool.restore({}, {})
            raise
        return True


def _without(piece: Piece, strange: list[str]) -> Piece:
    """The piece with the rows of these relations among the bad ones."""
    left_out = pc.is_in(piece.rows.column("rel"), value_set=pa.array(strange))
    bad = [
        BadRow(
            f"the relation {row['rel']} is not under [graph.relations]",
            json.dumps(row, default=str),
            True,
        )
        for row in piece.rows.filter(left_out).to_pylist()
    ]
    return piece._replace(rows=piece.rows.filter(pc.invert(left_out)), bad=[*piece.bad, *bad])
