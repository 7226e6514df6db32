"""What became of each published version, and how often a test set has decided (this module owns
both formats).

    published/gate.jsonl   one JSON object a line, only ever added to: every decision, forced or
                           not, and every way back
    test-uses.json         beside graph/: which held-out files decided how often

A line of the trace is written and on disk before CURRENT moves; so a kill between the two leaves a
line that says where CURRENT was about to go. Before the line, all that could refuse the move is
done: the trace is read, and every file of the version is held against its digest. A use is on disk
before its verdict is shown: a kill may count one that nobody saw, never the other way round.
"""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from partitions import durable, published
from partitions.errors import ConfigError, DataError

TRACE = "gate.jsonl"
USES = "test-uses.json"

Kind = Literal["decision", "ungated", "forced", "rollback"]  # ungated: there were no conditions


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Move(_Part):
    """A line of the trace. CURRENT went from one version to another, or was to but for the gate."""

    time: str  # UTC, ISO 8601
    kind: Kind
    was: str | None  # live before; None: none was
    to: str
    moved: bool  # False: the gate kept what was
    why: str = ""
    conditions: list[dict[str, Any]] = []
    test_set: str | None = None  # digest of what was decided by
    use: int | None = None  # which of the test set's uses it was


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def trace(root: Path) -> list[Move]:
    """All lines, oldest first. What a killed writer left of a last line is none."""
    path = root / TRACE
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    whole = text[: text.rfind(b"\n") + 1].splitlines()
    try:
        return [Move.model_validate_json(line) for line in whole]
    except ValidationError:
        raise DataError(
            f"{path} was altered: a line of it can't be read. Mend it, or move it away: what was "
            "live before is then not known."
        ) from None


def _append(root: Path, move: Move) -> None:
    path = root / TRACE
    line = json.dumps(move.model_dump(mode="json"), separators=(",", ":"))
    fresh = not path.exists()
    with path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)  # a killed writer's half line
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if fresh:
        durable.sync_folder(root)


def record(root: Path, move: Move) -> None:
    """Append the line, then do what it says: CURRENT names move.to, if it moved. Who calls holds
    the folder. DataError, and nothing is written, where the trace or the version is damaged."""
    published.check_known(root, move.to)
    trace(root)
    if move.moved:
        published.whole_version(root, move.to)
    _append(root, move)
    if move.moved:
        published.set_current(root, move.to)


def resume(root: Path, name: str) -> None:
    """CURRENT goes where the last line of a version says that it was about to."""
    with durable.only_writer(root, "releasing in"):
        published.whole_version(root, name)
        published.set_current(root, name)


def live(root: Path) -> str | None:
    """What CURRENT names; None where it names no version."""
    try:
        return published.current(root)
    except DataError:
        return None


def last_of(root: Path, name: str) -> Move | None:
    """The last line that moved a version, or left it, or kept it back."""
    found = [m for m in trace(root) if m.to == name or (m.kind == "rollback" and m.was == name)]
    return found[-1] if found else None


def ever_live(root: Path) -> list[str]:
    """What the trace says was live, each version once, the latest first."""
    moved = [move for move in reversed(trace(root)) if move.moved]
    return list(dict.fromkeys(name for move in moved for name in (move.to, move.was) if name))


def before(root: Path) -> str | None:
    """What going back makes live: of those before the live one, the latest that is still there."""
    return _back(root)[0]


def roll_back(root: Path, to: str | None = None) -> Move:
    """Make the version before the live one, or `to`, the live one."""
    with durable.only_writer(root, "rolling back in"):
        name = live(root) if to else published.current(root)
        target, removed = (to, []) if to else _back(root)
        if target is None:
            raise DataError(_nothing_before(root, str(name), removed))
        if target == name:
            raise DataError(f"{name} is live already in {root}.")
        why = f"removed since, so not gone back to: {', '.join(removed)}" if removed else ""
        move = Move(time=now(), kind="rollback", was=name, to=target, moved=True, why=why)
        record(root, move)
    return move


def _nothing_before(root: Path, name: str, removed: Sequence[str]) -> str:
    if removed:
        what = f"All that was live before {name} in {root} was removed: {', '.join(removed)}"
    elif any(move.moved and move.to == name for move in trace(root)):
        what = f"{name} is the first that was live in {root}; there is nothing to go back to"
    else:
        what = f"{root / TRACE} does not say what was live before {name}"
    others = ", ".join(other for other in published.versions(root) if other != name)
    return f"{what}. Name another version: --to with one of {others}." if others else f"{what}."


def _back(root: Path) -> tuple[str | None, list[str]]:
    """(what to go back to, removed versions that come before it)"""
    name, known = live(root), published.versions(root)
    removed: list[str] = []
    for earlier in reversed(_chain(root)):
        if earlier in known and earlier != name:
            return earlier, removed
        if earlier != name and earlier not in removed:
            removed.append(earlier)
    return None, removed


def _chain(root: Path) -> Sequence[str]:
    """What was live one after the other, the live one last. A way back takes off the end what it
    went back from, so that none is gone back to twice."""
    now: tuple[str, ...] = ()
    earlier = now  # without the last line, which a kill may have kept from being done
    for move in trace(root):
        if move.moved:
            now = _as_it_was(now, earlier, move.was)
            earlier, now = now, _after(now, move)
    return _as_it_was(now, earlier, live(root))


def _after(chain: tuple[str, ...], move: Move) -> tuple[str, ...]:
    if move.kind == "rollback" and move.to in chain:
        return chain[: len(chain) - chain[::-1].index(move.to)]
    return chain if chain[-1:] == (move.to,) else (*chain, move.to)


def _as_it_was(
    chain: tuple[str, ...], earlier: tuple[str, ...], name: str | None
) -> tuple[str, ...]:
    """The chain whose end is what was live indeed."""
    if name is None or chain[-1:] == (name,):
        return chain
    return earlier if earlier[-1:] == (name,) else (*chain, name)


def kept(root: Path) -> set[str]:
    """What may be gone back to from the live version."""
    return {found for found in [before(root)] if found}


# --- uses of test sets ----------------------------------------------------------------------------


class TestSet(_Part):
    """What is held out, by digest, and how often it may decide; see embedsvc.evaluation.gate."""

    __test__ = False  # no test of pytest's

    digest: str
    files: list[str]  # sha256 of each; of a graph, its edges by relation too, however they lie
    uses: int = 0
    max_uses: int
    adaptivity: str
    last: str = ""  # when it decided last


def uses_of(path: Path, files: Sequence[str]) -> list[TestSet]:
    """Those that share a file, or all edges of a relation, with these: a graph that was appended
    to has its old test edges, which have decided as often as before."""
    return [one for one in _read(path) if set(one.files) & set(files)]


def count_use(path: Path, digest: str, files: Sequence[str], max_uses: int, adaptivity: str) -> int:
    """Which use of the test set this is, from 1; on disk when it returns. Refused where it has
    none left, or began under other rules: what was promised then held for those. Who counts at the
    same time waits."""
    with durable.one_at_a_time(path):
        return _count_use(path, digest, files, max_uses, adaptivity)


def _count_use(
    path: Path, digest: str, files: Sequence[str], max_uses: int, adaptivity: str
) -> int:
    known = uses_of(path, files)
    for one in known:
        if (one.max_uses, one.adaptivity) != (max_uses, adaptivity):
            raise Refused(
                f"[gate] max_uses = {max_uses}, adaptivity = {json.dumps(adaptivity)}: this test "
                f"set began to decide under {one.max_uses} and {json.dumps(one.adaptivity)}. Set "
                "them back, or hold out other events (a new graph.holdout seed, or newer ones) and "
                "train again."
            )
    use = max((one.uses for one in known), default=0) + 1
    if use > max_uses:
        raise Refused(
            f"The test set has decided {max_uses} times, as [gate] max_uses allows: what it says "
            "now is no promise any more. Hold out other events (a new graph.holdout seed, or newer "
            "ones) and train again."
        )
    counted = TestSet(
        digest=digest,
        files=sorted(files),
        uses=use,
        max_uses=max_uses,
        adaptivity=adaptivity,
        last=now(),
    )
    rest = [one for one in _read(path) if one.digest != digest]
    durable.write_json(path, {"test_sets": [one.model_dump() for one in [*rest, counted]]})
    return use


class Refused(ConfigError):
    """A test set may not decide."""


def _read(path: Path) -> list[TestSet]:
    if not path.exists():
        return []
    remedy = "It says how often test sets have decided: put it back."
    try:
        found = durable.read_json(path, remedy)["test_sets"]
        return [TestSet.model_validate(one) for one in found]
    except (KeyError, TypeError, ValidationError):
        raise DataError(f"{path} was altered: it can't be read. {remedy}") from None
