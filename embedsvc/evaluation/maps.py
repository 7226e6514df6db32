"""A map of vectors in two dimensions: what is alike lies together.

The entities with the most edges and a seeded sample of the others are placed by t-SNE, few by their
two main axes. Distances between far groups mean nothing in it; who is beside whom does.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedsvc.edge_ids import Ids
from embedsvc.evaluation import tsne
from embedsvc.evaluation.neighbours import Named, names_of
from embedsvc.pages import NUM_COLOURS
from embedsvc.trained import Trained
from partitions.graph import Graph

Floats = NDArray[np.float32]

MAX_POINTS = 1_500  # of all maps of a page together
_FEW = 50  # below, t-SNE has nothing to tell groups by
_ROUNDS = 500
_PERPLEXITY = 30.0
_OTHER = "other"


@dataclass(frozen=True)
class Map:
    entity_type: str
    entities: list[Named]
    degrees: Ids  # [n]
    places: NDArray[np.float64]  # [n, 2]
    colours: Ids | None  # [n], places in `groups`; None: of one colour
    groups: tuple[str, ...]
    coloured_by: str  # the attribute, or ""
    left_out: int  # vectors that point nowhere: 0, or not finite


def map_of(trained: Trained, entity_type: str, degrees: Ids, max_points: int, seed: int = 0) -> Map:
    """degrees: int64 [entities]."""
    ids = chosen(degrees, max_points, seed)
    vectors = trained.gather(entity_type, ids).numpy()
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    sound = np.flatnonzero(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0))
    left_out, ids = len(ids) - len(sound), ids[sound]
    unit = np.asarray(vectors[sound] / lengths[sound], np.float32)
    colours, groups, name = _coloured(trained.graph, entity_type, ids)
    return Map(
        entity_type,
        names_of(trained.graph, entity_type, ids),
        degrees[ids],
        placed(unit),
        colours,
        groups,
        name,
        left_out,
    )


def chosen(degrees: Ids, max_points: int, seed: int = 0) -> Ids:
    """Half of them those with the most edges, the rest drawn from the others; ascending."""
    if len(degrees) <= max_points:
        return np.arange(len(degrees))
    order = np.argsort(-degrees, kind="stable")
    hubs, others = np.split(order, [max_points // 2])
    drawn = np.random.default_rng(seed).choice(others, max_points - len(hubs), replace=False)
    return np.sort(np.concatenate([hubs, drawn])).astype(np.int64)


def placed(unit: Floats) -> NDArray[np.float64]:
    """float64 [n, 2] of unit vectors [n, D]."""
    if len(unit) < _FEW:
        return _main_axes(unit)
    start = _main_axes(unit)
    spread = float(start[:, 0].std())
    if not spread > 0:  # all alike
        return start
    p = tsne.picked(unit, min(_PERPLEXITY, len(unit) / 4))
    return tsne.placed(p, start / spread * 1e-4, _ROUNDS)


def _main_axes(vectors: Floats) -> NDArray[np.float64]:
    """Principal components, signs so that each one's largest part is positive."""
    if not len(vectors):
        return np.empty((0, 2))
    middle = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    _, _, axes = np.linalg.svd(middle, full_matrices=False)
    axes = (
        axes[:2] * np.sign(axes[np.arange(len(axes[:2])), np.abs(axes[:2]).argmax(axis=1)])[:, None]
    )
    found = middle @ axes.T
    return np.pad(found, ((0, 0), (0, 2 - found.shape[1])))


def _coloured(graph: Graph, entity_type: str, ids: Ids) -> tuple[Ids | None, tuple[str, ...], str]:
    """By the first attribute that has a few values which most of these have."""
    table = graph.attributes(entity_type)
    for name in table.column_names if table is not None and len(ids) else []:
        assert table is not None
        column = table.column(name).take(pa.array(ids)).to_pylist()
        values, counts = np.unique(["" if v is None else v for v in column], return_counts=True)
        common = values[np.argsort(-counts, kind="stable")][: NUM_COLOURS - 1].tolist()
        covered = int(np.sort(counts)[::-1][: NUM_COLOURS - 1].sum())
        if len(values) < 2 or covered < 0.8 * len(ids):
            continue
        at = {value: place for place, value in enumerate(common)}
        colours = np.array([at.get(value or "", len(common)) for value in column])
        groups = [value or f"no {name}" for value in common]
        if (colours == len(common)).any():
            groups.append(_OTHER)
        return colours.astype(np.int64), tuple(groups), name
    return None, (), ""
