"""What changed between two models, or two versions of one: lists, entities, vectors, probabilities.

The same askers are asked about in both, and what is compared are pairs: so a difference has an
interval far narrower than those of the two figures. An asker whom one of the two does not know has
an empty list there, that is 0 in each metric; such askers are counted, as are entities that only
one of the two has.

Letters: Q askers, K places, D dimension.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedsvc.edge_ids import Ids
from embedsvc.evaluation import clicks
from embedsvc.evaluation.lists import Asked, Judged
from embedsvc.evaluation.significance import Interval, holm, intervals, paired_each

Floats = NDArray[np.float64]
Keys = Any  # pa.Array or pa.ChunkedArray of text

CHURN_AT = 10
_SAMPLE = 20_000  # entities whose vectors are compared


@dataclass(frozen=True)
class Change:
    """Of one metric. p: by randomisation; adjusted: by Holm, over all metrics told beside it."""

    old: float
    new: float
    difference: Interval  # new - old, paired
    p: float
    adjusted: float


@dataclass(frozen=True)
class Churn:
    """How much of the first k places changed, over askers of whom either has a list."""

    k: int
    num_lists: int
    set_changed: float  # share of lists with another set of entities
    order_changed: float  # share of lists that differ at any place
    jaccard: float  # mean of entities in both lists / entities in either


@dataclass(frozen=True)
class ListChange:
    relation: str
    k: int
    num_asked: int
    without_old: int  # askers who have no list in the old one: it does not know them
    without_new: int
    metrics: dict[str, Change]
    churn: Churn


@dataclass(frozen=True)
class EntityChange:
    old: int
    new: int
    both: int
    appeared: int
    vanished: int


@dataclass(frozen=True)
class VectorDrift:
    """cosine: mean over entities held out of the fit, after the best rotation; NaN with `why`."""

    num_fitted: int
    num_judged: int
    cosine: float
    why: str = ""


@dataclass(frozen=True)
class RowChange:
    """Two rankers on the rows that have a label; intervals draw users, or rows without them."""

    label: str
    rows: int
    users: int | None
    auc: tuple[Interval, Interval, Interval]  # old, new, new - old
    log_loss: tuple[Interval, Interval, Interval]  # lower is better
    moved: float  # mean of |new - old| probability
    user_auc: tuple[Interval, Interval, Interval] | None = None  # None where users have none

    @property
    def figures(self) -> dict[str, tuple[Interval, Interval, Interval]]:
        """By the name that people read."""
        found = {"AUC": self.auc, "log loss": self.log_loss}
        return found if self.user_auc is None else {**found, "user_auc": self.user_auc}


def changes_of(old: Judged, new: Judged, asked: Asked) -> ListChange:
    """Of the lists of the same askers; `adjusted` is over the metrics of these lists."""
    names = list(new.values)
    before, after = (np.stack([j.values[n] for n in names], axis=1) for j in (old, new))
    tests = paired_each(after, before)
    adjusted = holm(np.array([test.p for test in tests])).tolist()
    metrics = {
        name: Change(_mean(before[:, at]), _mean(after[:, at]), test.difference, test.p, right)
        for at, (name, test, right) in enumerate(zip(names, tests, adjusted, strict=True))
    }
    return ListChange(
        asked.relation,
        new.k,
        len(asked),
        int(np.sum(_empty(old.found.ids))),
        int(np.sum(_empty(new.found.ids))),
        metrics,
        churn_of(old.found.ids, new.found.ids),
    )


def adjusted_together(changes: list[ListChange]) -> list[ListChange]:
    """The same with Holm over the metrics of all of them."""
    flat = [change for one in changes for change in one.metrics.values()]
    right = iter(holm(np.array([change.p for change in flat])).tolist())
    return [
        replace(
            one,
            metrics={
                name: replace(change, adjusted=next(right)) for name, change in one.metrics.items()
            },
        )
        for one in changes
    ]


def churn_of(old: Ids, new: Ids, at: int = CHURN_AT) -> Churn:
    """old, new: int64 [Q, K], -1 in empty places. Of lists shorter than `at`, all that is there."""
    k = min(at, old.shape[1], new.shape[1])
    old, new = old[:, :k], new[:, :k]
    some = ~(_empty(old) & _empty(new))
    old, new = old[some], new[some]
    if not len(old):
        return Churn(k, 0, float("nan"), float("nan"), float("nan"))
    # Each id once a list, so a pair of equal neighbours in the sorted rows is in both lists.
    both = np.sort(np.concatenate([old, new], axis=1), axis=1)
    common = ((both[:, 1:] == both[:, :-1]) & (both[:, 1:] >= 0)).sum(axis=1)
    either = (both >= 0).sum(axis=1) - common
    return Churn(
        k,
        len(old),
        float(np.mean(common < either)),
        float(np.mean((old != new).any(axis=1))),
        float(np.mean(common / either)),
    )


def _empty(ids: Ids) -> NDArray[np.bool_]:
    return np.asarray((ids < 0).all(axis=1))


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")


def sample_of(count: int, most: int) -> Ids:
    """A seeded sample of `most` of so many, ascending; all where there are no more."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(2).choice(count, most, replace=False)).astype(np.int64)


def entity_change(old: Keys, new: Keys) -> EntityChange:
    both = int(pc.sum(pc.is_in(new, value_set=_flat(old.cast(new.type)))).as_py() or 0)
    return EntityChange(len(old), len(new), both, len(new) - both, len(old) - both)


def common_rows(old: Keys, new: Keys) -> tuple[Ids, Ids]:
    """Rows of the same key in both: a seeded sample of at most _SAMPLE, ascending in `new`."""
    at = pc.index_in(new, value_set=_flat(old.cast(new.type)))
    rows = np.asarray(pc.fill_null(_flat(at), -1).to_numpy(zero_copy_only=False), np.int64)
    shared = np.flatnonzero(rows >= 0)
    shared = shared[sample_of(len(shared), _SAMPLE)]
    return rows[shared], shared


def _flat(keys: Keys) -> pa.Array:
    return keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys


def vector_drift(old: NDArray[np.float32], new: NDArray[np.float32]) -> VectorDrift:
    """Rows are of the same entities. A model's scores stay what they are when all vectors are
    turned alike, so `old` is turned first as fits `new` best (orthogonal Procrustes, of unit
    vectors): by one half of the rows, drawn at random, and judged by the other.
    """
    nothing = float("nan")
    if old.shape[1] != new.shape[1]:
        why = f"vectors have {old.shape[1]} numbers, then {new.shape[1]}"
        return VectorDrift(0, 0, nothing, why)
    lengths = np.stack([np.linalg.norm(v.astype(np.float64), axis=1) for v in (old, new)])
    sound = np.isfinite(lengths).all(axis=0) & (lengths > 0).all(axis=0)
    a, b = (v[sound] / lengths[at][sound, None] for at, v in enumerate((old, new)))
    if len(a) < 4 * old.shape[1]:
        why = f"{len(a):,} common entities are too few to fit a rotation of {old.shape[1]} numbers"
        return VectorDrift(0, 0, nothing, why)
    order = np.random.default_rng(3).permutation(len(a))
    fitted, judged = np.split(order, [len(a) // 2])
    left, _, right = np.linalg.svd(a[fitted].T @ b[fitted])
    cosines = np.einsum("nd,nd->n", a[judged] @ (left @ right), b[judged])
    return VectorDrift(len(fitted), len(judged), float(cosines.mean()))


def settings_changed(
    old: Mapping[str, object], new: Mapping[str, object], under: str = ""
) -> dict[str, tuple[object, object]]:
    """Dotted key -> (old, new) of each setting that differs; None where one has none."""
    found: dict[str, tuple[object, object]] = {}
    for key in sorted({*old, *new}):
        was, now, name = old.get(key), new.get(key), f"{under}{key}"
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            found |= settings_changed(was, now, f"{name}.")
        elif was != now:
            found[name] = (was, now)
    return found


def row_change(label: str, old: clicks.Clicks, new: clicks.Clicks) -> RowChange:
    """Of the same rows, of which some count."""
    whose = np.arange(len(new)) if new.user is None else new.user
    said = [new.probability, old.probability]
    found = {
        name: judge(said, new.label, whose, weight=new.weight)
        for name, judge in (("auc", clicks.paired_auc), ("log_loss", clicks.paired_log_loss))
    }
    moved = float(np.average(np.abs(said[0] - said[1]), weights=new.weight))
    users = None if new.user is None else len(np.unique(new.user))
    auc, log_loss = (
        (values[1], values[0], less[0]) for values, less in (found["auc"], found["log_loss"])
    )
    return RowChange(label, len(new), users, auc, log_loss, moved, _user_auc(old, new))


def _user_auc(old: clicks.Clicks, new: clicks.Clicks) -> tuple[Interval, Interval, Interval] | None:
    before, after = (clicks.user_auc(each) for each in (old, new))
    if before is None or after is None:
        return None
    was, now, less = intervals(np.stack([before, after, after - before], axis=1))
    return was, now, less
