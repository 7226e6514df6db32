"""What became of each published version, and how often a test set has decided (this module owns
both formats).

    published/gate.jsonl   one JSON object a line, only ever added to: every decision, forced or
                           not, and every way back
    test-uses.json         beside graph/: which held-out files decided how often

A line of the trace is written and on disk before CURRENT moves; so a kill between the two leaves a
line that says where CURRENT was about to go. A use is on disk before its verdict is shown: a kill
may count one that nobody saw, never the other way round.
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

Kind = Literal["decision", "forced", "rollback"]


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
    """Append the line, then do what it says: CURRENT names move.to, if it moved."""
    if move.to not in published.versions(root):
        published.set_current(root, move.to)  # says so
    _append(root, move)
    if move.moved:
        published.set_current(root, move.to)


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


def before(root: Path, name: str) -> str | None:
    """The version that was live when `name` first took its place; None where that isn't known.
    Ways back don't count, so that going back twice goes back two versions."""
    for move in reversed(trace(root)):
        if move.moved and move.to == name and move.kind != "rollback":
            return move.was
    return None


def roll_back(root: Path, to: str | None = None) -> Move:
    """Make the version before the live one, or `to`, the live one."""
    with durable.only_writer(root, "rolling back in"):
        name = published.current(root)
        target = to or before(root, name)
        if target is None:
            raise DataError(
                f"{root / TRACE} does not say what was live before {name}. Name a version: --to "
                f"with one of {', '.join(published.versions(root))}."
            )
        if target == name:
            raise DataError(f"{name} is live already in {root}.")
        move = Move(time=now(), kind="rollback", was=name, to=target, moved=True)
        record(root, move)
    return move


def kept(root: Path) -> set[str]:
    """What may be gone back to from the live version."""
    name = live(root)
    return {found for found in [name and before(root, name)] if found}


# --- uses of test sets ----------------------------------------------------------------------------


class TestSet(_Part):
    """Held-out files by digest, and how often they may decide; see embedsvc.evaluation.gate."""

    __test__ = False  # no test of pytest's

    digest: str
    files: list[str]  # sha256 of each
    uses: int = 0
    max_uses: int
    adaptivity: str
    last: str = ""  # when it decided last


def uses_of(path: Path, files: Sequence[str]) -> list[TestSet]:
    """Those that share a file with these: a graph that was appended to has its old test edges,
    which have decided as often as before."""
    return [one for one in _read(path) if set(one.files) & set(files)]


def count_use(path: Path, digest: str, files: Sequence[str], max_uses: int, adaptivity: str) -> int:
    """Which use of the test set this is, from 1; on disk when it returns. Refused where it has
    none left, or began under other rules: what was promised then held for those."""
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
