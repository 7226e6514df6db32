"""A new version's lists against the live one's: the release gate of a graph's model.

Both are asked for the lists of the same askers, those of a split of the graph as it is now; what
they had before is left out of both. Whom the live version does not know gets an empty list of it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from embedsvc.config import GateConfig
from embedsvc.edge_ids import Ids, pairs_of
from embedsvc.evaluation import gate, metrics
from embedsvc.evaluation.conditions import CHANGED, USER_AUC, Condition, parse
from embedsvc.evaluation.gate import Decision, Outcome, Plan, Sample
from embedsvc.evaluation.lists import Asked, ask, hits_of
from embedsvc.evaluation.sources import OfVersion
from embedsvc.release import Rival, counted, rival, ungated
from partitions.errors import ConfigError, did_you_mean
from partitions.graph import Graph
from partitions.hashing import hash_edges, hash_keys
from partitions.published import PublishedVersion


@dataclass(frozen=True)
class ListGate:
    """root: of the published versions; uses: the file that counts what test sets decide; recommend:
    the relations that are meant where a condition names none; empty: all that a version has."""

    graph: Graph
    root: Path
    uses: Path
    config: GateConfig
    recommend: Sequence[str] = ()

    def __call__(self, version: PublishedVersion, folder: Path) -> Decision:
        """Counts a use where askers decide; nothing else is written."""
        conditions = self.check([relation.name for relation in version.manifest.relations])
        if not conditions:
            return ungated(self.root)
        plan = Plan.of(conditions, self.config.max_uses, self.config.adaptivity)
        other = rival(self.root, version.name)
        found: dict[Condition, Outcome] = {}
        askers, left_out = {}, {}
        for relation in dict.fromkeys(c.relation for c in conditions):
            assert relation is not None
            some = [c for c in conditions if c.relation == relation]
            judged = _Judged.of(self.graph, relation, self.config.split, some, version, other)
            askers[relation] = len(judged.asked)
            left_out[relation] = judged.asked.num_without_goals
            found |= {c: judged.outcome(c, plan) for c in some}
        outcomes = tuple(found[c] for c in conditions)
        decision = Decision(
            promoted=gate.promotes(outcomes, self.config.mode),
            live=other.live,
            compared_with=other.name,
            outcomes=outcomes,
            why="; ".join(filter(None, [other.in_place, *self._nobody(askers, left_out)])),
            split=self.config.split,
            mode=self.config.mode,
            askers=askers,
            left_out=left_out,
        )
        return counted(decision, self.uses, self.files(askers), self.config)

    def check(self, relations: Sequence[str]) -> list[Condition]:
        """The conditions, each with its relation. ConfigError for what lists of these can't be
        asked."""
        meant = self.recommend or relations
        found = []
        for condition in map(parse, self.config.conditions):
            if condition.metric == USER_AUC:
                raise ConfigError(
                    f"[gate] {condition}: {USER_AUC} is of a [ranker]; of lists there are "
                    f"{', '.join(metrics.LIST_METRICS)}."
                )
            relation = condition.relation
            if relation is None:
                if len(meant) != 1:
                    raise ConfigError(
                        f"[gate] {condition}: there are lists of {', '.join(meant)}: name one, "
                        f"such as {meant[0]}/{condition}."
                    )
                relation = meant[0]
                condition = replace(condition, relation=relation)
            if relation not in relations:
                raise ConfigError(
                    f"[gate] {condition}: there are no lists of {relation}. "
                    f"{did_you_mean(relation, list(relations))}"
                )
            ends = self.graph.relations[self.graph.relation_id(relation)]
            most = self.graph.num_entities(ends.rhs)
            if condition.k is not None and condition.k > most:
                raise ConfigError(
                    f"[gate] {condition}: a list of {condition.k:,} is longer than all {most:,} "
                    f"{ends.rhs} entities. Choose a smaller K."
                )
            found.append(condition)
        return found

    def _nobody(self, askers: dict[str, int], left_out: dict[str, int]) -> list[str]:
        """Of relations that nobody could be asked of."""
        return [
            f"the {self.config.split} split has no edges of {relation} that were not known before"
            if left_out[relation]
            else f"the {self.config.split} split has no edges of {relation}; set graph.holdout and "
            "import again"
            for relation, count in askers.items()
            if not count
        ]

    def files(self, relations: Iterable[str] = ()) -> list[str]:
        """Digests of the split's edges: of each file, and of all edges of each of the relations,
        which are the same however another import numbers, orders and partitions them."""
        files = [
            file.sha256
            for (split, _), files in self.graph.manifest.edge_files.items()
            if split == self.config.split
            for file in files
        ]
        contents = (content_of(self.graph, name, self.config.split) for name in relations)
        return files + [content for content in contents if content]


def content_of(graph: Graph, relation: str, split: str) -> str:
    """What the edges of a split are, by key, in whatever order: the sum of their hashes, mod 2^64.
    Empty where there are none."""
    rel = graph.relation_id(relation)
    ends = graph.relations[rel]
    lhs_hashes, rhs_hashes = (hash_keys(graph.all_keys(name)) for name in (ends.lhs, ends.rhs))
    name_hash = hash_keys(pa.array([relation]))
    count, total = 0, np.uint64(0)
    for _, lhs, rhs in pairs_of(graph, rel, [split]):
        edges = hash_edges(0, lhs_hashes[lhs], name_hash.repeat(len(lhs)), rhs_hashes[rhs])
        count, total = count + len(lhs), np.add.reduce(edges, initial=total)
    return f"{relation}: {count} edges, {total:016x}" if count else ""


@dataclass(frozen=True)
class _Judged:
    """The lists of one relation. old: None where there is nothing to compare with, for `why`."""

    asked: Asked
    new: Ids  # [Q, k], for the largest k of all conditions
    old: Ids | None
    unknown: int
    other: Rival
    why: str

    @staticmethod
    def of(
        graph: Graph,
        relation: str,
        split: str,
        conditions: list[Condition],
        version: PublishedVersion,
        other: Rival,
    ) -> "_Judged":
        asked = Asked.of(graph, relation, split)
        k = max(condition.k or 0 for condition in conditions)

        def lists(of: PublishedVersion) -> Ids:
            source = OfVersion(of, graph, relation, split)
            return ask(source, asked.lhs, k, asked.left_out).ids

        new, old, live, why = lists(version), None, other.version, other.why
        if live is not None and relation not in [r.name for r in live.manifest.relations]:
            why = other.lacks(f"relation {relation}")
        elif live is not None and any(condition.needs_old for condition in conditions):
            old = lists(live)
        unknown = 0 if old is None else int(np.sum(old[:, 0] < 0))
        return _Judged(asked, new, old, unknown, other, why)

    def outcome(self, condition: Condition, plan: Plan) -> Outcome:
        if condition.needs_old and self.old is None:
            return self.other.nothing(condition, self.why)
        new = self.new[:, : condition.k]
        old = new if self.old is None else self.old[:, : condition.k]
        if condition.metric == CHANGED:
            differ = np.any(np.sort(new) != np.sort(old), axis=1)
            return gate.limit(
                condition, plan, float(differ.mean()) if len(differ) else float("nan")
            )
        if condition.is_limit:
            return gate.limit(
                condition, plan, *(self._catalogue(condition, ids) for ids in (new, old))
            )
        of = metrics.LIST_METRICS[condition.metric]
        hit_new, hit_old = (hits_of(ids, self.asked.goals) for ids in (new, old))
        sample = Sample(
            of(hit_new, self.asked.num_goals),
            of(hit_old, self.asked.num_goals),
            np.any(new != old, axis=1),
            np.asarray(hit_new.any(axis=1)),
            np.asarray(hit_old.any(axis=1)),
        )
        found = gate.decide(condition, sample, plan)
        return (
            replace(found, unknown=self.unknown) if condition.needs_old and found.shown else found
        )

    def _catalogue(self, condition: Condition, ids: Ids) -> float:
        popularity = self.asked.popularity
        if condition.metric == "coverage":
            return metrics.coverage_at(ids, len(popularity))
        if condition.metric == "gini":
            return metrics.gini(ids, len(popularity))
        if condition.metric == "novelty":
            return metrics.novelty_at(ids, popularity)
        return metrics.popularity_lift(ids, popularity)
