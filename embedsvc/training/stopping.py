"""Early stopping: when an epoch ends, is the validation split ranked better than ever before?

The best epoch's manifest is kept beside the newest one (partitions.checkpoint.BEST): evaluation,
export and publication read it, while training goes on from the newest. What was found is in

    stopping.json   {format_version, graph, metric, max_edges, history: [[epoch, value], ...]}

written after each evaluation. A run killed before that finds its epoch missing there, evaluates it
anew and decides the same.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from embedsvc.config import EarlyStoppingConfig
from embedsvc.evaluation.links import rank_links, sample
from embedsvc.evaluation.lists import Asked, judge
from embedsvc.evaluation.sources import OfCheckpoint
from embedsvc.trained import Trained
from partitions import durable
from partitions.checkpoint import Checkpoint
from partitions.errors import ConfigError
from partitions.graph import Graph

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
HISTORY = "stopping.json"


@dataclass(frozen=True)
class Judge:
    """How good the newest commit is."""

    metric: str
    noun: str  # of what it is judged by
    about: Mapping[str, Any]  # values are compared only where this is the same
    value: Callable[[], tuple[float, int]]  # and of how many

    @staticmethod
    def of_ranks(config: EarlyStoppingConfig, graph: Graph, checkpoint: Checkpoint) -> "Judge":
        """By filtered ranks of the validation split."""
        _check_split(graph, graph.num_edges("valid"))

        def value() -> tuple[float, int]:
            trained = Trained(graph, checkpoint.path, newest=True)
            edges = sample(trained.edges("valid"), config.max_edges)
            return rank_links(trained, edges).summary()[config.metric], len(edges)

        return Judge(config.metric, "edges", {"graph": graph.digest}, value)

    @staticmethod
    def of_lists(graph: Graph, checkpoint: Checkpoint, relation: str) -> "Judge":
        """By Recall@20 of the validation split's lists of a relation."""
        known = graph.manifest.relation_edges["valid"]
        _check_split(graph, known[graph.relation_id(relation)])

        def value() -> tuple[float, int]:
            trained = Trained(graph, checkpoint.path, newest=True).before("valid")
            asked = Asked.of(graph, relation, "valid")
            recall = judge(OfCheckpoint(trained, relation), asked, 20).values["recall@20"]
            return float(recall.mean()) if len(asked) else 0.0, len(asked)

        return Judge("recall20", "lists", {"graph": graph.digest}, value)


def _check_split(graph: Graph, num_edges: int) -> None:
    if not num_edges:
        raise ConfigError(
            f"[train] early_stopping needs a validation split, and {graph.path} has none: "
            "set graph.holdout.valid and import again, or unset it."
        )


class EarlyStopping:
    """epoch: the number of epochs that the newest commit has behind it."""

    def __init__(
        self, config: EarlyStoppingConfig, checkpoint: Checkpoint, epoch: int, judge: Judge
    ) -> None:
        self._config, self._checkpoint, self._judge = config, checkpoint, judge
        self._about = {
            "format_version": FORMAT_VERSION,
            "metric": judge.metric,
            "max_edges": config.max_edges,
        } | dict(judge.about)
        self.history: list[tuple[int, float]] = self._read()
        if not checkpoint.has_best or (self.history and self.best[0] > epoch):
            self.history = []  # someone went back to before the best, or removed it
        self.history = [found for found in self.history if found[0] <= epoch]
        if not self.history:
            checkpoint.forget_best()

    def _read(self) -> list[tuple[int, float]]:
        """Empty where nothing was found yet, or it can't be compared with what will be."""
        path = self._checkpoint.path / HISTORY
        if not path.exists():
            return []
        remedy = f"Remove {path} to judge the epochs to come anew."
        found: dict[str, Any] = durable.read_json(path, remedy)
        history = found.pop("history", [])
        return [(epoch, value) for epoch, value in history] if found == self._about else []

    @property
    def metric(self) -> str:
        return self._judge.metric

    @property
    def best(self) -> tuple[int, float]:
        """(epoch, value); the earliest of equals."""
        return max(self.history, key=lambda found: found[1])

    @property
    def stopped(self) -> bool:
        """Whether the newest `patience` evaluations were all no better than the best before."""
        if not self.history:
            return False
        return len(self.history) - 1 - self.history.index(self.best) >= self._config.patience

    def judge(self, epoch: int) -> float | None:
        """Evaluate the newest commit, which ends `epoch`, unless it is not due or done already.
        Returns what was found."""
        known = {found[0] for found in self.history}
        if epoch == 0 or epoch % self._config.every_epochs or epoch in known or self.stopped:
            return None
        start = time.perf_counter()
        value, num_judged = self._judge.value()
        better = not self.history or value > self.best[1]
        if better:
            self._checkpoint.keep_as_best()
        self.history.append((epoch, value))
        content = self._about | {"history": self.history}
        durable.write_json(self._checkpoint.path / HISTORY, content)
        logger.info(
            "epoch=%d valid_%s=%.4f %s=%d best=%d seconds=%.1f%s",
            *(epoch, self.metric, value),
            *(self._judge.noun, num_judged, self.best[0]),
            *(time.perf_counter() - start, " stop" if self.stopped else ""),
        )
        return value


def forget(checkpoint: Checkpoint) -> None:
    """Without early stopping the newest commit is the one that counts."""
    if checkpoint.has_best:
        logger.info("early stopping is off: the newest commit counts, not the best of before")
    (checkpoint.path / HISTORY).unlink(missing_ok=True)
    checkpoint.forget_best()
