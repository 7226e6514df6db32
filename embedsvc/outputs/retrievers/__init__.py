"""Retrievers propose, for a query, the classes that are likely to score high.

    score of class c for query x = <w_c, x> + b_c; higher is better

In training they add hard classes to what a step looks at (active.py), in answering they spare the
scan of all classes.

The most frequent classes, the head, are looked at anyway. So they are pinned: no step is told of
them, and every answer ranks them with what was found, by exact scores.

The whole job of adding one: one class here, registered; contract tests cover it by that.

Letters: C classes, D dimension, Q queries.
"""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from partitions.registry import Registry

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


class Retriever(Protocol):
    """Finds classes for queries. Keyword arguments of the constructor are the config keys.

    A class is a row's number. Rows live in arrays that the owner updates in place; a retriever
    keeps references to them, never a copy.
    """

    upkeep_s: float  # spent in touch, add and remove since the start
    threads: int  # at most, in any call; as many as cores unless the owner says else

    @property
    def num_bytes(self) -> int:
        """Memory beside the weights."""

    @property
    def bytes_per_class(self) -> int:
        """About what `num_bytes` will be for each class, of 200,000 or more, before `fit`.

        Without the copy of rows that answers may make.
        """

    def fit(self, weight_CD: Floats, bias_C: Floats | None) -> None:
        """Build from scratch, of all rows."""

    def rebind(self, weight_CD: Floats, bias_C: Floats | None) -> None:
        """The arrays were allocated anew, with the same rows and perhaps more at their end.

        New rows are not proposed before `add`.
        """

    def touch(self, ids: Ids, far: Ids | None = None) -> None:
        """These rows were changed in place; ids: [n], distinct. Upkeep may be put off, least of all
        that of `far`, some of them (and of the pinned) which moved more than most.

        Pinned rows may have changed, too, and needn't be named.
        """

    def add(self, ids: Ids) -> None:
        """From now on these rows are classes, too."""

    def remove(self, ids: Ids) -> None:
        """From now on these rows are no classes, and never proposed."""

    def pin(self, ids: Ids) -> None:
        """From now on `top` looks at these classes for every query, and `hard` at none of them.

        Those pinned before no longer are.
        """

    def top(
        self, queries_QD: Floats, k: int, limit: int, settled: bool = False
    ) -> tuple[Ids, Floats]:
        """The best found: int64 [Q, k] and exact scores, best first; padded with -1 and -inf.

        Of pinned classes and others; limit: how many others a method considers that finds them in
        no order. settled: rows aren't being trained, so that a copy in a better order may pay.
        """

    def retrieve(self, queries_QD: Floats, limit: int) -> Ids:
        """int64 [Q, limit]: distinct classes for each query, in any order, padded with -1.

        Pinned ones may be among them.
        """

    def hard(self, queries_QD: Floats, per_query: int, probes: int | None = None) -> Ids:
        """int64 [<= Q per_query], distinct, ascending: the best not pinned of each query.

        Rows may be changing. probes: how much is looked at for a query, from 1 on; None: as much as
        a training step can afford.
        """

    def state(self) -> dict[str, NDArray[Any]]:
        """All that makes another instance find the same, after `rebind`, `load_state`, `pin`."""

    def load_state(self, state: dict[str, NDArray[Any]]) -> None:
        """What `state` gave. The rows must be those of that time: `rebind` comes first."""


RETRIEVERS: Registry[Retriever] = Registry("retriever")

from embedsvc.outputs.retrievers import exact as exact  # noqa: E402  (they register themselves)
from embedsvc.outputs.retrievers import partition as partition  # noqa: E402
from embedsvc.outputs.retrievers import simhash as simhash  # noqa: E402
from embedsvc.outputs.retrievers import wta as wta  # noqa: E402
