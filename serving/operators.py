"""The relation operators in numpy: what training does to a left-hand vector before it is compared.

x: float32 [..., D], params: float32 [num_params] of one relation -> float32 [..., D].
Complex vectors hold their real parts in the first half of D, their imaginary parts in the second.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Operator = Callable[[Array, Array], Array]


def identity(x: Array, params: Array) -> Array:
    return x


def diagonal(x: Array, params: Array) -> Array:
    """DistMult (Yang et al. 2015), with the dot product."""
    return x * params


def translation(x: Array, params: Array) -> Array:
    """TransE (Bordes et al. 2013)."""
    return x + params


def complex_diagonal(x: Array, params: Array) -> Array:
    """ComplEx (Trouillon et al. 2016): the elementwise complex product."""
    x_re, x_im = np.split(x, 2, axis=-1)
    p_re, p_im = np.split(params, 2)
    return np.concatenate([x_re * p_re - x_im * p_im, x_re * p_im + x_im * p_re], axis=-1)


def linear(x: Array, params: Array) -> Array:
    """RESCAL (Nickel et al. 2011), with the dot product. params: the D x D matrix, row by row."""
    dim = x.shape[-1]
    # Row by row of x: one query has the same bits alone and among others.
    return np.matmul(params.reshape(dim, dim), x[..., None])[..., 0]


def affine(x: Array, params: Array) -> Array:
    """A matrix as for `linear`, then a translation."""
    matrix, shift = np.split(params, [x.shape[-1] ** 2])
    return linear(x, matrix) + shift


def rotate(x: Array, params: Array) -> Array:
    """RotatE (Sun et al. 2019): params are D / 2 angles in radians."""
    return complex_diagonal(x, np.concatenate([np.cos(params), np.sin(params)]))


OPERATORS: Mapping[str, Operator] = {
    "identity": identity,
    "diagonal": diagonal,
    "translation": translation,
    "complex_diagonal": complex_diagonal,
    "linear": linear,
    "affine": affine,
    "rotate": rotate,
}


def num_params(name: str, dim: int) -> int:
    match name:
        case "identity":
            return 0
        case "linear":
            return dim * dim
        case "affine":
            return dim * dim + dim
        case "rotate":
            return dim // 2
    return dim
