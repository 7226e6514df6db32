"""Tables of ids against plain loops: FTRL coordinate by coordinate, embeddings row by row."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedsvc.outputs.sparse import ROW_OPTIMIZERS
from embedsvc.ranking.slots import Ftrl, SlotTables
from partitions.errors import ConfigError
from partitions.features import Encoded, Slot

SLOTS = (Slot("user", 50, False, 0), Slot("tags", 7, True, 0), Slot("day", 3, False, 1))
DIMS = {"user": 4, "tags": 3}
TASKS = 2
PLAIN = Ftrl()


def batch_of(seed: int, rows: int = 20) -> Encoded:
    """Every other id of `user` occurs; a row of `tags` has up to three, some twice, some none."""
    rng = np.random.default_rng(seed)
    single = np.stack([rng.integers(0, 25, rows) * 2, rng.integers(0, 3, rows)], 1)
    ends = np.concatenate([[0], np.cumsum(rng.integers(0, 4, rows))])
    bag = rng.integers(0, 7, ends[-1]).astype(np.int32), ends.astype(np.int64)
    return Encoded(single.astype(np.int32), (bag,), np.zeros((rows, 0), np.float32))


def tables_of(ftrl: Ftrl = PLAIN, scale: float = 0.1, threads: int = 1) -> SlotTables:
    return SlotTables(
        SLOTS,
        DIMS,
        frozenset(slot.name for slot in SLOTS),
        TASKS,
        ROW_OPTIMIZERS.build("rowwise_adagrad"),
        ftrl,
        init_scale=scale,
        threads=threads,
        seed=3,
    )


def ids_of(batch: Encoded, slot: Slot) -> list[list[int]]:
    if not slot.bag:
        return [[int(i)] for i in batch.single[:, slot.column]]
    values, ends = batch.bags[slot.column]
    return [values[a:b].tolist() for a, b in pairwise(ends)]


def weight(z: float, n: float, ftrl: Ftrl) -> float:
    if abs(z) <= ftrl.l1:
        return 0.0
    return -(z - math.copysign(ftrl.l1, z)) / ((ftrl.beta + math.sqrt(n)) / ftrl.alpha + ftrl.l2)


@settings(max_examples=30, deadline=None)
@given(
    alpha=st.floats(0.01, 1),
    beta=st.floats(0, 2),
    l1=st.floats(0, 2),
    l2=st.floats(0, 2),
    seed=st.integers(0, 99),
)
def test_wide_weights_follow_ftrl_coordinate_by_coordinate(
    alpha: float, beta: float, l1: float, l2: float, seed: int
) -> None:
    ftrl = Ftrl(alpha, beta, l1, l2)
    tables, rng = tables_of(ftrl), np.random.default_rng(seed)
    z: dict[tuple[str, int, int], float] = {}
    n: dict[tuple[str, int, int], float] = {}
    for step in range(3):
        batch = batch_of(seed + step)
        slope = rng.normal(size=(len(batch), TASKS)).astype(np.float32)
        _, logit = tables.look_up(batch, training=True)
        for row in range(len(batch)):
            for task in range(TASKS):
                keys = [(s.name, i, task) for s in SLOTS for i in ids_of(batch, s)[row]]
                said = sum(weight(z.get(key, 0), n.get(key, 0), ftrl) for key in keys)
                assert logit[row, task] == pytest.approx(said, abs=2e-5, rel=1e-4)
        tables.learn(batch, np.zeros((len(batch), tables.width), np.float32), slope, 0.1)
        grads: dict[tuple[str, int, int], float] = {}
        for slot in SLOTS:
            for row, ids in enumerate(ids_of(batch, slot)):
                for i in ids:
                    for task in range(TASKS):
                        key = (slot.name, i, task)
                        grads[key] = grads.get(key, 0.0) + float(slope[row, task])
        for key, grad in grads.items():
            before = n.get(key, 0.0)
            step_size = (math.sqrt(before + grad * grad) - math.sqrt(before)) / alpha
            z[key] = z.get(key, 0.0) + grad - step_size * weight(z.get(key, 0.0), before, ftrl)
            n[key] = before + grad * grad
    for table in tables.tables:
        for i in range(table.slot.size):
            for task in range(TASKS):
                key = (table.slot.name, i, task)
                assert table.wide[i, task, 0] == pytest.approx(z.get(key, 0), abs=1e-4, rel=1e-4)
                assert table.wide[i, task, 1] == pytest.approx(n.get(key, 0), abs=1e-5, rel=1e-4)


def test_embeddings_learn_as_a_dense_loop_says() -> None:
    tables = tables_of()
    decay, lr = 0.3, 0.2
    first, _ = tables.look_up(batch_of(0), training=True)
    expected = {}
    for step in range(3):
        batch = batch_of(step)
        out, _ = tables.look_up(batch, training=True)
        grad = np.random.default_rng(step).normal(size=out.shape).astype(np.float32)
        for table in tables.tables:
            if not table.dim:
                continue
            rows, states = {}, {}
            lists = ids_of(batch, table.slot)
            part = slice(table.at, table.at + table.dim)
            for row, ids in enumerate(lists):  # what stands for untrained rows shows in `out`
                if len(set(ids)) == 1:
                    rows[ids[0]] = out[row, part].astype(np.float64)
            sums = {i: np.zeros(table.dim) for ids in lists for i in ids}
            for row, ids in enumerate(lists):
                for i in ids:
                    sums[i] += grad[row, part] / len(ids)
                    states[i] = float(table.state[i, 0])
            for i, total in sums.items():
                if i not in rows:
                    continue
                times = sum(ids.count(i) for ids in lists)
                total = total + decay / len(batch) * times * rows[i]
                state = states[i] + (total**2).mean()
                expected[table.slot.name, i] = rows[i] - lr * total / (math.sqrt(state) + 1e-10)
        tables.learn(batch, grad, np.zeros((len(batch), TASKS), np.float32), lr, decay)
        for (name, i), row in expected.items():
            table = next(t for t in tables.tables if t.slot.name == name)
            np.testing.assert_allclose(table.values[i], row, rtol=2e-4, atol=1e-6)
        expected.clear()
    assert first.any()


def test_an_id_that_was_never_trained_adds_nothing_in_use() -> None:
    tables = tables_of()
    tables.learn(
        batch_of(0), np.ones((20, tables.width), np.float32), np.ones((20, TASKS), np.float32), 0.1
    )
    odd = Encoded(
        np.array([[1, 0], [3, 0]], np.int32),
        ((np.empty(0, np.int32), np.zeros(3, np.int64)),),
        np.zeros((2, 0), np.float32),
    )
    out, logit = tables.look_up(odd, training=False)
    assert not out.any()  # neither users 1 and 3, nor an empty list
    day = tables.tables[2].wide[0]
    np.testing.assert_array_equal(logit, np.tile(tables.ftrl.weights(day), (2, 1)))
    assert tables.look_up(odd, training=True)[0][:, :4].all()


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_rows_that_teach_nothing_leave_tables_as_they_are(decay: float) -> None:
    """What is written but never learnt would be judged, and not be in the checkpoint."""
    tables, nothing = tables_of(), np.zeros((20, TASKS), np.float32)
    tables.learn(batch_of(0), np.zeros((20, tables.width), np.float32), nothing, 0.1, decay)
    for table in tables.tables:
        assert not (table.values.any() or table.state.any() or table.wide.any())
    some = np.ones((20, tables.width), np.float32)
    some[5:] = 0  # only the first rows have weight
    tables.learn(batch_of(0), some, nothing, 0.1, decay)
    for table in tables.tables[:2]:
        taught = sorted({i for ids in ids_of(batch_of(0), table.slot)[:5] for i in ids})
        assert np.flatnonzero(table.values.any(axis=1)).tolist() == taught
        assert np.flatnonzero(table.state.any(axis=1)).tolist() == taught


def test_threads_change_no_bit() -> None:
    found = []
    for threads in (1, 2, 3):
        tables = tables_of(threads=threads)
        for step in range(4):
            batch = batch_of(step, rows=200)
            out, logit = tables.look_up(batch, training=True)
            tables.learn(batch, out + 0.1, logit + 0.3, 0.1)
        found.append([*out.ravel(), *logit.ravel()])
    assert found[0] == found[1] == found[2]


def test_only_the_ids_of_a_batch_are_written_to() -> None:
    wide = SlotTables(
        (Slot("id", 30_000_000, False, 0),),
        {},
        frozenset({"id"}),
        1,
        ROW_OPTIMIZERS.build("sgd"),
        Ftrl(),
        init_scale=0.1,
        threads=1,
        seed=0,
    )
    batch = Encoded(np.array([[5], [29_999_999]], np.int32), (), np.zeros((2, 0), np.float32))
    wide.learn(batch, np.zeros((2, 0), np.float32), np.ones((2, 1), np.float32), 0.1)
    assert np.flatnonzero(wide.tables[0].wide[:, 0, 1]).tolist() == [5, 29_999_999]


@pytest.mark.parametrize("wrong", [Ftrl(alpha=0), Ftrl(l1=-1), Ftrl(beta=math.inf)])
def test_ftrl_refuses_what_is_no_setting(wrong: Ftrl) -> None:
    with pytest.raises(ConfigError, match="FTRL's"):
        wrong.check()


@settings(max_examples=50, deadline=None)
@given(
    beta=st.sampled_from([0.0, 1.0]),
    l1=st.sampled_from([0.0, 0.5]),
    l2=st.sampled_from([0.0, 2.0]),
    z=st.sampled_from([0.0, 0.25, -0.5, 3.0]),
    n=st.sampled_from([0.0, 1.0]),
)
def test_weights_that_learnt_nothing_are_0(
    beta: float, l1: float, l2: float, z: float, n: float
) -> None:
    ftrl = Ftrl(0.1, beta, l1, l2)
    if n == 0 and z:
        n = z * z  # as steps leave it
    found = float(ftrl.weights(np.array([[z, n]], np.float32))[0])
    assert found == pytest.approx(weight(z, n, ftrl), rel=1e-6)
    assert ftrl.weights(np.zeros((2, 3, 2), np.float32)).tolist() == [[0.0] * 3] * 2
