"""Lists asked of a live server, held to the exact ones of the checkpoint that it serves.

An index that is approximate may miss some of the best: that is the gap. It can't find better ones
than there are. Where it seems to, the two don't answer the same question (another version, other
items left out), and a figure of either is worth nothing: that fails. What it lists instead of what
it missed may be what was held out, by luck; so that more of it is found fails only past luck.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
from numpy.typing import NDArray

from embedsvc.edge_ids import Ids
from embedsvc.evaluation.lists import Found, Judged
from embedsvc.evaluation.significance import PairedTest, paired
from partitions.errors import ConfigError, DataError, InputError
from partitions.graph import Graph

CLIENTS = "embedsvc.clients"  # entry points: a URL's scheme -> what asks such a server
_CALLERS = 4  # at a time
_ROUNDING = 1e-4  # relative to the best score of a list


class _Hits(Protocol):
    keys: list[str]
    scores: Any  # float32 [keys]


class _Reply(Protocol):
    version: str
    hits: _Hits


class Client(Protocol):
    """What serving's client is, as far as it is needed here."""

    def recommend(self, relation: str, key: str, *, k: int) -> _Reply: ...
    def close(self) -> None: ...


def connect(url: str) -> Client:
    """url: "grpc://host:port", or "host:port" where there is one client. Nothing is asked yet."""
    points = {point.name: point for point in entry_points(group=CLIENTS)}
    if "://" not in url and ":" in url and len(points) == 1:
        url = f"{next(iter(points))}://{url}"
    scheme, _, target = url.partition("://")
    if not target or scheme not in points:
        known = [f"{name}://HOST:PORT" for name in sorted(points)]
        raise ConfigError(f"--through {url}: expected {' or '.join(known)}.")
    make: Callable[[str], Client] = points[scheme].load()
    return make(target)


class OfServer:
    """Unknown keys get an empty list and are counted; versions: those that answered."""

    def __init__(self, client: Client, graph: Graph, relation: str) -> None:
        self._client, self._relation = client, relation
        ends = graph.relations[graph.relation_id(relation)]
        self._lhs_type = ends.lhs
        self._lhs_keys, self._rhs_keys = graph.all_keys(ends.lhs), graph.all_keys(ends.rhs)
        self.unknown_lhs = 0
        self.versions: set[str] = set()

    def try_one(self) -> None:
        """InputError where nobody answers, or the relation is unknown."""
        if len(self._lhs_keys):
            self._ask(self._lhs_keys[0].as_py(), 1)

    def top(self, lhs: Ids, k: int, left_out: sp.csr_matrix) -> Found:
        """left_out is the server's to know: who has seen what is published with a version."""
        ids, scores = np.full((len(lhs), k), -1), np.full((len(lhs), k), -np.inf, np.float32)
        keys = self._lhs_keys.take(pa.array(lhs)).to_pylist()
        with ThreadPoolExecutor(_CALLERS, "asks") as pool:
            replies = list(pool.map(lambda key: self._ask(key, k), keys))
        listed = [key for reply in replies if reply for key in reply.hits.keys]
        found = iter(self._ids_of(listed))
        for row, reply in enumerate(replies):
            if reply is None:
                self.unknown_lhs += 1
                continue
            num = len(reply.hits.keys)
            ids[row, :num] = [next(found) for _ in range(num)]
            scores[row, :num] = reply.hits.scores
            self.versions.add(reply.version)
        return Found(ids, scores)

    def _ask(self, key: str, k: int) -> _Reply | None:
        try:
            return self._client.recommend(self._relation, key, k=k)
        except InputError as error:
            if getattr(error, "noun", None) == self._lhs_type:  # not a relation that is unknown
                return None
            raise

    def _ids_of(self, keys: Sequence[str]) -> list[int]:
        found = pc.index_in(pa.array(keys, pa.large_string()), value_set=self._rhs_keys)
        if found.null_count:
            odd = keys[pc.is_null(found).index(True).as_py()]
            raise DataError(
                f"The server lists {odd}, which the graph does not have: it serves what another "
                "graph taught. Serve this run's version, or evaluate that graph."
            )
        ids: list[int] = found.to_pylist()
        return ids


@dataclass(frozen=True)
class Gap:
    """Between exact lists and those of a server."""

    lists: int
    identical: int  # lists with the same entities at the same places
    alike: int  # these, and those that differ within rounding only: equal scores swap places
    recall: PairedTest  # exact less served
    too_good: int  # lists with better scores than the exact ones
    retrieved: float  # share of the exact lists' places that the server's have, NaN of none

    @property
    def finds_more(self) -> bool:
        """Of what was held out, beyond luck; in lists that score no better."""
        return self.recall.difference.high < 0 and self.recall.p <= 0.05

    @property
    def failed(self) -> bool:
        return self.too_good > 0 or self.finds_more


def gap_between(exact: Judged, served: Judged) -> Gap:
    name = f"recall@{exact.k}"
    wanted, found = exact.found, served.found
    identical = (wanted.ids == found.ids).all(axis=1)
    best = np.abs(np.where(np.isfinite(wanted.scores), wanted.scores, 0)).max(1, initial=1e-6)
    less = _finite(wanted.scores) - _finite(found.scores)
    slack = _ROUNDING * best
    alike = identical | (np.abs(less) <= slack[:, None]).all(axis=1)
    too_good = ~alike & (less < -slack[:, None]).any(axis=1)
    served_recall = np.where(alike, exact.values[name], served.values[name])
    return Gap(
        len(identical),
        int(identical.sum()),
        int(alike.sum()),
        paired(exact.values[name], served_recall),
        int(too_good.sum()),
        _retrieved(wanted.ids, found.ids, alike),
    )


def _retrieved(wanted: Ids, found: Ids, alike: NDArray[np.bool_]) -> float:
    """Lists that are alike have all."""
    filled, span = wanted >= 0, max(wanted.max(initial=0), found.max(initial=0)) + 1
    rows = np.arange(len(wanted))[:, None] * span
    had = filled & (np.isin(rows + wanted, (rows + found)[found >= 0]) | alike[:, None])
    return float(had.sum() / filled.sum()) if filled.any() else float("nan")


def _finite(scores: Any) -> Any:
    """Empty places have a score that is below all others, and equal to each other's."""
    return np.where(np.isfinite(scores), scores, np.float32(-3e38)).astype(np.float64)
