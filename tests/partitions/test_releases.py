"""The trace says what was live when, whatever is killed; a test set decides as often as it may."""

import json
import multiprocessing
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitions import published, releases
from partitions.errors import BusyError, DataError
from partitions.releases import Kind, Move, count_use, record, roll_back, trace, uses_of


def add(root: Path) -> str:
    """A version with next to nothing in it."""
    with published.new_version(root) as draft:
        draft.write_bytes("a file", b"of time.")
        draft.finish(
            created="", dim=1, comparator="dot", graph_digest="", entity_types=[], relations=[]
        )
    return draft.name


def move(root: Path, to: str, *, moved: bool = True, kind: Kind = "decision") -> None:
    record(root, Move(time="now", kind=kind, was=releases.live(root), to=to, moved=moved))


def test_the_trace_is_added_to_and_current_follows(tmp_path: Path) -> None:
    assert trace(tmp_path) == [] and releases.live(tmp_path) is None
    move(tmp_path, add(tmp_path))
    move(tmp_path, add(tmp_path), moved=False)
    assert published.current(tmp_path) == "v000001"
    first, second = trace(tmp_path)
    assert (first.was, first.to, first.moved) == (None, "v000001", True)
    assert (second.was, second.to, second.moved) == ("v000001", "v000002", False)
    lines = (tmp_path / "gate.jsonl").read_text().splitlines()
    assert [json.loads(line)["to"] for line in lines] == ["v000001", "v000002"]


def test_going_back_twice_goes_back_two_versions(tmp_path: Path) -> None:
    for _ in range(3):
        move(tmp_path, add(tmp_path))
    assert roll_back(tmp_path).to == "v000002" == published.current(tmp_path)
    assert roll_back(tmp_path).to == "v000001" == published.current(tmp_path)
    with pytest.raises(DataError) as error:
        roll_back(tmp_path)
    assert str(error.value) == (
        f"v000001 is the first that was live in {tmp_path}; there is nothing to go back to. Name "
        "another version: --to with one of v000002, v000003."
    )
    assert roll_back(tmp_path, "v000003").was == "v000001"
    assert [one.kind for one in trace(tmp_path)][3:] == ["rollback"] * 3


def test_who_goes_back_and_forth_still_comes_to_an_end(tmp_path: Path) -> None:
    for _ in range(3):
        move(tmp_path, add(tmp_path))
    assert roll_back(tmp_path).to == "v000002"
    move(tmp_path, "v000003", kind="forced")
    assert [roll_back(tmp_path).to for _ in range(2)] == ["v000002", "v000001"]
    move(tmp_path, "v000003", kind="forced")
    move(tmp_path, "v000001", kind="forced")
    assert [roll_back(tmp_path).to for _ in range(2)] == ["v000003", "v000001"]
    with pytest.raises(DataError, match="v000001 is the first that was live"):
        roll_back(tmp_path)


@given(st.lists(st.sampled_from(["back", "v000001", "v000002", "v000003"]), max_size=12))
@settings(max_examples=30, deadline=None)
def test_going_back_undoes_what_went_live(steps: list[str]) -> None:
    """Against a plain stack."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for _ in range(3):
            add(root)
        stack: list[str] = []
        for step in steps:
            if step != "back":
                if stack[-1:] != [step]:
                    move(root, step)
                    stack.append(step)
            elif len(stack) > 1:
                stack.pop()
                assert roll_back(root).to == stack[-1]
            elif stack:
                with pytest.raises(DataError, match="there is nothing to go back to"):
                    roll_back(root)
        assert releases.live(root) == (stack[-1] if stack else None)


def test_what_was_removed_is_skipped_and_said(tmp_path: Path) -> None:
    for _ in range(4):
        move(tmp_path, add(tmp_path))
    for name in ("v000002", "v000003"):
        shutil.rmtree(tmp_path / name)
    done = roll_back(tmp_path)
    assert done.to == "v000001"
    assert done.why == "removed since, so not gone back to: v000003, v000002"
    move(tmp_path, "v000004")
    shutil.rmtree(tmp_path / "v000001")
    with pytest.raises(DataError) as error:
        roll_back(tmp_path)
    assert str(error.value) == (
        f"All that was live before v000004 in {tmp_path} was removed: v000001."
    )


def test_a_line_that_a_kill_kept_from_being_done_is_no_step_of_the_way_back(tmp_path: Path) -> None:
    for _ in range(3):
        move(tmp_path, add(tmp_path))
    published.set_current(tmp_path, "v000002")  # as before the last line
    assert releases.before(tmp_path) == "v000001"
    releases.resume(tmp_path, "v000003")
    assert roll_back(tmp_path).to == "v000002"
    published.set_current(tmp_path, "v000003")  # a way back that was killed
    assert releases.before(tmp_path) == "v000002"


def test_without_a_trace_nobody_knows_what_was_live_before(tmp_path: Path) -> None:
    for _ in range(2):
        move(tmp_path, add(tmp_path))
    (tmp_path / "gate.jsonl").unlink()
    with pytest.raises(DataError) as error:
        roll_back(tmp_path)
    assert str(error.value) == (
        f"{tmp_path / 'gate.jsonl'} does not say what was live before v000002. Name another "
        "version: --to with one of v000001."
    )
    (tmp_path / "CURRENT").write_text("v0")  # damaged
    assert roll_back(tmp_path, "v000001").was is None
    assert published.current(tmp_path) == "v000001"


@pytest.mark.parametrize("how", ["decision", "rollback"])
@pytest.mark.parametrize("damage", ["trace", "version"])
def test_nothing_moves_where_the_trace_or_the_version_is_damaged(
    how: str, damage: str, tmp_path: Path
) -> None:
    for _ in range(2):
        move(tmp_path, add(tmp_path))
    path = tmp_path / ("gate.jsonl" if damage == "trace" else "v000001/a file")
    path.write_bytes(path.read_bytes().replace(b"time", b"tyme", 1))
    before = (tmp_path / "gate.jsonl").read_bytes()
    with pytest.raises(DataError, match="was altered"):
        if how == "rollback":
            roll_back(tmp_path, "v000001")
        else:
            move(tmp_path, "v000001", kind="forced")
    assert published.current(tmp_path) == "v000002"
    assert (tmp_path / "gate.jsonl").read_bytes() == before


def test_what_was_ever_live_comes_latest_first(tmp_path: Path) -> None:
    for moved in (True, True, False, True):
        move(tmp_path, add(tmp_path), moved=moved)
    roll_back(tmp_path)
    assert releases.ever_live(tmp_path) == ["v000002", "v000004", "v000001"]


def test_going_back_skips_what_never_was_live(tmp_path: Path) -> None:
    move(tmp_path, add(tmp_path))
    move(tmp_path, add(tmp_path), moved=False)
    move(tmp_path, add(tmp_path))
    assert releases.kept(tmp_path) == {"v000001"}
    assert roll_back(tmp_path).to == "v000001" and releases.kept(tmp_path) == set()


def test_going_back_to_what_is_not_there_changes_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        move(tmp_path, add(tmp_path))
    before = trace(tmp_path)
    for to, sentence in (
        ("v000009", r"has no version v000009\. Did you mean v00000\d\?"),
        ("v000002", "v000002 is live already"),
    ):
        with pytest.raises(DataError, match=sentence):
            roll_back(tmp_path, to)
    assert trace(tmp_path) == before and published.current(tmp_path) == "v000002"


def test_nothing_is_gone_back_from_while_a_version_is_written(tmp_path: Path) -> None:
    for _ in range(2):
        move(tmp_path, add(tmp_path))
    with published.new_version(tmp_path) as draft:
        with pytest.raises(BusyError, match="publishing into"):
            roll_back(tmp_path)
        draft.finish(
            created="", dim=1, comparator="dot", graph_digest="", entity_types=[], relations=[]
        )
    assert published.current(tmp_path) == "v000002"


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_half_a_line_of_a_killed_writer_is_no_line(kept: int, tmp_path: Path) -> None:
    for _ in range(2):
        move(tmp_path, add(tmp_path))
    path = tmp_path / "gate.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:kept])
    assert [one.to for one in trace(tmp_path)] == ["v000001"]
    move(tmp_path, "v000002")
    assert [one.to for one in trace(tmp_path)] == ["v000001", "v000002"]
    assert path.read_bytes().startswith(first)


def test_an_altered_trace_is_refused(tmp_path: Path) -> None:
    move(tmp_path, add(tmp_path))
    (tmp_path / "gate.jsonl").write_text('{"time": 3}\n')
    with pytest.raises(DataError, match=r"gate\.jsonl was altered: a line of it can't be read\."):
        trace(tmp_path)


# --- uses -----------------------------------------------------------------------------------------


def test_each_verdict_is_a_use_until_there_are_none_left(tmp_path: Path) -> None:
    path = tmp_path / "uses.json"
    assert [count_use(path, "d", ["a", "b"], 2, "full") for _ in range(2)] == [1, 2]
    with pytest.raises(releases.Refused, match="The test set has decided 2 times, as "):
        count_use(path, "d", ["a", "b"], 2, "full")
    [known] = uses_of(path, ["a"])
    assert known.uses == 2 and known.files == ["a", "b"] and uses_of(path, ["c"]) == []
    assert count_use(path, "e", ["c"], 2, "full") == 1


def count_ten(path: Path) -> list[int]:
    return [count_use(path, "d", ["a"], 1000, "full") for _ in range(10)]


def test_who_counts_at_the_same_time_waits(tmp_path: Path) -> None:
    path = tmp_path / "uses.json"
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        shown = pool.map(count_ten, [path] * 4, chunksize=1)
    assert sorted(use for some in shown for use in some) == list(range(1, 41))
    assert uses_of(path, ["a"])[0].uses == 40


def test_a_test_set_that_grew_has_decided_as_often_as_before(tmp_path: Path) -> None:
    path = tmp_path / "uses.json"
    for _ in range(3):
        count_use(path, "one", ["a"], 5, "full")
    assert count_use(path, "more", ["a", "b"], 5, "full") == 4
    assert count_use(path, "rest", ["b"], 5, "full") == 5
    assert count_use(path, "one", ["a"], 5, "full") == 5  # its second is of another set


@pytest.mark.parametrize("rules", [(3, "full"), (2, "none")])
def test_the_rules_of_a_test_set_stay_those_it_began_with(
    rules: tuple[int, str], tmp_path: Path
) -> None:
    path = tmp_path / "uses.json"
    count_use(path, "d", ["a"], 2, "full")
    before = path.read_bytes()
    with pytest.raises(
        releases.Refused, match=r'began to decide under 2 and "full"\. Set them back'
    ):
        count_use(path, "d", ["a"], *rules)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["", "{}", '{"test_sets": [{"digest": 3}]}', "[]"])
def test_altered_counts_are_refused(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "uses.json"
    path.write_text(content)
    with pytest.raises(DataError, match="put it back"):
        count_use(path, "d", ["a"], 2, "full")
