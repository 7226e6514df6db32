"""The numpy operators equal plain loops and the operators that training used."""

import cmath

import numpy as np
import pytest
import torch

from embedsvc.graph.operators import OPERATORS as TRAINED
from serving.operators import OPERATORS, num_params

DIM = 6


def plain(name: str, x: list[float], p: list[float]) -> list[float]:
    half = len(x) // 2
    match name:
        case "identity":
            return x
        case "diagonal":
            return [a * b for a, b in zip(x, p, strict=True)]
        case "translation":
            return [a + b for a, b in zip(x, p, strict=True)]
        case "linear" | "affine":
            dim = len(x)
            moved = [sum(p[dim * i + j] * x[j] for j in range(dim)) for i in range(dim)]
            shift = p[dim * dim :] or [0.0] * dim
            return [a + b for a, b in zip(moved, shift, strict=True)]
        case "rotate":
            turned = [complex(x[d], x[d + half]) * cmath.exp(1j * p[d]) for d in range(half)]
            return [z.real for z in turned] + [z.imag for z in turned]
    products = [complex(x[d], x[d + half]) * complex(p[d], p[d + half]) for d in range(half)]
    return [z.real for z in products] + [z.imag for z in products]


def test_serving_knows_the_operators_of_training() -> None:
    assert sorted(OPERATORS) == list(TRAINED)


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_equals_a_plain_loop_and_its_twin(name: str) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 5, DIM), np.float32)
    twin = TRAINED.build(name)
    assert num_params(name, DIM) == twin.num_params(DIM)
    params = rng.standard_normal(twin.num_params(DIM), np.float32)
    moved = OPERATORS[name](x, params)
    assert moved.dtype == np.float32
    expected = np.array([[plain(name, row.tolist(), params.tolist()) for row in b] for b in x])
    np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-6)
    trained = twin(torch.from_numpy(x), torch.from_numpy(params)).numpy()
    np.testing.assert_allclose(moved, trained, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(OPERATORS[name](x[0, 0], params), moved[0, 0])
