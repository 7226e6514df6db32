"""What `embedsvc gate` does and prints, and what publishing says of its end; of a graph's model as
of a ranker."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from embedsvc import release
from embedsvc.evaluation.gate import Decision
from embedsvc.release import Judge
from partitions import published, releases
from partitions.errors import DataError
from partitions.published import PublishedVersion


@dataclass(frozen=True)
class Releases:
    root: Path
    config: str  # name of the file with the settings
    keep: int
    say: Callable[[str], None]

    def standing(self, is_of: Callable[[PublishedVersion], bool]) -> bool | None:
        """Whether the version that `is_of` wants is live; None where there is none yet: publish."""
        if release.is_live(self.root, is_of):
            self.say(f"publish: {self.root} is up to date")
            return True
        name = release.waiting(self.root, is_of)
        if name is None:
            return None
        if release.resumed(self.root, name, self.keep):
            self.say(f"publish: {name} in {self.root} passed the gate before, and is live now")
            return True
        last = releases.last_of(self.root, name)
        left = last is not None and last.to != name
        why = "was gone back from" if left else "is waiting at the gate"
        self.say(f"publish: {self.root} is up to date, but {name} {why}. {self._what_to_do(name)}")
        return False

    def say_published(self, name: str, decision: Decision, facts: str) -> None:
        state = "live" if decision.promoted else "written, and not live"
        self.say(f"publish: {name} in {self.root} is {state}: {facts}")
        self._say_decision(name, decision)

    def gate(self, judge: Callable[[], Judge], name: str | None, *, force: bool) -> bool:
        known = published.versions(self.root)
        if not known:
            raise DataError(f"{self.root} holds no published version. Run embedsvc publish.")
        name = name or known[-1]
        published.check_known(self.root, name)
        live = releases.live(self.root)
        if name == live:
            self.say(f"gate: {name} in {self.root} is live already")
            return True
        start = time.perf_counter()
        if force:
            decision = Decision(True, live, None, why="let live by --force")
        else:
            decision = judge()(published.open_version(self.root, name), self.root / name)
            if release.is_ungated(decision) and release.held_back(self.root, name):
                why = "its conditions kept it back, and [gate] has none now to ask instead"
                decision = replace(decision, promoted=False, why=why)
        release.conclude(self.root, name, decision, self.keep, "forced" if force else "decision")
        state = "live" if decision.promoted else "not live"
        self.say(f"gate: {name} in {self.root} is {state}, {time.perf_counter() - start:.1f} s")
        self._say_decision(name, decision)
        return decision.promoted

    def _say_decision(self, name: str, decision: Decision) -> None:
        for sentence in decision.sentences:
            self.say(f"gate: {sentence}")
        if decision.use is not None:
            self.say(f"gate: use {decision.use} of {decision.max_uses} of this test set")
        if not decision.promoted:
            stays = f"{decision.live} stays live. " if decision.live else ""
            self.say(f"gate: {stays}{self._what_to_do(name)}")

    def _what_to_do(self, name: str) -> str:
        return (
            f"Train another, or change [gate] and let embedsvc gate {self.config} decide again; "
            f"with --version {name} --force it goes live whatever the gate says."
        )
