"""What a release must be, in a line.

    recall@20: new - old > 0.002 +- 0.001 at 0.999
    bought/ndcg@10: new - 1.02 * old > 0 +- 0.01 at 0.99
    user_auc: new - old > -0.001 +- 0.002 at 0.99       of a [ranker]
    changed@10 < 0.3                                    limits, without tolerance and reliability
    coverage@20: new > 0.1

    condition   [RELATION/]METRIC@K: sum (> | <) number [+- tolerance at reliability]
              | [RELATION/]changed@K (> | <) number
    sum         numbers times new and old: new - old, new, new - 1.02 * old

METRIC is of lists (metrics.LIST_METRICS): a mean over askers, which is known as far as there are
askers, hence the tolerance and the reliability. Or of the catalogue (CATALOGUE): one number of all
lists together, compared as it is. changed is the share of askers whose list is another one.
`±` is read as `+-`.
"""

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import NoReturn

from embedsvc.evaluation.metrics import LIST_METRICS
from partitions.errors import ConfigError, did_you_mean

CATALOGUE = ("coverage", "novelty", "gini", "popularity_lift")
CHANGED = "changed"
USER_AUC = "user_auc"
_BOUNDS = {"novelty": (0.0, math.inf), "popularity_lift": (-1.0, math.inf)}  # others: 0, 1
_LEAST_FACTOR, _MOST_FACTOR = 1e-6, 1e6
_LEAST_TOLERANCE = 1e-9  # of the width of what is compared: takes more users than there are

_TOKEN = re.compile(
    r"(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)"
    r"|(?P<word>[^\W0-9]\w*)|(?P<sign>\+-|±|[-+*<>:])"
)


@dataclass(frozen=True)
class Condition:
    """new * N + old * O > threshold, N and O being the metric of the new and of the live version;
    below: < instead. tolerance, reliability: None of limits."""

    metric: str
    k: int | None  # None of user_auc
    new: float
    old: float
    below: bool
    threshold: float
    tolerance: float | None = None
    reliability: float | None = None
    relation: str | None = None  # of a [ranker]: the label

    @property
    def name(self) -> str:
        """The metric: "recall@20"."""
        return self.metric if self.k is None else f"{self.metric}@{self.k}"

    @property
    def is_limit(self) -> bool:
        """Whether it is of one number of all lists, not of a mean over askers."""
        return self.metric == CHANGED or self.metric in CATALOGUE

    @property
    def needs_old(self) -> bool:
        return self.old != 0 or self.metric == CHANGED

    @property
    def bounds(self) -> tuple[float, float]:
        """Between which new * N + old * O lies."""
        ends = _BOUNDS.get(self.metric, (0.0, 1.0))
        parts = [sorted(part * end for end in ends) for part in (self.new, self.old) if part]
        return sum(low for low, _ in parts), sum(high for _, high in parts)

    def holds(self, value: float) -> bool:
        return value < self.threshold if self.below else value > self.threshold

    def __str__(self) -> str:
        where = "" if self.relation is None else f"{self.relation}/"
        terms = "" if self.metric == CHANGED else f": {_sum(self.new, self.old)}"
        said = f"{where}{self.name}{terms} {'<' if self.below else '>'} {_text(self.threshold)}"
        if self.tolerance is None or self.reliability is None:
            return said
        return f"{said} +- {_text(self.tolerance)} at {_text(self.reliability)}"


def parse(text: str) -> Condition:
    """ConfigError says at which character what was expected."""
    reader, relation, metric, k = _named(text)
    new, old = 1.0, 0.0
    if metric != CHANGED:
        reader.sign(":", f"a colon and what is compared, such as {_example(metric, k)}")
        new, old = _terms(reader)
    example = f", such as {_example(metric, k)}" if metric == CHANGED else ""
    below = reader.sign("<>", f"> or <{example}") == "<"
    threshold = reader.number("the threshold, a number", signed=True)
    limit = metric == CHANGED or metric in CATALOGUE
    tolerance = reliability = None
    if limit:
        reader.end(f"the end: {metric} is one number of all lists, without +- and at")
    else:
        reader.sign(("+-", "±"), '"+- TOLERANCE at RELIABILITY", such as +- 0.001 at 0.999')
        tolerance = reader.number("the tolerance, a number above 0")
        if not tolerance > 0:
            reader.fail("a tolerance above 0")
        reader.word(("at",), '"at RELIABILITY"')
        reliability = reader.number("the reliability, a number such as 0.999")
        if not 0 < delta_of(reliability) < 1:
            reader.fail("a reliability between 0 and 1, such as 0.999")
        reader.end("the end")
    found = Condition(metric, k, new, old, below, threshold, tolerance, reliability, relation)
    _check_possible(text, found)
    return found


def delta_of(reliability: float) -> float:
    """.001 of .999, to the last digit."""
    return float(1 - Decimal(repr(reliability)))


def _example(metric: str, k: int | None) -> str:
    name = metric if k is None else f"{metric}@{k}"
    if metric == CHANGED:
        return f"{name} < 0.3"
    limit = metric in CATALOGUE
    return f"{name}: new > 0.1" if limit else f"{name}: new - old > 0 +- 0.01 at 0.99"


def _named(text: str) -> tuple["_Reader", str | None, str, int | None]:
    """The reader behind the metric's name; relation, metric, k. A relation may hold any character,
    so the name ends at the last @; of user_auc, which has no @K, at the last colon."""
    head, at, rest = text.rpartition(":")
    if "@" in text and ("@" in rest or head.rpartition("/")[2].strip() != USER_AUC):
        head, at, _ = text.rpartition("@")
    if not at:
        raise ConfigError(
            f'The condition "{text}" names no metric: write it like "recall@20: new - old > 0.002 '
            '+- 0.001 at 0.999" or "changed@10 < 0.3".'
        )
    where, slash, name = head.rpartition("/")
    relation, metric = where.strip(), name.strip()
    start = len(head) - len(name.lstrip())
    known = [*LIST_METRICS, *CATALOGUE, CHANGED]
    if metric == "auc":
        raise ConfigError(
            f'The condition "{text}": AUC is not a mean over users, so no number of them makes it '
            f"sure: take {USER_AUC}, the mean of each user's own."
        )
    if metric not in known and metric != USER_AUC:
        raise ConfigError(
            f'The condition "{text}", character {start + 1}: {metric or "nothing"} is not a '
            f"metric. {did_you_mean(metric, [*known, USER_AUC])}"
        )
    reader = _Reader(text, len(head))
    if slash and not relation:
        raise ConfigError(f'The condition "{text}" names no relation before its "/": remove it.')
    k = None
    if at == "@":
        if metric == USER_AUC:
            reader.fail(f"a colon: {USER_AUC} has no @K")
        reader = _Reader(text, len(head) + 1)
        k = reader.whole("K, how many places of a list count, 1 or more")
    elif metric != USER_AUC:
        reader.fail(f"@K, such as {metric}@20")
    return reader, relation or None, metric, k


def _terms(reader: "_Reader") -> tuple[float, float]:
    found = {"new": 0.0, "old": 0.0}
    sign = -1.0 if reader.skip("-") else 1.0
    while True:
        factor = sign
        if (number := reader.maybe_number()) is not None:
            factor *= number
            reader.sign("*", '"*" and then new or old')
        found[reader.word(tuple(found), "new or old")] += factor
        if reader.skip("+"):
            sign = 1.0
        elif reader.skip("-"):
            sign = -1.0
        else:
            break
    if not any(found.values()):
        reader.fail("a sum that depends on new or old")
    for factor in filter(None, found.values()):
        if not _LEAST_FACTOR <= abs(factor) <= _MOST_FACTOR:
            reader.fail(
                f"new and old times numbers from {_LEAST_FACTOR:f} to {_MOST_FACTOR:,.0f}, but "
                f"they come to {factor:g}"
            )
    return found["new"], found["old"]


def _check_possible(text: str, found: Condition) -> None:
    """ConfigError where no version could pass, or no number of users would do."""
    low, high = found.bounds
    tolerance = found.tolerance or 0.0
    near = found.threshold + (-tolerance if found.below else tolerance)
    if near <= low if found.below else near >= high:
        smaller = "" if found.is_limit else " or a smaller tolerance"
        raise ConfigError(
            f'The condition "{text}" can\'t pass: what it compares lies between {low:g} and '
            f"{high:g}. Choose another threshold{smaller}."
        )
    if tolerance and tolerance < _LEAST_TOLERANCE * (high - low):
        raise ConfigError(
            f'The condition "{text}" asks for more users than there are: give it a larger '
            "tolerance, such as +- 0.01."
        )


def _text(number: float) -> str:
    """The shortest that reads as the same."""
    return repr(number).removesuffix(".0")


def _sum(new: float, old: float) -> str:
    said = ""
    for factor, name in ((new, "new"), (old, "old")):
        if not factor:
            continue
        times = "" if abs(factor) == 1 else f"{_text(abs(factor))} * "
        if said:
            said += f" {'-' if factor < 0 else '+'} {times}{name}"
        else:
            said = f"{'-' if factor < 0 else ''}{times}{name}"
    return said


class _Reader:
    """Tokens from a place on. `fail` is of the last one that was looked at."""

    def __init__(self, text: str, at: int) -> None:
        self._text, self._at, self._last = text, at, at

    def sign(self, wanted: str | tuple[str, ...], expected: str) -> str:
        kind, found = self._next()
        if kind != "sign" or found not in tuple(wanted):
            self.fail(expected)
        return found

    def word(self, wanted: tuple[str, ...], expected: str) -> str:
        kind, found = self._next()
        if kind != "word" or found not in wanted:
            self.fail(expected)
        return found

    def number(self, expected: str, *, signed: bool = False) -> float:
        sign = 1.0
        if signed:
            sign = -1.0 if self.skip("-") else 1.0
        kind, found = self._next()
        if kind != "number" or not math.isfinite(float(found)):
            self.fail(expected)
        return sign * float(found) + 0.0  # no minus before 0

    def whole(self, expected: str) -> int:
        kind, found = self._next()
        if kind != "number" or not found.isdecimal() or not int(found):
            self.fail(expected)
        return int(found)

    def maybe_number(self) -> float | None:
        before = self._at
        kind, found = self._next()
        if kind == "number":
            return float(found)
        self._at = before
        return None

    def skip(self, sign: str) -> bool:
        before = self._at
        if self._next() == ("sign", sign):
            return True
        self._at = before
        return False

    def end(self, expected: str) -> None:
        if self._next()[0] is not None:
            self.fail(expected)

    def fail(self, expected: str) -> NoReturn:
        found = self._text[self._last :].split()
        token = (found[0].rstrip(":") or ":") if found else "its end"
        raise ConfigError(
            f'The condition "{self._text}", character {self._last + 1}: expected {expected}, '
            f"found {token}."
        )

    def _next(self) -> tuple[str | None, str]:
        """(kind, token); (None, "") at the end."""
        while self._at < len(self._text) and self._text[self._at].isspace():
            self._at += 1
        self._last = self._at
        if self._at == len(self._text):
            return None, ""
        match = _TOKEN.match(self._text, self._at)
        if match is None:
            return "", self._text[self._at]
        self._at = match.end()
        return match.lastgroup, match.group()
