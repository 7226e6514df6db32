"""A small published version whose right answers are known, and servers that answer from it."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import SecretStr

from partitions import published
from partitions.published import (
    Draft,
    Index,
    Manifest,
    Metric,
    PublishedEntities,
    PublishedRelation,
)
from serving.client import Client
from serving.config import ServeConfig
from serving.server import serving

DIM = 8
NUM_USERS, NUM_ITEMS = 30, 50
OPERATORS = (
    "identity", "diagonal", "translation", "complex_diagonal", "linear", "affine", "rotate",
)  # fmt: skip


@dataclass(frozen=True)
class Toy:
    """What was published: users, items in two shards, and a relation named after each operator."""

    root: Path
    name: str
    metric: Metric
    users: list[str]
    items: list[str]
    vectors: dict[str, NDArray[np.float32]]
    params: dict[str, NDArray[np.float32]]
    seen: list[NDArray[np.uint32]]  # by user: items of every relation

    def scores(self, query: NDArray[np.float32], entity_type: str, metric: str) -> NDArray[Any]:
        """float64 [entities]: the truth."""
        x, rows = query.astype(np.float64), self.vectors[entity_type].astype(np.float64)
        if metric == "l2":
            return -np.sqrt(((rows - x) ** 2).sum(axis=1))
        dots = rows @ x
        if metric == "cos":
            dots /= np.linalg.norm(rows, axis=1) * np.linalg.norm(x)
        return dots

    def moved(self, relation: str, user: int) -> NDArray[np.float32]:
        """The operator, by numpy's complex numbers where it has them."""
        x = self.vectors["user"][user]
        match relation:
            case "diagonal":
                return x * self.params[relation]
            case "translation":
                return x + self.params[relation]
            case "complex_diagonal":
                parts = [p[: DIM // 2] + 1j * p[DIM // 2 :] for p in (x, self.params[relation])]
                product = parts[0] * parts[1]
                return np.concatenate([product.real, product.imag])
            case "linear" | "affine":
                matrix, shift = np.split(self.params[relation], [DIM * DIM])
                return matrix.reshape(DIM, DIM) @ x + (shift if len(shift) else 0)
            case "rotate":
                turned = (x[: DIM // 2] + 1j * x[DIM // 2 :]) * np.exp(1j * self.params[relation])
                return np.concatenate([turned.real, turned.imag])
            case _:
                return x


def best(scores: NDArray[Any], k: int, without: Any = ()) -> list[int]:
    """Ids by falling score."""
    barred = set(map(int, without))
    return [id for id in np.argsort(-scores).tolist() if id not in barred][:k]


def publish(
    root: Path,
    metric: Metric = "dot",
    prefix: str = "",
    seed: int = 0,
    num_items: int = NUM_ITEMS,
    live: bool = True,
) -> Toy:
    """A new version under `root`, its keys beginning with `prefix`."""
    rng = np.random.default_rng(seed)
    counts = {"user": NUM_USERS, "item": num_items}
    keys = {name: [f"{prefix}{name}{at:02}" for at in range(n)] for name, n in counts.items()}
    vectors = {
        name: rng.standard_normal((count, DIM), np.float32) for name, count in counts.items()
    }
    sizes = {"linear": DIM * DIM, "affine": DIM * DIM + DIM, "rotate": DIM // 2}
    params = {name: rng.standard_normal(sizes.get(name, DIM), np.float32) for name in OPERATORS[1:]}
    seen = [
        np.unique(rng.integers(0, num_items, at % 7)).astype(np.uint32) for at in range(NUM_USERS)
    ]
    starts = np.cumsum([0, *map(len, seen)], dtype=np.int64)
    with published.new_version(root) as draft:
        types = [_entities(draft, name, metric, keys[name], vectors[name]) for name in counts]
        ends = dict.fromkeys(OPERATORS, ("user", "item")) | {"follows": ("user", "user")}
        relations = [
            PublishedRelation(
                name=name,
                lhs=lhs,
                rhs=rhs,
                operator=name if name in OPERATORS else "identity",
                has_params=name in params,
                seen=draft.write_seen(at, starts, np.concatenate(seen)) if rhs == "item" else None,
            )
            for at, (name, (lhs, rhs)) in enumerate(ends.items())
        ]
        draft.write_tensors("relations.safetensors", params)
        manifest: Manifest = draft.finish(
            created="2026-01-01T00:00:00Z",
            dim=DIM,
            comparator=metric,
            graph_digest="0" * 64,
            entity_types=types,
            relations=relations,
        )
    if live:
        published.set_current(root, manifest.version)
    return Toy(root, manifest.version, metric, keys["user"], keys["item"], vectors, params, seen)


def _entities(
    draft: Draft, name: str, metric: Metric, keys: list[str], vectors: NDArray[np.float32]
) -> PublishedEntities:
    shards = []
    for shard, rows in enumerate(np.array_split(np.arange(len(keys)), 2 if name == "item" else 1)):
        table = pa.table({"key": [keys[row] for row in rows]})
        if name == "item":
            titles = [f"Title of {keys[row]}" if row % 3 else None for row in rows]
            table = table.append_column("title", pa.array(titles, pa.string()))
        shards.append(draft.write_shard(name, shard, table, vectors[rows]))
    similar: Metric = "l2" if metric == "l2" else "cos"
    indexes = {}
    for use, by in (("similar", similar), ("score", metric)):
        index = faiss.IndexFlatL2(DIM) if by == "l2" else faiss.IndexFlatIP(DIM)
        rows = vectors
        if by == "cos":
            rows = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        index.add(rows)
        path = f"entities/{name}/{use}.faiss"
        draft.write_bytes(path, faiss.serialize_index(index).tobytes())
        indexes[use] = Index(file=path, metric=by, normalised=by == "cos", kind="exact")
    return PublishedEntities(
        name=name,
        shards=shards,
        indexes=indexes,
        attributes=["title"] if name == "item" else [],
    )


@contextlib.contextmanager
def client_of(root: Path, redis: str | None = None, poll_s: float = 0.02) -> Iterator[Client]:
    """A client of a real server on a free port, in this process."""
    secret = SecretStr(redis) if redis else None
    with (
        serving(root, ServeConfig(port=0, redis=secret, poll_s=poll_s)) as (address, _),
        Client(address) as client,
    ):
        yield client


def wait_until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError(f"did not happen within {seconds} s")
