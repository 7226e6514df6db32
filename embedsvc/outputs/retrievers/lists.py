"""Many short lists of classes in one array: hash buckets, or the cells of a partition.

Each list has room to grow. A full one moves to the end of the array with twice the room, and when
the end is reached, all move to a new array: an insertion costs O(1) in the mean. A removal looks
through its list, which is short by design, so that a class needs no note of its place.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedsvc.compiled import jit
from embedsvc.prefetch import ask_for

Ids = NDArray[np.int64]

_AHEAD = 8  # places
_MOST = 256  # numbers of a list that are asked for: 1 KB


class Space(NamedTuple):
    """List i is ids[start[i] : start[i] + size[i]], in an order of no meaning."""

    ids: NDArray[np.int32]
    start: NDArray[np.int64]
    size: NDArray[np.int32]
    room: NDArray[np.int32]
    end: NDArray[np.int64]  # [1]: ids from here on is unused


BYTES_A_MEMBER = 4 * 1.125**2  # with the room that a list has, and that all have
BYTES_A_LIST = 16  # where it begins, its size and its room


class Lists:
    def __init__(self, num_lists: int, members: NDArray[Any], lists: NDArray[Any]) -> None:
        """members[i] is in list lists[i]; each list keeps their order."""
        self.space = _lay_out(np.bincount(lists, minlength=num_lists).astype(np.int32))
        _append_all(members, lists, self.space)

    @property
    def num_bytes(self) -> int:
        return sum(array.nbytes for array in self.space)

    def members(self, number: int) -> NDArray[np.int32]:
        start = self.space.start[number]
        return self.space.ids[start : start + self.space.size[number]]

    def in_order(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Members of one list after the other, and how many each has: what makes equal lists."""
        all_lists = range(len(self.space.size))
        members = [self.members(number) for number in all_lists]
        return np.concatenate(members), self.space.size.copy()

    def insert(self, members: NDArray[Any], lists: NDArray[Any]) -> None:
        done = 0
        while True:
            done += _insert(members[done:], lists[done:], self.space)
            if done == len(members):
                return
            self._make_room()

    def remove(self, members: NDArray[Any], lists: NDArray[Any]) -> None:
        """Each must be where it is said to be."""
        missing = _remove(members, lists, self.space)
        assert missing < 0, f"class {members[missing]} is not in list {lists[missing]}"

    def _make_room(self) -> None:
        old = self.space
        self.space = _lay_out(old.size)
        _copy(old, self.space)


def _lay_out(count: NDArray[np.int32]) -> Space:
    """An eighth of each list, and an eighth of all, is room; lists are as yet empty."""
    room = count + (count + 7) // 8
    ends = np.cumsum(room, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    ids = np.empty(total + total // 8 + 64 + 4 * int(count.max(initial=0)), np.int32)
    return Space(ids, ends - room, np.zeros_like(count), room, np.array([total]))


@jit
def _append_all(members, lists, space):  # type: ignore[no-untyped-def]
    for i in range(members.size):
        number = lists[i]
        space.ids[space.start[number] + space.size[number]] = members[i]
        space.size[number] += 1


@jit
def _copy(old, new):  # type: ignore[no-untyped-def]
    for number in range(old.start.size):
        size, source, target = old.size[number], old.start[number], new.start[number]
        new.ids[target : target + size] = old.ids[source : source + size]
        new.size[number] = size


@jit
def _ask_for_list(lists, i, space):  # type: ignore[no-untyped-def]
    """Of some place soon where it lies, and of a nearer one what is in it."""
    if i + 2 * _AHEAD < lists.size:
        number = np.int64(lists[i + 2 * _AHEAD])
        ask_for(space.start, number, 1)
        ask_for(space.size, number, 1)
        ask_for(space.room, number, 1)
    if i + _AHEAD < lists.size:
        number = np.int64(lists[i + _AHEAD])
        ask_for(space.ids, space.start[number], min(np.int64(space.size[number]) + 1, _MOST))


@jit
def _insert(members, lists, space):  # type: ignore[no-untyped-def]
    """How many were inserted: all, or those before the one for which there is no room."""
    for i in range(members.size):
        _ask_for_list(lists, i, space)
        number = lists[i]
        size = space.size[number]
        if size == space.room[number]:
            room = 2 * size + 2
            if space.end[0] + room > space.ids.size:
                return i
            source, target = space.start[number], space.end[0]
            space.ids[target : target + size] = space.ids[source : source + size]
            space.start[number] = target
            space.room[number] = room
            space.end[0] += room
        space.ids[space.start[number] + size] = members[i]
        space.size[number] += 1
    return members.size


@jit
def _remove(members, lists, space):  # type: ignore[no-untyped-def]
    """The place of the first that isn't in its list, else -1."""
    for i in range(members.size):
        _ask_for_list(lists, i, space)
        number = lists[i]
        begin = space.start[number]
        last = begin + space.size[number] - 1
        at = begin
        while at <= last and space.ids[at] != members[i]:
            at += 1
        if at > last:
            return i
        space.ids[at] = space.ids[last]
        space.size[number] -= 1
    return -1
