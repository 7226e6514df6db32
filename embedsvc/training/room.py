"""Whether a memory plan fits into what is free, and what would help where it does not."""

from collections.abc import Mapping
from typing import Protocol

from partitions.memory import available_bytes


class Plan(Protocol):
    """Bytes, by what they are for; each is an attribute."""

    @property
    def total(self) -> int: ...

    @property
    def process(self) -> int:
        """Of the program itself."""


def refusal(
    plan: Plan, remedies: Mapping[str, tuple[str, str]], memory_mb: int | None
) -> str | None:
    """What most of a plan that can't fit is for and what to do; None where it fits.

    remedies: attribute of the plan -> (what it is for, what makes it smaller).
    """
    available = available_bytes(memory_mb)
    if plan.total <= available:
        return None
    largest = max(remedies, key=lambda part: int(getattr(plan, part)))
    what, remedy = remedies[largest]
    return (
        f"Training plans for {plan.total / 1e6:,.0f} MB and {available / 1e6:,.0f} MB are free. "
        f"Beside the program itself, {plan.process / 1e6:,.0f} MB, most of it is for {what}, "
        f"{getattr(plan, largest) / 1e6:,.0f} MB: use {remedy}, or raise train.memory_mb."
    )
