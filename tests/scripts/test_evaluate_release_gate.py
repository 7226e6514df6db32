"""The script's populations are as it says, and its table ends in one object."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from embedsvc.evaluation.conditions import parse
from embedsvc.evaluation.gate import Plan
from scripts.evaluate_release_gate import Population, Steered, at_most, populations

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate_release_gate.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_what_should_not_pass_does_not_and_what_should_does() -> None:
    done = run("--trials", 300, "--uses", 4)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["trials"] == 300 and found["delta"] == 0.01
    for one in (found, found["hits"]):
        wrong = [one[f"false_promotions_{name}"] for name in ("0", "half", "one", "of_fewer")]
        assert max(*wrong, one["any_of_uses"]) <= 3 and one["power_two"] > 0.99
        assert one["n_hoeffding"] > one["n"] and one["n_of_uses"] > one["n"]
        assert one["mcnemar_promotions_half"] > 0.9  # better by less than the threshold
    assert found["n_by_changed"] > 3 * found["n"]
    adaptive = found["adaptive"]
    assert max(adaptive["steered"], adaptive["decided"], adaptive["gains"]) <= 3
    assert adaptive["too_few"] > 0.05 * 300  # the check can fail


def test_steering_by_verdicts_shows_a_gate_that_asks_for_a_quarter_of_the_users() -> None:
    condition = parse("recall@20: new - old > 0 +- 0.05 at 0.99")
    paid = Steered.of(condition, Plan(32, "full"), 32)
    assert not paid.passes(np.random.default_rng(0), 2000).any()
    once = Steered.of(condition, Plan(1), 32)
    assert once.passes(np.random.default_rng(0), 2000).mean() > 0.5
    assert np.mean([once.decided(np.random.default_rng(at)) for at in range(10)]) > 0.5
    # Of a quarter of the users that the gate asks for, more than 1 in 100 would be beyond.
    quarter = Steered(condition, Plan(1), 32, paid.n // 4)
    assert quarter.passes(np.random.default_rng(0), 2000).mean() > 0.02


def test_uses_share_their_users_and_keep_their_true_difference() -> None:
    [recall, _] = populations()
    planted = recall.with_mean(0.02)
    drawn = planted.draw_uses(np.random.default_rng(0), 20_000, 3000)
    alone = planted.draw(np.random.default_rng(0), 20_000, 3000)
    assert drawn.mean.mean() == pytest.approx(0.02, abs=2e-4)
    assert drawn.square.mean() == pytest.approx(alone.square.mean(), rel=0.02)
    assert drawn.changed.mean() == pytest.approx(alone.changed.mean(), abs=1e-3)
    assert drawn.mean.std() == pytest.approx(alone.mean.std(), rel=0.1)


@pytest.mark.parametrize("mean", [-0.03, 0.0, 0.02, 0.05])
@pytest.mark.parametrize("population", populations(), ids=lambda one: one.name)
def test_a_planted_difference_is_the_true_one(population: Population, mean: float) -> None:
    planted = population.with_mean(mean)
    assert planted.share.sum() == pytest.approx(1) and (planted.share >= 0).all()
    assert planted.share @ planted.difference == pytest.approx(mean, abs=1e-12)
    moved = planted.share[planted.difference != 0].sum()
    assert moved == pytest.approx(population.share[population.difference != 0].sum())
    drawn = planted.draw(np.random.default_rng(0), 10_000, 400)
    assert drawn.mean.mean() == pytest.approx(mean, abs=1e-3)
    assert drawn.only_new.mean() == pytest.approx(
        10_000 * planted.share[planted.difference > 0].sum(), rel=0.02
    )


def test_an_upper_bound_of_none_is_three_in_so_many() -> None:
    assert at_most(0, 10_000) == pytest.approx(3e-4, rel=0.01)
    assert at_most(5, 5) == 1.0


def test_a_bad_call_ends_in_a_sentence() -> None:
    done = run("--threshold", 0.9)
    assert done.returncode == 2 and "makes a difference of" in done.stderr
    done = run("--reliability", 2)
    assert done.returncode == 2 and "expected a reliability between 0 and 1" in done.stderr
