"""Raw files -> a graph directory: one pass over the input, one over the spooled edges.

Pass 1 reads batches, gives each new key the next offset of its partition, and appends each edge to
the spool file of its (split, bucket). Pass 2 (graph_writer.py) turns one spool file after another
into a bucket file, now that the number of relations and so the width of `rel` is known. Memory: the
dictionaries, some batches and some buckets, whatever the number of edges.

The work lies in GRAPH.importing until it is whole. A journal there says, every few seconds, how far
the spool and the dictionaries are good: a killed import goes on from it.
"""

import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from partitions import durable, readers
from partitions.config import GraphConfig, InputConfig, RelationConfig
from partitions.dictionary import Dictionary, Workers
from partitions.errors import BusyError, DataError, InputError, did_you_mean
from partitions.graph import MANIFEST, Graph
from partitions.graph_writer import GraphWriter
from partitions.hashing import hash_edges, hash_keys
from partitions.imported import Imported
from partitions.journal import Journal, JournalEntry
from partitions.schema import SPLITS, EntityType
from partitions.spool import Spool

Progress = Callable[[str, int], None]  # (file, rows read from it since the last call)
T = TypeVar("T")

_JOURNAL_S = 10.0  # how much work a kill may cost


@dataclass(frozen=True)
class ImportReport:
    """What an import did, for people to read."""

    num_edges: dict[str, int]  # by split; of this import
    num_entities: dict[str, int]  # of the whole graph
    skipped_rows: int
    dropped_edges: int  # by the policies on duplicates and self-loops
    untrained_entities: dict[str, int]  # without a training edge
    unmatched_attributes: dict[str, int] = field(default_factory=dict)
    resumed: bool = False


def import_graph(
    config: GraphConfig,
    path: Path,
    progress: Progress = lambda name, rows: None,
    *,
    append: bool = False,
) -> ImportReport:
    """Build the graph directory `path`, replacing one that is there only once all went well.

    append: add what the config's inputs hold beyond the files that the graph was made from; old
    (partition, offset) pairs stay. Raises DataError for bad input; then `path` is as it was.
    """
    work = path.with_name(path.name + ".importing")
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.push(partial(_clear, work))
        stack.enter_context(durable.only_writer(work, "importing into"))
        base = Graph(path) if append else None
        num_threads = config.threads or os.cpu_count() or 1
        pool = stack.enter_context(ThreadPoolExecutor(num_threads, "import"))
        reading = _Reading(config, work, Workers(pool, num_threads), base, progress)
        imported = reading.run()
        writer = GraphWriter(config, imported, reading.workers, base)
        if base is not None:
            report = writer.append(path)
        else:
            with durable.replacing_folder(path) as folder:
                report = writer.write(folder)
    return ImportReport(
        num_edges=report.num_edges,
        num_entities={name: len(keys) for name, keys in imported.dictionaries.items()},
        skipped_rows=report.skipped_rows,
        dropped_edges=report.dropped_edges,
        untrained_entities=report.untrained_entities,
        unmatched_attributes=report.unmatched_attributes,
        resumed=reading.resumed,
    )


def _clear(work: Path, kind: type[BaseException] | None, *_: object) -> None:
    """Keep what a later import can go on from: what a kill or a full disk broke off, not bad input."""
    broken_off = kind is not None and not issubclass(kind, InputError)
    if not (broken_off and Journal.exists(work)) and kind is not BusyError:
        shutil.rmtree(work, ignore_errors=True)


def is_current(config: GraphConfig, path: Path) -> bool:
    """Whether `path` holds the graph that this config and these source files would give."""
    durable.recover_folder(path)
    if not (path / MANIFEST).exists():
        return False
    manifest = Graph(path).manifest
    if manifest.config != config.model_dump(mode="json"):
        return False
    try:  # a glob may match other files by now
        files = {str(file) for source in _sources(config) for file in source}
    except DataError:
        return False
    known = {source["path"]: source for source in manifest.sources}
    return files == set(known) and all(
        Path(path).stat().st_size == source["bytes"]
        and durable.sha256_of(Path(path)) == source["sha256"]
        for path, source in known.items()
    )


def _sources(config: GraphConfig) -> Iterator[list[Path]]:
    """The files of every input, then of every type's attributes: in the order they are read."""
    for source in config.inputs:
        yield readers.expand(config.data, source)
    for entity in config.entities.values():
        if entity.attributes is not None:
            yield readers.expand(config.data, entity.attributes)


class _Reading:
    """Pass 1. Its state after any batch is what a journal entry holds."""

    def __init__(
        self,
        config: GraphConfig,
        work: Path,
        workers: Workers,
        base: Graph | None,
        progress: Progress,
    ) -> None:
        self.config, self.workers, self.base, self.progress = config, workers, base, progress
        self.types = {
            name: EntityType(name, entity.partitions) for name, entity in config.entities.items()
        }
        self.dictionaries = {t.name: Dictionary(t.num_partitions) for t in self.types.values()}
        self.relations: list[str] = []  # in the order of first sight
        self._relation_hashes: list[np.uint64] = []
        if base is not None:
            self._begin_from(base)
        for name in config.relations:
            if name != "*" and name not in self.relations:
                self._add_relation(name)
        columns = {name for source in config.inputs for name in source.resolved_columns}
        optional = [name for name in ("weight",) if name in columns]
        optional += ["time"] if "timestamp" in columns else []
        optional += ["number"] if config.holdout.last else []
        parts = max(t.num_partitions for t in self.types.values())
        self.spool = Spool(work / "spool", parts, optional)
        self.sources: list[dict[str, Any]] = []
        self.skipped = self.num_read = 0
        self.journal = Journal(work)
        identity = {
            "config": config.model_dump(mode="json", exclude={"threads"}),
            "base": base.digest if base else None,
        }
        self._resume_at = self.journal.open(identity, self._restore)

    @property
    def resumed(self) -> bool:
        return self._resume_at is not None

    def _begin_from(self, base: Graph) -> None:
        for name, dictionary in self.dictionaries.items():
            known = base.entity_types.get(name)
            if known and known.num_partitions != dictionary.num_partitions:
                raise DataError(
                    f"{base.path} has {known.num_partitions} partitions of {name}, the config "
                    f"{dictionary.num_partitions}: they can't change. Set "
                    f"graph.entities.{name}.partitions back, or import anew with --replace."
                )
            if known:
                dictionary.encode(base.all_keys(name), self.workers)
        for relation in base.relations:
            self._add_relation(relation.name)

    def run(self) -> Imported:
        files = [
            (source, file)
            for source in self.config.inputs
            for file in readers.expand(self.config.data, source)
        ]
        if self.base is not None:
            files = _new_files(files, self.base)
        files_done, batches_done = self._resume_at or (0, 0)
        last_entry = monotonic()
        for at, (source, file) in enumerate(files[files_done:], start=files_done):
            skip = batches_done if at == files_done else 0
            rows, skipped_before = 0, self.skipped
            for number, batch in enumerate(_ahead(self._batches(file, source)), start=1):
                rows += len(batch)
                if number > skip:
                    self._add(batch, source)
                self.progress(file.name, len(batch))
                if self.spool.is_full:
                    self.spool.flush()
                    if monotonic() - last_entry > _JOURNAL_S:
                        self._note(at, number, skipped_before)
                        last_entry = monotonic()
            self._note_source(file, rows)
        self.spool.flush()
        self._note(len(files), 0, self.skipped)
        return Imported(
            self.types,
            self.dictionaries,
            self.relations,
            self._relation_config,
            self.spool,
            self.sources,
            self.skipped,
        )

    def _batches(self, file: Path, source: InputConfig) -> Iterator[pa.RecordBatch]:
        return readers.read(
            file,
            source,
            source.resolved_columns,
            skip_bad=self.config.skip_bad,
            on_skipped=self._skip,
            floats=("weight",),
            times=("timestamp",),
        )

    def _skip(self, count: int) -> None:
        self.skipped += count

    def _note_source(self, file: Path, rows: int) -> None:
        self.sources.append(
            {
                "path": str(file),
                "bytes": file.stat().st_size,
                "sha256": durable.sha256_of(file),
                "rows": rows,
            }
        )

    # --- one batch ---

    def _add(self, batch: pa.RecordBatch, source: InputConfig) -> None:
        rel = self._relations_of(batch, source)
        configs = [self._relation_config(name) for name in self.relations]
        kinds = list(dict.fromkeys((c.lhs, c.rhs) for c in configs))
        kind_of_rel = np.array([kinds.index((c.lhs, c.rhs)) for c in configs])
        present = np.unique(kind_of_rel[rel]) if len(rel) else np.empty(0, np.int64)
        for kind in present.tolist():
            if len(present) == 1:
                self._add_kind(batch, rel, kinds[kind], source)
            else:
                rows = np.flatnonzero(kind_of_rel[rel] == kind)
                self._add_kind(batch.take(pa.array(rows)), rel[rows], kinds[kind], source)
        self.num_read += len(batch)

    def _relations_of(self, batch: pa.RecordBatch, source: InputConfig) -> NDArray[np.uint32]:
        if source.relation is not None:
            return np.full(len(batch), self._relation_id(source.relation), np.uint32)
        coded = batch.column("rel").dictionary_encode()
        ids = [self._relation_id(name) for name in coded.dictionary.to_pylist()]
        return np.array(ids, np.uint32)[coded.indices.to_numpy()]

    def _relation_id(self, name: str) -> int:
        if name not in self.relations:
            self._relation_config(name)
            self._add_relation(name)
        return self.relations.index(name)

    def _add_relation(self, name: str) -> None:
        self.relations.append(name)
        self._relation_hashes.append(hash_keys(pa.array([name]))[0])

    def _relation_config(self, name: str) -> RelationConfig:
        found = self.config.relations.get(name) or self.config.relations.get("*")
        if found is None:
            hint = did_you_mean(name, list(self.config.relations))
            raise DataError(
                f"The data holds the relation {name}, which is not under [graph.relations]. {hint}"
            )
        return found

    def _add_kind(
        self,
        batch: pa.RecordBatch,
        rel: NDArray[np.uint32],
        kind: tuple[str, str],
        source: InputConfig,
    ) -> None:
        """Edges whose relations share their entity types, (lhs, rhs)."""
        lhs, lhs_hash = self.dictionaries[kind[0]].encode(batch.column("lhs"), self.workers)
        rhs, rhs_hash = self.dictionaries[kind[1]].encode(batch.column("rhs"), self.workers)
        rows = np.empty(len(batch), self.spool.dtype)
        rows["rel"] = rel
        names = batch.schema.names
        if "weight" in self.spool.optional:
            rows["weight"] = batch.column("weight").to_numpy() if "weight" in names else 1
        if "time" in self.spool.optional:
            rows["time"] = batch.column("timestamp").to_numpy()
        if "number" in self.spool.optional:
            rows["number"] = self.num_read + np.arange(len(batch))
        split = self._split(rel, lhs_hash, rhs_hash, rows, source)
        lhs_binds, rhs_binds = (self.types[name].num_partitions > 1 for name in kind)
        self.spool.add(rows, lhs, rhs, split, lhs_binds, rhs_binds)

    def _split(
        self,
        rel: NDArray[np.uint32],
        lhs_hash: NDArray[np.uint64],
        rhs_hash: NDArray[np.uint64],
        rows: NDArray[Any],
        source: InputConfig,
    ) -> NDArray[np.int8]:
        """int8 [rows] places in SPLITS; leave-last-out is decided in pass 2."""
        if source.split is not None:
            return np.full(len(rel), SPLITS.index(source.split), np.int8)
        holdout, split = self.config.holdout, np.zeros(len(rel), np.int8)
        valid, test = SPLITS.index("valid"), SPLITS.index("test")
        if holdout.valid + holdout.test > 0:
            names = np.array(self._relation_hashes, np.uint64)[rel]
            drawn = hash_edges(holdout.seed, lhs_hash, names, rhs_hash)
            share = (drawn >> np.uint64(11)).astype(np.float64) / (1 << 53)
            split[share < holdout.valid + holdout.test] = test
            split[share < holdout.valid] = valid
        elif holdout.needs_time and not holdout.last:
            split[rows["time"] > holdout.cuts[0]] = valid
            split[rows["time"] > holdout.cuts[1]] = test
        if holdout.relations is not None:
            chosen = [at for at, name in enumerate(self.relations) if name in holdout.relations]
            split[~np.isin(rel, chosen)] = 0
        return split

    # --- the journal ---

    def _note(self, files_done: int, batches_done: int, skipped: int) -> None:
        """skipped: rows left out before the file that is being read; that one is read again."""
        self.spool.sync()
        self.journal.write(
            JournalEntry(
                files_done=files_done,
                batches_done=batches_done,
                spool_rows=dict(self.spool.num_rows),
                relations=self.relations,
                sources=self.sources,
                skipped=skipped,
                num_read=self.num_read,
            ),
            self.dictionaries,
        )

    def _restore(self, entry: JournalEntry, keys: Iterable[tuple[str, pa.Array]]) -> None:
        for name, texts in keys:
            self.dictionaries[name].encode(texts, self.workers)
        for name in entry.relations:
            if name not in self.relations:
                self._add_relation(name)
        self.spool.restore(entry.spool_rows)
        self.sources, self.skipped = list(entry.sources), entry.skipped
        self.num_read = entry.num_read


def _new_files(
    files: list[tuple[InputConfig, Path]], base: Graph
) -> list[tuple[InputConfig, Path]]:
    """Those that the graph was not made from yet; one that changed since is an error."""
    known = {source["path"]: source for source in base.manifest.sources}
    for _, file in files:
        source = known.get(str(file))
        if source and file.stat().st_size != source["bytes"]:
            raise DataError(
                f"{file} has changed since it was imported. Append what is new as a file of its "
                "own, or import anew with --replace."
            )
    new = [(source, file) for source, file in files if str(file) not in known]
    if not new:
        raise DataError(
            f"{base.path} was made from all {len(files)} input files already: there is nothing to "
            "append. Name a new file under [[graph.inputs]], or let a glob match one."
        )
    return new


def _ahead(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """The same items, made by a thread that is up to `depth` items ahead."""
    ready: queue.Queue[Any] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((None, None))
        except BaseException as error:  # raised where the items are wanted
            put((None, error))

    thread = threading.Thread(target=make, name="read ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stop.set()
        thread.join()
