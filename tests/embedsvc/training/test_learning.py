"""A graph whose right answer is known by construction: every kind of model finds it.

Two communities of left and right nodes. Each left node is linked to every right node of its own
community but one, and that one is the test edge. With known edges filtered, a test edge's rivals
are the nodes of the other community and no one else, so whoever has learnt the communities ranks it
first; by chance its rank is even over 1 .. 13, and the MRR is (1 + 1/2 + ... + 1/13) / 13 = 0.24.
"""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from embedsvc.config import ModelConfig, TrainConfig
from embedsvc.evaluation.links import rank_links
from embedsvc.graph.comparators import COMPARATORS
from embedsvc.graph.losses import LOSSES
from embedsvc.graph.operators import OPERATORS
from embedsvc.graph.optimizers import OPTIMIZERS
from embedsvc.trained import Trained
from embedsvc.training.trainer import train
from partitions.graph import Graph

SIZE = 12  # left, and right, nodes of a community

# A cosine lies in [-1, 1]: a softmax needs it spread out. A hinge of 0.1 is soon met by scores of
# this size; 1 keeps it at work until the communities lie apart.
COMPARATOR_SPECS = {"cos": {"name": "cos", "scale": 10.0}}
LOSS_SPECS = {
    "ranking": {"name": "ranking", "margin": 1.0},
    "self_adversarial": {"name": "self_adversarial", "gamma": 1.0},
}
# Uniform negatives only: half of the others in a chunk are true neighbours in so dense a graph.
CONFIG = TrainConfig(
    epochs=20,
    lr=0.2,
    batch_size=50,
    chunk_size=10,
    negatives={"in_batch": False, "uniform": 10},
    buffer=8,
    commit_every_s=1e9,
    threads=1,
)


@pytest.fixture(scope="module")
def one(make_graph: Callable[..., Graph]) -> Graph:
    return two_communities(make_graph, 1)


@pytest.fixture(scope="module")
def four(make_graph: Callable[..., Graph]) -> Graph:
    return two_communities(make_graph, 4)


def two_communities(make_graph: Callable[..., Graph], partitions: int) -> Graph:
    edges: dict[str, list[tuple[str, str, str]]] = {"train": [], "test": []}
    for community, i, j in product("AB", range(SIZE), range(SIZE)):
        split = "test" if i == j else "train"
        edges[split].append((f"{community}{i}", "near", f"{community}{j}"))
    parts = {"left": partitions, "right": partitions}
    return make_graph(edges, {"near": ("left", "right")}, parts)


def mrr(
    graph: Graph,
    folder: Path,
    kind: tuple[str, str, str],
    config: TrainConfig = CONFIG,
    **settings: Any,
) -> float:
    operator, comparator, loss = kind
    model = ModelConfig(
        dim=8,
        operator=operator,
        comparator=COMPARATOR_SPECS.get(comparator, comparator),
        loss=LOSS_SPECS.get(loss, loss),
        init_scale=0.1,
        **settings,
    )
    train(graph, folder, model, config)
    trained = Trained(graph, folder)
    return rank_links(trained, trained.edges("test")).summary()["mrr"]


PLAINEST = ("identity", "dot", "softmax")
FIRST = (  # learnt in every run of the tests, in every combination
    ("identity", "diagonal", "translation", "complex_diagonal"),
    ("dot", "cos", "l2"),
    ("softmax", "logistic", "ranking"),
)


def kinds() -> list[Any]:
    """All; slow are those that are neither of the first nor one step from the plainest."""
    marked = []
    for kind in product(list(OPERATORS), list(COMPARATORS), list(LOSSES)):
        others = sum(part != plain for part, plain in zip(kind, PLAINEST, strict=True))
        fast = others <= 1 or all(part in first for part, first in zip(kind, FIRST, strict=True))
        marks = [] if fast else [pytest.mark.slow]
        marked.append(pytest.param(kind, id="-".join(kind), marks=marks))
    return marked


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_of_model_learns_two_communities(
    kind: tuple[str, str, str], one: Graph, tmp_path: Path
) -> None:
    """0.95: of 48 ranks (24 edges, both sides) at most four may be second instead of first."""
    assert mrr(one, tmp_path / "checkpoint", kind) >= 0.95


@pytest.mark.parametrize("operator", [name for name in OPERATORS if name != "identity"])
def test_a_reciprocal_model_learns_two_communities(
    operator: str, one: Graph, tmp_path: Path
) -> None:
    kind = (operator, "dot", "softmax")
    assert mrr(one, tmp_path / "checkpoint", kind, reciprocal=True) >= 0.95


@pytest.mark.parametrize(
    "kind",
    [
        ("identity", "dot", "softmax"),
        ("diagonal", "cos", "logistic"),
        ("translation", "l2", "ranking"),
        ("complex_diagonal", "dot", "softmax"),
    ],
    ids="-".join,
)
def test_four_partitions_learn_what_one_does(
    kind: tuple[str, str, str], one: Graph, four: Graph, tmp_path: Path
) -> None:
    """Within 0.05: negatives come from the partitions in memory, 3 entities to 24, and so are
    drawn less evenly. A partition that went wrong would cost its share: a quarter of 0.76."""
    found = mrr(four, tmp_path / "four", kind)
    assert found == pytest.approx(mrr(one, tmp_path / "one", kind), abs=0.05)


@pytest.mark.parametrize(
    "order",
    [
        *("best", "beta", "affinity", "outside_in"),
        *({"name": name, "assign": "first"} for name in ("best", "beta")),
    ],
    ids=str,
)
def test_swapping_in_any_order_learns_what_memory_does(
    order: Any, one: Graph, four: Graph, tmp_path: Path
) -> None:
    """Three of eight tables in memory. Within 0.05, as above."""
    kind = ("identity", "dot", "softmax")
    config = CONFIG.model_copy(update={"buffer": 3, "order": order})
    found = mrr(four, tmp_path / "four", kind, config)
    assert found == pytest.approx(mrr(one, tmp_path / "one", kind), abs=0.05)


# Step sizes that suit each: AdaGrad's shrink, Adam's move every number by so much, SGD's are plain.
LRS = {"adam": 0.02, "sgd": 0.05}


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "rowwise_adagrad"])
def test_every_optimizer_learns_two_communities_and_with_swaps(
    name: str, one: Graph, four: Graph, tmp_path: Path
) -> None:
    """Within 0.05, as above; what an optimizer keeps of a table leaves and comes with it."""
    config = CONFIG.model_copy(update={"optimizer": name, "lr": LRS.get(name, 0.2)})
    assert mrr(one, tmp_path / "one", PLAINEST, config) >= 0.95
    swapping = config.model_copy(update={"buffer": 3})
    assert mrr(four, tmp_path / "four", PLAINEST, swapping) >= 0.90


@pytest.mark.parametrize("step", ["fast", "exact"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_the_bytes_learn_what_float32_does(
    precision: str, step: str, one: Graph, four: Graph, tmp_path: Path
) -> None:
    """Within 0.05, as above."""
    step = "auto" if precision == "float16" else step
    config = CONFIG.model_copy(update={"precision": precision, "step": step})
    assert mrr(one, tmp_path / "one", PLAINEST, config) >= 0.95
    swapping = config.model_copy(update={"buffer": 3})
    assert mrr(four, tmp_path / "four", PLAINEST, swapping) >= 0.90


def test_an_untrained_model_is_as_good_as_chance(
    one: Graph, make_trained: Any, vector_from: Any
) -> None:
    """What the bounds above are to be compared with; 5 sigma of 48 independent ranks."""
    trained = make_trained(one, ModelConfig(dim=8), lambda t, key: vector_from(1, 8, t, key))
    found = rank_links(trained, trained.edges("test")).summary()["mrr"]
    assert found == pytest.approx(0.245, abs=5 * 0.25 / 48**0.5)
