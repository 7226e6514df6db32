"""Which ids and numbers of two fits mean the same: those whose weights may be taken over.

Judged by what was fitted, as equal settings may have met other rows:

    category            type, list; the values of before come first and in their order
    hash                type, list, buckets
    time                part
    number, its ids     where its buckets are cut
    number, its column  scale, and what it was scaled by
    vector              the numbers of the keys that both know
    cross               buckets, `of` in its order, and the values of each of its features
"""

import numpy as np

from partitions.features.encoders import Encoder, Keyed, Number, Time, Vector
from partitions.features.features import Features
from partitions.features.vocabulary import Keys


def same_slots(now: Features, before: Features) -> frozenset[str]:
    """Slots whose ids mean what they did; there may be more of them now."""
    if now.seed != before.seed:
        return frozenset()
    old = {encoder.name: encoder for encoder in before.encoders}
    both = [(one, old[one.name]) for one in now.encoders if one.name in old]
    found = {one.name for one, its in both if _same_ids(one, its)}
    crossable = {one.name for one, its in both if _same_values(one, its)}
    for name, cross in now.config.crosses.items():
        if before.config.crosses.get(name) == cross and crossable.issuperset(cross.of):
            found.add(name)
    return frozenset(found)


def same_dense(now: Features, before: Features) -> frozenset[str]:
    """Dense columns whose numbers mean what they did."""
    old = {encoder.name: encoder for encoder in before.encoders}
    found: set[str] = set()
    for one in now.encoders:
        its = old.get(one.name)
        if its is not None and _same_numbers(one, its):
            found |= set(one.dense) & set(its.dense)
    return frozenset(found)


def _same_ids(now: Encoder, before: Encoder) -> bool:
    if not isinstance(now, Keyed):
        return now.size is not None and _same_values(now, before)
    if now.spec.kind != before.spec.kind or now.spec.list != before.spec.list:
        return False
    if not isinstance(before, Keyed) or now.kind != before.kind:
        return False
    if now.vocabulary is None or before.vocabulary is None:
        return now.size == before.size
    known = before.vocabulary.values
    return bool(now.vocabulary.values.slice(0, len(known)).equals(known))


def _same_values(now: Encoder, before: Encoder) -> bool:
    """Whether one value is the same to a cross: its vocabulary is nothing to it."""
    if isinstance(now, Keyed) and isinstance(before, Keyed):
        return now.kind == before.kind and now.spec.list == before.spec.list
    if isinstance(now, Time) and isinstance(before, Time):
        return now.spec.part == before.spec.part
    if isinstance(now, Number) and isinstance(before, Number):
        return now.size == before.size and np.array_equal(now.scale.edges, before.scale.edges)
    return False


def _same_numbers(now: Encoder, before: Encoder) -> bool:
    if isinstance(now, Number) and isinstance(before, Number):
        a, b = now.scale, before.scale
        same = a.spec.scale == b.spec.scale and np.array_equal(a.quantiles, b.quantiles)
        return same and (a.mean, a.deviation) == (b.mean, b.deviation)
    if isinstance(now, Vector) and isinstance(before, Vector):
        places = now.keys.find(Keys(before.keys.values, now.keys.fingerprints))
        known = places >= 0
        return bool(known.any()) and np.array_equal(
            now.vectors[places[known]], before.vectors[known]
        )
    return False
