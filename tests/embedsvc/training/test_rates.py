"""Schedules are the formulas of their docstrings."""

import math

import pytest

from embedsvc.config import TrainConfig
from embedsvc.training.rates import RATES, WarmedUp
from partitions.errors import ConfigError

SPECS = {
    "constant": "constant",
    "linear": {"name": "linear", "epochs": 8, "final": 0.25},
    "cosine": {"name": "cosine", "epochs": 8, "final": 0.25},
    "exponential": {"name": "exponential", "factor": 0.5},
}
WANTED = {
    "constant": [1, 1, 1, 1],
    "linear": [1, 0.8125, 0.25, 0.25],
    "cosine": [1, 0.25 + 0.75 * (1 + math.cos(math.pi / 4)) / 2, 0.25, 0.25],
    "exponential": [1, 0.25, 0.5**8, 0.5**20],
}


@pytest.mark.parametrize("name", list(RATES))
def test_a_schedule_is_what_its_formula_says(name: str) -> None:
    rate = RATES.build(SPECS[name])
    assert [rate(progress) for progress in (0, 2, 8, 20)] == pytest.approx(WANTED[name])


@pytest.mark.parametrize("name", list(RATES))
def test_a_rate_never_grows_and_never_falls_below_nothing(name: str) -> None:
    found = [RATES.build(SPECS[name])(step / 10) for step in range(300)]
    assert found[0] == 1 and found == sorted(found, reverse=True) and min(found) >= 0


def test_the_rate_grows_over_the_warm_up() -> None:
    warmed = WarmedUp.build(SPECS["exponential"], 2.0)
    found = [warmed(progress) for progress in (0, 0.5, 1, 2, 3)]
    assert found == pytest.approx([0, 0.25 * 0.5**0.5, 0.25, 0.25, 0.125])
    assert WarmedUp.build("constant", 0.0)(0) == 1


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("linear", "lr_schedule linear needs the setting epochs"),
        ("lineal", "no lr_schedule named lineal. Did you mean linear?"),
        ("x", "Known here: constant, cosine, exponential, linear"),
        ({"name": "cosine", "epochs": 0}, "epochs = 0: must be above 0"),
        ({"name": "linear", "epochs": 3, "final": 2}, "final = 2: must be from 0 to 1"),
        ({"name": "exponential", "factor": 1.5}, "factor = 1.5: must be above 0 and at most 1"),
        ({"name": "linear", "epochs": "3"}, "epochs = '3': must be a finite number"),
        ({"name": "linear", "epochs": math.inf}, "epochs = inf: must be a finite number"),
    ],
    ids=str,
)
def test_a_schedule_that_cannot_be_is_refused_with_the_config(spec: object, sentence: str) -> None:
    with pytest.raises(ValueError) as refused:
        TrainConfig.model_validate({"lr_schedule": spec})
    assert sentence in str(refused.value)
    if spec == "lineal":
        with pytest.raises(ConfigError, match="Did you mean linear"):
            RATES.build(spec)


@pytest.mark.parametrize("key", ["lr", "relation_lr", "warmup_epochs", "commit_every_s"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_setting_that_is_no_finite_number_is_refused(key: str, value: float) -> None:
    with pytest.raises(ValueError, match="should be a finite number"):
        TrainConfig.model_validate({key: value})
