"""What every retriever keeps to, whatever its method."""

import copy
import inspect
import pickle
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embedsvc.graph.fast import num_cores
from embedsvc.outputs import sparse
from embedsvc.outputs.retrievers import RETRIEVERS, Retriever
from partitions.errors import ConfigError

SMALL: dict[str, dict[str, Any]] = {
    "exact": {},
    "partition": {"cells": 8, "probes": 3, "check_every": 2},
    "simhash": {"bits": 4, "tables": 8, "check_every": 2},
    "wta": {"permutations": 16, "window": 4, "bands": 8, "check_every": 2},
}
DIM = 12


@pytest.fixture(params=list(RETRIEVERS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def build(name: str) -> Retriever:
    return RETRIEVERS.build({"name": name, **SMALL[name], "seed": 3})


def rows(num: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((num, DIM)).astype(np.float32)
    return weight, rng.standard_normal(num).astype(np.float32)


def check(ids: NDArray[np.int64], allowed: set[int]) -> None:
    """Each row: distinct classes, then -1."""
    assert ids.dtype == np.int64
    for row in ids.tolist():
        proposed = [c for c in row if c >= 0]
        assert row == proposed + [-1] * (len(row) - len(proposed))
        assert len(set(proposed)) == len(proposed)
        assert set(proposed) <= allowed


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("limit", [1, 20, 300])
def test_proposals_are_distinct_classes(name: str, limit: int, with_bias: bool) -> None:
    weight, bias = rows(200)
    queries, _ = rows(70, seed=1)
    retriever = build(name)
    retriever.fit(weight, bias if with_bias else None)
    ids = retriever.retrieve(queries, limit)
    assert ids.shape == (70, limit)
    check(ids, set(range(200)))
    assert (ids[:, 0] >= 0).mean() > 0.9
    assert retriever.num_bytes > 0


def test_classes_come_and_go(name: str) -> None:
    weight, bias = rows(200)
    retriever = build(name)
    retriever.fit(weight, bias)
    gone = np.arange(0, 200, 3)
    left = set(range(200)) - set(gone.tolist())
    retriever.remove(gone)
    retriever.touch(np.arange(200))
    queries, _ = rows(80, seed=1)
    check(retriever.retrieve(queries, 200), left)
    assert set(retriever.hard(queries, 200, 200).tolist()) <= left

    more, more_bias = (np.concatenate(both) for both in zip(rows(200), rows(50, 2), strict=True))
    retriever.rebind(more, more_bias)
    check(retriever.retrieve(queries, 250), left)
    retriever.add(np.arange(200, 250))
    retriever.add(gone[:10])
    left |= set(range(200, 250)) | set(gone[:10].tolist())
    retriever.touch(np.arange(250))
    ids = retriever.retrieve(queries, 250)
    check(ids, left)
    assert {*range(200, 250), *gone[:10].tolist()} <= set(ids.ravel().tolist())
    assert retriever.upkeep_s >= 0


def test_state_makes_an_equal_retriever(name: str) -> None:
    weight, bias = rows(200)
    queries, _ = rows(40, seed=1)
    one, two = build(name), build(name)
    one.fit(weight, bias)
    one.remove(np.arange(7))
    weight[50:90] += 0.5
    one.touch(np.arange(50, 90))
    two.rebind(weight, bias)
    two.load_state({key: array.copy() for key, array in one.state().items()})
    for turn in range(4):
        assert (one.retrieve(queries, 15) == two.retrieve(queries, 15)).all()
        assert (one.hard(queries, 15) == two.hard(queries, 15)).all()
        weight[90:150] += np.float32(0.3 * turn)
        for retriever in (one, two):
            retriever.touch(np.arange(90, 150), far=np.arange(100, 110))


def test_a_state_is_plain_arrays(name: str) -> None:
    weight, bias = rows(50)
    retriever = build(name)
    retriever.fit(weight, bias)
    for array in retriever.state().values():
        assert isinstance(array, np.ndarray)
        assert array.dtype.kind in "biuf"


def test_the_same_seed_proposes_the_same(name: str) -> None:
    weight, bias = rows(300)
    queries, _ = rows(90, seed=1)
    found = []
    for _ in range(2):
        retriever = build(name)
        retriever.fit(weight, bias)
        found.append(retriever.retrieve(queries, 10))
    assert (found[0] == found[1]).all()


def test_one_class_and_no_query(name: str) -> None:
    weight, bias = rows(1)
    retriever = build(name)
    retriever.fit(weight, bias)
    found = retriever.retrieve(weight, 3), retriever.hard(weight, 3)
    check(found[0], {0})
    if name not in ("simhash", "wta"):  # a hash may miss it
        assert (found[0][0, 0], found[1].tolist()) == (0, [0])
    assert retriever.retrieve(weight[:0], 3).shape == (0, 3)


@pytest.mark.parametrize("threads", [1, 3])
def test_no_call_takes_more_threads_than_it_may(
    name: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of `exact` are torch's own."""
    others = [0]  # threads beside the caller's
    pool = sparse._pool
    monkeypatch.setattr(sparse, "_pool", lambda count: others.append(count) or pool(count))
    weight, bias = rows(800)
    retriever = build(name)
    assert retriever.threads == num_cores()
    retriever.threads = threads
    retriever.fit(weight, bias)
    retriever.touch(np.arange(800), far=np.arange(400))
    retriever.remove(np.arange(100))
    retriever.add(np.arange(100))
    ids = [retriever.top(weight[:200], 5, 50, settled)[0] for settled in (False, True)]
    assert (ids[0] >= 0).any() and (ids[1] >= 0).any()
    retriever.retrieve(weight[:200], 50)
    retriever.hard(weight[:200], 5)
    assert max(others) == (0 if name == "exact" else threads - 1)


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("with_bias", [True, False])
def test_pinned_classes_are_in_every_answer_and_in_no_step(
    name: str, with_bias: bool, settled: bool
) -> None:
    """Whether trained since or not; by a plain loop."""
    weight, bias = rows(200)
    queries, _ = rows(40, seed=1)
    retriever = build(name)
    retriever.fit(weight, bias if with_bias else None)
    others = retriever.retrieve(queries, 200)
    retriever.top(queries, 3, 20, settled)
    for pinned in (np.arange(0, 60), np.arange(30, 90)):
        retriever.pin(pinned)
        weight[pinned] += np.float32(0.5)
        retriever.touch(np.arange(0))
        assert not set(retriever.hard(queries, 200).tolist()) & set(pinned.tolist())
        ids, scores = retriever.top(queries, 7, 20, settled)
        assert (np.diff(scores, axis=1) <= 0).all()
        right = queries @ weight.T + (bias if with_bias else 0)
        np.testing.assert_allclose(scores, np.take_along_axis(right, ids, 1), rtol=1e-4, atol=1e-4)
        for q in range(40):
            best = set(pinned[np.argsort(-right[q, pinned])[:7]].tolist())
            lowest = scores[q, -1] + 1e-4
            assert {c for c in best if right[q, c] > lowest} <= set(ids[q].tolist())
    retriever.remove(np.arange(30, 40))
    retriever.pin(np.arange(40, 50))
    everything, scores = retriever.top(queries, 300, 300, settled)
    check(everything, set(range(30)) | set(range(40, 200)))
    assert (scores[everything < 0] == -np.inf).all()
    assert set(others.ravel().tolist()) - set(range(30, 40)) <= set(everything.ravel().tolist())


def test_hard_classes_are_the_best_that_are_not_pinned(name: str) -> None:
    weight, bias = rows(200)
    queries, _ = rows(40, seed=1)
    retriever = build(name)
    retriever.fit(weight, bias)
    retriever.remove(np.arange(5))
    retriever.pin(np.arange(5, 50))
    weight[50:90] += np.float32(0.5)
    retriever.touch(np.arange(50, 90))
    scores = queries @ weight.T + bias
    scores[:, :50] = -np.inf
    for per_query, probes in ((1, 1), (4, 2), (300, 4), (300, 8)):
        hard = retriever.hard(queries, per_query, probes)
        assert hard.dtype == np.int64
        assert hard.tolist() == sorted(set(hard.tolist()) & set(range(50, 200)))
        best = np.argsort(-scores, axis=1)[:, :per_query]
        by_chance = len(hard) / 150
        assert per_query == 300 or np.isin(best, hard).mean() > by_chance
        if per_query == 300 and (name == "exact" or (name == "partition" and probes == 8)):
            assert hard.tolist() == list(range(50, 200))
    assert retriever.hard(queries[:0], 4, 1).tolist() == []


@pytest.mark.parametrize("settled", [False, True])
def test_a_copy_acts_as_the_original_and_leaves_it_alone(name: str, settled: bool) -> None:
    weight, bias = rows(300)
    queries, _ = rows(40, seed=1)
    retriever = build(name)
    retriever.fit(weight, bias)
    retriever.top(queries, 5, 30, settled)
    copies = [copy.deepcopy(retriever) for _ in range(4)]
    copies.append(pickle.loads(pickle.dumps(retriever)))
    before = retriever.top(queries, 5, 30, settled)
    for other in copies:
        other.rebind(weight.copy(), bias)
        assert (other.top(queries, 5, 30, settled)[0] == before[0]).all()
        other.touch(np.arange(100))
        other.touch(np.arange(100))
        other.remove(np.arange(200, 300))
        assert (other.top(queries, 5, 30, settled)[0] < 200).all()
    assert all(
        (x == y).all() for x, y in zip(before, retriever.top(queries, 5, 30, settled), strict=True)
    )


@pytest.mark.parametrize("kind", [*RETRIEVERS, "partition in parts", "wta at intervals"])
def test_a_loaded_retriever_acts_as_the_saved_one_bit_for_bit(kind: str) -> None:
    """Rows that moved have put the lists in an order of their own, and the centers elsewhere."""
    name = kind.split()[0]
    more: dict[str, Any] = {"partition in parts": {"hard_rows": 5, "cells": 40}}.get(kind, {})
    more |= {"rebuild_every": 3} if kind == "wta at intervals" else {}
    setting = {"name": name, **SMALL[name], "seed": 3, **more}
    weight, bias = rows(400)
    queries, _ = rows(60, seed=1)
    one, two = RETRIEVERS.build(setting), RETRIEVERS.build(setting)
    one.fit(weight, bias)
    one.pin(np.arange(20))
    rng = np.random.default_rng(5)

    def train(retrievers: list[Retriever]) -> None:
        for _ in range(25):
            ids = rng.permutation(np.arange(30, 400))[:150]
            weight[ids] += rng.standard_normal((150, DIM)).astype(np.float32) / 2
            for retriever in retrievers:
                retriever.touch(ids)

    train([one])
    one.hard(queries, 3, 2)
    one.remove(np.arange(20, 30))
    two.rebind(weight, bias)
    two.load_state({key: array.copy() for key, array in one.state().items()})
    two.pin(np.arange(20))
    for _ in range(3):
        for found, again in zip(one.top(queries, 9, 30), two.top(queries, 9, 30), strict=True):
            assert (found == again).all()
        assert (one.hard(queries, 4, 2) == two.hard(queries, 4, 2)).all()
        assert (one.hard(queries, 50) == two.hard(queries, 50)).all()
        states = one.state(), two.state()
        assert all((states[0][key] == states[1][key]).all() for key in states[0])
        train([one, two])
        for retriever in (one, two):
            retriever.add(np.arange(20, 30))
            retriever.remove(np.arange(25, 30))


def test_no_setting_is_negative(name: str) -> None:
    """Nor, but for three of them, 0; what is said names the setting."""
    settings = inspect.signature(RETRIEVERS[name]).parameters
    numbers = {setting for setting in settings if setting not in ("mips", "packed")}
    for setting in numbers:
        for value in (-1, -3) if setting in ("seed", "rounds", "reach") else (-1, -3, 0):
            with pytest.raises(ConfigError, match=f"^retriever {name}: [^.]*{setting}"):
                RETRIEVERS.build({"name": name, setting: value})


def test_bytes_of_a_class_are_about_what_is_said(name: str) -> None:
    weight, bias = rows(200_000)
    fast = {"rounds": 1, "sample": 4} if name == "partition" else {}
    retriever = RETRIEVERS.build({"name": name, **fast})
    said = retriever.bytes_per_class
    retriever.fit(weight, bias)
    assert retriever.num_bytes / 200_000 == pytest.approx(said, rel=0.2)
