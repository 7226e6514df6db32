import numpy as np

from embedsvc.outputs.retrievers.lists import Lists


def test_lists_hold_what_a_plain_dict_of_sets_holds() -> None:
    rng = np.random.default_rng(0)
    num_lists, num_members = 7, 500
    place = rng.integers(0, num_lists, num_members)
    lists = Lists(num_lists, np.arange(num_members), place)
    twin = [set(np.flatnonzero(place == number)) for number in range(num_lists)]
    for _ in range(60):  # more and more crowd into list 3, which outgrows the array
        moved = rng.choice(num_members, 40, replace=False)
        target = np.where(rng.random(40) < 0.5, 3, rng.integers(0, num_lists, 40))
        lists.remove(moved, place[moved])
        lists.insert(moved, target)
        for member, old, new in zip(moved, place[moved], target, strict=True):
            twin[old].remove(member)
            twin[new].add(member)
        place[moved] = target
        for number in range(num_lists):
            members = lists.members(number)
            assert len(members) == len(twin[number])
            assert set(members) == twin[number]


def test_room_grows_with_the_members_only() -> None:
    lists = Lists(10, np.arange(1000), np.arange(1000) % 10)
    for turn in range(200):  # all go round and round
        members = np.arange(1000)
        lists.remove(members, (members + turn) % 10)
        lists.insert(members, (members + turn + 1) % 10)
    assert len(lists.space.ids) < 3000


def test_empty_lists_fill() -> None:
    lists = Lists(3, np.empty(0, np.int64), np.empty(0, np.int64))
    lists.insert(np.array([5, 6, 7]), np.array([2, 2, 0]))
    assert [list(lists.members(number)) for number in range(3)] == [[7], [], [5, 6]]
