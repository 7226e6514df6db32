"""Is a new version better than the live one, as far as the held-out askers can tell?

    outcome = decide(condition, Sample(new, old, changed), plan)
    outcome.verdict                         pass, fail, unknown, not enough users

A condition (conditions.py) with the estimate e, the threshold t and the tolerance:

    pass     e > t + tolerance            (e < t - tolerance where the condition says <)
    fail     e < t - tolerance
    unknown  between; fp-free does not promote, fn-free does

With a chance of at most 1 - reliability each, however often the same askers are asked, up to
plan.max_uses times:

    fp-free  a version goes live of which the condition is false
             a version is kept back by it that is beyond t + 2 tolerance, if there are enough askers
    fn-free  a version goes live that is not even beyond t - 2 tolerance
             a version is kept back by it of which the condition is true, if there are enough askers

That holds of n askers if n is at least the lesser of

    Hoeffding          of numbers in an interval, whatever they are
    Bennett, squares   of numbers whose mean square is small: most figures differ a little

(release_sizes.py has the formulas; the second is Bennett's with the mean square in place of the
share of changed lists. Where new and old weigh the same, that share is an upper bound of it, and
what it would take is said beside it.) The mean square is not known, but for a bound that holds but
for half of 1 - reliability, c = 4. The bound comes of the same askers, which costs no more: where
it is below the truth is one event of half of it; where it is not, n is enough for the true one.

What is shown is paid for. With adaptivity "full", that is a verdict of each condition, and nothing
else that depends on the askers: their number, Hoeffding's and what it supports are known before.
With "none", nothing that is tried depends on what is shown, so all figures are.

The unit is the asker: one number each, however many lists or rows they have.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embedsvc.evaluation.conditions import Condition, delta_of
from embedsvc.evaluation.release_sizes import (
    Adaptivity,
    bennett_size,
    bennett_tolerance,
    hoeffding_size,
    hoeffding_tolerance,
)
from embedsvc.evaluation.significance import mcnemar

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Mode = Literal["fp-free", "fn-free"]
Verdict = Literal[
    "pass", "fail", "unknown", "not enough users", "skipped", "nothing to compare with"
]

_C = 4  # two sides, half of delta for each of the bounds


@dataclass(frozen=True)
class Plan:
    """How often the same askers may decide, by how many conditions, and who learns what of it.

    With "full", each answer may change what is compared next. Before use u there were 4 verdicts of
    each condition and 2 of each limit, u - 1 times: b^(u - 1) ways, b >= 2, over all uses at most
    H' = 2 b^(max_uses - 1). With "none", the versions are the same whatever was answered, but not
    which is live: of max_uses + 1 any may be compared with any, H' = max_uses (max_uses + 1).
    """

    max_uses: int = 32
    adaptivity: Adaptivity = "full"
    conditions: int = 1  # with a tolerance
    limits: int = 0

    @staticmethod
    def of(conditions: Sequence[Condition], max_uses: int, adaptivity: Adaptivity) -> "Plan":
        limits = sum(condition.is_limit for condition in conditions)
        return Plan(max_uses, adaptivity, len(conditions) - limits, limits)

    @property
    def steps(self) -> int:
        """For release_sizes: H' = 2^steps with "full", steps with "none"."""
        if self.adaptivity == "full":
            return 1 + (self.max_uses - 1) * (2 * self.conditions + self.limits)
        return self.max_uses * (self.max_uses + 1)

    @property
    def shows_figures(self) -> bool:
        """Limits alone promise nothing that figures could spoil."""
        return self.adaptivity == "none" or not self.conditions

    def doubt(self, delta: float) -> float:
        """ln H' + ln(1 / delta)."""
        ways = self.steps * math.log(2) if self.adaptivity == "full" else math.log(self.steps)
        return ways + math.log(1 / delta)


@dataclass(frozen=True)
class Sample:
    """Of Q askers: the metric of both versions, in [0, 1]; whether the list is another one; whether
    there is any hit in it, where it is a list."""

    new: Floats
    old: Floats
    changed: Flags
    hit_new: Flags | None = None
    hit_old: Flags | None = None

    def __len__(self) -> int:
        return len(self.new)


@dataclass(frozen=True)
class Summary:
    """What a verdict needs to know of a sample."""

    n: int
    estimate: float  # mean of new * N + old * O
    changed: float  # share of askers
    square: float  # mean of ((new * N + old * O) / largest)^2, largest being the most it can be

    @staticmethod
    def of(condition: Condition, sample: Sample) -> "Summary":
        if not len(sample):
            return Summary(0, math.nan, math.nan, math.nan)
        values = condition.new * sample.new + condition.old * sample.old
        square = (values / largest_of(condition)) ** 2
        return Summary(
            len(sample), float(values.mean()), float(sample.changed.mean()), float(square.mean())
        )


@dataclass(frozen=True)
class Sizes:
    """Askers that a condition needs, by each bound; the bounds of what it needs to know."""

    hoeffding: int
    squares: int  # by the mean square
    square_upper: float
    bennett: int | None = None  # by the share of changed lists, never below squares
    changed_upper: float | None = None

    @property
    def least(self) -> int:
        return min(self.hoeffding, self.squares)


def largest_of(condition: Condition) -> float:
    """The most that |new * N + old * O| can be."""
    return max(map(abs, condition.bounds))


def sizes(condition: Condition, summary: Summary, plan: Plan) -> Sizes:
    delta, largest, width = _scale(condition)
    eps = _tolerance(condition)

    def by(moment: float) -> int:
        return bennett_size(min(eps / largest, 2), delta, moment, plan.steps, plan.adaptivity, c=_C)

    square = _upper(condition, summary.square, summary.n, plan)
    hoeffding = hoeffding_size(min(eps / width, 2), delta, plan.steps, plan.adaptivity)
    if condition.new + condition.old:  # the same list has another figure than 0
        return Sizes(hoeffding, by(square), square)
    changed = _upper(condition, summary.changed, summary.n, plan)
    return Sizes(hoeffding, by(square), square, by(changed), changed)


def supported_tolerance(condition: Condition, summary: Summary, plan: Plan) -> float:
    """The least tolerance that these askers are enough for; the whole width for none."""
    delta, largest, _ = _scale(condition)
    known = hoeffding_supported(condition, summary.n, plan)
    if not summary.n:
        return known
    square = _upper(condition, summary.square, summary.n, plan)
    by_square = bennett_tolerance(summary.n, delta, square, plan.steps, plan.adaptivity, c=_C)
    return min(known, largest * by_square)


def hoeffding_supported(condition: Condition, n: int, plan: Plan) -> float:
    """The same of any n askers, whoever they are."""
    delta, _, width = _scale(condition)
    return width * hoeffding_tolerance(n, delta, plan.steps, plan.adaptivity) if n else width


def verdict_of(condition: Condition, summary: Summary, needed: int) -> Verdict:
    if summary.n < needed:
        return "not enough users"
    ahead = summary.estimate - condition.threshold
    ahead = -ahead if condition.below else ahead
    if ahead > _tolerance(condition):
        return "pass"
    return "fail" if ahead < -_tolerance(condition) else "unknown"


def _upper(condition: Condition, mean: float, n: int, plan: Plan) -> float:
    """What the true mean exceeds with a chance of half of delta / H'; at most 1."""
    return upper_mean(mean, n, plan.doubt(_scale(condition)[0] / 2)) if n else 1.0


def _scale(condition: Condition) -> tuple[float, float, float]:
    """(delta, most that |.| can be, width of where it lies)."""
    assert condition.reliability is not None
    low, high = condition.bounds
    return delta_of(condition.reliability), largest_of(condition), high - low


def _tolerance(condition: Condition) -> float:
    assert condition.tolerance is not None
    return condition.tolerance


def upper_mean(mean: float, n: int, doubt: float) -> float:
    """What the true mean of numbers in [0, 1] exceeds with a chance of at most exp(-doubt), after
    `mean` of n: the largest q with n (mean ln(mean / q) + (1 - mean) ln((1 - mean) / (1 - q))) at
    most doubt (Chernoff's bound, which Hoeffding 1963, theorem 1, has for any such numbers)."""
    mean = min(max(mean, 0.0), 1.0)
    low, high = mean, 1.0
    for _ in range(60):
        q = (low + high) / 2
        if n * _divergence(mean, q) <= doubt:
            low = q
        else:
            high = q
    return high


def _divergence(a: float, b: float) -> float:
    found = a * math.log(a / b) if a > 0 else 0.0
    if a < 1:
        found += (1 - a) * math.log((1 - a) / (1 - b)) if b < 1 else math.inf
    return found


@dataclass(frozen=True)
class Outcome:
    """What one condition came to. None: not known, not asked, or not shown (Plan)."""

    condition: str
    verdict: Verdict
    value: float | None  # new * N + old * O
    new: float | None = None  # N
    old: float | None = None  # O
    low: float | None = None  # value, give or take what so many askers support
    high: float | None = None
    users: int | None = None
    needed: int | None = None
    needed_hoeffding: int | None = None
    needed_bennett: int | None = None
    needed_squares: int | None = None
    supported: float | None = None  # tolerance
    changed: float | None = None  # share of askers whose list is another one
    changed_upper: float | None = None
    only_new_hits: int | None = None  # askers whose list has a hit in one version alone
    only_old_hits: int | None = None
    mcnemar_p: float | None = None
    unknown: int | None = (
        None  # askers whom the live version does not know: their figure there is 0
    )
    why: str = ""
    shown: bool = True  # False: of what the askers say there is the verdict alone

    def promotes(self, mode: Mode) -> bool:
        if self.verdict == "unknown":
            return mode == "fn-free"
        return self.verdict in ("pass", "skipped")

    @cached_property
    def sentence(self) -> str:
        if self.verdict in ("skipped", "nothing to compare with"):
            return f"{self.condition}: {self.verdict}, {self.why}"
        said = f"{self.condition}: {self.verdict}"
        if not self.shown:
            return said + self._without_figures
        if self.users is None:
            return f"{said}: {_said(self.value)}"
        if self.value is not None and self.low is not None and self.high is not None:
            said += f": {_said(self.value)} [{_said(self.low)}, {_said(self.high)}]"
        said += f" of {self.users:,} users, {self.needed:,} needed"
        if self.verdict == "not enough users":
            said += f"; these support +- {self.supported:.2g}"
        if self.unknown:
            said += f"; {self.unknown:,} are unknown to the live version, which gets 0 for them"
        return said

    @property
    def _without_figures(self) -> str:
        if self.users is None:
            return ""
        if self.verdict != "not enough users":
            return f", of {self.users:,} users"
        return (
            f": {self.users:,}; {self.needed:,} are enough whatever the versions, fewer where they "
            f"differ little; these support +- {self.supported:.2g}"
        )


def _said(value: float | None) -> str:
    return "no value" if value is None else f"{value:.4g}"


def decide(condition: Condition, sample: Sample, plan: Plan) -> Outcome:
    """Of a condition with a tolerance."""
    assert not condition.is_limit
    summary = Summary.of(condition, sample)
    found = sizes(condition, summary, plan)
    verdict = verdict_of(condition, summary, found.least)
    if not plan.shows_figures:
        return Outcome(
            condition=str(condition),
            verdict=verdict,
            value=None,
            users=len(sample),
            needed=found.hoeffding,
            needed_hoeffding=found.hoeffding,
            supported=hoeffding_supported(condition, len(sample), plan),
            shown=False,
        )
    supported = supported_tolerance(condition, summary, plan)
    nothing = not len(sample)
    hits = None
    if sample.hit_new is not None and sample.hit_old is not None and condition.old:
        hits = mcnemar(sample.hit_new, sample.hit_old)
    return Outcome(
        condition=str(condition),
        verdict=verdict,
        value=None if nothing else summary.estimate,
        new=None if nothing else float(sample.new.mean()),
        old=None if nothing or not condition.old else float(sample.old.mean()),
        low=None if nothing else summary.estimate - supported,
        high=None if nothing else summary.estimate + supported,
        users=len(sample),
        needed=found.least,
        needed_hoeffding=found.hoeffding,
        needed_bennett=found.bennett,
        needed_squares=found.squares,
        supported=supported,
        changed=None if nothing or not condition.old else summary.changed,
        changed_upper=None if nothing else found.changed_upper,
        only_new_hits=None if hits is None else hits.only_new,
        only_old_hits=None if hits is None else hits.only_old,
        mcnemar_p=None if hits is None else hits.p,
    )


def limit(condition: Condition, plan: Plan, new: float, old: float = 0.0) -> Outcome:
    """Of one number of all lists: the metric of both versions, or the share of changed lists. NaN,
    of nothing, fails."""
    assert condition.is_limit
    value = condition.new * new + (condition.old * old if condition.old else 0.0)
    verdict: Verdict = "pass" if condition.holds(value) else "fail"
    if not plan.shows_figures:
        return Outcome(str(condition), verdict, None, shown=False)
    return Outcome(
        str(condition), verdict, _known(value), _known(new), _known(old) if condition.old else None
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def skipped(condition: Condition, why: str) -> Outcome:
    """Of a first version: there never was another that it could be worse than."""
    return Outcome(str(condition), "skipped", None, why=why)


def incomparable(condition: Condition, why: str) -> Outcome:
    return Outcome(str(condition), "nothing to compare with", None, why=why)


def promotes(outcomes: Sequence[Outcome], mode: Mode) -> bool:
    """All of them must. With "fp-free", a version of which any condition is false goes live with a
    chance of at most that one's 1 - reliability; with "fn-free", which promotes what is unknown, so
    does a version that is not even beyond the threshold less two tolerances. A version that is good
    by all m of them may be kept back by each: with a chance of at most m times 1 - reliability."""
    return all(outcome.promotes(mode) for outcome in outcomes)


@dataclass(frozen=True)
class Decision:
    """Whether a version goes live, and why. compared_with: None where nothing could be."""

    promoted: bool
    live: str | None  # what CURRENT names
    compared_with: str | None
    outcomes: tuple[Outcome, ...] = ()
    why: str = ""  # where it is not for an outcome
    split: str = ""
    mode: str = ""
    askers: dict[str, int] = field(default_factory=dict)  # by relation or label
    left_out: dict[str, int] = field(default_factory=dict)  # the same, of whom no figure is known
    test_set: str | None = None  # digest; None: it was not asked
    use: int | None = None
    max_uses: int | None = None

    @property
    def sentences(self) -> list[str]:
        return [*([self.why] if self.why else []), *(one.sentence for one in self.outcomes)]

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "outcomes": [asdict(one) for one in self.outcomes]}
