"""partitions.registry: a name becomes an instance; a typo becomes a sentence."""

from dataclasses import dataclass
from typing import Any

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
    ],
)
def test_a_mistake_is_one_sentence(spec: Any, message: str) -> None:
    assert message_of(spec) == message


def test_registering_a_name_twice_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="shape circle is registered twice"):
        SHAPES.add("circle")(Box)
    assert SHAPES["circle"] is Circle
