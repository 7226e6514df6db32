"""A cut in time keeps the future out of training: what shuffled times show.

Items come into fashion and go out of it. Who asks after the cut wants items that training has
hardly seen. The same events with their times shuffled have the same users, items and degrees, but
every fashion of the test was trained: whoever reports that much reports a leak.
"""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from embedsvc.road import Road
from partitions.graph import Graph

USERS, ITEMS, EVENTS = 200, 300, 12_000
CONFIG = """
[run]
dir = "{folder}"
[graph]
data = "{folder}"
gate = false
[graph.entities.user]
[graph.entities.item]
[graph.relations.bought]
lhs = "user"
rhs = "item"
[[graph.inputs]]
path = "{events}.tsv"
relation = "bought"
columns = {{ lhs = 0, rhs = 1, timestamp = 2 }}
[graph.holdout]
test = 0.2
[model]
dim = 16
[train]
epochs = 5
threads = 1
[eval]
links = false
recommend = ["bought"]
"""


def events(rng: np.random.Generator) -> NDArray[np.int64]:
    """int64 [EVENTS, 3]: user, item, second. An item is wanted around its own moment, by users of
    its own half."""
    second = np.sort(rng.integers(0, 1_000_000, EVENTS))
    moment = rng.permutation(ITEMS) * (1_000_000 / ITEMS)
    user = rng.integers(0, USERS, EVENTS)
    wanted = np.exp(-(((second[:, None] - moment) / 60_000) ** 2)) + 1e-4
    wanted *= np.where(user[:, None] % 2 == np.arange(ITEMS) % 2, 1.0, 0.1)
    shares = np.cumsum(wanted, axis=1)
    item = (shares < rng.random((EVENTS, 1)) * shares[:, -1:]).sum(axis=1)
    return np.stack([user, item, second], axis=1)


def recall(folder: Path, found: NDArray[np.int64], by: str) -> float:
    folder.mkdir()
    np.savetxt(folder / "events.tsv", found, fmt="%d", delimiter="\t")
    config = folder / "shop.toml"
    config.write_text(CONFIG.format(folder=folder, events="events"))
    road = Road.open(config, [f"graph.holdout.by={by}"])
    road.console.quiet = True
    report = road.import_graph()
    assert report is not None and (report.cuts is not None) == (by == "time")
    assert 0.15 * EVENTS < report.num_edges["test"] < 0.25 * EVENTS
    road.train()
    times = {
        split: np.concatenate([Graph(folder / "graph").edges(split, b).time for b in buckets])
        for split in ("train", "test")
        if (buckets := Graph(folder / "graph").buckets(split))
    }
    assert (times["train"].max() < times["test"].min()) == (by == "time")
    return float(road.evaluate()["recommend"]["bought"]["recall"])


@pytest.mark.slow
def test_the_future_helps_only_where_it_leaks(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    as_they_came = events(rng)
    shuffled = as_they_came.copy()
    shuffled[:, 2] = rng.permutation(shuffled[:, 2])
    honest = recall(tmp_path / "honest", as_they_came, "time")
    leaking = recall(tmp_path / "leaking", shuffled, "time")
    at_random = recall(tmp_path / "random", as_they_came, "edge")
    assert leaking > 2 * honest
    assert at_random > 2 * honest, "which is what a draw by edges reports of the same events"
