"""A published ranker: columns of rows in, probabilities out, by onnxruntime; torch is not needed.

    ranker = Ranker.live(Path("runs/movies/published"))
    ranker.score({"user": ["u7"] * 3, "movie": [10, 11, 12]})       # float32 [3, labels]

Rows are encoded by the same code that encoded them for training. What a row lacks becomes the
declared default, else it is missing as it was in training, and is counted. A call uses one thread,
so that as many calls run side by side as there are cores.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from partitions.errors import DataError
from partitions.features.columns import Rows
from partitions.published import current
from partitions.ranker_files import FOLDER, PROBABILITY, RankerFiles, fed

Floats = NDArray[np.float32]


class Ranker:
    """May be asked from several threads."""

    def __init__(self, files: RankerFiles, threads: int = 1) -> None:
        """threads: of onnxruntime, for one call."""
        self.labels, self.features = tuple(files.about.labels), files.features
        self.files = files
        self.session = _session(files, threads)

    @classmethod
    def open(cls, folder: Path, threads: int = 1) -> "Ranker":
        """folder: that holds ranker.json. Raises DataError that names the damaged file."""
        return cls(RankerFiles(folder), threads)

    @classmethod
    def live(cls, root: Path, threads: int = 1) -> "Ranker":
        """Of the live version under `root`, [run] dir's `published`."""
        version = root / current(root)
        if not (version / FOLDER).is_dir():
            raise DataError(f"{version} holds no ranker: it was published without [ranker].")
        return cls.open(version / FOLDER, threads)

    @property
    def missing(self) -> Mapping[str, int]:
        """By feature, how many values of all rows so far were missing."""
        return self.features.missing

    def score(self, columns: Rows) -> Floats:
        """Probabilities, [rows, labels]. columns: by name, lists or arrays of one length, or a
        record batch; those that no feature reads are ignored.

        Raises DataError that names feature and row for a value that can't be read as trained.
        """
        found: Floats = self.session.run([PROBABILITY], fed(self.features.encode(columns)))[0]
        return found


def _session(files: RankerFiles, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors, which are raised anyway
    try:
        session = onnxruntime.InferenceSession(
            str(files.model), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its classes share no base of their own
        first = str(error).strip().splitlines()[0]
        raise DataError(
            f"{files.model} is no graph that this onnxruntime reads ({first}). Publish again."
        ) from None
    found = {one.name for one in session.get_inputs()}
    if found != set(files.about.inputs):
        raise DataError(
            f"{files.model} has other inputs than {files.folder / 'ranker.json'} says: publish "
            "again."
        )
    return session
