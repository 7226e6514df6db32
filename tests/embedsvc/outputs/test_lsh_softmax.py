"""The layer over some classes: exact where all are retrieved, and at its edges."""

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from embedsvc.outputs import saved
from embedsvc.outputs.full import FullSoftmax
from embedsvc.outputs.generator import Generator
from embedsvc.outputs.lsh_softmax import LSHSoftmax
from embedsvc.outputs.retrievers import RETRIEVERS
from partitions.errors import ConfigError, DataError

D = 6


def layer(n_classes: int = 300, **settings: Any) -> LSHSoftmax:
    defaults: dict[str, Any] = {"retriever": "exact", "head": 8, "retrieved": 16, "samples": 20}
    return LSHSoftmax(D, n_classes, **(defaults | settings))


def batch(size: int, n_classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(size, D, generator=generator, requires_grad=True)
    return hidden, torch.randint(n_classes, (size,), generator=generator)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("n_classes", [1, 2, 300])
def test_all_classes_retrieved_is_the_full_softmax(fused: bool, n_classes: int) -> None:
    some = layer(n_classes, retrieved=n_classes, fused=fused, optimizer="sgd")
    every = FullSoftmax(D, n_classes, fused=fused, optimizer="sgd")
    optimizers = [torch.optim.SGD(x.parameters(), lr=0.1) for x in (some, every) if not fused]
    for seed in range(3):
        one, target = batch(9, n_classes, seed)
        two = one.detach().clone().requires_grad_()
        for optimizer in optimizers:
            optimizer.zero_grad()
        found, expected = some(one, target), every(two, target)
        found.loss.backward()
        expected.loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        assert found.output.tolist() == pytest.approx(expected.output.tolist(), abs=1e-5)
        assert one.grad is not None and two.grad is not None
        assert torch.allclose(one.grad, two.grad, atol=1e-6)
    assert torch.allclose(some.weight, every.weight, atol=1e-6)


def test_fused_and_plain_steps_are_the_same() -> None:
    fused = layer(optimizer="sgd", threads=2)
    plain = layer(fused=False)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for seed in range(4):
        one, target = batch(9, 300, seed)
        two = one.detach().clone().requires_grad_()
        found, expected = fused(one, target), plain(two, target)
        assert found.output.tolist() == pytest.approx(expected.output.tolist(), abs=1e-5)
        found.loss.backward()
        optimizer.zero_grad()
        expected.loss.backward()
        assert plain.weight.grad is not None and plain.weight.grad.is_sparse
        optimizer.step()
        assert one.grad is not None and two.grad is not None
        assert torch.allclose(one.grad, two.grad, atol=1e-6)
    assert torch.allclose(fused.weight, plain.weight, atol=1e-6)


@pytest.mark.parametrize("correction", ["log_q", "none"])
def test_training_with_the_correction_finds_the_exact_likelihood(correction: Any) -> None:
    """Flat classes, few samples: without log-Q the loss is of another softmax."""
    model = layer(200, retriever=None, head=0, samples=100, correction=correction)
    hidden, target = batch(256, 200)
    losses = [model(hidden, target).loss.item() for _ in range(50)]
    exact = model.eval()(hidden, target).loss.item()
    if correction == "log_q":
        assert np.mean(losses) == pytest.approx(exact, abs=0.05)
    else:
        assert np.mean(losses) < exact - 0.2


def test_rows_outside_the_active_set_stand_still() -> None:
    model = layer(5000, retriever=None)
    before = model.weight.clone()
    model(*batch(9, 5000)).loss.backward()
    changed = (model.weight != before).any(1)
    assert 17 <= changed.sum() <= 8 + 9 + 20
    assert changed[batch(9, 5000)[1]].all()


def test_equal_seeds_give_equal_bits(tmp_path: Path) -> None:
    runs = []
    for _ in range(2):
        model = layer(threads=1, frequencies=torch.arange(300))
        for seed in range(5):
            hidden, target = batch(9, 300, seed)
            model(hidden, target).loss.backward()
        assert hidden.grad is not None
        runs.append((model.weight.numpy().tobytes(), hidden.grad.numpy().tobytes()))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("way", ["state_dict", "save", "deepcopy"])
@pytest.mark.parametrize("optimizer", ["sgd", "rowwise_adagrad", "adam_lite"])
def test_a_loaded_layer_goes_on_bit_for_bit(way: str, optimizer: str, tmp_path: Path) -> None:
    model = layer(optimizer=optimizer, frequencies=torch.arange(300) % 7, lr=0.3)
    for seed in range(3):
        model(*batch(9, 300, seed)).loss.backward()
    model.add_classes(5)
    model.remove_classes([298, 301])
    if way == "save":
        model.save(tmp_path / "layer")
        other = LSHSoftmax.load(tmp_path / "layer")
    elif way == "deepcopy":
        other = copy.deepcopy(model)
    else:
        torch.save(model.state_dict(), tmp_path / "state")
        other = layer(optimizer=optimizer, lr=0.3, seed=0)
        other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for seed in range(3, 6):
        hidden, target = batch(9, 298, seed)
        one, two = model(hidden, target), other(hidden, target)
        assert one.output.tolist() == two.output.tolist()
        one.loss.backward()
        two.loss.backward()
    assert (model.weight == other.weight).all()
    assert (model.topk(hidden, 5).indices == other.topk(hidden, 5).indices).all()


def test_a_full_layer_is_saved_too(tmp_path: Path) -> None:
    model = FullSoftmax(D, 30, optimizer="adam_lite", bias=False)
    model.remove_classes([29])
    model(*batch(9, 29)).loss.backward()
    model.save(tmp_path / "layer")
    other = FullSoftmax.load(tmp_path / "layer")
    for each in (model, other):
        each(*batch(9, 29, 1)).loss.backward()
    assert (model.weight == other.weight).all() and other.num_live == 29
    with pytest.raises(DataError, match=r"not a saved LSHSoftmax .* it says it is a FullSoftmax"):
        LSHSoftmax.load(tmp_path / "layer")


def test_a_file_that_was_altered_is_named(tmp_path: Path) -> None:
    path = tmp_path / "layer"
    with pytest.raises(DataError, match=f"{path} is missing"):
        LSHSoftmax.load(path)
    layer().save(path)
    found = saved.read(path, "LSHSoftmax")
    whole = path.read_bytes()
    for broken in (whole[:5000], b"", b"x" * 5000):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=str(path)):
            LSHSoftmax.load(path)
    path.write_bytes(whole)
    for name in found.arrays:
        rest = {k: np.array(v) for k, v in found.arrays.items() if k != name}
        for arrays in (rest, rest | {name: np.zeros((7, 7, 7), np.float32)}):
            saved.write(path, "LSHSoftmax", found.settings, arrays)
            with pytest.raises(DataError, match=f"{path} was altered"):
                LSHSoftmax.load(path)
    saved.write(path, "LSHSoftmax", {"hed": 3}, found.arrays)
    with pytest.raises(DataError, match=f"{path} was altered.*hed"):
        LSHSoftmax.load(path)


def test_multi_labels_equal_a_plain_loop() -> None:
    model = layer(50, retrieved=50)
    hidden, _ = batch(4, 50)
    lists = [[3, 9], [7], [], [5, 5, 6]]
    log_prob = model.log_prob(hidden)
    expected = [
        sum(log_prob[b, c].item() for c in labels) / max(len(labels), 1)
        for b, labels in enumerate(lists)
    ]
    padded = torch.tensor([[3, 9, -1], [-1, 7, -1], [-1, -1, -1], [5, 5, 6]])
    for target in (padded, [torch.tensor(x, dtype=torch.int64) for x in lists]):
        for training in (True, False):
            with torch.no_grad():
                found = model.train(training)(hidden, target)
            assert found.output.tolist() == pytest.approx(expected, abs=1e-5)
            assert found.loss.item() == pytest.approx(-sum(expected) / 3, abs=1e-5)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_nothing_to_learn_costs_nothing(fused: bool, training: bool) -> None:
    model = layer(fused=fused, head=0, samples=0).train(training)
    before = model.weight.detach().clone()
    for hidden, target in [
        (torch.empty(0, D, requires_grad=True), torch.empty(0, dtype=torch.int64)),
        (torch.ones(2, D, requires_grad=True), torch.full((2, 3), -1)),
        (torch.ones(2, D, requires_grad=True), [torch.empty(0, dtype=torch.int64)] * 2),
    ]:
        output, loss = model(hidden, target)
        assert output.tolist() == [0] * len(hidden) and loss.item() == 0
        loss.backward()
        assert hidden.grad is not None and (hidden.grad == 0).all()
    assert (model.weight == before).all()
    assert model.log_prob(torch.empty(0, D)).shape == (0, 300)
    assert model.topk(torch.empty(0, D), 4).indices.shape == (0, 4)


def test_one_row_may_come_without_a_batch() -> None:
    model = layer(retrieved=300)
    hidden, target = batch(1, 300)
    alone, together = model(hidden[0], target[0]), model(hidden, target)
    assert alone.output.dim() == 0
    assert alone.output.item() == together.output.item()
    assert model.topk(hidden[0], 3).indices.shape == (3,)


@pytest.mark.parametrize(
    ("hidden", "target", "sentence"),
    [
        (torch.full((2, D), torch.nan), torch.zeros(2).long(), "not finite, first in row 0"),
        (torch.full((2, D), torch.inf), torch.zeros(2).long(), "not finite, first in row 0"),
        (torch.ones(2, D), torch.tensor([0, 300]), "of row 1 is 300; classes are 0 to 299"),
        (torch.ones(2, D), torch.tensor([-1, 0]), "of row 0 is -1; classes are 0 to 299"),
        (torch.ones(2, D), torch.tensor([[0, -2], [1, 1]]), "row 0 is -2; .* -1 fills a row"),
        (torch.ones(2, D), torch.tensor([299, 5]), "row 1 is class 5, which was removed"),
        (torch.ones(2, D), torch.zeros(3).long(), r"has 2 rows, .* the shape \[3\]"),
        (torch.ones(2, D), torch.zeros(2), "classes' numbers, found torch.float32"),
        (torch.ones(2, D + 1), torch.zeros(2).long(), r"\[batch, 6\], found \[2, 7\]"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_a_mistake_is_one_sentence_and_changes_nothing(
    hidden: torch.Tensor, target: torch.Tensor, sentence: str, training: bool
) -> None:
    model = layer().train(training)
    model.remove_classes([5])
    before = model.weight.clone()
    with pytest.raises(DataError, match=sentence):
        model(hidden, target)
    assert (model.weight == before).all()


def test_scores_that_overflow_are_one_sentence() -> None:
    model = layer()
    model.weight.fill_(1e38)
    with pytest.raises(DataError, match="The scores of row 0 overflow"):
        model(torch.ones(2, D), torch.tensor([0, 1]))
    model = layer()
    before = model.weight.clone()
    with pytest.raises(DataError, match="gradient of row 0's output is not finite"):
        (model(torch.ones(2, D), torch.tensor([0, 1])).loss * torch.inf).backward()
    assert (model.weight == before).all()


def test_wrong_settings_are_one_sentence() -> None:
    for settings, sentence in [
        ({"head": -1}, "head is -1"),
        ({"correction": "logq"}, "correction is 'logq'"),
        ({"train_probes": 0}, "train_probes is 0; it must be at least 1"),
        ({"lr": -1}, "lr must be finite and at least 0"),
        ({"lr": float("nan")}, "lr must be finite and at least 0"),
        ({"threads": 0}, "threads at least 1, found 0.1 and 0"),
        ({"products": "bfloat16", "fused": False}, "is of the fused step"),
        ({"sampler": "unigram"}, "unigram needs frequencies"),
        ({"retriever": "exacct"}, "Did you mean exact"),
        ({"optimizer": "adam"}, "no row optimizer named adam. Did you mean"),
    ]:
        with pytest.raises(ConfigError, match=sentence):
            layer(**settings)
    with pytest.raises(DataError, match="frequencies must be 300 finite numbers"):
        layer(frequencies=torch.ones(299))


def test_samples_follow_the_frequencies_where_there_are_some() -> None:
    """Rank tells nothing about equally frequent classes."""
    flat = layer(frequencies=torch.ones(300), head=0)._ranks()
    assert np.ptp(flat._sampler.chances()) == 0
    assert np.ptp(layer(head=0)._ranks()._sampler.chances()) > 0.1


def test_frequencies_order_the_head() -> None:
    model = layer(frequencies=torch.tensor([0.0, 5, 1, 9, 5]), n_classes=5, head=3)
    assert model._ranks().head.tolist() == [3, 1, 4]
    model.set_frequencies(np.arange(5))
    assert model._ranks().head.tolist() == [4, 3, 2]


def test_the_retriever_proposes_none_of_the_head() -> None:
    model = layer(40, head=8, frequencies=torch.arange(40, 0, -1))
    retriever = model.retriever
    assert retriever is not None
    queries = torch.eye(D)

    def proposed() -> list[int]:
        model.topk(queries, 1)
        return retriever.hard(queries.numpy(), 60, 60).tolist()

    assert proposed() == list(range(8, 40))
    model.remove_classes([3, 30])
    assert proposed() == [c for c in range(9, 40) if c != 30]  # 8 is of the head now
    model.set_frequencies(torch.arange(40))  # the head is 32 .. 39 now
    assert proposed() == [c for c in range(32) if c not in (3, 30)]
    model.add_classes(2, frequencies=torch.tensor([100.0, 0.5]))
    assert proposed() == [*(c for c in range(33) if c not in (3, 30)), 41]


def test_topk_of_head_and_retrieved_is_exact_when_the_retriever_is() -> None:
    model = layer()
    model.remove_classes([3, 250])
    hidden, _ = batch(9, 300)
    scores = (hidden @ model.weight.T).detach()
    scores[:, [3, 250]] = -torch.inf
    for k in (1, 7, 400):
        expected = scores.topk(min(k, 298))
        for found in (model.topk(hidden, k), model.topk(hidden, k, exact=True)):
            assert torch.allclose(found.values, expected.values, atol=1e-6)
            assert (found.indices == expected.indices).all()
    for wrong, sentence in (({"k": -1}, "k is -1"), ({"k": 1, "candidates": 0}, "candidates is 0")):
        with pytest.raises(DataError, match=sentence):
            model.topk(hidden, **wrong)
    few = model.topk(hidden, 30, candidates=2)  # fewer than k: answered by a scan
    assert (few.indices == scores.topk(30).indices).all()
    assert (model.predict(hidden) == scores.argmax(1)).all()
    assert (model.log_prob(hidden)[:, [3, 250]] == -torch.inf).all()


@pytest.mark.parametrize("fused", [True, False])
def test_answers_follow_training(fused: bool) -> None:
    model = layer(fused=fused, lr=0.5, head=300)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    hidden, target = batch(9, 300)
    for _ in range(3):
        model(hidden, target).loss.backward()
        if not fused:
            optimizer.step()
        exact, found = model.topk(hidden, 5, exact=True), model.topk(hidden, 5)
        assert torch.allclose(exact.values, found.values, atol=1e-6)
    model.load_state_dict(layer(seed=7, fused=fused).state_dict())
    exact, found = model.topk(hidden, 5, exact=True), model.topk(hidden, 5)
    assert torch.allclose(exact.values, found.values, atol=1e-6)


@pytest.mark.parametrize("fused", [True, False])
def test_added_classes_are_learnt_and_found(fused: bool) -> None:
    model = layer(20, fused=fused, lr=0.5)
    hidden, target = batch(9, 20)
    model(hidden, target).loss.backward()
    model.topk(hidden, 1)
    new = torch.eye(D)[:2] * 30
    assert model.add_classes(new) == range(20, 22)
    assert model.add_classes(3) == range(22, 25)
    assert model.predict(torch.eye(D)[1]).item() == 21
    old = model.weight[:20].detach().clone()
    model(hidden, torch.full((9,), 24)).loss.backward()
    assert model.optimizer_state.shape[0] == model.n_classes == model.num_live == 25
    model.remove_classes(torch.tensor([21]))
    assert model.predict(torch.eye(D)[1]).item() != 21
    assert model.num_live == 24
    if fused:
        assert (model.weight[24] != 0).any() and (model.weight[:20] != old).any()
    assert functional.softmax(model.log_prob(hidden), 1).shape == (9, 25)
    with pytest.raises(DataError, match="no class 25 to remove; classes are 0 to 24"):
        model.remove_classes([25])
    with pytest.raises(DataError, match=r"rows \[n, 6\], found \[2, 3\]"):
        model.add_classes(torch.ones(2, 3))


def test_one_class_is_certain() -> None:
    model = layer(1)
    output, loss = model(torch.ones(3, D, requires_grad=True), torch.zeros(3).long())
    assert output.tolist() == [0, 0, 0] and loss.item() == 0
    assert model.predict(torch.ones(3, D)).tolist() == [0, 0, 0]


def test_two_forward_passes_before_their_backward_passes() -> None:
    """Each uses the rows that it has seen; both updates count."""
    model, twin = layer(optimizer="sgd"), layer(optimizer="sgd", fused=False)
    first, second = batch(5, 300, 1), batch(5, 300, 2)
    one, two = model(*first).loss, model(*second).loss
    one.backward()
    two.backward()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    (twin(*first).loss + twin(*second).loss).backward()
    optimizer.step()
    assert torch.allclose(model.weight, twin.weight, atol=1e-6)


def test_the_retriever_is_built_anew_when_much_was_learnt() -> None:
    """Here a step touches all of the 300 classes, so at steps 8, 16, 32, ..."""
    model = layer(head=0, samples=100_000, retrieved=300)
    retriever = model.retriever
    assert retriever is not None
    built = []
    fit = retriever.fit
    retriever.fit = lambda *rows: built.append(int(model.num_steps)) or fit(*rows)  # type: ignore
    for seed in range(40):
        model(*batch(9, 300, seed)).loss.backward()
    assert built == [0, 8, 16, 32]
    model.eval()
    model.topk(batch(9, 300)[0], 3)
    assert built == [0, 8, 16, 32]
    model.train()
    model.num_touches[1] = 20 * 300  # half of what there are
    model.topk(batch(9, 300)[0], 3)
    assert built == [0, 8, 16, 32]
    model.eval()
    model.topk(batch(9, 300)[0], 3)
    assert built == [0, 8, 16, 32, 40]
    still = layer(head=0, samples=100_000, auto_rebuild=False).eval()
    still.num_touches[0] = 10**6
    assert still.retriever is not None
    still.retriever.fit = None  # type: ignore
    assert not still._has_learnt(1)


@pytest.mark.parametrize("retriever", ["exact", "partition"])
def test_hard_classes_are_worth_more_than_samples_where_frequencies_are_flat(
    retriever: str,
) -> None:
    items = Generator(2000, dim=32, frequencies="flat", seed=3)
    x, target = (torch.from_numpy(a) for a in items.examples(2000, 10**6))
    losses = []
    for settings in ({"retriever": None, "samples": 500}, {"retriever": retriever, "samples": 100}):
        model = LSHSoftmax(
            32, 2000, frequencies=items.probability_C, head=0, lr=0.2, threads=1, **settings
        )
        for step in range(400):
            hidden, label = (torch.from_numpy(a) for a in items.examples(64, step))
            model(8 * hidden, label).loss.backward()
        losses.append(model.eval()(8 * x, target).loss.item())
    assert losses[1] < losses[0] - 0.05


@pytest.mark.parametrize("name", list(RETRIEVERS))
@pytest.mark.parametrize("fused", [True, False])
def test_a_layer_lives_with_any_retriever(name: str, fused: bool, tmp_path: Path) -> None:
    """Learns, loses and gains classes, is saved, and goes on as it would have."""
    spec = {"name": name, "window": 4} if name == "wta" else name  # rows are short here
    model = layer(500, retriever=spec, fused=fused, lr=0.5, threads=1)
    model.rebuild()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    def learn(seed: int) -> None:
        hidden, target = batch(9, 400, seed)
        optimizer.zero_grad()
        model(hidden, target).loss.backward()
        if not fused:
            optimizer.step()

    for seed in range(4):
        learn(seed)
    model.remove_classes(range(400, 450))
    model.add_classes(200)
    for seed in range(4, 8):
        learn(seed)
    hidden = batch(50, 400)[0].detach()
    found = model.topk(hidden, 5)
    assert (model.log_prob(hidden).gather(1, found.indices) > -torch.inf).all()
    assert all(len(set(row)) == 5 for row in found.indices.tolist())
    assert model.retriever is not None and model.retriever.num_bytes > 0
    model.save(tmp_path / "layer")
    other = LSHSoftmax.load(tmp_path / "layer", threads=1)
    assert (other.topk(hidden, 5).indices == found.indices).all()
    hidden, target = batch(9, 400, 9)
    assert model(hidden, target).output.tolist() == other(hidden, target).output.tolist()


@pytest.mark.gpu
def test_an_unfused_layer_learns_on_a_gpu() -> None:
    torch.manual_seed(0)
    model = layer(500, fused=False).cuda()
    optimizer = torch.optim.SparseAdam(list(model.parameters()), lr=0.05)
    hidden = torch.randn(500, D).cuda()
    target = torch.arange(500).cuda()
    for _ in range(200):
        optimizer.zero_grad()
        model(hidden, target).loss.backward()
        optimizer.step()
    assert (model.predict(hidden) == target).float().mean() > 0.9
    model.remove_classes([7])
    model.add_classes(2)
    assert model.log_prob(hidden).shape == (500, 502)


def test_removed_classes_leave_their_places_to_others() -> None:
    model = layer(300, head=10, samples=20, retriever=None)
    model.remove_classes(range(250))
    assert model._ranks().head.tolist() == list(range(250, 260))
    model(torch.ones(1, D), torch.tensor([299]))
    assert int(model.num_touches[0]) > 5


def test_the_retriever_hears_of_rows_once_they_have_changed() -> None:
    """Of an unfused layer: after the optimizer's step, of all backward passes before it."""
    model = layer(fused=False, head=0)
    retriever, heard = model.retriever, []
    assert retriever is not None
    model.rebuild()
    touch = retriever.touch
    retriever.touch = lambda ids, far: heard.append((ids, far)) or touch(ids, far)  # type: ignore
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for seed in (1, 2):
        model(*batch(9, 300, seed)).loss.backward()
        model.state_dict()
    assert not heard
    optimizer.step()
    model(*batch(9, 300, 3))
    targets = np.unique(torch.cat([batch(9, 300, seed)[1] for seed in (1, 2)]).numpy())
    [(ids, far)] = heard
    assert far.tolist() == targets.tolist() and set(targets) <= set(ids.tolist())


@pytest.mark.parametrize("settings", [{"retriever": None}, {"retrieved": 0}, {"head": 300}])
def test_a_layer_that_asks_no_retriever_remembers_no_steps(settings: dict[str, Any]) -> None:
    model = layer(fused=False, **settings)
    for seed in range(3):
        model(*batch(9, 300, seed)).loss.backward()
    assert not model._touched


def test_classes_that_can_not_be_added_change_nothing() -> None:
    model = layer(frequencies=torch.ones(300))
    for wrong in (np.ones(3), np.array([1.0, np.nan])):
        with pytest.raises(DataError, match="frequencies must be 2 finite numbers"):
            model.add_classes(2, frequencies=wrong)
    with pytest.raises(DataError, match=r"bias must be \[2\]"):
        model.add_classes(2, torch.ones(1))
    with pytest.raises(ConfigError, match="set_frequencies first"):
        layer().add_classes(2, frequencies=[1.0, 2])  # type: ignore[arg-type]
    assert model.n_classes == 300


def test_an_update_after_rows_have_moved_is_an_error() -> None:
    model = layer()
    loss = model(*batch(9, 300)).loss
    model.add_classes(1000)
    with pytest.raises(RuntimeError, match="between forward and backward"):
        loss.backward()


def test_targets_may_be_overwritten_before_backward() -> None:
    model, twin = layer(), layer()
    hidden, target = batch(9, 300)
    losses = [one(hidden, target.clone()).loss for one in (twin,)]
    given = target.clone()
    losses.append(model(hidden, given).loss)
    given.zero_()
    for loss in losses:
        loss.backward()
    assert (model.weight == twin.weight).all()


def test_targets_are_arrays_and_lists_as_well() -> None:
    model = layer().eval()
    hidden, target = batch(3, 300)
    expected = model(hidden, target).output.tolist()
    for given in (target.numpy(), target.tolist(), [[t] for t in target.tolist()]):
        assert model(hidden, given).output.tolist() == expected
    with pytest.raises(DataError, match="a list of labels for each row"):
        model(hidden, [[[1]], [[2]], [[3]]])


def test_a_loaded_state_of_another_retriever_is_built_anew() -> None:
    model, other = layer(), layer(retriever="simhash")
    for one in (model, other):
        one.rebuild()
    other.load_state_dict(model.state_dict())
    assert other.topk(batch(9, 300)[0], 3).indices.shape == (9, 3)


def test_what_does_not_fit_in_leaves_the_classes_as_they_were() -> None:
    model = layer()
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict(LSHSoftmax(D + 1, 500).state_dict())
    assert model.n_classes == 300 and len(model.optimizer_state) == 300


def test_a_copy_s_retriever_is_bound_to_the_copy_s_rows() -> None:
    model = layer()
    model.rebuild()
    twin = copy.deepcopy(model)
    assert twin._bound_at == 0
    twin.weight.data *= -1
    hidden, _ = batch(9, 300)
    for one in (twin, model):
        one.rebuild()
        assert (one.topk(hidden, 3).indices == one.topk(hidden, 3, exact=True).indices).all()


def test_a_forked_child_learns() -> None:
    import multiprocessing

    model = layer(5000, threads=2)
    hidden, target = batch(64, 5000)
    model(hidden, target).loss.backward()

    def learn() -> None:
        model(hidden, target).loss.backward()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork of a process with threads
        child = multiprocessing.get_context("fork").Process(target=learn)
        child.start()
    child.join(60)
    hangs = child.is_alive()
    child.kill()
    assert not hangs and child.exitcode == 0


def test_one_class_outside_the_head_is_drawn() -> None:
    for head in (4, 6, 11, 64):
        model = layer(head + 1, head=head, retriever=None, samples=8)
        assert torch.isfinite(model(torch.randn(4, D), torch.arange(4)).loss)
