"""Learns: graph embeddings larger than memory, their evaluation and their publication.

From Python, the road of the command line:

    import embedsvc

    embedsvc.import_graph("graph.toml")
    embedsvc.train("graph.toml", ["train.epochs=20"])
    [users] = embedsvc.export_embeddings("graph.toml", "users.parquet", entity_type="user")
    keys, vectors = embedsvc.load_embeddings(users)

Settings are a TOML file or the same tables as a dict; overrides are "table.key=value". Mistakes in
settings raise partitions.errors.ConfigError, in data DataError, a folder in use BusyError: all are
InputError. Importing this module loads nothing else: each function loads what it needs.
"""

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from embedsvc.road import Road
    from embedsvc.training.trainer import TrainReport
    from partitions.embeddings import Embeddings
    from partitions.importer import ImportReport

__all__ = ["export_embeddings", "import_graph", "load_embeddings", "stream_embeddings", "train"]

_Path = str | PathLike[str]
_Settings = _Path | Mapping[str, Any]


def import_graph(
    settings: _Settings,
    overrides: Sequence[str] = (),
    *,
    append: bool = False,
    replace: bool = False,
    accept: bool = False,
) -> "ImportReport":
    """Raw files -> the partitioned graph in [run] dir, as `embedsvc import`.

    append: add input files that are new; replace: make the graph anew. Without either, a graph that
    is there is an error. accept: these data are right, edit the schema to let them in. Returns
    counts: edges by split, entities by type, rows skipped, edges dropped. Raises ConfigError,
    DataError (a malformed row is named by file and line), BusyError.
    """
    report = _road(settings, overrides).import_graph(append=append, replace=replace, accept=accept)
    assert report is not None
    return report


def train(settings: _Settings, overrides: Sequence[str] = ()) -> "TrainReport":
    """Graph -> checkpoint in [run] dir, as `embedsvc train`: resumes what is there.

    Returns what this call did: edges trained, seconds, mean loss per edge over the last bucket (NaN
    where nothing was left to do), table reads and writes, bytes of them, whether it resumed. Raises
    ConfigError (the memory plan can't fit, or the checkpoint was begun with other settings),
    DataError (damaged files, divergence), BusyError.
    """
    return _road(settings, overrides).train()


def export_embeddings(
    settings: _Settings,
    to: _Path,
    overrides: Sequence[str] = (),
    *,
    format: str | None = None,
    entity_type: str | None = None,
) -> "list[Path]":
    """Checkpoint -> files of vectors by key, as `embedsvc export`; returns the files.

    to: a file for one entity type, or a folder for all. format: parquet, arrow, npy or word2vec;
    unset: by the file's name, else parquet. One partition is in memory at a time. Raises
    ConfigError, and DataError for a key that the format can't hold.
    """
    from pathlib import Path

    return _road(settings, overrides).export(Path(to), format, entity_type)


def load_embeddings(path: _Path) -> "Embeddings":
    """Keys and vectors of an exported file, of whichever format:

        keys, vectors = load_embeddings("users.parquet")

    keys: pyarrow large_string [rows]; keys.to_pylist() gives str. vectors: float32 [rows, dim], row
    by row of keys; of an npy file memory-mapped and read-only. Raises DataError for a file that is
    missing, truncated or no file of embeddings.
    """
    from pathlib import Path

    from partitions import embeddings

    return embeddings.read(Path(path))


def stream_embeddings(path: _Path) -> "Iterator[Embeddings]":
    """The same in pieces of bounded size (keys [n], vectors float32 [n, dim]), in file order."""
    from pathlib import Path

    from partitions import embeddings

    return embeddings.read_pieces(Path(path))


def _road(settings: _Settings, overrides: Sequence[str]) -> "Road":
    from pathlib import Path

    from embedsvc.road import Road
    from partitions import config

    if isinstance(settings, Mapping):
        loaded = config.from_tables(settings, overrides)
    else:
        loaded = config.load(Path(settings), overrides)
    return Road(loaded, quiet=True)
