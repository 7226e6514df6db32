"""Early stopping: when an epoch ends, is the validation split ranked better than ever before?

The best epoch's manifest is kept beside the newest one (partitions.checkpoint.BEST): evaluation,
export and publication read it, while training goes on from the newest. What was found is in

    stopping.json   {format_version, graph, metric, max_edges, history: [[epoch, value], ...]}

written after each evaluation. A run killed before that finds its epoch missing there, evaluates it
anew and decides the same.
"""

import logging
import time
from typing import Any

from embedsvc.config import EarlyStoppingConfig
from embedsvc.evaluation.links import rank_links, sample
from embedsvc.evaluation.recommend import evaluate_lists
from embedsvc.trained import Trained
from partitions import durable
from partitions.checkpoint import Checkpoint
from partitions.errors import ConfigError
from partitions.graph import Graph

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
HISTORY = "stopping.json"


class EarlyStopping:
    """epoch: the number of epochs that the newest commit has behind it."""

    def __init__(
        self,
        config: EarlyStoppingConfig,
        graph: Graph,
        checkpoint: Checkpoint,
        epoch: int,
        lists_of: str | None = None,
    ) -> None:
        """lists_of: a relation, by whose lists of 20 epochs are judged instead of by ranks."""
        num_edges = graph.num_edges("valid")
        if lists_of is not None:
            num_edges = graph.manifest.relation_edges["valid"][graph.relation_id(lists_of)]
        if not num_edges:
            raise ConfigError(
                f"[train] early_stopping needs a validation split, and {graph.path} has none: "
                "set graph.holdout.valid and import again, or unset it."
            )
        self._config, self._graph, self._checkpoint = config, graph, checkpoint
        self._lists_of = lists_of
        self._about = {
            "format_version": FORMAT_VERSION,
            "graph": graph.digest,
            "metric": self.metric,
            "max_edges": config.max_edges,
        }
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
        return "recall20" if self._lists_of is not None else self._config.metric

    def _value(self, trained: Trained) -> tuple[float, int]:
        """And of how many edges or lists it is."""
        if self._lists_of is not None:
            report = evaluate_lists(trained, self._lists_of, "valid", 20)
            return report.recall if report.num_lists else 0.0, report.num_lists
        edges = sample(trained.edges("valid"), self._config.max_edges)
        return rank_links(trained, edges).summary()[self._config.metric], len(edges)

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
        trained = Trained(self._graph, self._checkpoint.path, newest=True)
        value, num_judged = self._value(trained)
        better = not self.history or value > self.best[1]
        if better:
            self._checkpoint.keep_as_best()
        self.history.append((epoch, value))
        content = self._about | {"history": self.history}
        durable.write_json(self._checkpoint.path / HISTORY, content)
        logger.info(
            "epoch=%d valid_%s=%.4f %s=%d best=%d seconds=%.1f%s",
            *(epoch, self.metric, value),
            *("edges" if self._lists_of is None else "lists", num_judged, self.best[0]),
            *(time.perf_counter() - start, " stop" if self.stopped else ""),
        )
        return value


def forget(checkpoint: Checkpoint) -> None:
    """Without early stopping the newest commit is the one that counts."""
    if checkpoint.has_best:
        logger.info("early stopping is off: the newest commit counts, not the best of before")
    (checkpoint.path / HISTORY).unlink(missing_ok=True)
    checkpoint.forget_best()
