"""Gradual magnitude pruning of a ranker's layers (Zhu and Gupta 2017): the smallest weights are set
to 0, more of them step by step, while the layers learn on.

    zeros(t) = share (1 - (1 - t / ramp)^3)          of each layer's weights; t: step, eq. 1

Most fall early, when many do without harm; the last quarter of the steps only mends. Biases and the
heads, which are few, stay whole, and so do embeddings and the wide part. Step sizes are a tenth of
training's: embeddings know the training rows by then, and layers that go on at full pace fit these
better and others worse, whatever falls.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from embedsvc.ranking.wide_deep import Body, Towers, WideDeep
from partitions.encoded import BLOCK_ROWS, EncodedFile, Labelled
from partitions.errors import ConfigError

_MASKS = 100  # how often masks are chosen anew while zeros become more
_RAMP = 0.75  # of all steps
_PACE = 0.1  # of training's step size


def zeros_at(step: int, ramp: int, share: float) -> float:
    """The share of zeros after `step` of `ramp` steps."""
    return share * (1 - (1 - min(step / ramp, 1.0)) ** 3)


def prune(
    model: WideDeep, rows: EncodedFile, share: float, epochs: int, batch_size: int, seed: int
) -> float:
    """Prune the layers in place, learning from the training rows; returns their share of zeros."""
    layers = _layers(model)
    if not layers:
        raise ConfigError("publish.prune is of hidden layers, and this ranker has none: unset it.")
    assert model.body is not None and model.optimizer is not None
    for group in model.optimizer.param_groups:
        group["lr"] *= _PACE
    model.eval()  # embeddings as they are served
    model.body.train()
    masks = [torch.ones_like(layer.weight, dtype=torch.bool) for layer in layers]
    steps = epochs * sum(1 for _ in _batches(rows, batch_size, None))
    ramp = max(int(_RAMP * steps), 1)
    every, step = max(ramp // _MASKS, 1), 0
    torch.manual_seed(seed % (1 << 63))  # of dropout
    for epoch in range(epochs):
        for batch in _batches(rows, batch_size, np.random.default_rng([seed, epoch])):
            model.learn_layers(*batch)
            step += 1
            if step <= ramp and (step % every == 0 or step == ramp):
                for layer, mask in zip(layers, masks, strict=True):
                    _choose(layer.weight, mask, zeros_at(step, ramp, share))
            with torch.no_grad():
                for layer, mask in zip(layers, masks, strict=True):
                    layer.weight.mul_(mask)
    model.eval()
    kept = sum(int(mask.sum()) for mask in masks)
    return 1 - kept / sum(mask.numel() for mask in masks)


def _layers(model: WideDeep) -> list[nn.Linear]:
    """The hidden layers; of towers all, but none is a head there."""
    if isinstance(model.body, Body):
        return [layer for layer in model.body.layers if isinstance(layer, nn.Linear)]
    if isinstance(model.body, Towers):
        both = [*model.body.left, *model.body.right]
        return [layer for layer in both if isinstance(layer, nn.Linear)]
    return []


def _choose(weight: Tensor, mask: Tensor, zeros: float) -> None:
    """Set the mask to False at the smallest weights; where it was False, it stays so."""
    count = round(zeros * weight.numel())
    sizes = torch.where(mask, weight.detach().abs(), -1.0).flatten()
    mask.view(-1)[torch.argsort(sizes, stable=True)[:count]] = False


def _batches(
    rows: EncodedFile, batch_size: int, rng: np.random.Generator | None
) -> Iterator[Labelled]:
    """All rows; with rng, blocks and the rows of each in an order that it draws."""
    firsts = np.arange(0, len(rows), BLOCK_ROWS)
    for at in (rng.permutation(firsts) if rng is not None else firsts).tolist():
        block = rows.read(at, min(at + BLOCK_ROWS, len(rows)))
        size = len(block.weight)
        if rng is not None:
            order = rng.permutation(size)
            block = Labelled(block.rows.take(order), block.labels[order], block.weight[order])
        for first in range(0, size, batch_size):
            yield block.slice(first, min(first + batch_size, size))
