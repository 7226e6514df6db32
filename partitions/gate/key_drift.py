"""Drift of the keys of a graph: degrees, hubs, new keys, their number, repeated rows, self-loops.

Where keys differ from the last batch's, the other columns and entity types are asked whether they
know them: that tells swapped columns and ids of another type from mere news.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from partitions.gate import drift
from partitions.gate.anomalies import Distance
from partitions.gate.column_statistics import EndpointStatistics
from partitions.gate.columns import KEY_COLUMNS
from partitions.gate.data_schema import Thresholds
from partitions.gate.sketches import KeySample, bucket_of
from partitions.gate.statistics import Endpoints, RelationStatistics, Statistics, ends_of
from partitions.hashing import hash_keys

_FEW = 50  # rows of a relation that nothing can be seen in
_ERRORS = 4.5  # standard errors that chance does not pass


def key_distances(
    old: Statistics, new: Statistics, thresholds: Thresholds, endpoints: Endpoints
) -> list[Distance]:
    found: list[Distance] = []
    known = old.entities(endpoints)
    for name, now in new.relations.items():
        was = old.relations.get(name)
        if was is None or len(now.sides) < 2 or min(was.rows, now.rows) < _FEW:
            continue
        types = ends_of(endpoints, name)
        own: list[Distance] = []
        for at, side in enumerate(KEY_COLUMNS):
            about = {"column": side, "relation": name, "entity": types[at] if types else None}
            ends = was.sides[side], now.sides[side]
            own += [
                _degrees(*ends, thresholds, about),
                _hub(*ends, thresholds, about),
                *_unseen(*ends, thresholds, about, known),
            ]
        swapped = any(d.drifted for d in own) and _are_swapped(was, now)
        if swapped:
            own.append(_swapped(name, own))
        found += [*own, _self_loops(name, was, now, thresholds)]
    found += _entity_counts(known, new.entities(endpoints), thresholds)
    found.append(_duplicates(old, new, thresholds))
    return found


def _degrees(
    old: EndpointStatistics,
    new: EndpointStatistics,
    thresholds: Thresholds,
    about: Mapping[str, Any],
) -> Distance:
    """Histograms of log2 degree, the larger batch thinned to the smaller one's size."""
    size = min(old.rows, new.rows)
    p, q = (drift.degree_histogram(e.sample.kept[1], size / e.rows) for e in (old, new))
    n, m = float(p.sum()), float(q.sum())
    p, q = (h / max(h.sum(), 1e-300) for h in (p, q))
    return Distance(
        "degree_drift",
        f"edges a key has, {about['column']} of {about['relation']}",
        drift.jensen_shannon(p, q) if n and m else 0.0,
        thresholds.degrees,
        drift.jensen_shannon_noise(int(((p + q) > 0).sum()), n, m),
        edit=(("drift",), "degrees"),
        **about,
    )


def _hub(
    old: EndpointStatistics,
    new: EndpointStatistics,
    thresholds: Thresholds,
    about: Mapping[str, Any],
) -> Distance:
    p, q = drift.shares(old.buckets), drift.shares(new.buckets)
    at = int(np.argmax(np.abs(q - p)))
    rises = q[at] > p[at]
    both = (p * old.rows + q * new.rows) / (old.rows + new.rows)
    name = _hub_of(new, at)
    who = f" ({name!r} leads)" if name is not None and rises else ""
    return Distance(
        "hub_explosion" if rises else "key_drift",
        f"largest change of one key's share, {about['column']} of {about['relation']}",
        drift.l_infinity(p, q),
        thresholds.hub,
        drift.l_infinity_noise(both, old.rows, new.rows),
        edit=(("drift",), "hub"),
        detail=f"from {p[at]:.2%} to {q[at]:.2%}{who}",
        **about,
    )


def _hub_of(found: EndpointStatistics, bucket: int) -> str | None:
    """The largest key of a bucket, where it was noted."""
    names = [name for name, _ in found.hubs.most_common()]
    buckets = bucket_of(hash_keys(pa.array(names, pa.large_string()))).tolist()
    return next((n for n, at in zip(names, buckets, strict=True) if at == bucket), None)


# --- keys that the last batch lacks -------------------------------------------------------------


def unseen_share(old: KeySample, new: KeySample, rows: int) -> tuple[float, float]:
    """(share of the `rows` behind `new` whose key `old` lacks, its standard error).

    Both samples keep the keys below a hash, so below the smaller limit they can be compared key by
    key; what is found there stands for 1/fraction as much. The error is that of a sum over keys,
    each with its rows: sqrt(sum of count^2) / fraction / rows.
    """
    fraction = min(old.fraction, new.fraction)
    limit = np.uint64(min(fraction * 2.0**64, 2.0**64 - 2048))
    hashes, counts = new.kept
    inside = hashes <= limit
    counts = counts[inside][~np.isin(hashes[inside], old.kept[0])].astype(np.float64)
    error = np.sqrt(np.sum(counts**2)) / fraction / rows
    return min(1.0, float(counts.sum()) / fraction / rows), float(error)


def expected_unseen(sample: KeySample, rows: int) -> tuple[float, float]:
    """(share of the next batch's rows with a key that this one lacks, its standard error).

    Good and Turing: the keys seen once, over the rows. Holds for a next batch of any size.
    """
    once = int(np.count_nonzero(sample.kept[1] == 1))
    scale = 1 / sample.fraction / rows
    return min(1.0, once * scale), float(np.sqrt(once) * scale)


def _unseen(
    old: EndpointStatistics,
    new: EndpointStatistics,
    thresholds: Thresholds,
    about: Mapping[str, Any],
    known: Mapping[str, EndpointStatistics],
) -> Iterator[Distance]:
    share, error = unseen_share(old.sample, new.sample, new.rows)
    expected, spread = expected_unseen(old.sample, old.rows)
    share = max(share, expected)  # fewer news than expected are no alarm
    noise = _ERRORS * float(np.hypot(error, spread))
    side, relation = about["column"], about["relation"]
    yield Distance(
        "unseen_keys",
        f"share of edges with a new {side} key, {relation}",
        share,
        thresholds.unseen,
        noise,
        expected,
        edit=(("drift",), "unseen"),
        **about,
    )
    elsewhere = {
        name: share - unseen_share(_union(old.sample, other.sample), new.sample, new.rows)[0]
        for name, other in known.items()
        if name != about["entity"]
    }
    best = max(elsewhere, key=lambda name: elsewhere[name], default=None)
    if best is not None and elsewhere[best] > share / 2:
        yield Distance(
            "wrong_entity_type",
            f"share of edges whose {side} key is new to {relation}, but a known {best} key",
            max(elsewhere[best], expected),
            thresholds.foreign,
            noise,
            expected,
            edit=(("drift",), "foreign"),
            **about,
        )


def _union(one: KeySample, other: KeySample) -> KeySample:
    both = KeySample(one.size)
    both.merge(one)
    both.merge(other)
    return both


# --- swapped columns ----------------------------------------------------------------------------


def _are_swapped(old: RelationStatistics, new: RelationStatistics) -> bool:
    """Whether each side of the new batch is like the other side of the old one, and not like its
    own: by the keys themselves, or by how the rows spread over the keys."""
    like = {(a, b): _likeness(old.sides[a], new.sides[b]) for a in KEY_COLUMNS for b in KEY_COLUMNS}
    crossed = [like["lhs", "rhs"], like["rhs", "lhs"]]
    straight = [like["lhs", "lhs"], like["rhs", "rhs"]]
    if all(c[0] > s[0] + 0.5 for c, s in zip(crossed, straight, strict=True)):
        return True
    far, near = sum(s[1] for s in straight), sum(c[1] for c in crossed)
    return far > 0.2 and near < far / 2


def _likeness(old: EndpointStatistics, new: EndpointStatistics) -> tuple[float, float]:
    """(share of the new rows whose key the old side knows, divergence of their hash buckets)."""
    known = 1 - unseen_share(old.sample, new.sample, new.rows)[0]
    return known, drift.jensen_shannon(drift.shares(old.buckets), drift.shares(new.buckets))


def _swapped(relation: str, effects: list[Distance]) -> Distance:
    """The swap itself is no distance of its own: it is accepted with what it causes."""
    worst = max((d for d in effects if d.drifted), key=lambda d: d.excess / d.limit)
    return replace(
        worst,
        name="swapped_columns",
        what=f"lhs and rhs of {relation} are swapped",
        detail=f"each is like the other of the last good batch ({worst.what})",
        relation=relation,
        column=None,
    )


# --- the batch as a whole -----------------------------------------------------------------------


def _self_loops(
    relation: str, old: RelationStatistics, new: RelationStatistics, thresholds: Thresholds
) -> Distance:
    was, now = old.self_loops / old.rows, new.self_loops / new.rows
    both = (old.self_loops + new.self_loops) / (old.rows + new.rows)
    return Distance(
        "self_loops",
        f"share of edges of {relation} from a key to itself",
        now,
        thresholds.self_loops,
        drift.share_noise(both, old.rows, new.rows),
        was,
        relation=relation,
        edit=(("drift",), "self_loops"),
    )


def _entity_counts(
    old: Mapping[str, EndpointStatistics],
    new: Mapping[str, EndpointStatistics],
    thresholds: Thresholds,
) -> Iterator[Distance]:
    """How many different keys, the larger batch thinned to the smaller one's size."""
    for name, now in new.items():
        if name not in old:
            continue
        counts, errors = [], []
        size = min(old[name].rows, now.rows)
        for found in (old[name], now):
            sample, keep = found.sample, size / found.rows
            kept = sample.kept[1]
            left = float(len(kept)) if keep >= 1 else drift.thinned_distinct(kept, keep)
            counts.append(max(left / sample.fraction, 1.0))
            errors.append(1 / max(left, 1.0))
        was, is_now = counts
        yield Distance(
            "entity_count",
            f"number of {name} keys, at equal batch sizes, over the last good batch's",
            is_now / was,
            thresholds.entity_count,
            _ERRORS * float(np.sqrt(sum(errors))),
            1.0,
            entity=name,
            edit=(("drift",), "entity_count"),
            detail=f"{is_now:,.0f} after {was:,.0f}",
        )


def _duplicates(old: Statistics, new: Statistics, thresholds: Thresholds) -> Distance:
    size = min(old.rows, new.rows)
    samples = [s.row_sample.kept[1] for s in (old, new)]
    was, now = (
        drift.duplicate_share(counts, size / s.rows)
        for counts, s in zip(samples, (old, new), strict=True)
    )
    found = Distance(
        "duplicates",
        "share of rows that repeat an earlier one in every cell, at equal batch sizes",
        now,
        thresholds.duplicates,
        _ERRORS * float(np.sqrt(sum(drift.duplicate_error(counts) ** 2 for counts in samples))),
        was,
        edit=(("drift",), "duplicates"),
    )
    return found if now > was else replace(found, observed=was)  # fewer are no alarm
