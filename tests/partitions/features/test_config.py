"""[ranker.features] and [ranker.crosses]: what is refused, and the sentence it is refused with."""

from typing import Any

import pytest

from partitions import config
from partitions.config import Table
from partitions.errors import ConfigError
from partitions.features import FeaturesConfig


class Ranker(FeaturesConfig):
    """As the ranker's table holds them."""

    rate: float = 0.1


@pytest.mark.parametrize(
    ("features", "crosses", "sentence"),
    [
        (
            {"user": {"kind": "category", "min_cont": 2}},
            {},
            "[ranker.features.user] min_cont is not a setting. Did you mean min_count?",
        ),
        (
            {"user": {"kind": "hash", "buckets": 9, "min_count": 2}},
            {},
            "[ranker.features.user] min_count is not a setting of kind hash. Known here: ",
        ),
        ({"user": {"kind": "hash"}}, {}, "user] kind hash needs the setting buckets."),
        ({"t": {"kind": "time"}}, {}, "kind time needs the setting part."),
        ({"u": {"kind": "catgory"}}, {}, "[ranker.features.u] kind = 'catgory'"),
        ({"u": {}}, {}, "[ranker.features.u] kind is missing."),
        (
            {"u": {"kind": "number", "dense": False}},
            {},
            "a number with dense = false needs buckets",
        ),
        ({"u": {"kind": "number", "default": "x"}}, {}, "default = 'x': expected a number."),
        ({"u": {"kind": "category", "separator": "|"}}, {}, "separator is of lists"),
        ({"u": {"kind": "category", "default": ["a"]}}, {}, "default is a list: set list = true"),
        ({"u v": {"kind": "category"}}, {}, "features.'u v': a name is made of letters"),
        (
            {"user": {"kind": "category"}, "age": {"kind": "number"}},
            {"c": {"of": ["user", "age"], "buckets": 9}},
            "crosses.c: the feature age has no ids: give it buckets.",
        ),
        (
            {"user": {"kind": "category"}},
            {"c": {"of": ["user", "usr"], "buckets": 9}},
            "crosses.c names usr, which is not a feature. Did you mean user?",
        ),
        (
            {"user": {"kind": "category"}},
            {"user": {"of": ["user", "user"], "buckets": 9}},
            "crosses.user is the name of a feature too: rename one.",
        ),
        (
            {"user": {"kind": "category"}},
            {"c": {"of": ["user", "user"], "buckets": 9}},
            "crosses.c names a feature twice.",
        ),
    ],
)
def test_a_mistake_is_one_sentence(
    features: dict[str, Any], crosses: dict[str, Any], sentence: str
) -> None:
    tables = {"ranker": {"features": features, "crosses": crosses}}
    settings = config.Settings("x.toml", {})
    settings._tables = tables
    with pytest.raises(ConfigError) as error:
        settings.table("ranker", Ranker)
    assert sentence in str(error.value)


def test_resolved_settings_are_read_back() -> None:
    found = Ranker.model_validate(
        {
            "features": {
                "user": {"kind": "category", "min_count": 2},
                "movie": {"kind": "hash", "buckets": 1000},
                "age": {"kind": "number", "buckets": 4},
            },
            "crosses": {"c": {"of": ["user", "age"], "buckets": 7}},
        }
    )
    assert isinstance(found, Table)
    assert Ranker.model_validate(found.model_dump(mode="json")) == found
