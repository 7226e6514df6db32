"""Kernels of layers.py: the layers' way forth and back, and what their numbers learn.

A thread takes a slice of the batch and goes through it in blocks whose units stay in a core's
cache, so that biases, ReLU and slopes cost next to nothing beside the products. Products are of
scipy's BLAS, on the thread that asks.

All weights lie in one array: of each layer, the heads being the last, weights [out, in], then
biases [out]. Their gradients lie alike.

Inputs that are looked up of few ids (slots.Few) stand in no row. What the first layer makes of each
id is a row of a small table, and rows add up theirs; its slopes are summed by id on the way back.

Letters: B batch, H units of the first layer, M such ids, N numbers of all layers, T tasks, W other
inputs.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from embedsvc.compiled import LOOSE_SUMS, jit

BLOCK = 256  # rows: with units of 256 and 128, and their slopes, 1 MB

_jit = jit(**LOOSE_SUMS)
_inline = jit(inline="always", **LOOSE_SUMS)


class Once(NamedTuple):
    """slots.Few, for a step."""

    starts: Any  # int64 [B + 1]
    places: Any  # int32, of row b from starts[b] on
    share: Any  # float32, of each place
    units: Any  # float32 [M, H]: what each adds to the first layer
    logit: Any  # float32 [M, T]: and to the logits


@_jit
def learn(  # type: ignore[no-untyped-def]
    sizes,
    numbers,
    once,
    first,
    last,
    inputs,
    logit,
    label,
    weight,
    positive,
    share,
    room,
    grads,
    sums,
    slope,
):
    """The gradients of rows first to before last. Returns the summed loss.

    sizes: int64, of the inputs, each layer and the heads; numbers: float32 [N].
    inputs: float32 [B, W], **replaced by the gradient** of share * loss by them.
    logit: float32 [B, T], what else adds to the logits, **mutated**; label: 0, 1 or NaN: not known.
    positive: float32 [T], what a label of 1 counts. room: float32, room_for(sizes).
    grads: float32 [N], written: of share * loss. slope: [B, T], written: of the loss by logits.
    sums: float32 [M, H + T + 1], written: over the rows that have an id, of share * loss by what it
    adds to the first layer, of `slope`, and of 1.
    """
    grads[:] = 0
    sums[:] = 0
    total = 0.0
    for start in range(first, last, BLOCK):
        end = min(start + BLOCK, last)
        x = inputs[start:end]
        _forth(sizes, numbers, once, start, x, room)
        _add_logits(once, start, end, logit)
        total += _score(
            sizes,
            numbers,
            x,
            room,
            logit[start:end],
            label[start:end],
            weight[start:end],
            positive,
            slope[start:end],
        )
        _back(sizes, numbers, once, start, x, room, slope[start:end], share, grads, sums)
    return total


def room_for(sizes: Sequence[int]) -> int:
    """float32 numbers: units of a block, slopes of two layers' units, and gradients of a layer."""
    hidden = sizes[1:-1]
    largest = max(before * after for before, after in zip(sizes[:-2], hidden, strict=True))
    return BLOCK * (sum(hidden) + 2 * max(hidden)) + largest


@_inline
def _units(sizes, layer, x, room):  # type: ignore[no-untyped-def]
    """[rows, units] of a layer; the layer before the first is the inputs."""
    if layer < 0:
        return x
    begin = BLOCK * sizes[1 : layer + 1].sum()
    size = sizes[layer + 1]
    return room[begin : begin + len(x) * size].reshape(len(x), size)


@_inline
def _weights(sizes, layer, numbers):  # type: ignore[no-untyped-def]
    """(weights [out, in], biases [out]) of a layer, or their gradients."""
    begin = 0
    for before in range(layer):
        begin += (sizes[before] + 1) * sizes[before + 1]
    into, out = sizes[layer], sizes[layer + 1]
    end = begin + into * out
    return numbers[begin:end].reshape(out, into), numbers[end : end + out]


@_jit
def _forth(sizes, numbers, once, start, x, room):  # type: ignore[no-untyped-def]
    """The units of all hidden layers."""
    for layer in range(len(sizes) - 2):
        weights, bias = _weights(sizes, layer, numbers)
        units = _units(sizes, layer, x, room)
        np.dot(_units(sizes, layer - 1, x, room), weights.T, units)
        for b in range(units.shape[0]):
            if layer == 0:
                for place in range(once.starts[start + b], once.starts[start + b + 1]):
                    line, counts = once.units[once.places[place]], once.share[place]
                    for h in range(units.shape[1]):
                        units[b, h] += counts * line[h]
            for h in range(units.shape[1]):
                units[b, h] = max(units[b, h] + bias[h], np.float32(0))


@_jit
def _add_logits(once, start, end, logit):  # type: ignore[no-untyped-def]
    for b in range(start, end):
        for place in range(once.starts[b], once.starts[b + 1]):
            logit[b] += once.logit[once.places[place]]


@_jit
def _score(sizes, numbers, x, room, logit, label, weight, positive, slope):  # type: ignore[no-untyped-def]
    """Log-loss of the heads' logits and those of other parts; slope: written."""
    heads, bias = _weights(sizes, len(sizes) - 2, numbers)
    units = _units(sizes, len(sizes) - 3, x, room)
    total = 0.0
    for b in range(units.shape[0]):
        for t in range(heads.shape[0]):
            z = np.float32(0)
            for h in range(units.shape[1]):
                z += units[b, h] * heads[t, h]
            z += bias[t] + logit[b, t]
            y = label[b, t]
            if np.isnan(y):
                slope[b, t] = 0
                continue
            counts = weight[b] * (np.float32(1) + y * (positive[t] - np.float32(1)))
            small = np.exp(-abs(z))
            total += counts * (max(z, np.float32(0)) - z * y + np.log1p(small))
            chance = (np.float32(1) if z >= 0 else small) / (np.float32(1) + small)
            slope[b, t] = (chance - y) * counts
    return total


@_jit
def _back(sizes, numbers, once, start, x, room, slope, share, grads, sums):  # type: ignore[no-untyped-def]
    """Add to all gradients; x: replaced by those of the inputs."""
    rows, last = len(x), len(sizes) - 2
    hidden = sizes[1:-1]
    begin = BLOCK * hidden.sum()
    spare, products = begin + BLOCK * hidden.max(), begin + 2 * BLOCK * hidden.max()
    heads, _ = _weights(sizes, last, numbers)
    to_heads, to_bias = _weights(sizes, last, grads)
    units = _units(sizes, last - 1, x, room)
    slopes = room[begin : begin + rows * heads.shape[1]].reshape(rows, heads.shape[1])
    for b in range(rows):
        slopes[b] = 0
        for t in range(heads.shape[0]):
            own = share * slope[b, t]
            to_bias[t] += own
            for h in range(heads.shape[1]):
                to_heads[t, h] += own * units[b, h]
                slopes[b, h] += own * heads[t, h]
    for layer in range(last - 1, -1, -1):
        units, below = _units(sizes, layer, x, room), _units(sizes, layer - 1, x, room)
        weights, _ = _weights(sizes, layer, numbers)
        to_weights, to_bias = _weights(sizes, layer, grads)
        for b in range(rows):
            for h in range(units.shape[1]):
                slopes[b, h] = slopes[b, h] if units[b, h] > 0 else np.float32(0)
                to_bias[h] += slopes[b, h]
        product = room[products : products + weights.size].reshape(weights.shape)
        np.dot(slopes.T, below, product)
        to_weights += product
        if layer == 0:
            np.dot(slopes, weights, x)
            _sum_by_id(once, start, slopes, slope, sums)
        else:
            at = spare if (last - 1 - layer) % 2 == 0 else begin
            beneath = room[at : at + rows * weights.shape[1]].reshape(rows, weights.shape[1])
            np.dot(slopes, weights, beneath)
            slopes = beneath


@_jit
def _sum_by_id(once, start, slopes, slope, sums):  # type: ignore[no-untyped-def]
    units, tasks = slopes.shape[1], slope.shape[1]
    for b in range(slopes.shape[0]):
        for place in range(once.starts[start + b], once.starts[start + b + 1]):
            own, counts = sums[once.places[place]], once.share[place]
            for h in range(units):
                own[h] += counts * slopes[b, h]
            for t in range(tasks):
                own[units + t] += slope[b, t]
            own[units + tasks] += 1


@_jit
def multiply(left, right, out):  # type: ignore[no-untyped-def]
    """As np.dot, on this thread."""
    np.dot(left, right, out)


@_jit
def adagrad(value, grad, total, lr):  # type: ignore[no-untyped-def]
    """torch.optim.Adagrad's step. value, total: float32 [n], mutated; grad: [n]."""
    for i in range(value.size):
        g = grad[i]
        total[i] += g * g
        value[i] -= lr * g / (np.sqrt(total[i]) + np.float32(1e-10))


@_jit
def adam(value, grad, mean, square, lr, step):  # type: ignore[no-untyped-def]
    """torch.optim.Adam's step number `step`, with its usual betas. value, mean, square: float32
    [n], mutated; grad: [n]."""
    rate = np.float32(lr / (1 - 0.9**step))
    scale = np.float32(1 / np.sqrt(1 - 0.999**step))
    keep, keep_square = np.float32(0.9), np.float32(0.999)
    for i in range(value.size):
        g = grad[i]
        mean[i] += (np.float32(1) - keep) * (g - mean[i])
        square[i] = keep_square * square[i] + (np.float32(1) - keep_square) * g * g
        value[i] -= rate * mean[i] / (scale * np.sqrt(square[i]) + np.float32(1e-8))
