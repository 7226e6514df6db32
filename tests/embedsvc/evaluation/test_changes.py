"""embedsvc.evaluation.changes: against plain loops; a rotation hides nothing, nor makes it up."""

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from embedsvc.evaluation import changes
from embedsvc.evaluation.lists import Asked, Found, Judged, hits_of
from embedsvc.evaluation.metrics import LIST_METRICS
from embedsvc.evaluation.significance import holm

K = 4
LIST = st.lists(st.integers(0, 6), max_size=K, unique=True)


def filled(lists: list[list[int]]) -> np.ndarray:
    return np.array([one + [-1] * (K - len(one)) for one in lists], np.int64).reshape(-1, K)


def judged(ids: np.ndarray, goals: sp.csr_matrix) -> Judged:
    hits, num = hits_of(ids, goals), np.diff(goals.indptr).astype(np.int64)
    values = {f"{name}@{K}": of(hits, num) for name, of in LIST_METRICS.items()}
    return Judged(K, Found(ids, np.zeros(ids.shape, np.float32)), hits, values)


def asked_for(goals: sp.csr_matrix) -> Asked:
    nothing = sp.csr_matrix(goals.shape, dtype=np.int8)
    who = np.arange(goals.shape[0])
    return Asked("likes", who, goals, nothing, 0 * who, np.zeros(goals.shape[1], np.int64), 0)


@given(st.lists(st.tuples(LIST, LIST), max_size=12), st.integers(1, 5))
def test_churn_counts_sets_orders_and_their_overlap(
    pairs: list[tuple[list[int], list[int]]], at: int
) -> None:
    found = changes.churn_of(filled([a for a, _ in pairs]), filled([b for _, b in pairs]), at)
    cut = [(a[:at], b[:at]) for a, b in pairs if a or b]
    assert (found.k, found.num_lists) == (min(at, K), len(cut))
    if not cut:
        assert np.isnan([found.set_changed, found.order_changed, found.jaccard]).all()
        return
    jaccard = [len({*a} & {*b}) / len({*a} | {*b}) for a, b in cut]
    assert found.set_changed == pytest.approx(np.mean([{*a} != {*b} for a, b in cut]))
    assert found.order_changed == pytest.approx(np.mean([a != b for a, b in cut]))
    assert found.jaccard == pytest.approx(np.mean(jaccard))


def test_changes_are_means_of_the_same_askers_and_who_has_no_list_counts_as_0() -> None:
    rng = np.random.default_rng(0)
    goals = sp.csr_matrix((rng.random((60, 30)) < 0.2).astype(np.int8))
    goals = goals[np.diff(goals.indptr) > 0]
    old, new = (
        np.stack([rng.permutation(30)[:K] for _ in range(goals.shape[0])]) for _ in range(2)
    )
    old[:7], new[5:8] = -1, -1
    before, after = judged(old, goals), judged(new, goals)
    found = changes.changes_of(before, after, asked_for(goals))
    assert (found.num_asked, found.without_old, found.without_new) == (len(old), 7, 3)
    assert found.churn.num_lists == len(old) - 2  # two are known to neither
    for name, change in found.metrics.items():
        assert change.old == pytest.approx(before.values[name].mean())
        assert change.new == pytest.approx(after.values[name].mean())
        assert change.difference.value == pytest.approx(change.new - change.old)
        assert change.difference.low <= change.difference.value <= change.difference.high
    assert (before.values[f"recall@{K}"][:7] == 0).all()
    p = [change.p for change in found.metrics.values()]
    assert [change.adjusted for change in found.metrics.values()] == holm(np.array(p)).tolist()


def test_a_version_beside_itself_did_not_change() -> None:
    goals = sp.csr_matrix(np.eye(10, dtype=np.int8))
    same = judged(filled([[n, (n + 1) % 10] for n in range(10)]), goals)
    found = changes.changes_of(same, same, asked_for(goals))
    for change in found.metrics.values():
        less = change.difference
        assert (less.value, less.low, less.high, change.p) == (0, 0, 0, 1)
    assert (found.churn.set_changed, found.churn.order_changed, found.churn.jaccard) == (0, 0, 1)


def test_holm_is_over_all_metrics_that_are_told_together() -> None:
    rng = np.random.default_rng(1)
    goals = sp.csr_matrix(np.eye(40, dtype=np.int8))
    some = [
        changes.changes_of(
            judged(rng.integers(0, 40, (40, K)), goals),
            judged(np.where(rng.random((40, 1)) < share, np.arange(40)[:, None], -1), goals),
            asked_for(goals),
        )
        for share in (0.05, 0.5)
    ]
    together = changes.adjusted_together(some)
    p = [change.p for one in some for change in one.metrics.values()]
    found = [change.adjusted for one in together for change in one.metrics.values()]
    assert found == holm(np.array(p)).tolist()
    assert [one.churn for one in together] == [one.churn for one in some]


@given(st.sets(st.text(max_size=3)), st.sets(st.text(max_size=3)))
def test_entities_are_matched_by_key(old: set[str], new: set[str]) -> None:
    was, now = (pa.array(sorted(keys, reverse=True), pa.large_string()) for keys in (old, new))
    found = changes.entity_change(was, now)
    assert (found.old, found.new, found.both) == (len(old), len(new), len(old & new))
    assert (found.appeared, found.vanished) == (len(new - old), len(old - new))
    at_old, at_new = changes.common_rows(was, pa.chunked_array([now]))
    assert was.take(pa.array(at_old)).to_pylist() == now.take(pa.array(at_new)).to_pylist()
    assert {*now.take(pa.array(at_new)).to_pylist()} == old & new


def test_a_sample_is_ascending_distinct_and_everything_where_that_is_no_more() -> None:
    assert changes.sample_of(5, 5).tolist() == [0, 1, 2, 3, 4]
    some = changes.sample_of(1000, 100)
    assert len(some) == 100 and (np.diff(some) > 0).all() and some[-1] < 1000
    assert some.tolist() == changes.sample_of(1000, 100).tolist()


def test_turned_vectors_did_not_drift_and_new_ones_did() -> None:
    rng = np.random.default_rng(2)
    old = rng.normal(size=(400, 8)).astype(np.float32)
    turn, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    stretched = (old @ turn * rng.uniform(0.5, 2, (400, 1))).astype(np.float32)
    found = changes.vector_drift(old, stretched)
    assert found.cosine == pytest.approx(1, abs=1e-5)
    assert (found.num_fitted, found.num_judged) == (200, 200)
    # Fitted and judged on the same rows, what has nothing in common would seem to have a little.
    fresh = changes.vector_drift(old, rng.normal(size=(400, 8)).astype(np.float32))
    assert abs(fresh.cosine) < 0.1


def test_vectors_that_can_not_be_compared_say_why() -> None:
    rng = np.random.default_rng(3)
    a = rng.normal(size=(100, 8)).astype(np.float32)
    assert "8 numbers, then 4" in changes.vector_drift(a, a[:, :4]).why
    assert "31 common entities are too few" in changes.vector_drift(a[:31], a[:31]).why
    holed = a.copy()
    holed[:70] = 0
    holed[0, 0] = np.nan
    assert "30 common entities" in changes.vector_drift(a, holed).why
    assert np.isnan(changes.vector_drift(a, holed).cosine)


def test_settings_that_differ_have_dotted_names() -> None:
    old = {"train": {"lr": 0.1, "epochs": 3}, "model": {"loss": {"name": "softmax"}}, "eval": {}}
    new = {"train": {"lr": 0.2, "epochs": 3, "seed": 1}, "model": {"loss": "softmax"}, "eval": {}}
    assert changes.settings_changed(old, new) == {
        "model.loss": ({"name": "softmax"}, "softmax"),
        "train.lr": (0.1, 0.2),
        "train.seed": (None, 1),
    }
