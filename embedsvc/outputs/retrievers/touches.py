"""Which classes are due for upkeep: those touched n times since they last were.

After an update almost no class has changed its place in an index; looking at each one every n-th
time finds the moves at an n-th of the cost.
"""

import numpy as np
from numpy.typing import NDArray

from embedsvc.compiled import jit

Ids = NDArray[np.int64]


class Touches:
    """A byte for each class: how many touches are left. They start at seeded random places of the
    interval, so that classes which are always touched together aren't due together.
    """

    def __init__(self, num_classes: int, every: int, seed: int) -> None:
        assert 1 <= every <= 255
        self.every, self.seed = every, seed
        self.left_C = np.empty(0, np.uint8)
        self.resize(num_classes)

    def resize(self, num_classes: int) -> None:
        new = num_classes - len(self.left_C)
        rng = np.random.default_rng([self.seed, len(self.left_C)])
        more = rng.integers(1, self.every, new, np.uint8, endpoint=True)
        self.left_C = np.concatenate([self.left_C, more])

    def due(self, ids: Ids) -> Ids:
        """Those of the touched ids whose turn it is."""
        out = np.empty(len(ids), np.int64)
        return out[: _count_down(ids, self.left_C, self.every, out)]


@jit
def _count_down(ids, left, every, out):  # type: ignore[no-untyped-def]
    num_due = 0
    for i in range(ids.size):
        left[ids[i]] -= 1
        if left[ids[i]] == 0:
            left[ids[i]] = every
            out[num_due] = ids[i]
            num_due += 1
    return num_due
