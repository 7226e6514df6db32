"""Raw files -> batches for the data gate, which wants to see what the importer would refuse.

Text comes as text, Parquet and Arrow files come with the types they have: cells that are missing or
of the wrong type are for the gate to judge. Only a file that can't be read to its end is an error
here, and `diagnosed` says what is wrong with it.
"""

import codecs
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from partitions import readers, sources
from partitions.cells import as_judged
from partitions.columnar import STREAM_END
from partitions.config import Column, GraphConfig, SourceConfig
from partitions.errors import DataError
from partitions.gate.anomalies import Anomaly, Cell
from partitions.gate.batch_rules import Reading
from partitions.sources import InputFile

_BLOCK_BYTES = 1 << 20


class Input(NamedTuple):
    """Files of one kind: where they lie, how to read them, what their columns are."""

    folder: Path
    source: SourceConfig
    columns: dict[str, Column]
    relation: str | None = None


class Located(NamedTuple):
    """A batch and where it is from; first_row: rows of the file before it."""

    file: str
    first_row: int
    batch: pa.RecordBatch
    relation: str | None = None


def inputs_of(config: GraphConfig) -> list[Input]:
    if not config.inputs:
        raise DataError(
            "graph.own_buckets are checked where they are made, and by embedsvc import as it takes "
            "them: embedsvc validate reads [[graph.inputs]] only."
        )
    return [
        Input(config.data, source, source.resolved_columns, source.relation)
        for source in config.inputs
    ]


def read(
    inputs: list[Input], reading: Reading, fatal: Callable[[Anomaly], None]
) -> Iterator[Located]:
    """All batches of all files. One that breaks off goes to `fatal`, and the next follows."""
    for given in inputs:
        for file in sources.expand(given.folder, given.source):
            try:
                yield from _located(file, given, reading)
            except DataError as error:
                fatal(diagnosed(file, given.source, str(error)))
                reading.files += 1


def _located(file: InputFile, given: Input, reading: Reading) -> Iterator[Located]:
    first_row = 0
    skipped = 0

    def skip(count: int) -> None:
        nonlocal skipped
        skipped += count

    typed = readers.knows_types(file, given.source)
    for batch in _columns(file, given) if typed else _rows(file, given, skip):
        if len(batch):
            yield Located(file.name, first_row, batch, given.relation)
        first_row += len(batch)
    if skipped:
        reading.malformed += skipped
        reading.malformed_cell = reading.malformed_cell or _first_malformed(file, given)
    note_file(file, given.source, reading)


def _columns(file: InputFile, given: Input) -> Iterator[pa.RecordBatch]:
    """Of a file that knows its types."""
    for batch in readers.read_cells(file, given.source, given.columns):
        columns = zip(batch.schema.names, batch.columns, strict=True)
        yield pa.record_batch(
            {part: as_judged(column, file, given.columns[part], part) for part, column in columns}
        )


def note_file(file: InputFile, source: SourceConfig, reading: Reading) -> None:
    """That it was read to its end, and whether this end is that of a line."""
    reading.files += 1
    if _is_plain_text(file, source) and file.num_bytes:
        reading.text_files += 1
        if _ends(file, 1)[1] not in b"\r\n":
            reading.cut_files.append(file.name)


def _rows(
    file: InputFile, given: Input, skip: Callable[[int], None] | None
) -> Iterator[pa.RecordBatch]:
    """Text, cell by cell as it stands; JSON lines with the types that their reader wants."""
    is_json = sources.format_of(file, given.source) == "json"
    typed = tuple(n for n in ("weight", "timestamp") if is_json and n in given.columns)
    return readers.read(
        file,
        given.source,
        given.columns,
        skip_bad=skip is not None,
        on_skipped=skip or (lambda count: None),
        floats=tuple(n for n in typed if n == "weight"),
        times=tuple(n for n in typed if n == "timestamp"),
        optional=tuple(n for n in given.columns if n not in typed),
        skip_garbled=False,  # it has a name of its own
    )


def _first_malformed(file: InputFile, given: Input) -> Cell | None:
    """The first line that is no row: the fast parser can't name it, the reader's error does."""
    try:
        for _ in _rows(file, given, None):
            pass
    except DataError as error:
        head, _, tail = str(error).partition(": ")
        line = head.rpartition(":")[2]
        return Cell(file.name, int(line) if line.isdigit() else 0, tail.partition(". ")[0])
    return None


def _is_plain_text(file: InputFile, source: SourceConfig) -> bool:
    packed = source.member is not None or file.suffix in (".gz", ".zst")
    return sources.format_of(file, source) in ("text", "json") and not packed


def _ends(file: InputFile, count: int) -> tuple[bytes, bytes]:
    """The first and the last bytes of a file."""
    with file.open() as stream:
        head = stream.read(count)
        stream.seek(max(0, file.num_bytes - count))
        return head, stream.read(count)


# --- what is wrong with a file --------------------------------------------------------------------


def diagnosed(file: InputFile, source: SourceConfig, sentence: str) -> Anomaly:
    """The anomaly of a file that can't be read to its end; sentence: what the reader said."""
    name = "unreadable_file"
    if _is_cut(file, source, sentence):
        name = "truncated_file"
    elif "has no column" in sentence or "there is no column" in sentence:
        name = "missing_column"
    elif _is_plain_text(file, source) and not _decodes(file, source.encoding):
        name = "encoding_break"
    return Anomaly(name, sentence, 1, 0, cells=(Cell(file.name, 0, ""),), fatal=True)


def _is_cut(file: InputFile, source: SourceConfig, sentence: str) -> bool:
    """Whether the file lacks the end that its format has, as far as its bytes tell."""
    if not file.num_bytes:
        return not _is_plain_text(file, source)
    form = sources.format_of(file, source)
    head, tail = _ends(file, 8)
    if form == "parquet":
        return head.startswith(b"PAR1") and not tail.endswith(b"PAR1")
    if form == "arrow" and head.startswith(b"ARROW1"):
        return not tail.endswith(b"ARROW1")
    if form == "arrow":
        return head.startswith(STREAM_END[:4]) and tail != STREAM_END
    packed = head.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK"))
    return packed and not _is_plain_text(file, source) and "can't be read: " in sentence


def _decodes(file: InputFile, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        with file.open() as stream:
            while block := stream.read(_BLOCK_BYTES):
                decoder.decode(block)
    except UnicodeDecodeError:
        return False
    return True
