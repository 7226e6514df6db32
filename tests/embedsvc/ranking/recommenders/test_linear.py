"""EASE against its definition, and its memory plan."""

import numpy as np
import pytest

from embedsvc.ranking.recommenders import RECOMMENDERS, linear
from embedsvc.ranking.recommenders.best import top_items
from partitions.errors import ConfigError
from tests.embedsvc.ranking.recommenders.test_recommenders import communities


def test_weights_are_stecks_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_BLOCK", 7)
    matrix = communities()
    found = RECOMMENDERS.build({"name": "ease", "ridge": 20.0}).fit(matrix)
    dense = matrix.toarray().astype(np.float64)
    inverse = np.linalg.inv(dense.T @ dense + 20 * np.eye(60))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(found.weights, expected, atol=1e-4)
    np.testing.assert_allclose(found.scores(np.arange(120)), dense @ expected, atol=1e-3)


def test_only_the_most_popular_are_recommended() -> None:
    matrix = communities()
    found = RECOMMENDERS.build({"name": "ease", "most_popular": 20}).fit(matrix)
    popular = np.argsort(-np.bincount(matrix.indices, minlength=60), kind="stable")[:20]
    lists = top_items(found, np.arange(120), 20)
    assert set(lists.ravel()) <= {-1, *popular} and found.weights.shape == (20, 20)


def test_a_fit_that_cannot_fit_is_refused_with_a_number_that_can() -> None:
    with pytest.raises(ConfigError, match=r"needs 13\.4 GB for 40,981 items.*most_popular to") as e:
        linear.check_memory(40_981, 8 * 10**9)
    most = int(str(e.value).split("most_popular to ")[1].split()[0].replace(",", ""))
    linear.check_memory(most, 8 * 10**9)
    with pytest.raises(ConfigError):
        linear.check_memory(most + 2, 8 * 10**9)


@pytest.mark.parametrize("setting", [{"ridge": 0.0}, {"most_popular": 0}])
def test_bad_settings_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        RECOMMENDERS.build({"name": "ease", **setting})
