"""What `embedsvc eval` does of a checkpoint of a graph: each part measures, prints and is kept.

found = Evaluation(trained, config, console)
found.links(edges); found.lists("bought"); found.classify(labels)
found.result                            what evaluation.json holds
found.write_report(path, published)     the same as a page
"""

import json
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from embedsvc.config import ClassifyConfig, EvalConfig
from embedsvc.edge_ids import EdgeIds, repeated
from embedsvc.evaluation import report, tables
from embedsvc.evaluation.links import LinkRanks, rank_links, sample, train_degrees
from embedsvc.evaluation.links import report as links_report
from embedsvc.evaluation.lists import Asked, Judged, judge
from embedsvc.evaluation.nodes import Labels, classify
from embedsvc.evaluation.recommend import report_of
from embedsvc.evaluation.sampled import sample_links
from embedsvc.evaluation.served import Client, OfServer, gap_between
from embedsvc.evaluation.sources import OfCheckpoint, OfPopularity
from embedsvc.trained import Trained
from embedsvc.training.askers import known_before
from partitions import published
from partitions.errors import DataError
from partitions.progress import rows_bar


class Evaluation:
    """trained: as it was before config.split."""

    def __init__(self, trained: Trained, config: EvalConfig, console: Console) -> None:
        self._trained, self._config, self._console = trained, config, console
        self._ranked: tuple[LinkRanks, NDArray[np.int64]] | None = None  # and train_degrees
        self._lists: dict[str, tuple[Asked, Judged, Judged]] = {}  # the last: the most popular
        self.result: dict[str, Any] = {}

    def _say(self, line: str) -> None:
        self._console.print(f"eval: {line}", soft_wrap=True, markup=False)

    def links(self) -> None:
        """Of config.relations, or all that were learnt; all candidates, or drawn ones."""
        sampled, graph = self._config.sampled_candidates, self._trained.graph
        name = "links" if sampled is None else "sampled_links"
        edges, other_relations = self._edges()
        if not len(edges):
            self._say(f"the {self._config.split} split has no edges to rank")
            self.result[name] = {"edges": 0, "other_relations": other_relations}
            return
        with rows_bar(self._console, "scores") as bar:
            task = bar.add_task("eval links", total=None)
            scored = partial(bar.advance, task)
            if sampled is not None:
                found = sample_links(self._trained, edges, sampled, progress=scored).report()
            else:
                degrees = train_degrees(self._trained, edges)
                self._ranked = (rank_links(self._trained, edges, scored), degrees)
                names = [relation.name for relation in graph.relations]
                found = links_report(self._ranked[0], names, degrees, self._config.ties)
        found["other_relations"] = other_relations
        before = known_before(self._config.split) if self._config.split != "train" else ()
        found["repeats"] = int(np.sum(repeated(graph, edges, before)))
        table = tables.links_table if sampled is None else tables.sampled_links_table
        self._console.print(table(found, self._config.split))
        for line in tables.links_notes(found):
            self._say(line)
        self.result[name] = found

    def _edges(self) -> tuple[EdgeIds, int]:
        """Those to rank, and how many of the split are of other relations."""
        trained, config = self._trained, self._config
        graph, whole = trained.graph, trained.edges(config.split)
        names = config.relations or [relation.name for relation in trained.relations]
        chosen = [graph.relation_id(name) for name in names]
        edges = whole.take(np.flatnonzero(np.isin(whole.rel, chosen)))
        others = len(whole) - len(edges)
        if config.max_edges is not None and len(edges) > config.max_edges:
            edges = sample(edges, config.max_edges)
            self.result["sampled_from"] = graph.num_edges(config.split)
        return edges, others

    def lists(self, relation: str) -> None:
        trained, k = self._trained, self._config.k
        asked = Asked.of(trained.graph, relation, self._config.split)
        with rows_bar(self._console, "lists") as bar:
            task = bar.add_task(f"eval {relation}", total=len(asked))
            exact = judge(OfCheckpoint(trained, relation), asked, k, partial(bar.advance, task))
        popular = judge(OfPopularity(asked.popularity), asked, k)
        found = asdict(report_of(exact, asked, popular))
        self.result.setdefault("recommend", {})[relation] = found
        self._lists[relation] = asked, exact, popular
        if not len(asked):
            self._say(f"no list for {relation}: the split has no edge of it to find")
            return
        self._console.print(tables.lists_table(found, by_history=trained.output is not None))
        for line in tables.lists_notes(found):
            self._say(line)

    def through(self, client: Client, relation: str, root: Path) -> str:
        """Hold a server's lists to those of `lists`, which went before. root: where the version
        that it serves was published. Returns the verdict, empty where nobody was asked about."""
        asked, exact, _ = self._lists[relation]
        if not len(asked):
            return ""
        lists = OfServer(client, self._trained.graph, relation)
        with rows_bar(self._console, "lists") as bar:
            task = bar.add_task(f"ask {relation}", total=len(asked))
            served = judge(lists, asked, exact.k, partial(bar.advance, task))
        gap, versions = gap_between(exact, served), sorted(lists.versions)
        strange = [name for name in versions if _made_of(root, name) != self._trained.digest]
        found = asdict(gap) | {"versions": versions, "unknown_lhs": lists.unknown_lhs}
        found |= {"failed": gap.failed or bool(strange), "served": asdict(report_of(served, asked))}
        self.result.setdefault("through", {})[relation] = found
        less = gap.recall.difference
        self._say(
            f"through {', '.join(versions) or 'no version'}: {gap.identical:,} of "
            f"{gap.lists:,} lists are identical, {gap.alike:,} within rounding; "
            f"{gap.retrieved:.4f} of the exact lists' places found; recall@{exact.k} "
            f"exact - served = {less.value:.4f} [{less.low:.4f}, {less.high:.4f}]"
        )
        if lists.unknown_lhs:
            self._say(f"the server does not know {lists.unknown_lhs:,} of those asked about")
        if strange:
            return (
                f"FAILED for {relation}: {', '.join(strange)} was not made of this checkpoint in "
                f"{root}: publish it, or evaluate what is served."
            )
        if gap.too_good:
            return (
                f"FAILED for {relation}: {gap.too_good:,} served lists score better than the exact "
                "ones, which can't be: the two leave out other items, or score otherwise."
            )
        if gap.finds_more:
            return (
                f"FAILED for {relation}: the server finds more of what was held out than the exact "
                f"lists do, beyond luck (p = {gap.recall.p:.4f}): the two leave out other items."
            )
        return f"passed for {relation}: the server lists nothing better than the exact lists have"

    def classify(self, labels: Labels, config: ClassifyConfig) -> None:
        if labels.num_unknown:
            more = ", ..." * (labels.num_unknown > len(labels.first_unknown))
            self._say(
                f"left out {labels.num_unknown:,} keys of {config.labels}: the graph has no such "
                f"{config.type} ({', '.join(map(repr, labels.first_unknown))}{more})"
            )
        vectors = self._trained.gather(config.type, labels.ids).double().numpy()
        with rows_bar(self._console, "regressions") as bar:
            task = bar.add_task("eval classify", total=None)
            split, done = self._config.split, partial(bar.advance, task)
            found = classify(vectors, labels, config, split, done)
        self.result["classify"] = asdict(found)
        self._console.print(tables.classify_table(found, config.type))
        if found.num_unscored:
            self._say(
                f"left out {found.num_unscored:,} labelled {config.type} whose vectors are not "
                "finite. Train again, with a smaller train.lr."
            )

    def write_report(self, path: Path, root: Path) -> None:
        """root: the published versions, of which the live one is compared with."""
        start = time.perf_counter()
        found = report.Evaluated(self._trained, self.result, self._lists, self._ranked)
        report.write(path, f"Evaluation of {root.parent}", found, root)
        seconds = time.perf_counter() - start
        self._say(f"figures, curves, neighbours and maps in {path}, {seconds:.1f} s")


def _made_of(root: Path, version: str) -> str | None:
    """The digest of the checkpoint that a version was made of, if that is known."""
    try:
        opened = published.open_version(root, version)
        found: dict[str, Any] = json.loads(bytes(opened.file("metrics.json")))
    except DataError:
        return None
    return found.get("checkpoint")
