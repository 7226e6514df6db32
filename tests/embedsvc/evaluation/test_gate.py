"""A verdict keeps its promise: sizes by the formulas, bounds that hold, nothing passes by luck."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom

from embedsvc.evaluation.conditions import Condition, parse
from embedsvc.evaluation.gate import (
    Outcome,
    Plan,
    Sample,
    Summary,
    decide,
    limit,
    promotes,
    sizes,
    skipped,
    supported_tolerance,
    upper_mean,
    verdict_of,
)

ONCE = Plan(1)
SHOWN = Plan(1, "none")
BETTER = parse("hit_rate@10: new - old > 0.02 +- 0.01 at 0.9999")


def h(u: float) -> float:
    return (1 + u) * math.log(1 + u) - u


def sample(only_new: int, only_old: int, n: int, changed: int | None = None) -> Sample:
    """Hits of n askers, of whom so many are hit by one version alone."""
    new, old = np.zeros(n), np.zeros(n)
    new[:only_new], old[only_new : only_new + only_old] = 1, 1
    differs = np.arange(n) < (only_new + only_old if changed is None else changed)
    return Sample(new, old, differs, new > 0, old > 0)


def test_sizes_are_those_of_the_formulas() -> None:
    """32 uses, each of 4 verdicts seen: H' = 2 * 4^31; two sides and half of delta for the mean
    square: c = 4."""
    found = sizes(BETTER, Summary(10_000, 0.02, 0.1, 0.05), Plan(32, "full"))
    ways = math.log(2 * 4**31)
    assert found.hoeffding == math.ceil(2 * (ways + math.log(1 / 1e-4)) / 0.01**2)
    assert found.bennett is not None and found.changed_upper is not None
    for size, p in ((found.bennett, found.changed_upper), (found.squares, found.square_upper)):
        assert size == math.ceil((ways + math.log(4 / 1e-4)) / (p * h(0.01 / p)))
    assert 0.1 < found.changed_upper < 0.15 and 0.05 < found.square_upper < 0.09
    assert found.least == found.squares < found.bennett < found.hoeffding


def test_hidden_answers_take_fewer_users_but_still_any_pair_of_versions() -> None:
    found = sizes(BETTER, Summary(10_000, 0.02, 0.1, 0.1), Plan(32, "none"))
    assert found.hoeffding == math.ceil(2 * (math.log(32 * 33) + math.log(1e4)) / 0.01**2)


@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 2))
def test_all_that_may_have_been_shown_before_any_use_is_paid_for(
    uses: int, conditions: int, limits: int
) -> None:
    """The ways through the verdicts that lead to each use, over all uses, are at most H'."""
    shown = 4**conditions * 2**limits
    ways = sum(shown**before for before in range(uses))
    assert ways <= 2 ** Plan(uses, "full", conditions, limits).steps <= 2 * ways


def test_conditions_and_limits_are_counted_apart() -> None:
    parsed = [BETTER, parse("changed@5 < 0.3"), parse("recall@5: new > 0.1 +- 0.1 at 0.9")]
    assert Plan.of(parsed, 3, "full") == Plan(3, "full", 2, 1)
    assert Plan.of(parsed[1:2], 3, "full").shows_figures


def test_where_verdicts_may_steer_what_is_tried_they_are_all_that_is_shown() -> None:
    """Two samples of one size and verdict come to the same, to the last digit."""
    plan = Plan(2, "full", 1, 1)
    for a, b, verdict in [
        ((3_000, 10), (4_000, 900), "pass"),
        ((60, 10), (900, 800), "not enough users"),
    ]:
        n = 40_000 if verdict == "pass" else 2_000
        one, other = (decide(BETTER, sample(*hits, n), plan) for hits in (a, b))
        assert one == other and one.verdict == verdict and not one.shown
    assert one.needed == sizes(BETTER, Summary(9, 0, 0, 0), plan).hoeffding
    assert one.sentence.startswith(f"{BETTER}: not enough users: 2,000; {one.needed:,} are enough")
    changed = parse("changed@10 < 0.3")
    assert limit(changed, plan, 0.1) == limit(changed, plan, 0.2)
    assert limit(changed, plan, 0.1).sentence == "changed@10 < 0.3: pass"


def test_one_version_alone_lies_between_0_and_1() -> None:
    condition = parse("recall@20: new > 0.1 +- 0.01 at 0.999")
    found = sizes(condition, Summary(1000, 0.2, 1.0, 0.05), ONCE)
    assert found.hoeffding == math.ceil((math.log(2) + math.log(1000)) / (2 * 0.01**2))
    assert found.squares < found.hoeffding and found.bennett is None


def test_a_sum_with_factors_is_measured_on_its_own_scale() -> None:
    """Twice the sum, threshold and tolerance: the same question, so the same users."""
    once = parse("recall@20: new - old > 0.02 +- 0.01 at 0.99")
    twice = parse("recall@20: 2 * new - 2 * old > 0.04 +- 0.02 at 0.99")
    rng = np.random.default_rng(0)
    found = Sample(rng.random(500), rng.random(500), np.ones(500, np.bool_))
    a, b = decide(once, found, SHOWN), decide(twice, found, SHOWN)
    assert a.needed == b.needed and a.value is not None and b.value == pytest.approx(2 * a.value)
    assert b.supported == pytest.approx(2 * a.supported) if a.supported else False


def test_where_factors_differ_changed_lists_say_nothing() -> None:
    """new - 1.02 old of equal lists is not 0: the mean square alone counts, and may be larger."""
    condition = parse("recall@20: new - 1.02 * old > 0 +- 0.01 at 0.999")
    found = sizes(condition, Summary(100_000, 0.0, 0.0, 0.01), ONCE)
    p = found.square_upper
    doubt = math.log(2) + math.log(4 / 1e-3)
    assert found.squares == pytest.approx(doubt / (p * h(0.01 / 1.02 / p)), abs=1)
    assert found.bennett is None and found.changed_upper is None


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=20))
def test_where_they_cancel_the_mean_square_never_takes_more(
    pairs: list[tuple[float, float]],
) -> None:
    new, old = np.array(pairs).T
    found = sizes(BETTER, Summary.of(BETTER, Sample(new, old, new != old)), ONCE)
    assert found.bennett is not None and found.squares <= found.bennett


@pytest.mark.parametrize(
    ("condition", "ahead", "verdict"),
    [
        ("recall@5: new - old > 0.02 +- 0.01 at 0.9", 0.0301, "pass"),
        ("recall@5: new - old > 0.02 +- 0.01 at 0.9", 0.0299, "unknown"),
        ("recall@5: new - old > 0.02 +- 0.01 at 0.9", 0.0101, "unknown"),
        ("recall@5: new - old > 0.02 +- 0.01 at 0.9", 0.0099, "fail"),
        ("recall@5: old - new < 0.02 +- 0.01 at 0.9", 0.0099, "pass"),
        ("recall@5: old - new < 0.02 +- 0.01 at 0.9", 0.0301, "fail"),
    ],
)
def test_a_verdict_is_of_the_estimate_beyond_threshold_and_tolerance(
    condition: str, ahead: float, verdict: str
) -> None:
    parsed = parse(condition)
    summary = Summary(1000, ahead, 0.1, 0.1)
    assert verdict_of(parsed, summary, 1000) == verdict
    assert verdict_of(parsed, summary, 1001) == "not enough users"


def test_of_too_few_users_it_says_how_many_and_what_these_would_do() -> None:
    found = decide(BETTER, sample(60, 10, 1000, changed=200), SHOWN)
    assert found.verdict == "not enough users" and not found.promotes("fn-free")
    assert found.users == 1000 and found.needed is not None and found.needed > 1000
    assert found.value == pytest.approx(0.05) and found.changed == pytest.approx(0.2)
    assert found.supported is not None and found.low == pytest.approx(0.05 - found.supported)
    wide = f"hit_rate@10: new - old > 0.02 +- {found.supported * 1.0001:.9f} at 0.9999"
    assert decide(parse(wide), sample(60, 10, 1000, 200), SHOWN).verdict != "not enough users"
    small = f"hit_rate@10: new - old > 0.02 +- {found.supported * 0.999:.9f} at 0.9999"
    assert decide(parse(small), sample(60, 10, 1000, 200), SHOWN).verdict == "not enough users"
    assert found.sentence.startswith(f"{BETTER}: not enough users: 0.05 [")
    assert f"of 1,000 users, {found.needed:,} needed; these support +- " in found.sentence


def test_beside_a_verdict_stands_mcnemar() -> None:
    found = decide(BETTER, sample(60, 10, 20_000), SHOWN)
    assert (found.only_new_hits, found.only_old_hits) == (60, 10)
    assert found.mcnemar_p == pytest.approx(2 * binom.cdf(10, 70, 0.5))
    alone = decide(parse("hit_rate@10: new > 0.1 +- 0.1 at 0.9"), sample(60, 10, 20_000), SHOWN)
    assert alone.mcnemar_p is None and alone.changed is None and alone.old is None


def test_of_nobody_nothing_is_known() -> None:
    nobody = Sample(np.empty(0), np.empty(0), np.empty(0, np.bool_))
    found = decide(BETTER, nobody, SHOWN)
    assert found.verdict == "not enough users" and found.value is None and found.users == 0
    assert (
        found.supported == 2.0
        and found.needed == sizes(BETTER, Summary.of(BETTER, nobody), SHOWN).least
    )


def test_limits_compare_one_number() -> None:
    changed = parse("changed@10 < 0.3")
    assert (
        limit(changed, SHOWN, 0.29).verdict == "pass"
        and limit(changed, SHOWN, 0.3).verdict == "fail"
    )
    drop = parse("coverage@20: new - old > -0.05")
    assert (
        limit(drop, SHOWN, 0.2, 0.2).verdict == "pass"
        and limit(drop, SHOWN, 0.1, 0.2).verdict == "fail"
    )
    nothing = limit(drop, SHOWN, math.nan, 0.2)
    assert nothing.verdict == "fail" and nothing.value is None and "no value" in nothing.sentence
    alone = limit(parse("coverage@20: new > 0.1"), SHOWN, 0.2, math.nan)
    assert alone.verdict == "pass" and alone.old is None


def test_all_conditions_must_let_a_version_pass() -> None:
    def of(verdict: str) -> Outcome:
        return Outcome("", verdict, None)  # type: ignore[arg-type]

    skip = skipped(BETTER, "there is no live version")
    assert skip.sentence.endswith("skipped, there is no live version")
    assert promotes([], "fp-free") and promotes([of("pass"), skip], "fp-free")
    assert promotes([of("unknown")], "fn-free") and not promotes([of("unknown")], "fp-free")
    for verdict in ("fail", "not enough users"):
        assert not promotes([of("pass"), of(verdict)], "fn-free")


def test_more_users_or_weaker_promises_never_support_less() -> None:
    condition = parse("ndcg@10: new - old > 0 +- 0.01 at 0.999")
    tolerances = [
        supported_tolerance(condition, Summary(n, 0.0, 0.4, 0.02), Plan(uses, how))  # type: ignore[arg-type]
        for n, uses, how in [
            (100, 32, "full"), (1000, 32, "full"), (1000, 32, "none"), (1000, 1, "none"),
            (100_000, 1, "none"),
        ]
    ]  # fmt: skip
    assert tolerances == sorted(tolerances, reverse=True)
    assert supported_tolerance(condition, Summary.of(condition, sample(0, 0, 0)), ONCE) == 2


# --- bounds ---------------------------------------------------------------------------------------


@given(st.integers(0, 60), st.integers(1, 60), st.floats(0.1, 12))
def test_the_upper_bound_of_a_share_is_exceeded_as_seldom_as_it_says(
    hits: int, n: int, doubt: float
) -> None:
    """Of n coins with a chance just above the bound, so few hits come at most exp(-doubt) often."""
    hits = min(hits, n)
    bound = upper_mean(hits / n, n, doubt)
    assert hits / n <= bound <= 1
    if bound < 1 - 1e-9:
        assert binom.cdf(hits, n, bound) <= math.exp(-doubt) * (1 + 1e-6)


def test_an_upper_bound_comes_down_to_the_mean() -> None:
    assert upper_mean(0.3, 10**12, 5.0) == pytest.approx(0.3, abs=1e-5)
    assert upper_mean(0.0, 100, 5.0) == pytest.approx(1 - math.exp(-5 / 100))
    assert upper_mean(1.0, 100, 5.0) == 1.0


def promoted(
    condition: Condition, values: NDArray[np.float64], chances: list[float], n: int
) -> float:
    """Share of 4,000 draws of n askers that pass; each has one of the differences."""
    rng = np.random.default_rng(7)
    found = 0
    for counts in rng.multinomial(n, chances, 4000):
        estimate, square = counts @ values / n, counts @ values**2 / n
        summary = Summary(n, float(estimate), float((counts @ (values != 0)) / n), float(square))
        found += verdict_of(condition, summary, sizes(condition, summary, ONCE).least) == "pass"
    return found / 4000


def test_what_is_exactly_at_the_threshold_seldom_passes_and_twice_it_often() -> None:
    condition = parse("recall@20: new - old > 0.02 +- 0.01 at 0.9")
    values = np.array([-1.0, 0.0, 1.0])
    at_it, twice = [0.04, 0.90, 0.06], [0.03, 0.90, 0.07]
    n = sizes(condition, Summary(10**5, 0.02, 0.1, 0.1), ONCE).least
    n = int(1.2 * n)  # the bound of the share is that much wider of fewer
    assert promoted(condition, values, at_it, n) <= 0.1
    assert promoted(condition, values, twice, n) > 0.9
