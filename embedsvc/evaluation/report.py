"""evaluation.html: one file that shows what `embedsvc eval` found, and what the model learnt.

Figures with intervals, curves, the worst relations; who lies near the biggest hubs; maps of the
vectors; what changed since the live version. It brings along all that it shows (pages.py), and
keys and attributes are shown as text whatever they hold. What it costs does not grow with the
graph but for one pass over edges (degrees) and one over vectors a type (neighbours): maps, drift
and lists of the live version are of seeded samples.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedsvc import pages
from embedsvc.edge_ids import Ids
from embedsvc.evaluation import changes, links, maps, neighbours
from embedsvc.evaluation.change_parts import entity_parts, list_parts
from embedsvc.evaluation.changes import EntityChange, ListChange, VectorDrift
from embedsvc.evaluation.lists import Asked, Judged, judge
from embedsvc.evaluation.metrics import LIST_METRICS
from embedsvc.evaluation.sampled import MEASURES, name_of
from embedsvc.evaluation.significance import Interval
from embedsvc.evaluation.sources import OfCheckpoint, OfVersion
from embedsvc.trained import Trained
from embedsvc.training import report as training_report
from embedsvc.training.ledger import read_records
from partitions import durable, published
from partitions.description import degrees_of
from partitions.errors import DataError
from partitions.graph import Graph
from partitions.published import PublishedVersion

REPORT = "evaluation.html"
_CURVES, _PLACES = ("recall", "ndcg"), 40  # and most points of one
_WORST, _ENOUGH = 15, 10  # relations, and edges of one that say something of it
_HUBS, _NEIGHBOURS = 5, 5
_TYPES = 6  # entity types that have maps, those with the most entities
_ASKERS = 20_000  # whose lists are made by the live version too
_RELATIONS = 3  # whose lists are compared with the live version's where none was judged

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluated:
    """trained: as it was before the split; result: what evaluation.json holds; lists: the model's
    and the most popular, by relation; ranked: where links were, their ranks and the training edges
    of their ends (links.train_degrees)."""

    trained: Trained
    result: Mapping[str, Any]
    lists: Mapping[str, tuple[Asked, Judged, Judged]] = field(default_factory=dict)
    ranked: tuple[links.LinkRanks, NDArray[np.int64]] | None = None


def write(path: Path, title: str, found: Evaluated, live: Path) -> Path:
    """live: the folder of published versions, whether or not there are any. The page names the
    digest of the JSON that goes beside it: see `is_of`."""
    with durable.replacing(path) as file:
        file.write(page(title, found, live, path.parent).encode())
    return path


def is_of(path: Path, figures: bytes) -> bool:
    """Whether the page at `path` shows an evaluation whose JSON file holds `figures`."""
    return path.exists() and _digest(figures) in path.read_text(errors="replace")


def _digest(figures: bytes) -> str:
    return hashlib.sha256(figures).hexdigest()


def page(title: str, found: Evaluated, live: Path, checkpoint: Path) -> str:
    """checkpoint: the folder whose metrics.jsonl has what was measured between epochs."""
    degrees = degrees_of(found.trained.graph)
    parts = [pages.facts(_summary(found))]
    for relation, judged in found.lists.items():
        parts += _lists_parts(found.result["recommend"][relation], *judged)
    if found.ranked is not None:
        parts += _links_parts(found, *found.ranked)
    parts += _sampled_parts(found.result)
    parts += _labels_parts(found.result)
    measured = checkpoint / "metrics.jsonl"
    if measured.exists():
        parts += training_report.validation_plots(read_records(measured))
    parts += _drift_parts(found, live)
    parts += _neighbour_parts(found.trained, degrees)
    parts += _map_parts(found.trained, degrees)
    return pages.page(title, parts)


# --- summary --------------------------------------------------------------------------------------


def _summary(found: Evaluated) -> dict[str, str]:
    trained, result = found.trained, found.result
    graph, split = trained.graph, str(result["split"])
    counts = {name: graph.num_entities(name) for name in graph.entity_types}
    facts = {
        "model": _model_of(trained),
        "entities": _listed(f"{count:,} {name}" for name, count in counts.items()),
        "relations": f"{len(graph.relations):,}",
        "edges": f"{graph.num_edges('train'):,} train, {graph.num_edges('valid'):,} valid, "
        f"{graph.num_edges('test'):,} test",
        "judged by": f"the {split} split",
        "checkpoint": f"{str(result['checkpoint'])[:12]}, of graph {str(result['graph'])[:12]}",
        "figures": f"sha256 {_digest(durable.json_bytes(durable.without_nan(result)))}",
    }
    if skipped := _skipped(found):
        facts["left out"] = "; ".join(skipped)
    return facts


def _model_of(trained: Trained) -> str:
    config = trained.manifest.config
    if trained.output is not None:
        name = trained.output.kind
        return f"{name} of {trained.relations[0].name}, {trained.model.dim} numbers a vector"
    operators = dict.fromkeys(trained.model.operator_of)
    loss = config.get("model", {}).get("loss", "")
    said = loss if isinstance(loss, str) else loss.get("name", "")
    return (
        f"{', '.join(operators)}, compared by {trained.model.comparator.metric}, {said} loss, "
        f"{trained.model.dim} numbers a vector"
    )


def _skipped(found: Evaluated) -> list[str]:
    result, graph = found.result, found.trained.graph
    said = []
    ranked = result.get("links") or result.get("sampled_links", {})
    if "sampled_from" in result and ranked:
        said.append(
            f"{ranked['edges']:,} of {result['sampled_from']:,} edges were ranked, a seeded sample"
        )
    learnt = {relation.name for relation in found.trained.relations}
    if rest := [relation.name for relation in graph.relations if relation.name not in learnt]:
        said.append(f"relations that were not learnt: {_listed(rest)}")
    if ranked.get("other_relations"):
        said.append(f"{ranked['other_relations']:,} edges of other relations were not ranked")
    for relation, report in result.get("recommend", {}).items():
        if report["num_without_goals"]:
            said.append(
                f"{report['num_without_goals']:,} askers of {relation} had all that was held out "
                "of them before"
            )
        if report["short_lists"]:
            said.append(f"{report['short_lists']:,} lists of {relation} are shorter than asked for")
    if ranked.get("nan_edges"):
        said.append(f"{ranked['nan_edges']:,} edges have an end without a score: ranked last")
    if ranked.get("nan_candidates"):
        said.append(f"{ranked['nan_candidates']:,} edges have rivals without a score: ranked above")
    return said


def _listed(names: Any, most: int = 8) -> str:
    names = list(names)
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


# --- lists ----------------------------------------------------------------------------------------


def _lists_parts(
    report: Mapping[str, Any], asked: Asked, judged: Judged, popular: Judged
) -> Iterator[str]:
    k, relation = report["k"], report["relation"]
    yield pages.heading(f"Top-{k} lists for {relation}")
    if not len(asked):
        yield pages.note("The split has no edge of it to find.")
        return
    items = len(asked.popularity)
    yield pages.note(
        f"Of {len(asked):,} askers with something to find, among all {items:,}; what they had "
        "before is left out. Intervals are over askers."
    )
    found = {name: Interval(**one) for name, one in report["metrics"].items()}
    yield pages.dots(f"Metrics of {relation}", list(found.items()))
    rows = [
        (name, pages.spread(one), pages.number(report["popular"].get(name)))
        for name, one in found.items()
    ]
    yield pages.table(("", "model", "most popular"), rows)
    yield from _curves(relation, asked, judged, popular)
    yield pages.heading("By what is known of who asks", 3)
    yield pages.table(
        ("events before", "lists", f"recall@{k}", f"ndcg@{k}"),
        [_band(band) for band in report["by_history"]],
    )
    yield pages.heading("By what is known of what is to be found", 3)
    yield pages.table(("items", "to find", "found", "share"), _warm_and_cold(report["cold_items"]))
    yield pages.heading("What the lists do to the catalogue", 3)
    yield pages.table(("", "model"), [(n, pages.number(v)) for n, v in report["catalogue"].items()])


def _band(band: Mapping[str, Any]) -> tuple[str, ...]:
    around = Interval(band["recall"], band["recall_low"], band["recall_high"])
    name = "0 (cold)" if band["events"] == "0" else str(band["events"])
    return name, f"{band['num_lists']:,}", pages.spread(around), pages.number(band["ndcg"])


def _warm_and_cold(items: Mapping[str, int]) -> list[tuple[str, ...]]:
    groups = {
        "with training edges": (items["num_warm"], items["found_warm"]),
        "without one (cold)": (items["num_goals"], items["found"]),
    }
    return [
        (name, f"{num:,}", f"{found:,}", pages.number(found / num if num else None))
        for name, (num, found) in groups.items()
    ]


def _curves(relation: str, asked: Asked, judged: Judged, popular: Judged) -> Iterator[str]:
    """What the metrics would be with shorter lists, which are the first places of these."""
    places = np.unique(np.linspace(1, judged.k, min(judged.k, _PLACES)).astype(int)).tolist()
    for name in _CURVES:
        of = LIST_METRICS[name]
        series = {
            source: [float(of(lists.hits[:, :k], asked.num_goals).mean()) for k in places]
            for source, lists in (("model", judged), ("most popular", popular))
        }
        yield pages.line_plot(f"{name}@k of {relation}", places, series, by="k", floor=0.0)


# --- links ----------------------------------------------------------------------------------------

_LINK_COLUMNS = ("", "edges", "MRR", "Hits@10", "Hits@1", "Hits@3", "mean rank")


def _links_parts(found: Evaluated, ranks: links.LinkRanks, degrees: Ids) -> Iterator[str]:
    split, trained = found.result["split"], found.trained
    ties: links.Ties = found.result["links"]["ties"]
    yield pages.heading(f"Links: ranks of {len(ranks.rel):,} {split} edges")
    yield pages.note(
        f"Each end among all entities of its type; what completes another known edge is left out; "
        f"{ties} ties. Intervals are over edges, both ends of one averaged first."
    )
    if repeats := found.result["links"].get("repeats"):
        yield pages.note(
            f"{repeats:,} are edges of a split before, too: ranks reward that they are learnt by "
            "heart; lists leave such items out."
        )
    other: links.Ties = "pessimistic" if ties == "realistic" else "realistic"
    both = ranks.both(ties)
    rows = {
        "both ends": both,
        "lhs": both[:1],
        "rhs": both[1:],
        f"both, {other} ties": ranks.both(other),
        "both, raw: nothing left out": ranks.both(ties, raw=True),
    }
    yield pages.table(_LINK_COLUMNS, [_link_row(name, one) for name, one in rows.items()])
    yield pages.heading("By training edges of the entity to be found", 3)
    yield pages.note("A row's unit is a rank, not an edge: both ends of one may be in it.")
    bands = links.bands_of(degrees)
    shown = [_link_row(name, both[band][None]) for name, band in bands.items()]
    yield pages.table(("training edges", "ranks", *_LINK_COLUMNS[2:]), shown)
    yield from _worst_relations(trained.graph, ranks, ties)


def _link_row(name: str, ranks: Floats) -> tuple[str, ...]:
    """ranks: float64 [ends, units]."""
    means = links.summary(ranks)
    found = links.intervals(ranks)
    return (
        name,
        f"{ranks.shape[1]:,}",
        pages.spread(found["mrr"]),
        pages.spread(found["hits10"]),
        *(pages.number(means[key]) for key in ("hits1", "hits3")),
        pages.number(means["mean_rank"], 1),
    )


def _worst_relations(graph: Graph, ranks: links.LinkRanks, ties: links.Ties) -> Iterator[str]:
    both = ranks.both(ties)
    present = np.unique(ranks.rel)
    if len(present) < 2:
        return
    counts = np.bincount(ranks.rel)
    mrr = np.bincount(ranks.rel, (1 / both).mean(axis=0)) / np.maximum(counts, 1)
    said, enough = "", present[counts[present] >= _ENOUGH]
    if len(enough) >= _WORST:
        said = f", {len(present) - len(enough):,} with fewer than {_ENOUGH} left out"
        present = enough
    worst = present[np.argsort(mrr[present], kind="stable")][:_WORST]
    yield pages.heading("Worst relations")
    yield pages.note(f"By MRR, of {len(present):,} that have edges in the split{said}.")
    rows = [_link_row(graph.relations[rel].name, both[:, ranks.rel == rel]) for rel in worst]
    yield pages.table(("relation", *_LINK_COLUMNS[1:]), rows)


def _sampled_parts(result: Mapping[str, Any]) -> Iterator[str]:
    found = result.get("sampled_links", {})
    if not found.get("edges"):
        return
    drawn = f"{found['sampled_candidates']:,} drawn candidates"
    yield pages.heading(f"Links: estimates of {found['edges']:,} edges from {drawn}")
    yield pages.note(
        "Not to be compared with ranks among all. There are no intervals, as none would hold the "
        "bias that is left."
    )
    rows = [(name, pages.number(found[name])) for name in map(name_of, MEASURES)]
    yield pages.table(("", "estimate"), rows)


def _labels_parts(result: Mapping[str, Any]) -> Iterator[str]:
    found = result.get("classify")
    if found is None:
        return
    yield pages.heading(f"Labels of {found['type']}, told from vectors")
    said = [
        f"{found['num_nodes']:,} with a label, {found['num_labels']:,} labels",
        f"{found['repeats']:,} shuffles, which intervals are over",
    ]
    if found["num_unknown"]:
        said.append(f"{found['num_unknown']:,} keys with labels are not in the graph")
    if found.get("num_unscored"):
        said.append(f"{found['num_unscored']:,} left out, as their vectors are not finite")
    yield pages.note("; ".join(said) + ".")
    names = [name for name in ("micro_f1", "macro_f1", "auc") if found["shares"][0][name]]
    rows = [
        (
            f"{share['share']:.0%}",
            f"{share['num_judged']:,}",
            *(pages.spread(Interval(**share[name])) for name in names),
        )
        for share in found["shares"]
    ]
    yield pages.table(("taught by", "judged", *names), rows)


# --- what changed ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drift:
    """Since the live version."""

    version: str
    created: str
    lists: tuple[ListChange, ...]
    entities: Mapping[str, EntityChange]
    vectors: Mapping[str, VectorDrift]
    notes: tuple[str, ...] = ()


def _drift_parts(found: Evaluated, live: Path) -> Iterator[str]:
    if not (live / published.CURRENT).exists():
        return
    yield pages.heading("Since the live version")
    try:
        version = published.open_version(live)
        made_of = json.loads(bytes(version.file("metrics.json"))).get("checkpoint")
        if made_of == found.trained.digest:
            yield pages.note(f"{version.name} is live, and was made of this checkpoint.")
            return
        yield from drift_tables(drift_from(found, version))
    except DataError as error:
        yield pages.note(f"Nothing can be said of it: {error}")


def drift_from(found: Evaluated, version: PublishedVersion) -> Drift:
    """The checkpoint beside a version, on the same held-out edges."""
    trained, manifest = found.trained, version.manifest
    lists, notes = [], []
    known = {relation.name for relation in manifest.relations}
    wanted = list(found.lists) or _most_held_out(trained, str(found.result["split"]))
    for relation in wanted:
        if relation not in known:
            notes.append(f"{version.name} has no relation {relation}.")
            continue
        asked, judged = _some(found, relation)
        before = OfVersion(version, trained.graph, relation, str(found.result["split"]))
        if len(asked):
            lists.append(changes.changes_of(judge(before, asked, judged.k), judged, asked))
    entities, vectors = {}, {}
    whole = trained.before(None)
    for entity_type in (e.name for e in manifest.entity_types if e.name in trained.entity_types):
        old, new = version.keys(entity_type).column("key"), trained.graph.all_keys(entity_type)
        entities[entity_type] = changes.entity_change(old, new)
        was, now = changes.common_rows(old, new)
        vectors[entity_type] = changes.vector_drift(
            np.asarray(version.vectors(entity_type)[was]), whole.gather(entity_type, now).numpy()
        )
    gone = [e.name for e in manifest.entity_types if e.name not in trained.entity_types]
    if gone:
        notes.append(f"{version.name} has entity types that are not here: {_listed(gone)}.")
    together = tuple(changes.adjusted_together(lists))
    return Drift(version.name, manifest.created, together, entities, vectors, tuple(notes))


def _some(found: Evaluated, relation: str) -> tuple[Asked, Judged]:
    """At most _ASKERS of those whose lists were judged, or are now."""
    if relation in found.lists:
        asked, judged, _ = found.lists[relation]
        rows = changes.sample_of(len(asked), _ASKERS)
        return asked.take(rows), judged.take(rows)
    asked = Asked.of(found.trained.graph, relation, str(found.result["split"]))
    asked = asked.take(changes.sample_of(len(asked), _ASKERS))
    k = int(found.result["settings"]["k"])
    return asked, judge(OfCheckpoint(found.trained, relation), asked, k)


def _most_held_out(trained: Trained, split: str) -> list[str]:
    graph, learnt = trained.graph, {relation.name for relation in trained.relations}
    counts = graph.manifest.relation_edges[split]
    order = np.argsort(-np.array(counts), kind="stable").tolist()
    names = [graph.relations[at].name for at in order if counts[at]]
    return [name for name in names if name in learnt][:_RELATIONS]


def drift_tables(drift: Drift) -> Iterator[str]:
    yield pages.note(
        f"{drift.version}, published {drift.created}, asked exactly about the same held-out edges. "
        "Differences are new - old, with paired intervals; p by randomisation, adjusted for all "
        "metrics here (Holm)."
    )
    yield from map(pages.note, drift.notes)
    for one in drift.lists:
        yield from list_parts(one)
    yield from entity_parts(drift.entities, drift.vectors)


# --- what was learnt ------------------------------------------------------------------------------


def _neighbour_parts(trained: Trained, degrees: Mapping[str, Ids]) -> Iterator[str]:
    yield pages.heading("Nearest neighbours of the biggest hubs")
    similar = "distance, negated" if trained.model.comparator.metric == "l2" else "cosine"
    yield pages.note(f"The entities with the most edges, of all splits; scores are {similar}.")
    for name in _largest(trained):
        yield pages.heading(name, 3)
        boxes = [
            f"<div>{pages.heading(f'{hub.entity} ({hub.degree:,} edges)', 4)}"
            f"{pages.bars([(str(near), score) for near, score in hub.neighbours])}</div>"
            for hub in neighbours.hubs_of(trained, name, degrees[name], _HUBS, _NEIGHBOURS)
        ]
        yield f"<div class=columns>{''.join(boxes)}</div>"
    yield from _not_shown(trained)


def _map_parts(trained: Trained, degrees: Mapping[str, Ids]) -> Iterator[str]:
    names = _largest(trained)
    yield pages.heading("Maps of the vectors")
    yield pages.note(
        "What is alike lies together; distances between far groups mean nothing. Larger: more "
        "edges. Point at one to see what it is."
    )
    for name in names:
        room = maps.MAX_POINTS // len(names)
        found = maps.map_of(trained, name, degrees[name], room)
        yield pages.heading(name, 3)
        said = [f"{len(found.entities):,} of {trained.graph.num_entities(name):,} entities"]
        if found.coloured_by:
            said.append(f"colours: {found.coloured_by}")
        if found.left_out:
            said.append(f"{found.left_out:,} more have a vector that points nowhere")
        yield pages.note("; ".join(said) + ".")
        yield pages.scatter(f"Map of {name}", points_of(found), found.groups)


def points_of(found: maps.Map) -> list[pages.Point]:
    most = np.log1p(max(found.degrees.max(initial=1), 1))
    colours: Sequence[int | None] = [None] * len(found.entities)
    if found.colours is not None:
        colours = found.colours.tolist()
    return [
        pages.Point(
            float(x),
            float(y),
            f"{entity.key} {entity.attribute}".strip(),
            f"{entity}, {degree:,} edge{'s' * (degree != 1)}",
            float(np.log1p(degree) / most),
            colour,
        )
        for entity, degree, (x, y), colour in zip(
            found.entities, found.degrees.tolist(), found.places, colours, strict=True
        )
    ]


def _largest(trained: Trained) -> list[str]:
    """At most _TYPES entity types, in their order."""
    count = trained.graph.num_entities
    kept = sorted(trained.entity_types, key=count, reverse=True)[:_TYPES]
    return [name for name in trained.entity_types if name in kept and count(name)]


def _not_shown(trained: Trained) -> Iterator[str]:
    shown = _largest(trained)
    if rest := [name for name in trained.entity_types if name not in shown]:
        yield pages.note(f"Not shown here and below, as there are larger types: {_listed(rest)}.")
