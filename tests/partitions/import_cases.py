"""What the tests of the import share: configs, edges in files, graphs read back by their names."""

import errno
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from partitions.config import GraphConfig
from partitions.graph import Graph
from partitions.schema import SPLITS

Edge = tuple[Any, ...]  # lhs, rel, rhs, and where given weight and seconds
NAMES = ("lhs", "rel", "rhs", "weight", "timestamp")


def write_edges(path: Path, edges: Iterable[Edge]) -> None:
    path.write_text("".join("\t".join(map(str, edge)) + "\n" for edge in edges), "utf-8")


def columns(*names: str) -> dict[str, int]:
    return {name: at for at, name in enumerate(names)}


def shop(folder: Path, *, user: int = 1, item: int = 1, **settings: Any) -> GraphConfig:
    """Users buy and see items and follow users; each edge is a line of e.tsv unless said else."""
    return GraphConfig.model_validate(
        {
            "data": folder,
            "gate": False,
            "entities": {"user": {"partitions": user}, "item": {"partitions": item}},
            "relations": {
                "bought": {"lhs": "user", "rhs": "item"},
                "saw": {"lhs": "user", "rhs": "item"},
                "follows": {"lhs": "user", "rhs": "user"},
            },
            "inputs": [{"path": "e.tsv"}],
            **settings,
        }
    )


def shop_edges(num_edges: int, seed: int = 0, users: int = 60, items: int = 40) -> list[Edge]:
    """With weights, and times among which there are ties."""
    rng = np.random.default_rng(seed)
    edges = []
    for _ in range(num_edges):
        rel = ("bought", "saw", "follows")[rng.integers(3)]
        rhs = f"u{rng.integers(users)}" if rel == "follows" else f"i{rng.integers(items)}"
        weight, seconds = float(rng.integers(1, 50)) / 8, int(rng.integers(0, 200))
        edges.append((f"u{rng.integers(users)}", rel, rhs, weight, seconds))
    return edges


def edges_in_order(graph: Graph, split: str) -> list[Edge]:
    """(lhs key, rel, rhs key, weight or None, seconds or None), bucket by bucket."""
    found = []
    keys = {slot: graph.keys(slot).to_pylist() for slot in graph.slots()}
    for bucket in graph.buckets(split):
        edges = graph.edges(split, bucket)
        none = [None] * len(edges)
        weights = none if edges.weight is None else edges.weight.tolist()
        times = none if edges.time is None else edges.time.tolist()
        rows = zip(
            edges.lhs.tolist(), edges.rel.tolist(), edges.rhs.tolist(), weights, times, strict=True
        )
        for lhs, rel, rhs, weight, seconds in rows:
            r = graph.relations[rel]
            lhs_key = keys[graph.slot_of(r.lhs, bucket.lhs)][lhs]
            rhs_key = keys[graph.slot_of(r.rhs, bucket.rhs)][rhs]
            found.append((lhs_key, r.name, rhs_key, weight, seconds))
    return found


def edges_of(graph: Graph) -> Counter[Edge]:
    """Every edge as (lhs key, rel, rhs key, weight, seconds, split) -> how often."""
    return Counter((*edge, split) for split in SPLITS for edge in edges_in_order(graph, split))


def places_of(graph: Graph) -> dict[tuple[str, str], tuple[int, int]]:
    """(entity type, key) -> (partition, offset)"""
    return {
        (slot.entity_type, key): (slot.partition, offset)
        for slot in graph.slots()
        for offset, key in enumerate(graph.keys(slot).to_pylist())
    }


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> Iterator[None]:
    """A call of owner.name, which has to come, finds the disk full."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(owner, name, full)
        yield
