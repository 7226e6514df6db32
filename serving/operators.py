"""The relation operators in numpy: what training does to a left-hand vector before it is compared.

x: float32 [..., D], params: float32 [D] of one relation -> float32 [..., D]. Identity has none.
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


OPERATORS: Mapping[str, Operator] = {
    "identity": identity,
    "diagonal": diagonal,
    "translation": translation,
    "complex_diagonal": complex_diagonal,
}
