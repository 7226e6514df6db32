#!/usr/bin/env python3
"""How often does the release gate let a version live that it should not, and one that it should?

    scripts/evaluate_release_gate.py            10,000 trials, within a minute or two
    scripts/evaluate_release_gate.py --quick    1,000 trials, within a minute

A trial draws users anew from a population whose true difference is known, and decides as
`embedsvc gate` does. The condition is new - old > THRESHOLD +- TOLERANCE at RELIABILITY; the true
difference is 0, half the threshold, the threshold, twice the threshold. The first three must not
pass: `new - old > threshold` is false of them. Exactly at the threshold it is tried with a tenth, a
third and two thirds of the users, too: bounds of few users must not let more pass.

Two populations:

    recall    users have 1 to 10 goals; in 40 of 100 lists another number of them is hit
    hits      hit or not; in 10 of 100 lists it is the other one

The planned number of users is the least one that the gate asks for where the population is as it
was thought to be, and a tenth more, since the gate's own bounds come of the users drawn. Beside it,
at the same users: the paired test of `difference > threshold`, and McNemar's of `difference > 0`
(a sign test where values are not hits), which asks less: it promotes what is better by anything.

Uses of one test set under adaptivity = "full", its users drawn once a trial:

    any_of_uses  --uses versions exactly at the threshold, which differ in whom they are better for:
                 does any pass?
    steered      the last of --uses versions, made of what the verdicts on those before told. Each
                 user wants one of two things, as a coin fell; the live version finds half of it:
                 whatever a version bets, its true difference is 0. Each bets on a block of users,
                 and is surely better for so many others that it passes just if the block is lucky.
                 The last bets on all blocks, the other way round where one was not. (Tolerance
                 STEERED, threshold 0.)
    decided      some of these trials with each user's numbers through `decide`, use by use

That the check can fail is seen where too few users are taken for enough; both must be above delta:

    unpaid       `steered`, of users that are enough for a single decision
    too_few      differences of 0 or 1, exactly at the threshold, with a tenth of the users needed

Prints a table; the last line is one JSON object.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from facts import facts
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import beta, binom, norm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from embedsvc.evaluation.conditions import Condition, parse
from embedsvc.evaluation.gate import Plan, Sample, Summary, decide, sizes, verdict_of
from partitions.errors import InputError

Floats = NDArray[np.float64]

STEERED = 0.05
FEWER = (0.1, 0.33, 0.67)  # of the planned users
TIMES = {"0": 0.0, "half": 0.5, "one": 1.0, "two": 2.0}  # of the threshold
GOALS, HAVE_GOALS = (1, 2, 3, 5, 10), (0.3, 0.25, 0.2, 0.15, 0.1)


@dataclass(frozen=True)
class Population:
    """Kinds of users: their difference, whether the list is another one, how many of all."""

    name: str
    difference: Floats
    changed: Floats  # 0 or 1
    share: Floats

    def with_mean(self, mean: float) -> "Population":
        """The same with gains and losses weighed so that the true difference is `mean`."""
        up, down = self.difference > 0, self.difference < 0
        gain, loss = self.share[up] @ self.difference[up], -self.share[down] @ self.difference[down]
        # As many users with a difference as before, of whom a part x gains.
        moved = self.share[up].sum() + self.share[down].sum()
        gain, loss = gain / self.share[up].sum(), loss / self.share[down].sum()
        x = (mean / moved + loss) / (gain + loss)
        if not 0 <= x <= 1:
            raise InputError(f"{self.name}: no share of gains makes a difference of {mean:g}.")
        share = self.share.copy()
        share[up] *= x * moved / self.share[up].sum()
        share[down] *= (1 - x) * moved / self.share[down].sum()
        return Population(self.name, self.difference, self.changed, share)

    def summary(self, n: int) -> Summary:
        return Summary(
            n,
            float(self.share @ self.difference),
            float(self.share @ self.changed),
            float(self.share @ self.difference**2),
        )

    def draw_uses(self, rng: np.random.Generator, n: int, uses: int) -> "Drawn":
        """Of `uses` versions, over the same n users: how much of a user there is to find stays as
        it is; whom a version is better for, and whom worse, is its own."""
        moves, moved = self.difference != 0, self.share[self.difference != 0].sum()
        sizes_, at = np.unique(np.abs(self.difference[moves]).round(12), return_inverse=True)
        kinds = np.bincount(at, self.share[moves]) / moved
        gains = np.bincount(at, self.share[moves] * (self.difference[moves] > 0)) / moved / kinds
        persons = rng.multinomial(n, kinds)
        differ = rng.binomial(persons, moved, (uses, len(kinds)))
        up = rng.binomial(differ, gains)
        left = n - differ.sum(axis=1)
        as_good = rng.binomial(left, self.share[~moves] @ self.changed[~moves] / (1 - moved))
        return Drawn(
            n,
            (2 * up - differ) @ sizes_ / n,
            (n - left + as_good) / n,
            differ @ sizes_**2 / n,
            up.sum(axis=1),
            (differ - up).sum(axis=1),
        )

    def draw(self, rng: np.random.Generator, n: int, trials: int) -> "Drawn":
        counts = rng.multinomial(n, self.share, trials) / n
        return Drawn(
            n,
            counts @ self.difference,
            counts @ self.changed,
            counts @ self.difference**2,
            np.rint(n * counts @ (self.difference > 0)).astype(np.int64),
            np.rint(n * counts @ (self.difference < 0)).astype(np.int64),
        )


@dataclass(frozen=True)
class Drawn:
    """Of each trial."""

    n: int
    mean: Floats
    changed: Floats
    square: Floats
    only_new: NDArray[np.int64]
    only_old: NDArray[np.int64]

    def passes(self, condition: Condition, plan: Plan) -> NDArray[np.bool_]:
        """What the gate says; sizes are asked for only where the estimate is far enough."""
        found = np.zeros(len(self.mean), np.bool_)
        assert condition.tolerance is not None
        for at in np.flatnonzero(self.mean > condition.threshold + condition.tolerance):
            summary = Summary(
                self.n, *(float(x[at]) for x in (self.mean, self.changed, self.square))
            )
            needed = sizes(condition, summary, plan).least
            found[at] = verdict_of(condition, summary, needed) == "pass"
        return found

    def paired(self, threshold: float, delta: float) -> NDArray[np.bool_]:
        """One-sided, by the normal distribution."""
        error = np.sqrt((self.square - self.mean**2) / self.n)
        return self.mean - threshold > norm.isf(delta) * error

    def mcnemar(self, delta: float) -> NDArray[np.bool_]:
        """One-sided, exact."""
        differ = self.only_new + self.only_old
        return np.asarray(binom.sf(self.only_new - 1, differ, 0.5) <= delta)


def populations() -> list[Population]:
    hits = Population(
        "hits", np.array([1.0, -1.0, 0.0]), np.array([1.0, 1.0, 0.0]), np.array([0.05, 0.05, 0.9])
    )
    steps = np.array([sign / goals for sign in (1, -1) for goals in GOALS])
    share = np.tile(0.2 * np.array(HAVE_GOALS), 2)
    recall = Population(
        "recall",
        np.concatenate([steps, [0.0, 0.0]]),
        np.concatenate([np.ones(len(steps)), [1.0, 0.0]]),
        np.concatenate([share, [0.4, 0.2]]),  # another list as good, and the same list
    )
    return [recall, hits]


def planned(condition: Condition, plan: Plan, population: Population) -> int:
    n = 1
    while (needed := sizes(condition, population.summary(n), plan).least) > n:
        n = max(n + 1, min(needed, 2 * n))
    return int(1.1 * n) + 1


def at_most(count: int, trials: int) -> float:
    """95 % one-sided upper bound of a share, exact (Clopper-Pearson)."""
    return 1.0 if count == trials else float(beta.ppf(0.95, count + 1, trials - count))


def any_of_uses(
    condition: Condition, plan: Plan, population: Population, n: int, trials: int, seed: int
) -> int:
    """Trials of which any of plan.max_uses versions, each exactly at the threshold, passes."""
    rng, found = np.random.default_rng([seed, 99]), 0
    for _ in range(trials):
        drawn = population.draw_uses(rng, n, plan.max_uses)
        found += bool(drawn.passes(condition, plan).any())
    return found


@dataclass(frozen=True)
class Steered:
    """See the docstring of the script: n users in blocks, one for each version but the last."""

    condition: Condition
    plan: Plan  # by which the gate goes
    uses: int
    n: int

    @staticmethod
    def of(condition: Condition, plan: Plan, uses: int) -> "Steered":
        """With the users that `plan` asks for."""
        n = 1
        while (needed := sizes(condition, Summary(n, 0.0, 1.0, 0.25), plan).least) > n:
            n = max(n + 1, min(needed, 2 * n))
        return Steered(condition, plan, uses, n)

    @property
    def blocks(self) -> list[NDArray[np.int64]]:
        return np.array_split(np.arange(self.n), self.uses - 1)

    @property
    def sure(self) -> int:
        """Users of whom a version finds all, so that it is just not passing but for its block."""
        assert self.condition.tolerance is not None
        return int(2 * self.n * self.condition.tolerance)

    def passes(self, rng: np.random.Generator, trials: int) -> NDArray[np.bool_]:
        """Of the last version."""
        size = np.array([len(block) for block in self.blocks])
        luck = 2 * rng.binomial(size, 0.5, (trials, len(size))) - size
        assert self.condition.tolerance is not None
        passed = (self.sure + luck) / (2 * self.n) > self.condition.tolerance
        estimates = np.where(passed, luck, -luck).sum(axis=1) / (2 * self.n)
        needed = sizes(self.condition, Summary(self.n, 0.0, 1.0, 0.25), self.plan).least
        return np.array(
            [
                verdict_of(self.condition, Summary(self.n, e, 1.0, 0.25), needed) == "pass"
                for e in estimates.tolist()
            ]
        )

    def decided(self, rng: np.random.Generator) -> bool:
        """The same of one trial, all of it by `decide`."""
        coin = rng.integers(0, 2, self.n)
        old, bet, known = np.full(self.n, 0.5), np.ones(self.n, np.int64), np.arange(self.n)
        for block in self.blocks:
            new = old.copy()
            new[block] = coin[block]
            new[np.setdiff1d(known, block, assume_unique=True)[: self.sure]] = 1.0
            outcome = decide(self.condition, Sample(new, old, new != old), self.plan)
            bet[block] = outcome.verdict == "pass"
        last = (coin == bet).astype(np.float64)
        return decide(self.condition, Sample(last, old, last != old), self.plan).verdict == "pass"


def steered(uses: int, reliability: float, trials: int, seed: int) -> dict[str, float | int]:
    condition = parse(f"recall@20: new - old > 0 +- {STEERED} at {reliability!r}")
    paid = Steered.of(condition, Plan(uses, "full"), uses)
    unpaid = Steered.of(condition, Plan(1), uses)  # takes its test set for a fresh one each time
    some = max(1, min(200, trials // 20))
    rngs = [np.random.default_rng([seed, 200 + at]) for at in range(3)]
    found = int(paid.passes(rngs[0], trials).sum())
    return {
        "n_steered": paid.n,
        "steered": found,
        "steered_at_most": at_most(found, trials),
        "decided_trials": some,
        "decided": sum(int(paid.decided(rngs[1])) for _ in range(some)),
        "n_unpaid": unpaid.n,
        "unpaid": int(unpaid.passes(rngs[2], trials).sum()),
    }


def too_few(condition: Condition, trials: int, seed: int) -> dict[str, float | int]:
    """The gate is told that a tenth are enough: it asks for none."""
    t = condition.threshold
    gains = Population("gains", np.array([1.0, 0.0]), np.array([1.0, 0.0]), np.array([t, 1 - t]))
    n = planned(condition, Plan(1), gains)
    rng = np.random.default_rng([seed, 300])
    right = int(gains.draw(rng, n, trials).passes(condition, Plan(1)).sum())
    few = gains.draw(rng, max(1, n // 10), trials)
    wrong = sum(
        verdict_of(condition, Summary(few.n, e, e, e), 0) == "pass" for e in few.mean.tolist()
    )
    return {"n_gains": n, "gains": right, "too_few": wrong}


def evaluate(
    condition: Condition, population: Population, uses: int, trials: int, seed: int
) -> tuple[dict[str, float | int], list[list[str]]]:
    assert condition.reliability is not None
    once, delta = Plan(1), round(1 - condition.reliability, 12)
    n = planned(condition, once, population.with_mean(2 * condition.threshold))
    asked = sizes(condition, population.with_mean(2 * condition.threshold).summary(n), once)
    assert asked.bennett is not None
    result: dict[str, float | int] = {
        "n": n,
        "n_by_changed": asked.bennett,
        "n_hoeffding": asked.hoeffding,
    }
    rows = []
    for at, (name, times) in enumerate(TIMES.items()):
        true = population.with_mean(times * condition.threshold)
        drawn = true.draw(np.random.default_rng([seed, at]), n, trials)
        passes = int(drawn.passes(condition, once).sum())
        paired = float(drawn.paired(condition.threshold, delta).mean())
        mcnemar = float(drawn.mcnemar(delta).mean())
        bound = at_most(passes, trials)
        if name == "two":
            result |= {"power_two": passes / trials, "paired_power_two": paired}
            result |= {"mcnemar_power": mcnemar}
        else:
            result |= {f"false_promotions_{name}": passes, f"rate_at_most_{name}": bound}
            result |= {f"mcnemar_promotions_{name}": mcnemar, f"paired_promotions_{name}": paired}
        wrong = "power" if name == "two" else f"<= {bound:.1g}"
        rows.append(
            [
                population.name,
                f"{times * condition.threshold:g}",
                f"{n:,}",
                f"{passes / trials:.4f}",
                wrong,
                f"{paired:.4f}",
                f"{mcnemar:.4f}",
            ]
        )
    few = 0
    at_it = population.with_mean(condition.threshold)
    for at, share in enumerate(FEWER):
        drawn = at_it.draw(np.random.default_rng([seed, 50 + at]), max(1, int(share * n)), trials)
        few = max(few, int(drawn.passes(condition, once).sum()))
    result |= {"false_promotions_of_fewer": few}
    often = Plan(uses, "full")
    n_often = planned(condition, often, population.with_mean(2 * condition.threshold))
    found = any_of_uses(condition, often, at_it, n_often, trials, seed)
    bound = at_most(found, trials)
    result |= {"n_of_uses": n_often, "any_of_uses": found, "any_of_uses_at_most": bound}
    rows.append(
        [
            f"{population.name}, any of {uses}",
            f"{condition.threshold:g}",
            f"{n_often:,}",
            f"{found / trials:.4f}",
            f"<= {bound:.1g}",
            "",
            "",
        ]
    )
    return result, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--threshold", type=float, default=0.02)
    parser.add_argument("--tolerance", type=float, default=0.01)
    parser.add_argument("--reliability", type=float, default=0.99)
    parser.add_argument("--uses", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="1,000 trials")
    given = parser.parse_args()
    trials = 1000 if given.quick else given.trials
    if trials < 1 or given.uses < 2:
        parser.error("--trials is at least 1, --uses at least 2")
    try:
        condition = parse(
            f"recall@20: new - old > {given.threshold!r} +- {given.tolerance!r} at "
            f"{given.reliability!r}"
        )
        found = [
            (one.name, *evaluate(condition, one, given.uses, trials, given.seed))
            for one in populations()
        ]
        adaptive = steered(given.uses, given.reliability, trials, given.seed)
        adaptive |= too_few(condition, trials, given.seed)
    except InputError as error:
        parser.error(str(error))
    table = Table(title=f"{str(condition).partition(': ')[2]}: {trials:,} trials")
    columns = ("", "true", "users", "passes", "95 %", "paired", "McNemar")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for _, _, rows in found:
        for row in rows:
            table.add_row(*row)
    for name, n, count, of in (
        ("steered by verdicts", "n_steered", "steered", trials),
        ("through decide", "n_steered", "decided", int(adaptive["decided_trials"])),
        ("steered, unpaid", "n_unpaid", "unpaid", trials),
        ("gains of 0 or 1", "n_gains", "gains", trials),
    ):
        rate = adaptive[count] / of
        true = f"{given.threshold:g}" if count == "gains" else "0"
        bound = f"<= {at_most(int(adaptive[count]), of):.1g}"
        table.add_row(name, true, f"{adaptive[n]:,}", f"{rate:.4f}", bound, "", "")
    few, rate = int(adaptive["n_gains"]) // 10, adaptive["too_few"] / trials
    table.add_row("a tenth of them", f"{given.threshold:g}", f"{few:,}", f"{rate:.4f}", "")
    Console().print(table)
    result = {
        "trials": trials,
        "delta": round(1 - given.reliability, 12),
        "threshold": given.threshold,
        "tolerance": given.tolerance,
        "uses": given.uses,
        **found[0][1],
        **{name: values for name, values, _ in found[1:]},
        "adaptive": adaptive,
        "seed": given.seed,
        **facts(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
