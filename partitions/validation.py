"""The data gate: is this batch what the schema says, and like the last good one?

    gate = validation.gate(config, folder)  # the run's folder, of schema.toml and statistics.json
    gate.add(file, first_row, batch)        # while the import streams
    report = gate.judged()
    gate.note(report)                       # writes what a clean batch leaves behind

The first batch has no schema: it is inferred and written, for people to review. Later ones are
checked, and a clean one becomes the last good batch. One that is not leaves both files alone.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from partitions import durable
from partitions.config import GraphConfig, SourceConfig
from partitions.errors import DataError
from partitions.gate import data_files, data_schema, schema_edits, statistics
from partitions.gate.anomalies import Anomaly, Cell, Refused, Report, explained
from partitions.gate.batch_rules import Reading, batch_anomalies
from partitions.gate.columns import kinds_of, typed
from partitions.gate.comparison import distances
from partitions.gate.data_files import Input, Located
from partitions.gate.data_schema import DataSchema, Seen
from partitions.gate.inference import doubts, infer
from partitions.gate.row_anomalies import row_anomalies
from partitions.gate.row_rules import RowRules
from partitions.gate.schema_edits import Edit
from partitions.gate.statistics import Endpoints, Statistics, ends_of
from partitions.readers import BadRow
from partitions.sources import InputFile

Progress = Callable[[str, int], None]  # (file, rows read from it since the last call)

SCHEMA = "schema.toml"
STATISTICS = "statistics.json"
REPORT = "validation.json"  # the newest report, for programs


class Gate:
    """One batch of data on its way in. Gates of parts of it can be merged."""

    def __init__(
        self,
        schema: DataSchema | None,
        last_good: Statistics | None,
        endpoints: Endpoints | None = None,
        as_of: int | None = None,
        folder: Path | None = None,
        schema_text: str | None = None,
    ) -> None:
        """endpoints: relation (or "*") -> entity types; those of the schema where unset.
        as_of: seconds since the epoch, now where unset. folder: where a clean batch is noted.
        schema_text: the schema's file as it was read, for `accept` to edit."""
        self.schema, self.last_good, self.folder = schema, last_good, folder
        self.schema_text = schema_text
        self.endpoints = endpoints if endpoints is not None else schema.endpoints if schema else {}
        self.asked_as_of = as_of
        self.as_of = int(time.time()) if as_of is None else as_of
        self.statistics = Statistics({})
        self.statistics.as_of = self.as_of
        self.reading = Reading()
        self.rows = RowRules(schema, self.as_of) if schema is not None else None
        self.fatal: list[Anomaly] = []
        self.identity: dict[str, Any] = {}
        self._seen: Seen = {}

    def add(
        self, file: str, first_row: int, batch: pa.RecordBatch, relation: str | None = None
    ) -> None:
        """first_row: how many rows of the file come before; relation: of all rows, where no `rel`
        column names it."""
        if not len(batch):
            return
        new = [name for name in batch.schema.names if name not in self.statistics.kinds]
        for name, kind in kinds_of(batch.select(new)).items():
            rules = self.schema.columns.get(name) if self.schema is not None else None
            self.statistics.meet(name, rules.type if rules is not None else kind)
        chunk = typed(batch, self.statistics.kinds, relation)
        self.statistics.add(chunk)
        if self.rows is not None:
            self.rows.add(file, first_row, chunk)

    def state(self) -> dict[str, Any]:
        """What was seen so far, as JSON: for an import that may be killed and go on from there."""
        return {
            "as_of": self.as_of,
            "asked_as_of": self.asked_as_of,
            "columns": list(self.statistics.kinds),  # JSON keeps no order
            "statistics": self.statistics.as_json(),
            "reading": self.reading.as_json(),
            "rows": None if self.rows is None else self.rows.as_json(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """All of it or, where the state is damaged, nothing."""
        found = Statistics.from_json(state["statistics"])
        found.kinds = {name: found.kinds[name] for name in state["columns"]}
        reading, rows = Reading.from_json(state["reading"]), None
        if self.schema is not None:
            rows = RowRules(self.schema, state["as_of"])
            rows.restore(state["rows"] or [])
        self.as_of, self.asked_as_of = state["as_of"], state["asked_as_of"]
        self.statistics = found
        self.reading, self.rows = reading, rows

    def is_asked_alike(self, state: Mapping[str, Any], *, accept: bool) -> bool:
        """Whether `state` is of the same --as-of; accepting a batch keeps the one it was refused
        with unless another is named."""
        asked: int | None = state["asked_as_of"]
        return asked == self.asked_as_of or (accept and self.asked_as_of is None)

    def merge(self, other: "Gate") -> None:
        self.statistics.merge(other.statistics)
        self.reading.merge(other.reading)
        self.fatal += other.fatal
        if self.rows is not None and other.rows is not None:
            self.rows.merge(other.rows)

    def skip(self, file: str, rows: Sequence[BadRow]) -> None:
        """Lines of a file that are no rows. What `add` sees itself is not counted again."""
        lines = [row for row in rows if not row.is_row]
        self.reading.malformed += len(lines)
        if lines and self.reading.malformed_cell is None:
            self.reading.malformed_cell = Cell(file, 0, f"{lines[0].text} ({lines[0].why})")

    def end_file(self, file: InputFile, source: SourceConfig) -> None:
        data_files.note_file(file, source, self.reading)

    def judged(self) -> Report:
        if not self.statistics.rows and not self.fatal:
            raise DataError("The batch has no rows: there is nothing to check. Mend the inputs.")
        return self._first() if self.schema is None else self._checked(self.schema)

    def let_in(self, *, accept: bool = False, was_refused: bool = True) -> Report:
        """The report of a batch that is clean, or accepted as it is. Raises Refused otherwise.

        was_refused: whether exactly this batch was, so that people know what they accept."""
        report = self.judged()
        if report.clean or (accept and was_refused and report.usable):
            return report
        self.note(report)
        names = ", ".join(dict.fromkeys(anomaly.name for anomaly in report.anomalies))
        found = f"The data gate found {names} in these inputs, and nothing was imported."
        if accept and report.usable:
            raise Refused(
                f"{found} This is not the batch that was refused before, so --accept does not let "
                f"it in unseen. Look at {self._path(REPORT)}, and give the command once more where "
                "the data is right as it is.",
                report,
            )
        raise Refused(
            f"{found} Mend the data, edit {self._path(SCHEMA)}, or add --accept where the data is "
            f"right as it is (then nothing is read again); {self._path(REPORT)} has all of it.",
            report,
        )

    def notes(self, report: Report, *, accept: bool = False) -> dict[str, bytes]:
        """File name -> content of what the batch leaves behind: the report; of a first batch the
        schema; of a clean one its statistics.

        accept: where it is not clean, the schema edited to let it in, and its statistics: later
        batches are compared with it. Thresholds of drift stay."""
        found = {REPORT: durable.json_bytes(report.as_json())}
        if report.first_use and report.schema is not None:
            found[SCHEMA] = data_schema.as_toml(report.schema, self._seen).encode()
        elif accept and not report.clean:
            assert self.schema_text is not None
            edits = [edit for edit in report.edits if not _is_threshold(edit)]
            name = str(self._path(SCHEMA))
            found[SCHEMA] = schema_edits.edited(self.schema_text, edits, name).encode()
        if report.clean or accept:
            found[STATISTICS] = statistics.as_bytes(report.statistics)
        return found

    def note(self, report: Report, *, accept: bool = False) -> None:
        """Write what `notes` says into the gate's folder."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.notes(report, accept=accept).items():
            with durable.replacing(self._path(name)) as file:
                file.write(content)

    def finish(self) -> Report:
        report = self.judged()
        self.note(report)
        return report

    def _path(self, name: str) -> Path:
        return Path(name) if self.folder is None else self.folder / name

    def _first(self) -> Report:
        if self.fatal:
            return self._report(tuple(self.fatal), None)
        if self._is_graph() and not self.statistics.relations:
            raise DataError(
                "No row of the batch has both keys and a relation: there is nothing to infer "
                f"{self._path(SCHEMA)} from. Mend the inputs, or their columns."
            )
        found, self._seen = infer(self.statistics, self._ends(), self.reading)
        notes = tuple(doubts(self.statistics, found, self.reading))
        return self._report((), found, first_use=True, notes=notes)

    def _checked(self, schema: DataSchema) -> Report:
        assert self.rows is not None
        found = [*self.fatal, *row_anomalies(self.rows, max(1, self.statistics.rows))]
        found = [self._listed(anomaly) for anomaly in found]
        if self.fatal:  # the rest of the data is not there: how it is spread says nothing
            return self._report(explained(found), schema)
        found += batch_anomalies(schema, self.statistics, self.reading, self._ends())
        measured = []
        notes: tuple[str, ...] = ()
        if self.last_good is not None:
            measured = distances(
                self.last_good, self.statistics, schema.drift, schema.columns, schema.endpoints
            )
            found += [distance.as_anomaly() for distance in measured if distance.drifted]
        else:
            notes = (f"There is no {STATISTICS}: drift can't be checked this time.",)
        report = self._report(explained(found), schema, notes=notes)
        return Report(**{**vars(report), "distances": tuple(measured)})

    def _listed(self, anomaly: Anomaly) -> Anomaly:
        """An unknown relation comes with the table that would make it known."""
        if anomaly.name != "unknown_relation" or anomaly.relation is None:
            return anomaly
        ends = ends_of(self.endpoints, anomaly.relation)
        if ends is None or self.schema is None:  # the config does not know it either
            return anomaly
        table = ("relations", anomaly.relation)
        count = (0, 10 * anomaly.rows)
        new = sorted({*ends} - set(self.schema.entities))
        edits = (
            Edit(table, "lhs", ends[0]),
            Edit(table, "rhs", ends[1]),
            *(Edit(("entities", entity), "count", count) for entity in new),
        )
        return replace(anomaly, edits=edits)

    def _ends(self) -> Endpoints:
        """Of every relation in the data."""
        names = self.statistics.categories["rel"].counts if self._is_graph() else {}
        return {
            name: ends
            for name in [*names, "*"]
            if (ends := ends_of(self.endpoints, name)) is not None
        }

    def _is_graph(self) -> bool:
        return "rel" in self.statistics.categories

    def _report(
        self,
        anomalies: tuple[Anomaly, ...],
        schema: DataSchema | None,
        *,
        first_use: bool = False,
        notes: tuple[str, ...] = (),
    ) -> Report:
        return Report(
            rows=self.statistics.rows,
            files=self.reading.files,
            anomalies=anomalies,
            distances=(),
            statistics=self.statistics,
            schema=schema,
            first_use=first_use,
            notes=notes,
        )


def gate(config: GraphConfig, folder: Path, as_of: int | None = None) -> Gate:
    """A gate for the batch that `config` names, with what the folder holds from earlier ones."""
    _check_places(folder)
    endpoints = {name: (rules.lhs, rules.rhs) for name, rules in config.relations.items()}
    file = data_schema.read(folder / SCHEMA) if (folder / SCHEMA).exists() else None
    digests: dict[str, str | None] = dict.fromkeys((SCHEMA, STATISTICS))
    last_good = None
    if file is not None:
        digests[SCHEMA] = file.sha256
        if (folder / STATISTICS).exists():
            last_good = statistics.read(folder / STATISTICS)
            digests[STATISTICS] = durable.sha256_of(folder / STATISTICS)
    schema, text = (file.schema, file.text) if file is not None else (None, None)
    found = Gate(schema, last_good, endpoints, as_of, folder, text)
    found.identity.update(digests)
    return found


def _check_places(folder: Path) -> None:
    """What the gate leaves behind must find its places free. Sweeps what a killed one left."""
    for name in (SCHEMA, STATISTICS, REPORT):
        for leftover in folder.glob(f"{name}{durable.TEMPORARY}*"):
            leftover.unlink()
        if (folder / name).is_dir():
            raise DataError(f"{folder / name} is a folder where a file belongs: move it away.")


def validate(
    config: GraphConfig,
    folder: Path,
    *,
    as_of: int | None = None,
    accept: bool = False,
    progress: Progress = lambda name, rows: None,
) -> Report:
    """Check all inputs of the config, without importing them.

    accept: the batch is right as it is. The schema's lines are edited to let it in, and it becomes
    the last good one, so that later batches are compared with it.
    """
    found = gate(config, folder, as_of)
    report = stream(found, data_files.inputs_of(config), progress)
    if accept and not report.clean:
        if not report.usable:
            first = next(anomaly for anomaly in report.anomalies if anomaly.fatal)
            raise DataError(f"The batch can't be accepted: {first.what}")
        found.note(report, accept=True)
    return report


def _is_threshold(edit: Edit) -> bool:
    return edit.table == ("drift",) or edit.key == "drift"


def stream(
    found: Gate, inputs: list[Input], progress: Progress = lambda name, rows: None
) -> Report:
    """Feed the gate with all files of the inputs."""
    for located in data_files.read(inputs, found.reading, found.fatal.append):
        found.add(*located)
        progress(located.file, len(located.batch))
    return found.finish()


# --- the same for batches that are no files of a config -----------------------------------------


def infer_schema(
    batches: Iterable[Located], endpoints: Endpoints | None = None, as_of: int | None = None
) -> DataSchema:
    """endpoints: relation (or "*") -> entity types; unset for a table of features."""
    report = check(batches, None, None, endpoints=endpoints, as_of=as_of)
    assert report.schema is not None
    return report.schema


def check(
    batches: Iterable[Located],
    schema: DataSchema | None,
    last_good: Statistics | None,
    *,
    endpoints: Endpoints | None = None,
    as_of: int | None = None,
) -> Report:
    found = Gate(schema, last_good, endpoints, as_of)
    for located in batches:
        found.add(*located)
    return found.finish()
