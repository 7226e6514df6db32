"""What an import will take of memory, stated before it starts.

    code and libraries   what the process holds already
    attributes           their text, and that of one partition twice more
    dictionaries         24 bytes a slot of the key tables (32 to 64 bytes an entity), half as much
                         again while the largest one doubles, and the keys' text with 8 bytes a key
    pass 1               some batches of rows and the spool's buffer: a constant
    pass 2               one piece of a bucket a thread, or where duplicates matter a whole bucket
    holdout              of last edges 40 bytes an entity, by lhs 48 and 8 an edge held out; pass 2

Without duplicates to look for, nothing depends on the number of edges. How many entities there are
is the user's to say; where nobody does, it is guessed from the first batch of each input, twice: at
least as many as Chao's estimator finds from keys seen once and twice (Chao 1984), at most as many
as Heaps' law gives, by which distinct keys grow with a power of the rows.
"""

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from partitions import readers, sources, spool
from partitions.config import GraphConfig, InputConfig
from partitions.delimited import BLOCK_BYTES
from partitions.errors import ConfigError
from partitions.graph import Graph
from partitions.holdout import needs_number, way_of
from partitions.memory import PANDAS_BYTES, available_bytes
from partitions.sources import InputFile

_SLOT_BYTES = 24
_CHOOSING_BYTES = {"last": 40, "lhs": 48}  # an entity
_BATCHES = 6  # read ahead, in hand, and what the reader itself holds
_ROW_BYTES = 73  # of a batch at work: two fingerprints and places, bucket, order, split
_PIECE_COPIES = 4  # of a bucket's rows in pass 2: read, kept, and their columns
_SORT_BYTES = 60  # a row, where duplicates are looked for
_TEXT_COPIES = 3  # of each block that Arrow's text parser has read ahead: bytes, cells, columns
_FILES = 16  # of an input whose rows are counted; the others by their bytes
_COMPRESSED_TIMES = 4  # how much larger text is than its compressed file, at a guess


@dataclass(frozen=True)
class ImportPlan:
    """Bytes, by what they are for; the two passes do not add up."""

    code: int
    dictionaries: int
    pass_1: int
    pass_2: int
    num_rows: int  # of the input, about
    num_entities: Mapping[str, int]  # at most, where they are guessed
    fewest_entities: Mapping[str, int]
    least_bytes: int  # in all, with the fewest entities
    sorts: bool  # whether whole buckets are held, to look for duplicates

    @property
    def total_bytes(self) -> int:
        return self.code + self.dictionaries + max(self.pass_1, self.pass_2)

    @property
    def is_guess(self) -> bool:
        return self.num_entities != self.fewest_entities

    def __str__(self) -> str:
        least, most = (f"{size / 1e6:,.0f}" for size in (self.least_bytes, self.total_bytes))
        parts = {
            "dictionaries": self.dictionaries,
            "buffers": max(self.pass_1, self.pass_2),
            "process": self.code,
        }
        told = ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in parts.items())
        few, many = (sum(n.values()) for n in (self.fewest_entities, self.num_entities))
        size, entities = f"{most} MB ({told})", f"{many:,} entities"
        if least != most:
            size = f"{least} to {most} MB (at most: {told})"
            entities = (
                f"{few:,} to {many:,} entities by the first rows; "
                "graph.entities.NAME.expected makes it exact"
            )
        return f"memory plan: {size} for about {self.num_rows:,} rows, {entities}"


@dataclass(frozen=True)
class _Sample:
    """The first batch of one input, and how many rows its files hold about."""

    source: InputConfig
    batch: pa.RecordBatch
    num_rows: int
    reader_bytes: int  # that the reader itself holds: compressed columns, or blocks of text


def plan_import(
    config: GraphConfig,
    num_entities: Mapping[str, int] | None = None,
    base: Graph | None = None,
) -> ImportPlan:
    """Reads the first batch of every input; of an append to `base`, of its new files.

    num_entities: of each entity type, as far as known; else what the config expects, else a guess.
    """
    imported = {source["path"] for source in base.manifest.sources} if base else set()
    found = (_sample(config, source, imported) for source in config.inputs)
    samples = [sample for sample in found if sample]
    old = {name: base.num_entities(name) for name in base.entity_types} if base else {}
    most, fewest = (dict.fromkeys(config.entities, 0) | old for _ in range(2))
    key_bytes = dict.fromkeys(config.entities, 0.0)
    for sample in samples:
        times = sample.num_rows / len(sample.batch)
        for name, columns in _keys_of(config, sample).items():
            keys = pa.concat_arrays(columns)
            seen = len(keys.unique())
            grown = sum(_heaps(column, times) for column in columns) if times > 1 else seen
            most[name] += grown
            fewest[name] = max(fewest[name], seen, min(max(map(_chao, columns)), grown))
            key_bytes[name] = max(key_bytes[name], pc.mean(pc.binary_length(keys)).as_py() or 0.0)
    known = {n: e.expected for n, e in config.entities.items() if e.expected is not None}
    known |= num_entities or {}
    plan = _plan(config, samples, base, most | known, key_bytes)
    least = _plan(config, samples, base, fewest | known, key_bytes)
    return replace(plan, fewest_entities=fewest | known, least_bytes=least.total_bytes)


def check_memory(plan: ImportPlan, memory_mb: int | None) -> str | None:
    """ConfigError where even the least can't fit; a warning where the most can't."""
    available = available_bytes(memory_mb)
    if plan.total_bytes <= available:
        return None
    room, remedy = f"{available / 1e6:,.0f} MB are free", "Import where there is more memory"
    if memory_mb is not None:
        room, remedy = f"graph.memory_mb allows {memory_mb:,} MB", "Raise graph.memory_mb"
    if plan.sorts:
        remedy += ", or set graph.duplicates=keep or more partitions"
    if plan.least_bytes > available:
        raise ConfigError(
            f"The import plans for {plan.least_bytes / 1e6:,.0f} MB, and {room}. {remedy}."
        )
    return (
        f"the import may take {plan.total_bytes / 1e6:,.0f} MB, and {room}. {remedy}; "
        "graph.entities.NAME.expected makes the plan exact."
    )


def _plan(
    config: GraphConfig,
    samples: Sequence[_Sample],
    base: Graph | None,
    entities: Mapping[str, int],
    key_bytes: Mapping[str, float],
) -> ImportPlan:
    tables = {name: _table_bytes(count) for name, count in entities.items()}
    texts = {name: int(count * (key_bytes[name] + 8)) for name, count in entities.items()}
    row_bytes = 12 + 4 * _has(config, "weight") + 8 * _has(config, "timestamp")
    way = way_of(config, base)
    row_bytes += 8 * needs_number(config, way)
    batch_bytes = max((s.batch.nbytes for s in samples), default=0)
    batch_rows = max((len(s.batch) for s in samples), default=0)
    reader_bytes = max((s.reader_bytes for s in samples), default=0)
    num_edges = sum(sample.num_rows for sample in samples)
    held = min(spool.HELD_ROWS + batch_rows, num_edges)
    reading = held * row_bytes + batch_rows * (_ROW_BYTES + 2 * row_bytes)
    noting = 2 * max(texts.values(), default=0)  # the keys, joined to be written
    parts = max(entity.partitions for entity in config.entities.values())
    threads = config.threads or os.cpu_count() or 1
    bucket = num_edges / min(parts**2, max(num_edges, 1))
    if config.duplicates == "keep":
        piece = min(bucket, spool.READ_ROWS) * row_bytes * _PIECE_COPIES
    else:
        piece = bucket * (row_bytes * _PIECE_COPIES + _SORT_BYTES)
    choosing = sum(entities.values()) * _CHOOSING_BYTES.get(way.name, 0)
    if way.name == "lhs":
        choosing += int(8 * (config.holdout.valid + config.holdout.test) * num_edges)
    plan = ImportPlan(
        code=_resident_bytes() + PANDAS_BYTES * ("pandas" not in sys.modules),
        dictionaries=sum(tables.values()) + max(tables.values()) // 2 + sum(texts.values()),
        pass_1=int(_BATCHES * batch_bytes + reader_bytes + max(reading, noting)),
        pass_2=int(
            max(threads * piece, _attribute_bytes(config)) + choosing + sum(entities.values())
        ),
        num_rows=num_edges,
        num_entities=entities,
        fewest_entities=entities,
        least_bytes=0,
        sorts=config.duplicates != "keep",
    )
    return replace(plan, least_bytes=plan.total_bytes)


def _attribute_bytes(config: GraphConfig) -> int:
    """Of the type that takes most: its text once, twice more of one partition, and a reader's."""
    most = 0
    for entity in config.entities.values():
        if entity.attributes is None:
            continue
        files = sources.expand(config.data, entity.attributes)
        text = sum(file.num_bytes * _packing(file) for file in files)
        held = min(text, _TEXT_COPIES * (pa.io_thread_count() + pa.cpu_count()) * BLOCK_BYTES)
        most = max(most, text + 2 * text // entity.partitions + held)
    return most


def _has(config: GraphConfig, column: str) -> bool:
    summed = column == "weight" and config.duplicates == "sum"
    return summed or any(column in source.resolved_columns for source in config.inputs)


def _table_bytes(num_entities: int) -> int:
    slots = 1 << 10
    while num_entities * 4 > slots * 3:
        slots *= 2
    return slots * _SLOT_BYTES


def _sample(config: GraphConfig, source: InputConfig, imported: Collection[str]) -> _Sample | None:
    """None where the input has no rows, or no file that is new."""
    files = [f for f in sources.expand(config.data, source) if f.address not in imported]
    for file in files:
        batches = readers.read(
            file,
            source,
            source.resolved_columns,
            skip_bad=True,
            floats=("weight",),
            times=("timestamp",),
        )
        with closing(batches):  # type: ignore[type-var]
            batch = next((batch for batch in batches if len(batch)), None)
            is_whole = next(batches, None) is None
        if batch is not None:
            break
    else:
        return None
    file_bytes = file.num_bytes if is_whole else _text_bytes(batch) / _packing(file)
    looked_at = files[:: -(-len(files) // _FILES)]
    sizes = [_rows_of(file, source, len(batch) / max(file_bytes, 1)) for file in looked_at]
    share = sum(f.num_bytes for f in looked_at) / max(sum(f.num_bytes for f in files), 1)
    num_rows = int(sum(rows for rows, _ in sizes) / max(share, 1e-9))
    return _Sample(source, batch, num_rows, max(size for _, size in sizes))


def _text_bytes(batch: pa.RecordBatch) -> int:
    """How long these rows are as text, about: without the offsets, with their separators."""
    return int(batch.nbytes) - 4 * len(batch) * batch.num_columns + len(batch) * batch.num_columns


def _packing(file: InputFile) -> int:
    """How much larger a file's text is than the file."""
    packed = (".gz", ".zst", ".zip", ".tgz", ".parquet")
    return _COMPRESSED_TIMES if file.suffix in packed else 1


def _rows_of(file: InputFile, source: InputConfig, rows_per_byte: float) -> tuple[int, int]:
    """(rows of a file, bytes that a reader holds of its columns); Parquet says itself."""
    if sources.format_of(file, source) == "parquet":
        with file.open_random() as opened, pq.ParquetFile(opened) as table:
            metadata = table.metadata
            groups = [metadata.row_group(at) for at in range(metadata.num_row_groups)]
            sizes = [
                sum(g.column(at).total_compressed_size for at in range(g.num_columns))
                for g in groups
            ]
            return metadata.num_rows, max(sizes, default=0)
    blocks = (pa.io_thread_count() + pa.cpu_count()) * BLOCK_BYTES
    held = _TEXT_COPIES * min(blocks, file.num_bytes * _packing(file))
    return round(file.num_bytes * rows_per_byte), held


def _keys_of(config: GraphConfig, sample: _Sample) -> dict[str, list[pa.Array]]:
    """Entity type -> the keys in each column that has some of this type."""
    batch, found = sample.batch, dict[str, list[pa.Array]]()
    given = sample.source.relation
    names = [given] if given is not None else batch.column("rel").unique().to_pylist()
    kinds: dict[tuple[str, str], list[str]] = {}
    for name in names:
        relation = config.relations.get(name) or config.relations.get("*")
        if relation is not None:
            kinds.setdefault((relation.lhs, relation.rhs), []).append(name)
    for kind, of_kind in kinds.items():
        rows = batch
        if len(kinds) > 1:
            rows = batch.filter(pc.is_in(batch.column("rel"), pa.array(of_kind)))
        for side, entity_type in zip(("lhs", "rhs"), kind, strict=True):
            found.setdefault(entity_type, []).append(rows.column(side))
    return found


def _heaps(keys: pa.Array, times: float) -> int:
    """Distinct keys among `times` as many rows, from those among these rows and half of them."""
    whole, half = (len(part.unique()) for part in (keys, keys.slice(0, max(len(keys) // 2, 1))))
    power = float(np.clip(np.log2(whole / half), 0, 1))
    return int(whole * times**power)


def _chao(keys: pa.Array) -> int:
    """How many keys there are at least, by those seen once and twice: distinct + f1^2 / 2 f2."""
    counts = keys.value_counts().field("counts").to_numpy()
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return len(counts) + once * (once - 1) // (2 * (twice + 1))


def _resident_bytes() -> int:
    status = Path("/proc/self/statm")
    if not status.exists():
        return 200_000_000  # Python with Arrow, numba and numpy, about
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
