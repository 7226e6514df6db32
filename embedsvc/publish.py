"""Checkpoint -> published version: shards, indexes, seen lists, golden queries.

A version goes live only after the written files, read back as a server reads them, give the golden
queries' exact answers, and the gate lets it.
"""

import logging
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from embedsvc import card
from embedsvc.config import PublishConfig
from embedsvc.evaluation.gate import Decision
from embedsvc.graph.comparators import L2, Comparator
from embedsvc.ranking.tower_onnx import FEATURES, HISTORY, QUERY, export_tower
from embedsvc.release import Judge, conclude, ungated
from embedsvc.trained import Trained
from embedsvc.training.askers import Askers
from partitions import published
from partitions.errors import DataError
from partitions.graph import slots_of
from partitions.published import (
    TOWER,
    TOWER_FEATURES,
    Draft,
    Index,
    Manifest,
    Metric,
    PublishedEntities,
    PublishedRelation,
    PublishedVersion,
)
from partitions.schema import SPLITS

logger = logging.getLogger(__name__)

_GOLDEN_K = 10
_TOLERANCE = 1e-4  # relative, between a float32 index and the float64 truth


def publish(
    trained: Trained,
    root: Path,
    config: PublishConfig,
    settings: Mapping[str, Any],
    metrics: Mapping[str, Any],
    judge: Judge | None = None,
) -> tuple[Manifest, Decision]:
    """Write the next version under `root`, check it, make it the live one if `judge` lets it.

    Raises DataError where the check fails: there is no version then. The live one stays as it was.
    """
    recommend = _recommended(trained, config)
    with published.new_version(root) as draft:
        entity_types = [_write_entities(trained, draft, name) for name in trained.entity_types]
        relations = _write_relations(trained, draft, recommend)
        if trained.askers is not None:
            _write_tower(trained.askers, draft)
        draft.write_json("config.json", settings)
        draft.write_json("metrics.json", metrics)
        draft.write_json("golden.json", _golden_queries(trained, recommend, config.golden))
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        manifest = draft.finish(
            created=created,
            dim=trained.model.dim,
            comparator=trained.model.comparator.metric,
            graph_digest=trained.graph.digest,
            entity_types=entity_types,
            relations=relations,
        )
        version = PublishedVersion(manifest, published.disk(draft.folder))
        _check_golden(version, trained)
        decision = ungated(root) if judge is None else judge(version, draft.folder)
        data = card.data_of(trained.graph)
        manifest = draft.add(
            manifest, card.files(draft.name, created, data, settings, metrics, decision)
        )
    conclude(root, manifest.version, decision, config.keep)
    return manifest, decision


def _recommended(trained: Trained, config: PublishConfig) -> list[str]:
    if config.recommend is None:
        return [relation.name for relation in trained.relations]
    for name in config.recommend:
        trained.graph.relation_id(name)
    return config.recommend


def _write_entities(trained: Trained, draft: Draft, name: str) -> PublishedEntities:
    graph, metric = trained.graph, trained.model.comparator.metric
    attributes = graph.attributes(name)
    shards, vectors = [], []
    for slot in slots_of(graph.entity_types[name]):
        rows = trained.vectors(slot)
        table = pa.table({"key": graph.keys(slot)})
        if attributes is not None:
            part = attributes.slice(int(graph.starts[name][slot.partition]), len(rows))
            for column in part.schema.names:
                table = table.append_column(column, part.column(column))
        shards.append(draft.write_shard(name, slot.partition, table, rows))
        vectors.append(rows)
    rows = vectors[0] if len(vectors) == 1 else np.concatenate(vectors)
    # Alike means pointing the same way, whatever the length, unless training measured distance.
    similar: Metric = "l2" if metric == "l2" else "cos"
    indexes = {"similar": _write_index(draft, name, "similar", rows, similar)}
    scale = getattr(trained.model.comparator, "scale", 1.0)
    indexes["score"] = (
        indexes["similar"].model_copy(update={"scale": scale})
        if metric == similar
        else _write_index(draft, name, "score", rows, metric)
    )
    return PublishedEntities(
        name=name,
        shards=shards,
        indexes=indexes,
        attributes=attributes.schema.names if attributes is not None else [],
    )


def _write_index(
    draft: Draft, entity_type: str, name: str, vectors: NDArray[np.float32], metric: Metric
) -> Index:
    dim = vectors.shape[1]
    index = faiss.IndexFlatL2(dim) if metric == "l2" else faiss.IndexFlatIP(dim)
    index.add(_unit(vectors) if metric == "cos" else vectors)
    path = draft.write_bytes(
        f"entities/{entity_type}/{name}.faiss", faiss.serialize_index(index).tobytes()
    )
    return Index(file=path, metric=metric, normalised=metric == "cos", kind="exact")


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)


def _write_relations(
    trained: Trained, draft: Draft, recommend: list[str]
) -> list[PublishedRelation]:
    model, relations = trained.model, []
    params: dict[str, NDArray[np.float32]] = {}
    seen_of = _seen(trained, [trained.graph.relation_id(name) for name in recommend])
    for relation in trained.relations:
        at = trained.graph.relation_id(relation.name)
        operator = model.operator_of[at]
        table = model.parameters.values[operator]
        if table.shape[1]:
            params[relation.name] = table[at].numpy()
        seen = None
        if relation.name in recommend:
            seen = draft.write_seen(at, *seen_of[at])
        relations.append(
            PublishedRelation(
                name=relation.name,
                lhs=relation.lhs,
                rhs=relation.rhs,
                operator=operator,
                has_params=bool(table.shape[1]),
                seen=seen,
            )
        )
    if params:
        draft.write_tensors("relations.safetensors", params)
    return relations


def _write_tower(askers: Askers, draft: Draft) -> None:
    """Without its rows, which are more than a file holds, there is no file; which is said."""
    learnt = askers.rows.of(np.arange(askers.graph.num_entities(askers.rows.name)))
    try:
        made = export_tower(askers.tower, *learnt, askers.newest).SerializeToString()
    except DataError as error:
        logger.warning("%s It is left out of the version; all else is there.", error)
        return
    _check_tower(askers, made)
    draft.write_bytes(TOWER, made)
    if askers.features is not None:
        draft.write_json(TOWER_FEATURES, askers.features.numbered)


def _check_tower(askers: Askers, made: bytes) -> None:
    """Its answers for some who ask are their published vectors."""
    count = askers.graph.num_entities(askers.relation.lhs)
    who = np.unique(np.linspace(0, count - 1, min(64, count)).astype(np.int64))
    session = onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"])
    asked = {HISTORY: askers.histories_of(who)}
    if askers.features is not None:
        asked[FEATURES] = askers.features_of(who)
    [found] = session.run([QUERY], asked)
    wanted = askers.vectors(who)
    gap = float(np.abs(found - wanted).max(initial=0.0))
    if not gap <= _TOLERANCE * np.abs(wanted).max(initial=1e-6):
        raise DataError(
            f"{TOWER} is off by {gap:.3g} from the tower that was trained: the version is not "
            "published. Report this with the config."
        )


def _served(compare: Comparator) -> Comparator:
    """Whose scores a server gives: an index by distance is ranked alike by l2 and its square."""
    return L2() if compare.metric == "l2" else compare


def _seen(
    trained: Trained, relations: list[int]
) -> dict[int, tuple[NDArray[np.int64], NDArray[np.uint32]]]:
    """Relation -> who saw what in train and valid, by lhs id, each rhs once; one pass over all.
    In test, too, where vectors are of all events: who asks with what he just had wants another."""
    rel, lhs, rhs = [], [], []
    for split in ("train", "valid") if trained.output is None else SPLITS:
        for bucket in trained.graph.buckets(split):
            edges = trained.bucket_edges(split, bucket)
            edges = edges.take(np.flatnonzero(np.isin(edges.rel, relations)))
            rel.append(edges.rel)
            lhs.append(edges.lhs)
            rhs.append(edges.rhs)
    columns = [np.concatenate(parts) for parts in (rel, lhs, rhs)]
    columns = [column[np.lexsort(columns[::-1])] for column in columns]
    new = np.ones(len(columns[0]), np.bool_)
    new[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    all_rel, all_lhs, all_rhs = (column[new] for column in columns)
    seen = {}
    for at in relations:
        begin, end = np.searchsorted(all_rel, [at, at + 1])
        num_lhs = trained.graph.num_entities(trained.graph.relations[at].lhs)
        starts = np.zeros(num_lhs + 1, np.int64)
        np.cumsum(np.bincount(all_lhs[begin:end], minlength=num_lhs), out=starts[1:])
        seen[at] = (starts, all_rhs[begin:end].astype(np.uint32))
    return seen


@torch.no_grad()
def _golden_queries(
    trained: Trained, recommend: list[str], num_queries: int
) -> list[dict[str, Any]]:
    """Exact answers, seen items not left out: num_queries in all, spread evenly over relations and
    over the entities of each one's lhs type."""
    golden: list[dict[str, Any]] = []
    if not recommend or not num_queries:
        return golden
    graph, compare = trained.graph, _served(trained.model.comparator)
    asked = np.unique(
        np.linspace(0, len(recommend) - 1, min(num_queries, len(recommend)), dtype=int)
    )
    each = max(1, num_queries // len(asked))
    for name in (recommend[at] for at in asked):
        rel = graph.relation_id(name)
        relation = graph.relations[rel]
        count = graph.num_entities(relation.lhs)
        ids = np.unique(np.linspace(0, count - 1, min(each, count)).astype(np.int64))
        lhs = trained.gather(relation.lhs, ids).double()
        query = trained.model.move(lhs, torch.full((len(ids),), rel, dtype=torch.int64))
        slots = slots_of(graph.entity_types[relation.rhs])
        scores = torch.cat(
            [
                compare.blocks(query, torch.from_numpy(trained.vectors(slot)).double())
                for slot in slots
            ],
            dim=1,
        )
        best, rows = scores.topk(min(_GOLDEN_K, scores.shape[1]))
        lhs_keys, rhs_keys = graph.all_keys(relation.lhs), graph.all_keys(relation.rhs)
        for at, lhs_id in enumerate(ids.tolist()):
            golden.append(
                {
                    "relation": name,
                    "lhs": lhs_keys[lhs_id].as_py(),
                    "rhs": [rhs_keys[row].as_py() for row in rows[at].tolist()],
                    "scores": best[at].tolist(),
                }
            )
    return golden


@torch.no_grad()
def _check_golden(version: PublishedVersion, trained: Trained) -> None:
    """Ask the written version what golden.json asks, by the files a server would read."""
    vectors = cache(lambda name: np.array(version.vectors(name)))
    keys = cache(lambda name: version.keys(name).column("key"))
    index_of = cache(lambda name: faiss.deserialize_index(version.index(name, "score")))
    golden: dict[str, list[dict[str, Any]]] = {}
    for query in version.golden():
        golden.setdefault(query["relation"], []).append(query)
    for name, queries in golden.items():
        relation = version.manifest.relation(name)
        truth = np.array([query["scores"] for query in queries])
        params = version.operator_params(name)
        table = torch.zeros(0) if params is None else torch.from_numpy(np.array(params))
        lhs = _rows_of(keys(relation.lhs), [query["lhs"] for query in queries])
        x = torch.from_numpy(vectors(relation.lhs)[lhs])
        moved = trained.model.operators[relation.operator](x, table)
        described = version.manifest.entities(relation.rhs).indexes["score"]
        asked = _unit(moved.numpy()) if described.normalised else moved.numpy()
        # One at a time: some versions of FAISS compute batches of 20 and more less exactly.
        answers = [index_of(relation.rhs).search(row[None], truth.shape[1]) for row in asked]
        found, rows = (np.concatenate(part) for part in zip(*answers, strict=True))
        served = -np.sqrt(np.maximum(found, 0)) if described.metric == "l2" else found
        # Right numbers for wrong keys are wrong answers: what the index and what golden.json name
        # must have these scores by its vector, too.
        named = _rows_of(keys(relation.rhs), [key for query in queries for key in query["rhs"]])
        scored = [
            _served(trained.model.comparator)
            .pairs(moved.double()[:, None], torch.from_numpy(vectors(relation.rhs)[at]).double())
            .numpy()
            for at in (rows, named.reshape(truth.shape))
        ]
        gap = max(np.abs(x - truth).max() for x in (served * described.scale, *scored))
        if not gap <= _TOLERANCE * np.abs(truth).max(initial=1e-6):
            raise DataError(
                f"The golden queries of relation {name} are answered off by {gap:.3g} from the "
                "written version: it is not published. Report this with the config."
            )


def _rows_of(keys: pa.ChunkedArray, wanted: list[str]) -> NDArray[np.int64]:
    return pc.index_in(pa.array(wanted, keys.type), keys).to_numpy().astype(np.int64)
