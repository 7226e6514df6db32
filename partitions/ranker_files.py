"""A ranker as it is served: one folder that says all of it (this module owns its format).

    ranker.json      what is below, written last: see `Description`; with its own digest
    ranker.onnx      encoded rows -> probabilities
    features.json, features.arrow   rows -> encoded rows (partitions.features)
    golden.arrow     rows as they come, and what training's model said of them: Arrow IPC,
                     `row`: struct of the columns that features read, as the files had them;
                     `probability`: fixed-size list of float64 [T]

    inputs    single  int32 [n, S], bag0 .. bagB-1  int32 [n, L], dense  float32 [n, M]
    outputs   logit, probability  float32 [n, T], a column for each of `labels`

A bag's rows are filled up with -1 behind their ids, L is the longest one's number of ids and at
least 1. Inputs that the features don't have (S, B or M is 0) are not there.

Who writes the graph, and who runs it, are none of this module's business: to it, it is a file.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from partitions import durable
from partitions.durable import FileEntry
from partitions.errors import DataError
from partitions.features import Encoded, Features, Layout

FORMAT_VERSION = 1
FOLDER = "ranker"  # in a published version
DESCRIPTION, MODEL, GOLDEN = "ranker.json", "ranker.onnx", "golden.arrow"
SINGLE, BAG, DENSE = "single", "bag", "dense"
LOGIT, PROBABILITY = "logit", "probability"
_ROW = "row"
_REMEDY = "Publish again, or restore the file."


class Description(BaseModel):
    """`ranker.json`, but for its `format_version` and `digest`.

    digest: sha256 of the rest of the object, as JSON with sorted keys and no spaces.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: list[str]
    inputs: dict[str, list[str]]  # of ranker.onnx: the slots or dense columns that each holds
    features_digest: str
    files: dict[str, FileEntry]
    options: dict[str, Any]  # how it was made smaller
    metrics: dict[str, Any]  # what that cost
    golden_gap: float  # most that ranker.onnx and golden.arrow differ, when it was published


def inputs_of(layout: Layout) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    if layout.num_single:
        found[SINGLE] = [slot.name for slot in layout.slots if not slot.bag]
    for slot in layout.slots:
        if slot.bag:
            found[f"{BAG}{slot.column}"] = [slot.name]
    if layout.dense:
        found[DENSE] = list(layout.dense)
    return found


def fed(rows: Encoded) -> dict[str, NDArray[Any]]:
    """Encoded rows as the inputs of ranker.onnx."""
    found: dict[str, NDArray[Any]] = {}
    if rows.single.shape[1]:
        found[SINGLE] = rows.single
    for at, (values, offsets) in enumerate(rows.bags):
        counts = np.diff(offsets)
        width = max(int(counts.max(initial=0)), 1)
        padded = np.full((len(counts), width), -1, np.int32)
        padded[np.arange(width) < counts[:, None]] = values
        found[f"{BAG}{at}"] = padded
    if rows.dense.shape[1]:
        found[DENSE] = rows.dense
    return found


# --- writing -------------------------------------------------------------------------------------


def write_golden(folder: Path, rows: pa.RecordBatch, probability: NDArray[np.float64]) -> None:
    """rows: the columns that features read; probability: [n, T]."""
    flat = pa.array(np.ascontiguousarray(probability, np.float64).ravel())
    lists = pa.FixedSizeListArray.from_arrays(flat, probability.shape[1])
    table = pa.table({_ROW: rows.to_struct_array(), PROBABILITY: lists})
    with (folder / GOLDEN).open("wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def finish(folder: Path, **about: Any) -> Description:
    """Describe the files that are there; `about` are the fields of `Description` but `files`."""
    paths = [path for path in sorted(folder.iterdir()) if path.name != DESCRIPTION]
    files = {path.name: durable.entry_of(folder, path) for path in paths}
    found = Description(files=files, **about)
    content = {"format_version": FORMAT_VERSION, **found.model_dump(mode="json")}
    durable.write_json(folder / DESCRIPTION, {**content, "digest": _digest(content)})
    return found


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# --- reading -------------------------------------------------------------------------------------


class RankerFiles:
    """A ranker's folder, whole: every file is checked when it is opened."""

    def __init__(self, folder: Path) -> None:
        """Raises DataError that names the file that is missing, cut or altered."""
        self.folder = folder
        self.about = _described(folder / DESCRIPTION)
        for needed in (MODEL, GOLDEN, "features.json", "features.arrow"):
            if needed not in self.about.files:
                raise DataError(f"{folder / DESCRIPTION} names no {needed}. {_REMEDY}")
        for entry in self.about.files.values():
            durable.verify(folder, entry, _REMEDY)
        self.features = Features.load(folder)
        fits = self.features.digest == self.about.features_digest
        if not fits or inputs_of(self.features.layout) != self.about.inputs:
            raise DataError(
                f"{folder / DESCRIPTION} is of other features than those beside it. {_REMEDY}"
            )

    @property
    def model(self) -> Path:
        return self.folder / MODEL

    def golden(self) -> tuple[pa.RecordBatch, NDArray[np.float64]]:
        """(rows as they came, probability [n, T])"""
        with pa.memory_map(str(self.folder / GOLDEN)) as file:
            table = pa.ipc.open_file(file).read_all().combine_chunks()
        rows = table.column(_ROW).chunk(0)
        said = table.column(PROBABILITY).chunk(0).flatten().to_numpy()
        return pa.RecordBatch.from_struct_array(rows), said.reshape(len(rows), -1)


def _described(path: Path) -> Description:
    content = durable.read_json(path, _REMEDY)
    version = content.pop("format_version", None) if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path} is not of the ranker's format {FORMAT_VERSION}, found {version}. {_REMEDY}"
        )
    digest = content.pop("digest", None)
    if digest != _digest({"format_version": version, **content}):
        raise DataError(f"{path} was altered: its digest is not that of its content. {_REMEDY}")
    try:
        return Description.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{path} was altered: {where}: {first['msg']}. {_REMEDY}") from None
