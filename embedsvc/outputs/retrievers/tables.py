"""Hash tables over classes: each table keeps a class under a key, and a query looks it up in all.

The more tables a class shares with a query, the likelier it is to score high: `most_shared` counts
that, and keeps the classes with the highest counts. Keys come from wta.py and simhash.py. Key
k of table t is list t * num_keys + k of one `Lists`, so that a look-up is one read, and a class
whose key changes moves in O(1).

Letters: C classes, T tables, Q queries, n rows.
"""

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedsvc.compiled import jit
from embedsvc.outputs.retrievers.lists import Lists
from embedsvc.outputs.retrievers.threads import in_parallel
from partitions.errors import ConfigError

Ids = NDArray[np.int64]
Keys = NDArray[np.uint32]

MOST_KEYS = 2**24  # a table: 16 B each, whether used or not


class Tables:
    """keys: uint32 [C, T]; a row that is no class has ABSENT as its keys."""

    ABSENT = np.uint32(2**32 - 1)

    def __init__(self, num_keys: int, keys_CT: Keys) -> None:
        self.num_keys = num_keys
        self.keys_CT = keys_CT
        self._base_T = np.arange(keys_CT.shape[1], dtype=np.int64) * num_keys
        live = np.flatnonzero(keys_CT[:, 0] != self.ABSENT)
        members = np.tile(live, keys_CT.shape[1])
        lists = (keys_CT[live] + self._base_T).T.ravel()
        self._lists = Lists(num_keys * keys_CT.shape[1], members, lists)
        self._scratch = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_scratch"}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__dict__ |= kept | {"_scratch": threading.local()}

    def are_live(self, ids: Ids) -> NDArray[np.bool_]:
        """bool [n]: which of them are classes."""
        return self.keys_CT[ids, 0] != self.ABSENT

    @property
    def num_bytes(self) -> int:
        return self._lists.num_bytes + self.keys_CT.nbytes

    def bucket(self, table: int, key: int) -> NDArray[np.int32]:
        return self._lists.members(table * self.num_keys + key)

    def resize(self, num_rows: int) -> None:
        """New rows are absent."""
        new = num_rows - len(self.keys_CT)
        more = np.full((new, self.keys_CT.shape[1]), self.ABSENT)
        self.keys_CT = np.concatenate([self.keys_CT, more])

    def put(self, ids: Ids, keys_nT: Keys) -> None:
        """These classes, new ones or not, are under these keys from now on."""
        changed = self.keys_CT[ids] != keys_nT
        self._take_out(ids, changed)
        row, table = np.nonzero(changed)
        self._lists.insert(ids[row], keys_nT[row, table] + self._base_T[table])
        self.keys_CT[ids] = keys_nT

    def remove(self, ids: Ids) -> None:
        self._take_out(ids, np.ones((len(ids), self.keys_CT.shape[1]), np.bool_))
        self.keys_CT[ids] = self.ABSENT

    def _take_out(self, ids: Ids, where_nT: NDArray[np.bool_]) -> None:
        row, table = np.nonzero(where_nT & (self.keys_CT[ids] != self.ABSENT))
        self._lists.remove(ids[row], self.keys_CT[ids[row], table] + self._base_T[table])

    def most_shared(self, keys_QT: Keys, limit: int, threads: int) -> Ids:
        """int64 [Q, limit]: most tables shared first, of equal ones the lowest; padded with -1."""
        out = np.full((len(keys_QT), limit), -1, np.int64)

        def work(part: slice) -> None:
            self._most_shared(keys_QT[part], out[part])

        in_parallel(len(keys_QT), work, threads)
        return out

    def _most_shared(self, keys_QT: Keys, out: Ids) -> None:
        counts = getattr(self._scratch, "counts", None)
        if counts is None or len(counts) < len(self.keys_CT):
            counts = self._scratch.counts = np.zeros(len(self.keys_CT), np.int32)
        _most_shared(keys_QT, self.num_keys, len(self._base_T), self._lists.space, counts, out)


def check_num_keys(retriever: str, keys: float) -> None:
    if keys > MOST_KEYS:
        raise ConfigError(
            f"retriever {retriever}: its settings make {keys:.3g} keys a table, "
            f"and {MOST_KEYS} are the most. Take fewer bits or codes a key."
        )


@jit
def _most_shared(keys, num_keys, num_tables, space, counts, out):  # type: ignore[no-untyped-def]
    """keys: uint32 [Q, n], of table i % num_tables; counts: int32 [C], zero, and left so."""
    seen = np.empty(1024, np.int32)
    limit = out.shape[1]
    for q in range(keys.shape[0]):
        num_seen, most = 0, 0
        for i in range(keys.shape[1]):
            number = (i % num_tables) * num_keys + keys[q, i]
            begin = space.start[number]
            end = begin + space.size[number]
            if num_seen + end - begin > seen.size:
                seen = np.concatenate((seen, np.empty(seen.size + end - begin, np.int32)))
            for at in range(begin, end):
                c = space.ids[at]
                if counts[c] == 0:
                    seen[num_seen] = c
                    num_seen += 1
                counts[c] += 1
                most = max(most, counts[c])
        # How many classes have each count; the lowest that is kept, of which not all may be.
        num_with = np.zeros(most + 2, np.int64)
        for i in range(num_seen):
            num_with[counts[seen[i]]] += 1
        lowest, kept = most + 1, 0
        while lowest > 1 and kept < limit:
            lowest -= 1
            kept += num_with[lowest]
        place = np.zeros(most + 2, np.int64)
        for count in range(most - 1, lowest - 1, -1):
            place[count] = place[count + 1] + num_with[count + 1]
        begins = place.copy()
        sorted_ids = np.empty(kept, np.int64)
        for i in range(num_seen):
            c = seen[i]
            count = counts[c]
            counts[c] = 0
            if count >= lowest:
                sorted_ids[place[count]] = c
                place[count] += 1
        for count in range(most, lowest - 1, -1):
            group = sorted_ids[begins[count] : place[count]]
            wanted = min(group.size, limit - begins[count])
            if 0 < wanted < group.size:
                group = np.partition(group, wanted - 1)[:wanted]
            out[q, begins[count] : begins[count] + wanted] = np.sort(group[:wanted])
