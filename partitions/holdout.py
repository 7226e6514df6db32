"""Which way edges are held out, and who decides it of those that pass 1 can't decide alone.

edge, cuts   pass 1, of each edge by itself
time, lhs, last  pass 2, after a look at all of them (time_cuts.py, lhs_shares.py, last_edges.py)

A graph that was cut in time at a share keeps its cuts when it grows, or else it would learn from
later edges than those it is tested on. It notes them in the batch that they are from, as `cuts`.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from partitions.candidates import Candidates
from partitions.config import GraphConfig
from partitions.graph import Graph
from partitions.imported import Imported
from partitions.last_edges import LastEdges
from partitions.lhs_shares import LhsShares
from partitions.schema import Bucket
from partitions.time_cuts import Cuts, TimeCuts


class Chooser(Protocol):
    """Decides in pass 2."""

    def split_of(self, rows: NDArray[Any], bucket: Bucket) -> NDArray[np.int8]: ...


@dataclass(frozen=True)
class Way:
    name: Literal["none", "edge", "cuts", "time", "lhs", "last"]
    cuts: tuple[float, float] = (np.inf, np.inf)  # valid_after, test_after
    kept: Cuts | None = None  # the graph's, where these are they


def way_of(config: GraphConfig, base: Graph | None) -> Way:
    """base: the graph that is appended to."""
    holdout = config.holdout
    if holdout.last:
        return Way("last")
    if not holdout.has_shares:
        return Way("cuts", holdout.cuts) if holdout.needs_time else Way("none")
    by = holdout.by
    batches = base.manifest.batches if base is not None else []
    kept = next((Cuts(**batch["cuts"]) for batch in reversed(batches) if "cuts" in batch), None)
    if by is None and base is not None and kept is None and _has_shares(base):
        by = "edge"  # as it began
    if by is None:
        by = "time" if config.has_times else "edge"
    if by == "time" and kept is not None:
        cuts = kept.valid_after, kept.test_after
        return Way("cuts", (_or_never(cuts[0]), _or_never(cuts[1])), kept)
    return Way(by)


def _has_shares(graph: Graph) -> bool:
    holdout = graph.manifest.config.get("holdout", {})
    return bool(holdout.get("valid") or holdout.get("test"))


def _or_never(cut: int | None) -> float:
    return np.inf if cut is None else cut


def needs_number(config: GraphConfig, way: Way) -> bool:
    """Whether each edge carries a number into pass 2; -1: of an input with a split of its own."""
    given = any(source.split == "train" for source in config.inputs)
    return way.name in ("lhs", "last") or (way.name == "time" and given)


def chooser(config: GraphConfig, way: Way, imported: Imported) -> Chooser | None:
    """None where pass 1 has decided."""
    if way.name not in ("time", "lhs", "last"):
        return None
    candidates = Candidates(config.holdout, imported)
    if way.name == "last":
        return LastEdges(candidates)
    if way.name == "lhs":
        return LhsShares(config.holdout, candidates)
    return TimeCuts(config.holdout, candidates)
