"""Name -> class. The constructor's keyword arguments are the config keys.

LOSSES = Registry("loss")

@LOSSES.add("ranking")
@dataclass(frozen=True)
class RankingLoss: ...

LOSSES.build({"name": "ranking", "margin": 0.2})
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

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
        """An instance from "name" or {"name": ..., key: value}; a typo lists the valid keys."""
        keys = {"name": spec} if isinstance(spec, str) else dict(spec)
        if "name" not in keys:
            raise ConfigError(
                f'A {self.noun} needs a name, such as {{name = "{next(iter(self))}"}}.'
            )
        name = keys.pop("name")
        cls = self[name]
        known = inspect.signature(cls).parameters
        for key in keys:
            if key not in known:
                hint = did_you_mean(key, list(known))
                raise ConfigError(f"{self.noun} {name} has no setting {key}. {hint}")
        for key, parameter in known.items():
            if key not in keys and parameter.default is parameter.empty:
                raise ConfigError(f"{self.noun} {name} needs the setting {key}.")
        return cls(**keys)
