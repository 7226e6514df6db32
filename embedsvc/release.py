"""The last step of publishing: a version is written and checked; does it go live?

decision = judge(version)           what the gate says, see evaluation/list_gate.py
conclude(root, name, decision, keep)    the trace, then CURRENT, then old versions go
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from embedsvc import card
from embedsvc.config import GateConfig
from embedsvc.evaluation import gate
from embedsvc.evaluation.conditions import Condition
from embedsvc.evaluation.gate import Decision, Outcome
from partitions import durable, published, releases
from partitions.errors import DataError
from partitions.published import PublishedVersion
from partitions.releases import Kind, Move

Judge = Callable[[PublishedVersion, Path], Decision]  # a version, and the folder that it lies in


def ungated(root: Path) -> Decision:
    """Where there are no conditions."""
    name = releases.live(root)
    return Decision(True, name, None)


def is_live(root: Path, is_of: Callable[[PublishedVersion], bool]) -> bool:
    """Whether the live version is whole, and what `is_of` wants; where it is damaged, publishing
    makes another."""
    try:
        return is_of(published.whole_version(root))
    except DataError:
        return False


def waiting(root: Path, is_of: Callable[[PublishedVersion], bool]) -> str | None:
    """The newest version, where it is whole, what `is_of` wants, and not live."""
    known = published.versions(root)
    if not known or (newest := known[-1]) == releases.live(root):
        return None
    try:
        return newest if is_of(published.whole_version(root, newest)) else None
    except DataError:
        return None


@dataclass(frozen=True)
class Rival:
    """What a new version is compared with: the live one, or where that is damaged the one that was
    live last of those that are whole. version: None where there is none, for `why`."""

    live: str | None  # what CURRENT names
    version: PublishedVersion | None
    why: str = ""
    first: bool = False  # there never was a live one

    @property
    def name(self) -> str | None:
        return None if self.version is None else self.version.name

    @property
    def in_place(self) -> str:
        """Why it is another than the live one."""
        return "" if self.version is None else self.why

    def lacks(self, what: str) -> str:
        return f"{self.name}, which {'was' if self.why else 'is'} live, has no {what}"

    def nothing(self, condition: Condition, why: str) -> Outcome:
        """Of a condition that names old. Unasked goes live only what is the first ever."""
        return (gate.skipped if self.first else gate.incomparable)(condition, why)


def rival(root: Path, new: str) -> Rival:
    """new: the version that is to be compared, so not with itself."""
    live, known = releases.live(root), releases.ever_live(root)
    there = (root / published.CURRENT).exists()
    if not there and not known:
        return Rival(None, None, "no version is live yet", first=True)
    try:
        if there:
            return Rival(live, published.whole_version(root))
        fault = f"{root / published.CURRENT}, which names the live version, is missing"
    except DataError as error:
        fault = f"the live version is damaged ({str(error).rstrip('.')})"
    for name in known:
        if name not in (live, new):
            with suppress(DataError):
                version = published.whole_version(root, name)
                return Rival(live, version, f"{fault}: compared with {name}, which was live before")
    return Rival(live, None, f"{fault}, and no other that was live is whole")


def counted(decision: Decision, uses: Path, files: list[str], config: GateConfig) -> Decision:
    """The same with its use of the test set, which is on disk before anybody sees the verdict; or
    one that shows none, where the test set may not decide. files: digests of what is held out."""
    if not any(outcome.users for outcome in decision.outcomes):
        return decision  # nobody was asked, of limits or of an empty split
    digest = hashlib.sha256("\n".join(sorted(files)).encode()).hexdigest()
    try:
        use = releases.count_use(uses, digest, files, config.max_uses, config.adaptivity)
    except releases.Refused as error:
        return replace(decision, promoted=False, outcomes=(), why=str(error), test_set=digest)
    return replace(decision, test_set=digest, use=use, max_uses=config.max_uses)


def conclude(root: Path, name: str, decision: Decision, keep: int, kind: Kind = "decision") -> None:
    """CURRENT moves only here, in `resumed` and in releases.roll_back; each time a line of the
    trace says so. DataError where another version went live since the decision."""
    move = Move(
        time=releases.now(),
        kind="ungated" if kind == "decision" and is_ungated(decision) else kind,
        was=decision.live,
        to=name,
        moved=decision.promoted,
        why=decision.why,
        conditions=[asdict(outcome) for outcome in decision.outcomes],
        test_set=decision.test_set,
        use=decision.use,
    )
    with durable.only_writer(root, "releasing in"):
        live = releases.live(root)
        if decision.promoted and live != decision.live:
            raise DataError(
                f"{name} was let live while {decision.live or 'no version'} was, but by now "
                f"{live or 'no version'} is live in {root}. Let embedsvc gate decide again."
            )
        releases.record(root, move)
        published.remove_versions(root, keep, releases.kept(root))


def is_ungated(decision: Decision) -> bool:
    """It goes live because there are no conditions."""
    return decision.promoted and not decision.outcomes


def held_back(root: Path, name: str) -> bool:
    """Whether conditions kept it back when they were asked last, be it at its making."""
    asked = [m for m in releases.trace(root) if m.to == name and m.kind == "decision"]
    if asked:
        return not asked[-1].moved
    decision = _of_card(root, name)
    return decision is not None and not decision.promoted


def resumed(root: Path, name: str, keep: int) -> bool:
    """Whether a whole version that is not live was let live, and only a kill kept CURRENT from
    naming it; it is live then when this returns."""
    last = releases.last_of(root, name)
    if last is not None:
        if last.to != name or not last.moved or last.was != releases.live(root):
            return False
        releases.resume(root, name)
        return True
    decision = _of_card(root, name)
    if decision is None or not decision.promoted or decision.live != releases.live(root):
        return False
    conclude(root, name, decision, keep)
    return True


def _of_card(root: Path, name: str) -> Decision | None:
    """What the gate said when the version was made; None of those from before there was one."""
    version = published.open_version(root, name)
    if card.CARD not in version.manifest.files:
        return None
    found = json.loads(bytes(version.file(card.CARD)))["gate"]
    found["outcomes"] = tuple(Outcome(**one) for one in found["outcomes"])
    return Decision(**found)
