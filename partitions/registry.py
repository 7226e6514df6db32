"""Name -> class. The constructor's keyword arguments are the config keys.

LOSSES = Registry("loss")

@LOSSES.add("ranking")
@dataclass(frozen=True)
class RankingLoss: ...

LOSSES.build({"name": "ranking", "margin": 0.2})
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any, Generic, TypeVar, get_args

from partitions.errors import ConfigError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._classes: dict[str, type[T]] = {}

    def add(self, name: str) -> Callable[[type[T]], type[T]]:
        def register(cls: type[T]) -> type[T]:
            assert name not in self._classes, f"{self.noun} {name} is registered twice"
            self._classes[name] = cls
            return cls

        return register

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._classes))

    def __getitem__(self, name: str) -> type[T]:
        if name not in self._classes:
            hint = did_you_mean(name, list(self._classes))
            raise ConfigError(f"There is no {self.noun} named {name}. {hint}")
        return self._classes[name]

    def build(self, spec: str | Mapping[str, Any]) -> T:
        """An instance from "name" or {"name": ..., key: value}; a typo lists the valid keys, and a
        value is of the kind that the constructor's annotation says, and finite."""
        keys = {"name": spec} if isinstance(spec, str) else dict(spec)
        if "name" not in keys:
            raise ConfigError(
                f'A {self.noun} needs a name, such as {{name = "{next(iter(self))}"}}.'
            )
        name = keys.pop("name")
        if not isinstance(name, str):
            raise ConfigError(f"A {self.noun} is named by text, found {name!r}.")
        cls = self[name]
        known = inspect.signature(cls, eval_str=True).parameters
        for key, value in keys.items():
            if key not in known:
                hint = did_you_mean(key, list(known))
                raise ConfigError(f"{self.noun} {name} has no setting {key}. {hint}")
            if wanted := _wanted_instead(value, known[key].annotation):
                raise ConfigError(f"{self.noun} {name}: {key} = {value!r}: must be {wanted}.")
        for key, parameter in known.items():
            if key not in keys and parameter.default is parameter.empty:
                raise ConfigError(f"{self.noun} {name} needs the setting {key}.")
        return cls(**keys)


def _wanted_instead(value: Any, annotation: Any) -> str | None:
    """What a value annotated so must be, in words, where this one is not; None where it fits.

    JSON has no inf and no NaN, so the manifest of what they were trained with could not be read.
    """
    kinds = get_args(annotation) or (annotation,)
    if value is None and type(None) in kinds:
        return None
    if float in kinds:
        fits = isinstance(value, Real) and not isinstance(value, bool)
        return None if fits and abs(value) <= sys.float_info.max else "a finite number"
    if int in kinds:
        fits = isinstance(value, Integral) and not isinstance(value, bool)
        return None if fits else "a whole number"
    if bool in kinds:
        return None if isinstance(value, bool) else "true or false"
    if str in kinds:
        return None if isinstance(value, str) else "text"
    return None
