"""Ids and numbers are taken for the same exactly where they are."""

from typing import Any

import pytest

from partitions.features import Features, FeaturesConfig
from partitions.features.continued import same_dense, same_slots

BEFORE: dict[str, Any] = {
    "c": {"kind": "category"},
    "h": {"kind": "hash", "buckets": 50},
    "t": {"kind": "time", "part": "hour"},
    "n": {"kind": "number", "buckets": 4},
    "r": {"kind": "number", "scale": "raw"},
}
CROSSES: dict[str, Any] = {
    "ch": {"of": ["c", "h"], "buckets": 100},
    "tn": {"of": ["t", "n"], "buckets": 100},
}
ALL = {"c", "h", "t", "n", "ch", "tn"}


def rows(step: int) -> dict[str, list[Any]]:
    values = [at * step for at in range(40)]
    return {"c": values, "h": values, "t": values, "n": values, "r": values}


def fits(features: dict[str, Any], crosses: dict[str, Any]) -> tuple[Features, Features]:
    """(now, before)"""
    old = FeaturesConfig.model_validate({"features": BEFORE, "crosses": CROSSES})
    new = FeaturesConfig.model_validate({"features": BEFORE | features, "crosses": crosses})
    before = Features.fit(old, [rows(1)])
    return Features.fit(new, [rows(3)], before), before


@pytest.mark.parametrize(
    "features, crosses, lost",
    [
        ({}, CROSSES, set()),
        ({"c": {"kind": "category", "min_count": 2}}, CROSSES, set()),
        ({"c": {"kind": "category", "type": "text"}}, CROSSES, {"c", "ch"}),
        ({"c": {"kind": "hash", "buckets": 42}}, CROSSES, {"c"}),
        ({"h": {"kind": "hash", "buckets": 51}}, CROSSES, {"h"}),
        ({"h": {"kind": "hash", "buckets": 50, "type": "text"}}, CROSSES, {"h", "ch"}),
        ({"h": {"kind": "category"}}, CROSSES, {"h"}),
        ({"t": {"kind": "time", "part": "day"}}, CROSSES, {"t", "tn"}),
        ({"n": {"kind": "number", "buckets": 4, "quantiles": 9}}, CROSSES, {"n", "tn"}),
        ({}, {"ch": {"of": ["h", "c"], "buckets": 100}, "tn": CROSSES["tn"]}, {"ch"}),
        ({}, {"ch": {"of": ["c", "h"], "buckets": 101}, "tn": CROSSES["tn"]}, {"ch"}),
    ],
)
def test_slots_are_the_same_where_a_value_has_its_id(
    features: dict[str, Any], crosses: dict[str, Any], lost: set[str]
) -> None:
    now, before = fits(features, crosses)
    same = same_slots(now, before)
    assert same == ALL - lost
    asked = rows(3)  # 0, 3 .. 39: both know them
    asked = {name: values[:14] for name, values in asked.items()}
    for slot in now.layout.slots:
        old = next(one for one in before.layout.slots if one.name == slot.name)
        if slot.name in same:
            ids = now.encode(asked).single[:, slot.column]
            assert (ids == before.encode(asked).single[:, old.column]).all()


@pytest.mark.parametrize(
    "features, lost",
    [
        ({}, set()),
        ({"n": {"kind": "number", "buckets": 4, "scale": "log"}}, {"n"}),
        ({"n": {"kind": "number", "quantiles": 8}}, {"n"}),
        ({"r": {"kind": "number", "scale": "raw", "default": 0}}, set()),
        ({"r": {"kind": "number", "scale": "standard"}}, {"r"}),
    ],
)
def test_numbers_are_the_same_where_the_scale_is(features: dict[str, Any], lost: set[str]) -> None:
    crosses = {"ch": CROSSES["ch"]}
    assert same_dense(*fits(features, crosses)) == {"n", "r"} - lost
