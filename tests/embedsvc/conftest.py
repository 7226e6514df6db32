"""What the tests of this floor share: small graphs, checkpoints made by hand, and plain loops.

The plain loops are written from the docstrings, on Python floats, one number at a time. They know
nothing of the code they are compared with.
"""

import cmath
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from embedsvc.config import ModelConfig, TrainConfig
from embedsvc.graph.model import GraphModel
from embedsvc.trained import Trained
from partitions import importer
from partitions.checkpoint import Checkpoint, CheckpointManifest
from partitions.config import GraphConfig
from partitions.graph import Graph
from partitions.schedule import Progress
from partitions.tables import Table

Vector = Sequence[float]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """These graphs are too small for more, and threads that wait disturb whoever is beside."""
    torch.set_num_threads(1)


# --- plain loops ---------------------------------------------------------------------------------


def _dot(a: Vector, b: Vector) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def _cos(a: Vector, b: Vector) -> float:
    lengths = math.sqrt(_dot(a, a)) * math.sqrt(_dot(b, b))
    return _dot(a, b) / lengths if lengths else 0.0


def _l2(a: Vector, b: Vector) -> float:
    return -math.sqrt(math.fsum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def _complex(x: Vector, p: Vector) -> list[float]:
    half = len(x) // 2
    products = [complex(x[d], x[half + d]) * complex(p[d], p[half + d]) for d in range(half)]
    return [z.real for z in products] + [z.imag for z in products]


def _squared_l2(a: Vector, b: Vector) -> float:
    return -math.fsum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def _stretched(p: Vector, size: int) -> list[float]:
    """`size` numbers from those of p, gone through again and again, each time from one later: as a
    matrix, a vector gives a circulant one. Cut where p has more."""
    return [p[(at + at // len(p)) % len(p)] for at in range(size)]


def _linear(x: Vector, p: Vector) -> list[float]:
    dim = len(x)
    p = _stretched(p, dim * dim)
    return [math.fsum(p[dim * i + j] * x[j] for j in range(dim)) for i in range(dim)]


def _affine(x: Vector, p: Vector) -> list[float]:
    dim = len(x)
    p = _stretched(p, dim * dim + dim)
    return [y + s for y, s in zip(_linear(x, p[: dim * dim]), p[dim * dim :], strict=True)]


def _rotate(x: Vector, p: Vector) -> list[float]:
    half = len(x) // 2
    turned = [complex(x[d], x[half + d]) * cmath.exp(1j * p[d]) for d in range(half)]
    return [z.real for z in turned] + [z.imag for z in turned]


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _softmax_loss(pos: float, neg: Vector) -> float:
    top = max(pos, *neg, pos)
    return top + math.log(math.fsum(math.exp(s - top) for s in [pos, *neg])) - pos


def _logistic_loss(pos: float, neg: Vector) -> float:
    return _softplus(-pos) + math.fsum(map(_softplus, neg)) / max(len(neg), 1)


def _ranking_loss(pos: float, neg: Vector, margin: float = 0.1) -> float:
    return math.fsum(max(0.0, margin - pos + s) for s in neg)


def _self_adversarial_loss(
    pos: float, neg: Vector, gamma: float = 12.0, alpha: float = 1.0
) -> float:
    top = max(neg, default=0.0)
    parts = [math.exp(alpha * (s - top)) for s in neg]
    cost = math.fsum(w * _softplus(gamma + s) for w, s in zip(parts, neg, strict=True))
    return _softplus(-gamma - pos) + (cost / math.fsum(parts) if neg else 0.0)


def _l2_penalty(x: Vector, weight: float = 0.01) -> float:
    return weight * math.fsum(v * v for v in x)


def _n3(x: Vector, weight: float = 0.01) -> float:
    half = len(x) // 2
    if len(x) % 2:
        return weight * math.fsum(abs(v) ** 3 for v in x)
    return weight * math.fsum(math.hypot(x[d], x[half + d]) ** 3 for d in range(half))


@pytest.fixture(scope="session")
def plain() -> SimpleNamespace:
    """Name -> loop, for each registry. A new class needs a loop here: that is its contract."""
    return SimpleNamespace(
        losses={
            "softmax": _softmax_loss,
            "sampled_softmax": _softmax_loss,  # of scores that are corrected already
            "logistic": _logistic_loss,
            "ranking": _ranking_loss,
            "self_adversarial": _self_adversarial_loss,
        },
        operators={
            "identity": lambda x, p: list(x),
            "diagonal": lambda x, p: [a * b for a, b in zip(x, p, strict=True)],
            "translation": lambda x, p: [a + b for a, b in zip(x, p, strict=True)],
            "complex_diagonal": _complex,
            "linear": _linear,
            "affine": _affine,
            "rotate": _rotate,
        },
        comparators={"dot": _dot, "cos": _cos, "l2": _l2, "squared_l2": _squared_l2},
        regularizers={"l2": _l2_penalty, "n3": _n3},
    )


# --- graphs --------------------------------------------------------------------------------------

EdgeRow = tuple[Any, ...]  # (lhs, rel, rhs) or (lhs, rel, rhs, weight)


@pytest.fixture(scope="session")
def make_graph(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Graph]:
    def make(
        edges: Mapping[str, Sequence[EdgeRow]],
        relations: Mapping[str, tuple[str, str]],
        partitions: Mapping[str, int] | None = None,
        name: str = "graph",
    ) -> Graph:
        """Import edges (split -> rows); relations: name -> the types of its ends."""
        folder = tmp_path_factory.mktemp(name)
        raw = folder / "raw"
        raw.mkdir()
        columns: dict[str, Any] = {"lhs": 0, "rel": 1, "rhs": 2}
        if any(len(row) == 4 for rows in edges.values() for row in rows):
            columns["weight"] = 3
        for split, rows in edges.items():
            text = "".join("\t".join(map(str, row)) + "\n" for row in rows)
            (raw / f"{split}.tsv").write_text(text)
        types = dict.fromkeys(t for ends in relations.values() for t in ends)
        config = GraphConfig.model_validate(
            {
                "data": raw,
                "gate": False,
                "entities": {t: {"partitions": (partitions or {}).get(t, 1)} for t in types},
                "relations": {n: {"lhs": a, "rhs": b} for n, (a, b) in relations.items()},
                "inputs": [{"path": f"{s}.tsv", "split": s, "columns": columns} for s in edges],
            }
        )
        importer.import_graph(config, folder / name)
        return Graph(folder / name)

    return make


@pytest.fixture
def make_trained(tmp_path: Path) -> Callable[..., Trained]:
    def make(
        graph: Graph,
        model: ModelConfig,
        vector_of: Callable[[str, str], Vector],
        parameters_of: Callable[[str, str], Vector] | None = None,
        name: str = "checkpoint",
    ) -> Trained:
        """A checkpoint written by hand: vector_of(type, key), parameters_of(table, relation);
        parameters are stretched or cut where an operator has more or fewer."""
        checkpoint = Checkpoint(tmp_path / name)
        entries = {}
        for slot in graph.slots():
            keys = graph.keys(slot).to_pylist()
            vectors = np.array([vector_of(slot.entity_type, key) for key in keys], np.float32)
            table = Table(vectors.reshape(-1, model.dim), np.ones(len(keys), np.float32))
            entries[slot] = checkpoint.write_table(slot, 1, table)
        parameters = GraphModel.build(model, graph).parameters
        for table_name, values in parameters.values.items():
            for rel, relation in enumerate(graph.relations):
                if parameters_of is not None and values.shape[1]:
                    row = parameters_of(table_name, relation.name)
                    values.numpy()[rel] = np.array(_stretched(row, values.shape[1]), np.float32)
        checkpoint.commit(
            CheckpointManifest(
                graph.digest,
                {
                    "model": model.model_dump(mode="json"),
                    "train": TrainConfig().model_dump(mode="json"),
                },
                Progress(1, (), 2),
                entries,
                checkpoint.write_parameters(1, parameters.arrays()),
            )
        )
        return Trained(graph, tmp_path / name)

    return make


def _vector_from(seed: int, dim: int, *names: str) -> NDArray[np.float32]:
    text = "/".join(names).encode()
    return np.random.default_rng([seed, *text]).standard_normal(dim).astype(np.float32)


@pytest.fixture(scope="session")
def vector_from() -> Callable[..., NDArray[np.float32]]:
    """(seed, dim, *names) -> a vector that depends on nothing else, not on the partition."""
    return _vector_from


# --- checkpoints ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def content_of() -> Callable[..., dict[Any, bytes]]:
    def content(graph: Graph, folder: Path) -> dict[Any, bytes]:
        """Every bit that training made: vectors and state of each table, parameters, progress."""
        trained = Trained(graph, folder)
        checkpoint = Checkpoint(folder)
        found: dict[Any, bytes] = {}
        for slot in graph.slots():
            entry = trained.manifest.tables.get(slot)
            if entry is not None:
                table = checkpoint.read_table(entry, trained._fresh(slot), graph.num_rows(slot))
                found[slot, "state"] = table.state.tobytes()
                found[slot, "shared"] = table.shared.tobytes()
            found[slot, "vectors"] = trained.vectors(slot).tobytes()
        for name, array in trained.model.parameters.arrays().items():
            found["parameters", name] = array.tobytes()
        progress = trained.manifest.progress
        found["progress"] = repr((progress.epoch, progress.done)).encode()
        return found

    return content
