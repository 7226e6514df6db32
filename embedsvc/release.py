"""The last step of publishing: a version is written and checked; does it go live?

decision = judge(version)           what the gate says, see evaluation/list_gate.py
conclude(root, name, decision, keep)    the trace, then CURRENT, then old versions go
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from embedsvc import card
from embedsvc.config import GateConfig
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
    """Whether the live version is whole, and what `is_of` wants; publishing mends a damaged one."""
    live, _ = live_version(root)
    return live is not None and is_of(live)


def waiting(root: Path, is_of: Callable[[PublishedVersion], bool]) -> str | None:
    """The newest version, where it is whole, what `is_of` wants, and not live."""
    known = published.versions(root)
    if not known or (newest := known[-1]) == releases.live(root):
        return None
    try:
        return newest if is_of(_whole(root, newest)) else None
    except DataError:
        return None


def live_version(root: Path) -> tuple[PublishedVersion | None, str]:
    """The live version, every file of it whole; or None, and why there is none to compare with."""
    if not (root / published.CURRENT).exists():
        return None, "no version is live yet"
    try:
        return _whole(root), ""
    except DataError as error:
        return None, f"the live version is damaged ({str(error).rstrip('.')})"


def _whole(root: Path, name: str | None = None) -> PublishedVersion:
    version = published.open_version(root, name)
    for path in version.manifest.files:
        version.file(path)
    return version


def counted(decision: Decision, uses: Path, files: list[str], config: GateConfig) -> Decision:
    """The same with its use of the test set, which is on disk before anybody sees the verdict; or
    one that shows none, where the test set may not decide. files: digests of what is held out."""
    if all(outcome.users is None for outcome in decision.outcomes):
        return decision
    digest = hashlib.sha256("\n".join(sorted(files)).encode()).hexdigest()
    try:
        use = releases.count_use(uses, digest, files, config.max_uses, config.adaptivity)
    except releases.Refused as error:
        return replace(decision, promoted=False, outcomes=(), why=str(error), test_set=digest)
    return replace(decision, test_set=digest, use=use, max_uses=config.max_uses)


def conclude(root: Path, name: str, decision: Decision, keep: int, kind: Kind = "decision") -> None:
    """CURRENT moves only here and in releases.roll_back, each time with a line of the trace."""
    move = Move(
        time=releases.now(),
        kind=kind,
        was=decision.live,
        to=name,
        moved=decision.promoted,
        why=decision.why,
        conditions=[asdict(outcome) for outcome in decision.outcomes],
        test_set=decision.test_set,
        use=decision.use,
    )
    with durable.only_writer(root, "releasing in"):
        releases.record(root, move)
        published.remove_versions(root, keep, releases.kept(root))


def resumed(root: Path, name: str, keep: int) -> bool:
    """Whether a whole version that is not live was let live, and only a kill kept CURRENT from
    naming it; it is live then when this returns."""
    last = releases.last_of(root, name)
    if last is not None:
        if last.to != name or not last.moved or last.was != releases.live(root):
            return False
        published.set_current(root, name)
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
