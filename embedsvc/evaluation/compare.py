"""Two published versions side by side: `embedsvc compare`.

Both are asked, exactly and by the vectors in them, about the same held-out edges of the graph as
it is now; entities are matched by key. So two versions with different entities compare by one rule:

    an asker whom a version does not know has an empty list: 0 in each metric, and counted
    what a version knows and the graph does not is never listed
    what a version does not know can't be found by it, and stays to be found

Two rankers are asked about the same held-out rows, each by its own features.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ValidationError

from embedsvc.evaluation import changes, clicks
from embedsvc.evaluation.changes import EntityChange, ListChange, RowChange, VectorDrift
from embedsvc.evaluation.lists import Asked, Progress, judge
from embedsvc.evaluation.rankers import Probabilities, clicks_of
from embedsvc.evaluation.sources import OfVersion
from embedsvc.ranking.config import RankerConfig
from partitions import config as settings_file
from partitions import published
from partitions.config import RunConfig
from partitions.errors import ConfigError, DataError, did_you_mean
from partitions.graph import Graph
from partitions.published import MANIFEST, PublishedVersion
from partitions.ranker_files import FOLDER, PROBABILITY, RankerFiles, fed

MAX_RELATIONS = 12  # unless they are named
_SCORED_ROWS = 4_096


@dataclass(frozen=True)
class Opened:
    """A version, and where it lies."""

    version: PublishedVersion
    folder: Path

    @property
    def name(self) -> str:
        return self.version.name

    @property
    def is_ranker(self) -> bool:
        manifest = self.version.manifest
        return not manifest.entity_types and any(p.startswith(f"{FOLDER}/") for p in manifest.files)

    def settings(self) -> dict[str, Any]:
        return self._json("config.json")

    def metrics(self) -> dict[str, Any]:
        return self._json("metrics.json")

    def _json(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(bytes(self.version.file(name)))
        return found


@dataclass(frozen=True)
class About:
    """Of a version: facts that both kinds have."""

    version: str
    folder: str
    created: str
    checkpoint: str  # digest, "" where it is not known
    bytes: dict[str, int]  # by what it is for: vectors, indexes, keys, seen, ranker, other
    indexes: dict[str, str]  # "item score" -> "exact dot"
    eval_s: float | None  # how long its evaluation took


@dataclass(frozen=True)
class Comparison:
    old: About
    new: About
    split: str
    lists: tuple[ListChange, ...] = ()
    rows: tuple[RowChange, ...] = ()
    entities: Mapping[str, EntityChange] | None = None
    vectors: Mapping[str, VectorDrift] | None = None
    settings: Mapping[str, tuple[Any, Any]] | None = None  # dotted key -> old, new
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def opened(root: Path, name: str) -> Opened:
    """name: of a version in `root`, or the path of a version's folder, of a folder of versions or
    of a run's TOML file, which stand for the live one."""
    path = Path(name)
    if name in published.versions(root):
        path = root / name
    elif path.suffix == ".toml" and path.is_file():
        return opened(settings_file.load(path, []).table("run", RunConfig).published, "")
    elif name and not path.is_dir():
        published.check_known(root, name)
    path = path if name else root
    if not (path / MANIFEST).exists():
        path = path / published.current(path)
    manifest = published.read_manifest(path.parent, path.name)
    return Opened(PublishedVersion(manifest, published.disk(path)), path)


def compare(
    old: Opened,
    new: Opened,
    graph: Graph,
    split: str,
    k: int,
    relations: list[str],
    progress: Progress = lambda answered: None,
) -> Comparison:
    """relations: whose lists are compared; none: those in both with the most held-out edges."""
    _check_kinds(old, new, ranker=False)
    chosen, notes = _relations(old, new, graph, split, relations)
    lists = []
    for relation in chosen:
        asked = Asked.of(graph, relation, split)
        if not len(asked):
            notes.append(f"{relation}: the {split} split has no edge of it to find.")
            continue
        both = [OfVersion(each.version, graph, relation, split) for each in (old, new)]
        before, after = (judge(source, asked, k, progress) for source in both)
        lists.append(changes.changes_of(before, after, asked))
    entities, vectors = _entities(old.version, new.version)
    return Comparison(
        *_about_both(old, new),
        split,
        lists=tuple(changes.adjusted_together(lists)),
        entities=entities,
        vectors=vectors,
        settings=changes.settings_changed(old.settings(), new.settings()),
        notes=(*notes, *_only_in_one(old, new)),
    )


def _check_kinds(old: Opened, new: Opened, *, ranker: bool) -> None:
    kinds = {True: "a ranker", False: "vectors of a graph"}
    if old.is_ranker != new.is_ranker:
        raise DataError(
            f"{old.folder} is {kinds[old.is_ranker]}, {new.folder} {kinds[new.is_ranker]}: compare "
            "versions of one kind."
        )
    if old.is_ranker != ranker:
        how = "with" if old.is_ranker else "without"
        raise ConfigError(
            f"{old.name} and {new.name} are {kinds[old.is_ranker]}: give the TOML file of such a "
            f"run, {how} [ranker]."
        )


def _relations(
    old: Opened, new: Opened, graph: Graph, split: str, wanted: list[str]
) -> tuple[list[str], list[str]]:
    """Whose lists are compared, and what there is to say of the others."""
    known = [
        relation.name
        for relation in old.version.manifest.relations
        if relation.name in {other.name for other in new.version.manifest.relations}
    ]
    for name in wanted:
        if name not in known:
            raise DataError(
                f"{old.name} and {new.name} do not both have the relation {name}. "
                f"{did_you_mean(name, known)}"
            )
    if wanted:
        return wanted, []
    counts = dict(
        zip(
            (relation.name for relation in graph.relations),
            graph.manifest.relation_edges[split],
            strict=True,
        )
    )
    held = sorted(known, key=lambda name: -counts.get(name, 0))
    held = [name for name in held if counts.get(name, 0)]
    notes = []
    if unheld := len(known) - len(held):
        notes.append(f"{unheld:,} relations have no edge in the {split} split of this graph.")
    if len(held) > MAX_RELATIONS:
        notes.append(
            f"Of {len(held):,} relations the {MAX_RELATIONS} with the most held-out edges are "
            "compared; --relation chooses others."
        )
    return held[:MAX_RELATIONS], notes


def _only_in_one(old: Opened, new: Opened) -> list[str]:
    notes = []
    for noun in ("relations", "entity_types"):
        was, now = (
            [part.name for part in getattr(each.version.manifest, noun)] for each in (old, new)
        )
        for name, rest in (
            (old.name, [part for part in was if part not in now]),
            (new.name, [part for part in now if part not in was]),
        ):
            if rest:
                notes.append(f"Only {name} has the {noun.replace('_', ' ')} {', '.join(rest)}.")
    return notes


def _entities(
    old: PublishedVersion, new: PublishedVersion
) -> tuple[dict[str, EntityChange], dict[str, VectorDrift]]:
    """Of the types that both have."""
    entities, vectors = {}, {}
    known = {part.name for part in old.manifest.entity_types}
    for name in (part.name for part in new.manifest.entity_types if part.name in known):
        keys = [each.keys(name).column("key") for each in (old, new)]
        entities[name] = changes.entity_change(*keys)
        rows = changes.common_rows(*keys)
        was, now = (
            np.asarray(each.vectors(name)[at]) for each, at in zip((old, new), rows, strict=True)
        )
        vectors[name] = changes.vector_drift(was, now)
    return entities, vectors


def _about_both(old: Opened, new: Opened) -> tuple[About, About]:
    before, after = _about(old), _about(new)
    if before.version == after.version:  # of two folders
        before, after = (replace(one, version=one.folder) for one in (before, after))
    return before, after


def _about(one: Opened) -> About:
    manifest, metrics = one.version.manifest, one.metrics()
    indexes = {
        f"{part.name} {name}": f"{index.kind} {index.metric}"
        for part in manifest.entity_types
        for name, index in part.indexes.items()
    }
    sizes: dict[str, int] = {}
    for path, file in manifest.files.items():
        purpose = _purpose(path)
        sizes[purpose] = sizes.get(purpose, 0) + file.bytes
    seconds = metrics.get("seconds", metrics.get("evaluation", {}).get("seconds"))
    return About(
        manifest.version,
        str(one.folder),
        manifest.created,
        metrics.get("checkpoint", ""),
        dict(sorted(sizes.items())),
        indexes,
        seconds,
    )


def _purpose(path: str) -> str:
    if path.endswith(".faiss"):
        return "indexes"
    name = path.rsplit("/", 1)[-1]
    for start, purpose in (("vectors-", "vectors"), ("keys-", "keys"), ("seen/", "seen")):
        if name.startswith(start) or path.startswith(start):
            return purpose
    return "ranker" if path.startswith(f"{FOLDER}/") else "other"


# --- rankers --------------------------------------------------------------------------------------


def compare_rankers(
    old: Opened,
    new: Opened,
    config: RankerConfig,
    split: str,
    progress: Callable[[int], None] = lambda rows: None,
) -> Comparison:
    """config: of the run as it is set now, which says what a split's rows are, and whose."""
    _check_kinds(old, new, ranker=True)
    before, after = (clicks_of_version(each, config, split, progress) for each in (old, new))
    notes = [
        f"Only {name} knows the labels {', '.join(rest)}."
        for name, rest in (
            (old.name, [label for label in before if label not in after]),
            (new.name, [label for label in after if label not in before]),
        )
        if rest
    ]
    rows = []
    for label in (label for label in after if label in before):
        if after[label].weight.sum() > 0:
            rows.append(changes.row_change(label, before[label], after[label]))
        else:
            notes.append(f"{label}: no row of the {split} split has it.")
    return Comparison(
        *_about_both(old, new),
        split,
        rows=tuple(rows),
        settings=changes.settings_changed(old.settings(), new.settings()),
        notes=tuple(notes),
    )


def clicks_of_version(
    each: Opened,
    config: RankerConfig,
    split: str,
    progress: Callable[[int], None] = lambda rows: None,
) -> dict[str, clicks.Clicks]:
    """By label: what a published ranker says of the rows of a split."""
    said = _said_by(RankerFiles(each.folder / FOLDER))
    return clicks_of(said, _reading(each, config, split), split, progress)[1]


def _reading(each: Opened, config: RankerConfig, split: str) -> RankerConfig:
    """What the version's features read, of the rows that are there now."""
    try:
        its = RankerConfig.model_validate(each.settings()["ranker"])
    except (KeyError, ValidationError) as error:
        raise DataError(
            f"{each.folder}: its config.json describes no ranker ({error}). Publish it again."
        ) from None
    now = {split: getattr(config, split), "user": config.user, "weight": config.weight}
    return its.model_copy(update=now)


def _said_by(files: RankerFiles) -> Probabilities:
    """A published ranker's probabilities, as it is served."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(files.model), options, providers=["CPUExecutionProvider"]
    )

    def probabilities(rows: pa.RecordBatch) -> NDArray[np.float64]:
        encoded = files.features.encode(rows)
        parts = [np.empty((0, len(files.about.labels)))]
        for first in range(0, len(encoded), _SCORED_ROWS):
            piece = encoded.slice(first, min(first + _SCORED_ROWS, len(encoded)))
            parts.append(np.asarray(session.run([PROBABILITY], fed(piece))[0], np.float64))
        return np.concatenate(parts)

    return probabilities
