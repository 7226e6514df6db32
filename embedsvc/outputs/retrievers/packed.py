"""A copy of rows in the order of cells, while they are not being trained.

Rows of a cell lie all over the weights; in the copy they lie side by side, and in bfloat16 where
the processor multiplies that. Of a cell that rows came to, left or changed in, all are copied again
before the next answer.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedsvc.outputs.retrievers.cell_kernels import View
from embedsvc.outputs.retrievers.lists import Space
from embedsvc.outputs.retrievers.visits import Source, copy_list, rows_for_products


class Packed:
    def __init__(self, tiled: bool) -> None:
        self._tiled = tiled
        self.forget()

    def __getstate__(self) -> dict[str, Any]:
        """A copy of this begins without one of the rows."""
        return {"_tiled": self._tiled}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self._tiled = kept["_tiled"]
        self.forget()

    @property
    def num_bytes(self) -> int:
        return sum(array.nbytes for array in self._copy)

    def forget(self) -> None:
        """There is no copy."""
        none = np.empty(0, np.float32)
        self._copy: tuple[Any, Any, Any] = *rows_for_products(0, 0, self._tiled), none
        self._of: Space | None = None

    def mark(self, lists: NDArray[np.int32]) -> None:
        """These lists, or rows of them, have changed."""
        if self._of is not None:
            self._stale[lists] = True

    def mark_all(self) -> None:
        if self._of is not None:
            self._stale[:] = True

    def none(self, view: View, space: Space) -> Source:
        """The rows, not copied."""
        return Source(space, view, self._tiled, False, *self._copy)

    def current(self, view: View, space: Space) -> Source:
        if self._of is None or self._of.ids is not space.ids:  # lists have moved
            places = len(space.ids)
            offset = np.empty(places, np.float32)
            self._copy = *rows_for_products(places, len(view.mean), self._tiled), offset
            self._stale = np.ones(len(space.start), np.bool_)
            self._of = space
        source = Source(space, view, self._tiled, True, *self._copy)
        for number in np.flatnonzero(self._stale).tolist():
            copy_list(number, source)
        self._stale[:] = False
        return source
