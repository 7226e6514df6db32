"""Checkpoint -> embedding files: one per entity type, one partition in memory at a time."""

from collections.abc import Callable
from pathlib import Path

from embedsvc.trained import Trained
from partitions import embeddings
from partitions.embeddings import SUFFIXES
from partitions.errors import ConfigError, did_you_mean
from partitions.graph import slots_of

Progress = Callable[[str, int], None]  # entity type, rows written since the last call


def export(
    trained: Trained,
    to: Path,
    format: str | None = None,
    entity_type: str | None = None,
    progress: Progress = lambda name, rows: None,
) -> list[Path]:
    """Write the vectors of one entity type, or of each; returns the files.

    to: a file for one type, or a folder that gets TYPE.parquet and the like. format: one of
    partitions.embeddings.SUFFIXES; unset: what the file's name ends in, parquet where it has no
    ending. Rows are in the order of ids. Raises ConfigError for a target that doesn't suit,
    DataError for a key that the format can't hold; files that were there then stay as they were.
    """
    if format is not None and format not in SUFFIXES:
        hint = did_you_mean(format, list(SUFFIXES))
        raise ConfigError(f"There is no embedding format named {format}. {hint}")
    format = _format_of(to, format)
    files = _targets(trained, to, format, entity_type)
    for name, path in files.items():
        _write(trained, name, path, format, progress)
    return list(files.values())


def _format_of(to: Path, asked: str | None) -> str:
    """The format asked for, or the one that the file's name ends in, which must not differ."""
    named = _format_named_by(to)
    if to.is_dir() or to.suffix == "":
        return asked or "parquet"
    endings = ", ".join(f"{suffix} ({name})" for name, suffix in SUFFIXES.items())
    if named is None and asked is None:
        raise ConfigError(
            f"{to}: the ending {to.suffix} names no embedding format. End the name in one of "
            f"{endings}, or choose with --format."
        )
    if named is not None and asked not in (None, named):
        raise ConfigError(
            f"{to}: the ending {to.suffix} is of {named} and --format is {asked}. Choose one of "
            f"{endings}."
        )
    return asked or named or "parquet"


def _format_named_by(path: Path) -> str | None:
    return next((name for name, suffix in SUFFIXES.items() if path.suffix == suffix), None)


def _targets(trained: Trained, to: Path, format: str, entity_type: str | None) -> dict[str, Path]:
    known = list(trained.graph.entity_types)
    if entity_type is not None and entity_type not in known:
        hint = did_you_mean(entity_type, known)
        raise ConfigError(f"{trained.graph.path} has no entity type {entity_type}. {hint}")
    learnt = trained.entity_types
    if entity_type is not None and entity_type not in learnt:
        raise ConfigError(
            f"[output] learnt no vectors of {entity_type}, only of {', '.join(learnt)}: choose one "
            "of these."
        )
    names = learnt if entity_type is None else [entity_type]
    is_file = _format_named_by(to) is not None or (len(names) == 1 and to.suffix != "")
    if to.is_dir() or not is_file:
        return {name: to / f"{name}{SUFFIXES[format]}" for name in names}
    if len(names) > 1:
        raise ConfigError(
            f"{to} is one file and there are {len(names)} entity types ({', '.join(names)}): "
            "choose one with --type, or name a folder."
        )
    return {names[0]: to}


def _write(trained: Trained, name: str, path: Path, format: str, progress: Progress) -> None:
    graph, model = trained.graph, trained.model
    about = {
        "entity_type": name,
        "metric": model.comparator.metric,
        "checkpoint": trained.digest,
    }
    num_rows = graph.num_entities(name)
    with embeddings.writing(path, format, num_rows, model.dim, about) as write:
        for slot in slots_of(graph.entity_types[name]):
            write(graph.keys(slot), trained.vectors(slot))
            progress(name, graph.num_rows(slot))
