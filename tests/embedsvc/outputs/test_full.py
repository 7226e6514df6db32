"""The exact softmax against torch's own over a table of all scores."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from embedsvc.outputs import chunked
from embedsvc.outputs.full import FullSoftmax
from embedsvc.outputs.sparse import Workspace
from partitions.errors import ConfigError, DataError

NONE = torch.empty(0, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        chunked, "chunks", lambda num, rows: [slice(i, i + 7) for i in range(0, num, 7)]
    )


def doubles(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)


def test_chunked_loss_has_torchs_value_and_gradients() -> None:
    hidden, weight, bias = doubles(5, 4), doubles(30, 4), doubles(30)
    target = torch.tensor([3, 29, 3, 0, 14])
    found = chunked.log_prob(hidden, weight, bias, NONE, target[:, None])
    exact = -functional.cross_entropy(hidden @ weight.T + bias, target, reduction="none")
    assert found.tolist() == pytest.approx(exact.tolist())
    slope = torch.arange(5.0, dtype=torch.float64)
    leaves = (hidden, weight, bias)
    for one, two in zip(
        torch.autograd.grad(found, leaves, slope),
        torch.autograd.grad(exact, leaves, slope),
        strict=True,
    ):
        assert torch.allclose(one, two)


def test_gradients_of_the_chunked_loss() -> None:
    targets = torch.tensor([[3, 9], [2, -1], [-1, -1], [8, 8]])
    removed = torch.zeros(10, dtype=torch.uint8)
    removed[5] = 1
    for gone in (NONE, removed):
        assert torch.autograd.gradcheck(
            lambda *args: chunked.log_prob(*args, gone, targets),  # noqa: B023
            (doubles(4, 3), doubles(10, 3), doubles(10)),
        )


def test_only_asked_gradients_are_made() -> None:
    hidden, weight = doubles(2, 3), doubles(10, 3).detach()
    chunked.log_prob(hidden, weight, None, NONE, torch.tensor([[1], [2]])).sum().backward()
    assert hidden.grad is not None and weight.grad is None


def test_answers_equal_a_sort() -> None:
    layer = FullSoftmax(4, 30).eval()
    hidden = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    scores = (hidden @ layer.weight.T).detach()
    assert torch.allclose(layer.log_prob(hidden), scores.log_softmax(1), atol=1e-6)
    found = layer.topk(hidden, 9)
    assert torch.allclose(found.values, scores.topk(9).values)
    assert (found.indices == scores.topk(9).indices).all()
    assert (layer.predict(hidden) == scores.argmax(1)).all()
    assert layer.topk(hidden, 99).indices.shape == (6, 30)
    assert layer.log_prob(hidden[0]).shape == (30,) and layer.predict(hidden[0]).dim() == 0


@pytest.mark.parametrize("fused", [True, False])
def test_the_layer_learns_below_a_torch_model(fused: bool) -> None:
    torch.manual_seed(0)
    tower = torch.nn.Linear(8, 6)
    layer = FullSoftmax(6, 40, fused=fused, lr=0.3)
    parameters = [*tower.parameters(), *(() if fused else layer.parameters())]
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    x, target = torch.randn(40, 8), torch.arange(40)
    for _ in range(150):
        optimizer.zero_grad()
        output, loss = layer(tower(x), target)
        loss.backward()
        optimizer.step()
    assert loss.item() == pytest.approx(-output.mean().item())
    layer.eval()
    assert (layer.predict(tower(x)) == target).float().mean() > 0.9
    before = layer.weight.detach().clone()
    _, loss = layer(tower(x), target)
    exact = functional.cross_entropy(layer.log_prob(tower(x)), target)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-4)
    loss.backward()
    assert fused or layer.weight.grad is not None
    assert (layer.weight == before).all()


def test_fused_and_plain_sgd_are_the_same() -> None:
    fused = FullSoftmax(6, 300, optimizer="sgd", lr=0.5)
    plain = FullSoftmax(6, 300, fused=False)
    assert (fused.weight == plain.weight).all()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        x = torch.randn(9, 6, generator=generator)
        one, two = (x.clone().requires_grad_() for _ in range(2))
        target = torch.randint(300, (9,), generator=generator)
        fused(one, target).loss.backward()
        optimizer.zero_grad()
        plain(two, target).loss.backward()
        optimizer.step()
        assert one.grad is not None and two.grad is not None
        assert torch.allclose(one.grad, two.grad, atol=1e-6)
    assert torch.allclose(fused.weight, plain.weight, atol=1e-6)
    assert fused.bias is not None and plain.bias is not None
    assert torch.allclose(fused.bias, plain.bias, atol=1e-6)


def test_rows_learn_the_same_where_hidden_wants_no_gradient() -> None:
    hidden = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    target = torch.tensor([3, 29, 3, 0, 14])
    rows = []
    for wanted in (True, False):
        layer = FullSoftmax(4, 30, threads=1)
        step = layer._begin(hidden.numpy(), target[:, None].numpy(), Workspace())
        grad = step.finish(np.full(5, 0.2, np.float32), wanted)
        assert grad is None or grad.shape == (5, 4)
        assert (grad is not None) == wanted
        rows.append(layer.weight.detach().clone())
    assert torch.equal(*rows)


def test_a_forward_pass_learns_at_most_once() -> None:
    layer = FullSoftmax(3, 5)
    hidden = torch.ones(2, 3, requires_grad=True)
    loss = layer(hidden, torch.tensor([0, 1])).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="updated by an earlier backward"):
        loss.backward()


def test_rows_that_no_gradient_reaches_stand_still() -> None:
    layer = FullSoftmax(3, 5)
    before = layer.weight.clone()
    layer(torch.ones(2, 3), torch.tensor([0, 1]))
    with torch.no_grad():
        layer(torch.ones(2, 3), torch.tensor([0, 1]))
    assert (layer.weight == before).all()


def test_impossible_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one feature and one class"):
        FullSoftmax(3, 0)
    with pytest.raises(ConfigError, match=r"works on the CPU in float32, found torch\.float64"):
        FullSoftmax(3, 5).double()(torch.ones(1, 3), torch.tensor([0]))
    with pytest.raises(DataError, match="nothing to choose from"):
        layer = FullSoftmax(3, 1)
        layer.remove_classes([0])
        layer.predict(torch.ones(3))
