"""Checkpoint -> published version: shards, indexes, seen lists, golden queries.

A version goes live only after the written files, read back as a server reads them, give the golden
queries' exact answers.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from embedsvc.config import PublishConfig
from embedsvc.trained import Trained
from partitions import published
from partitions.errors import DataError
from partitions.graph import slots_of
from partitions.published import (
    Draft,
    Index,
    Manifest,
    Metric,
    PublishedEntities,
    PublishedRelation,
    PublishedVersion,
)

_GOLDEN_K = 10
_TOLERANCE = 1e-4  # relative, between a float32 index and the float64 truth


def publish(
    trained: Trained,
    root: Path,
    config: PublishConfig,
    settings: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> Manifest:
    """Write the next version under `root`, check it, make it the live one.

    Raises DataError where the check fails; the live version then stays as it was.
    """
    recommend = _recommended(trained, config)
    with published.new_version(root) as draft:
        entity_types = [
            _write_entities(trained, draft, name) for name in trained.graph.entity_types
        ]
        relations = _write_relations(trained, draft, recommend)
        draft.write_json("config.json", settings)
        draft.write_json("metrics.json", metrics)
        draft.write_json("golden.json", _golden_queries(trained, recommend, config.golden))
        manifest = draft.finish(
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            dim=trained.model.dim,
            comparator=trained.model.comparator.metric,
            graph_digest=trained.graph.digest,
            entity_types=entity_types,
            relations=relations,
        )
        _check_golden(PublishedVersion(manifest, published.disk(draft.folder)), trained)
    published.set_current(root, manifest.version)
    published.remove_versions(root, config.keep)
    return manifest


def _recommended(trained: Trained, config: PublishConfig) -> list[str]:
    if config.recommend is None:
        return [relation.name for relation in trained.graph.relations]
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
    for at, relation in enumerate(trained.graph.relations):
        operator = model.operator_of[at]
        table = model.parameters.values[operator]
        if table.shape[1]:
            params[relation.name] = table[at].numpy()
        seen = None
        if relation.name in recommend:
            starts, rhs = _seen(trained, at, trained.graph.num_entities(relation.lhs))
            seen = draft.write_seen(at, starts, rhs)
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


def _seen(trained: Trained, rel: int, num_lhs: int) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Who saw what in train and valid, by lhs id, each rhs once."""
    lhs, rhs = [], []
    for split in ("train", "valid"):
        for bucket in trained.graph.buckets(split):
            edges = trained.bucket_edges(split, bucket)
            rows = np.flatnonzero(edges.rel == rel)
            lhs.append(edges.lhs[rows])
            rhs.append(edges.rhs[rows])
    pairs = np.unique(np.stack([np.concatenate(lhs), np.concatenate(rhs)], axis=1), axis=0)
    starts = np.zeros(num_lhs + 1, np.int64)
    np.cumsum(np.bincount(pairs[:, 0], minlength=num_lhs), out=starts[1:])
    return starts, pairs[:, 1].astype(np.uint32)


@torch.no_grad()
def _golden_queries(
    trained: Trained, recommend: list[str], num_queries: int
) -> list[dict[str, Any]]:
    """Exact answers, seen items not left out, of entities spread evenly over each lhs type."""
    golden = []
    graph, compare = trained.graph, trained.model.comparator
    for name in recommend:
        rel = graph.relation_id(name)
        relation = graph.relations[rel]
        count = graph.num_entities(relation.lhs)
        ids = np.unique(np.linspace(0, count - 1, min(num_queries, count)).astype(np.int64))
        if not num_queries:
            continue
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
    for name in dict.fromkeys(query["relation"] for query in version.golden()):
        relation = version.manifest.relation(name)
        queries = [query for query in version.golden() if query["relation"] == name]
        keys = version.keys(relation.lhs).column("key")
        ids = [pa.compute.index(keys, query["lhs"]).as_py() for query in queries]
        x = torch.from_numpy(np.array(version.vectors(relation.lhs)[ids]))
        params = version.operator_params(name)
        table = torch.zeros(0) if params is None else torch.from_numpy(np.array(params))
        moved = trained.model.operators[relation.operator](x, table).numpy()
        described = version.manifest.entities(relation.rhs).indexes["score"]
        index = faiss.deserialize_index(
            np.frombuffer(version.index(relation.rhs, "score"), np.uint8)
        )
        k = len(queries[0]["scores"])
        found, _ = index.search(_unit(moved) if described.normalised else moved, k)
        served = -np.sqrt(np.maximum(found, 0)) if described.metric == "l2" else found
        served = served * described.scale
        truth = np.array([query["scores"] for query in queries])
        reach = np.abs(truth).max(initial=1e-6)
        if not np.allclose(served, truth, rtol=0, atol=_TOLERANCE * reach):
            gap = np.abs(served - truth).max()
            raise DataError(
                f"The golden queries of relation {name} are answered off by {gap:.3g} from the "
                "written version: it is not published. Report this with the config."
            )
