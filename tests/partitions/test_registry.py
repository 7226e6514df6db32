"""partitions.registry: a name becomes an instance; a typo becomes a sentence."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from partitions.errors import ConfigError
from partitions.registry import Registry

SHAPES: Registry[Any] = Registry("shape")


@SHAPES.add("circle")
@dataclass(frozen=True)
class Circle:
    radius: float = 1.0
    colour: str = "red"


@SHAPES.add("box")
@dataclass(frozen=True)
class Box:
    width: float
    height: "float | None" = None
    sides: int = 6
    open: bool = False


def message_of(spec: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        SHAPES.build(spec)
    return str(caught.value)


def test_a_name_builds_the_defaults() -> None:
    assert SHAPES.build("circle") == Circle()
    assert SHAPES.build({"name": "circle"}) == Circle()
    assert SHAPES["circle"] is Circle


def test_keys_reach_the_constructor_and_the_spec_stays_as_it_was() -> None:
    spec = {"name": "circle", "radius": 2.0}
    assert SHAPES.build(spec) == Circle(radius=2.0)
    assert spec == {"name": "circle", "radius": 2.0}


def test_iterating_gives_the_names_in_alphabetical_order() -> None:
    assert list(SHAPES) == ["box", "circle"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("circel", "There is no shape named circel. Did you mean circle?"),
        ("zzz", "There is no shape named zzz. Known here: box, circle."),
        ({"name": "circel"}, "There is no shape named circel. Did you mean circle?"),
        (
            {"name": "circle", "radios": 1},
            "shape circle has no setting radios. Did you mean radius?",
        ),
        ({"name": "circle", "x": 1}, "shape circle has no setting x. Known here: colour, radius."),
        ({"radius": 1}, 'A shape needs a name, such as {name = "box"}.'),
        ({"name": "box"}, "shape box needs the setting width."),
        ("box", "shape box needs the setting width."),
        ({"name": 3}, "A shape is named by text, found 3."),
        ({"name": ["box"]}, "A shape is named by text, found ['box']."),
    ],
)
def test_a_mistake_is_one_sentence(spec: Any, message: str) -> None:
    assert message_of(spec) == message


@pytest.mark.parametrize(
    ("key", "values", "wanted"),
    [
        ("width", [float("nan"), float("inf"), 10**400, True, "1", None, [1.0]], "a finite number"),
        ("height", [float("-inf"), "x"], "a finite number"),
        ("sides", [6.0, True, "6", None], "a whole number"),
        ("open", [1, "true", None], "true or false"),
    ],
)
def test_a_value_of_another_kind_is_named(key: str, values: list[Any], wanted: str) -> None:
    for value in values:
        spec = {"name": "box", "width": 1.0, key: value}
        assert message_of(spec) == f"shape box: {key} = {value!r}: must be {wanted}."
    spec = {"name": "circle", "colour": 3}
    assert message_of(spec) == "shape circle: colour = 3: must be text."


def test_whole_numbers_are_numbers_and_none_stands_where_it_may() -> None:
    found = SHAPES.build({"name": "box", "width": 2, "height": None, "sides": np.int64(5)})
    assert found == Box(width=2, sides=5)


def test_registering_a_name_twice_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="shape circle is registered twice"):
        SHAPES.add("circle")(Box)
    assert SHAPES["circle"] is Circle
