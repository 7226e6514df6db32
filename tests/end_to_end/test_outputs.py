"""[output] on the whole road: who clicked through a stretch of a ring of items clicks the next one.

Items are all as popular as each other, so that popularity knows nothing.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedsvc.trained import Trained
from partitions import published
from partitions.graph import Graph
from tests.serving.toy import client_of

Run = Callable[..., subprocess.CompletedProcess[str]]

ITEMS, USERS, LENGTH = 100, 150, 8
CONFIG = """
[run]
dir = "run"

[graph]
data = "."
gate = false

[graph.entities.user]
partitions = 2

[graph.entities.item]
partitions = 2

[graph.relations.clicks]
lhs = "user"
rhs = "item"

[graph.relations.follows]
lhs = "user"
rhs = "user"

[[graph.inputs]]
path = "clicks*.tsv"
relation = "clicks"
columns = { lhs = 0, rhs = 1, timestamp = 2 }

[[graph.inputs]]
path = "follows.tsv"
relation = "follows"
columns = { lhs = 0, rhs = 1, timestamp = 2 }

[graph.holdout] # the last click of each user is for the test
last = true
relations = ["clicks"]

[output]
kind = "lsh_softmax"
relation = "clicks"
examples = { name = "next_item", max_history = 4 }
tower = { name = "recency", decay = 0.5 }
dim = 16
batch_size = 16
head = 10
samples = 30

[train]
epochs = 8
threads = 1
"""


def write_inputs(folder: Path) -> None:
    rng = np.random.default_rng(3)
    clicks = []
    for user, first in enumerate(rng.integers(0, ITEMS, USERS).tolist()):
        clicks += [
            (1000 * at + user, f"u{user}\ti{(first + at) % ITEMS}\t{1000 * at + user}\n")
            for at in range(LENGTH + 2)
        ]
    (folder / "clicks.tsv").write_text("".join(line for _, line in sorted(clicks)))
    (folder / "follows.tsv").write_text("".join(f"u{u}\tu{u + 1}\t{u}\n" for u in range(30)))
    (folder / "shop.toml").write_text(CONFIG)


@pytest.fixture(scope="module")
def road(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Gone once; and what was said."""
    folder = tmp_path_factory.mktemp("outputs")
    write_inputs(folder)
    gone = run(folder, "run", "shop.toml")
    assert gone.returncode == 0, gone.stderr
    assert "memory plan: " in gone.stderr
    return folder, gone.stdout


def test_the_next_item_is_found_and_popularity_is_beaten(road: tuple[Path, str]) -> None:
    folder, said = road
    assert re.search(rf"train: {8 * USERS * (LENGTH - 1):,} examples in ", said)
    assert "eval: clicks only; [output] learnt nothing of follows" in said
    found = json.loads((folder / "run/checkpoint/evaluation.json").read_text())
    lists = found["recommend"]["clicks"]
    assert lists["num_lists"] == USERS and lists["k"] == 20
    assert lists["recall"] > 0.9 > 0.4 > lists["popular_recall"]
    [band] = lists["by_history"]  # all clicked as often
    assert band["events"] == "5-9" and band["recall"] == lists["recall"]
    assert re.search(rf"recall, 5-9 events known .* of {USERS} ", said)
    assert found["links"]["edges"] == USERS  # the test edges of clicks, and no others
    metrics = (folder / "run/checkpoint/metrics.jsonl").read_text().splitlines()
    assert len(metrics) == 8
    assert "Loss, mean per edge" in (folder / "run/checkpoint/report.html").read_text()


def test_running_it_again_does_nothing_twice(road: tuple[Path, str], run: Run) -> None:
    again = run(road[0], "run", "shop.toml")
    assert again.returncode == 0, again.stderr
    for line in ("import: .*up to date", "train: nothing left to do", "eval: .*up to date",
                 "publish: .*up to date"):  # fmt: skip
        assert re.search(line, again.stdout), again.stdout


def test_answers_over_grpc_are_the_scores_of_the_checkpoint(road: tuple[Path, str]) -> None:
    folder, _ = road
    trained = Trained(Graph(folder / "run/graph"), folder / "run/checkpoint")
    vectors = {
        name: trained.gather(name, np.arange(trained.graph.num_entities(name))).double().numpy()
        for name in ("user", "item")
    }
    users, items = (trained.graph.all_keys(name).to_pylist() for name in ("user", "item"))
    right = 0
    with client_of(folder / "run/published") as client:
        for row, user in enumerate(users):
            hits = client.recommend("clicks", user, k=5, exclude_seen=False).hits
            truth = dict(zip(items, vectors["item"] @ vectors["user"][row], strict=True))
            np.testing.assert_allclose(hits.scores, [truth[key] for key in hits.keys], rtol=1e-4)
            best = sorted(truth.values(), reverse=True)[:5]
            np.testing.assert_allclose(hits.scores, best, rtol=1e-4)
            seen = [int(item[1:]) for item in _clicks(folder, user)]  # the held-out one, too
            fresh = client.recommend("clicks", user, k=3).hits.keys
            right += f"i{(seen[-1] + 1) % ITEMS}" in fresh
            assert f"i{seen[-1]}" not in fresh
        near = client.find_neighbors("item", "i7", k=5).hits[0].keys
        assert len(near) == 5
    assert right > 0.8 * USERS


def _clicks(folder: Path, user: str) -> list[str]:
    lines = (line.split("\t") for line in (folder / "clicks.tsv").read_text().splitlines())
    return [item for who, item, _ in lines if who == user]


def test_only_what_was_learnt_is_published(road: tuple[Path, str]) -> None:
    version = published.open_version(road[0] / "run/published")
    assert [part.name for part in version.manifest.entity_types] == ["user", "item"]
    assert [part.name for part in version.manifest.relations] == ["clicks"]
    assert version.manifest.dim == 16 + 1
    assert len(version.golden()) == 64


def test_what_is_imported_after_training_is_in_the_next_version(
    road: tuple[Path, str], run: Run, tmp_path: Path
) -> None:
    """Without training: u0's latest clicks, and those of somebody new."""
    folder = tmp_path / "grown"
    shutil.copytree(road[0], folder)
    clicks = [f"{user}\ti{at}\t{90_000 + at}\n" for user in ("u0", "new") for at in (6, 7, 8)]
    (folder / "clicks-2.tsv").write_text("".join(clicks))
    grown = run(folder, "import", "shop.toml", "--append")
    assert grown.returncode == 0, grown.stderr
    again = run(folder, "run", "shop.toml")
    assert again.returncode == 0, again.stderr
    assert "train: nothing left to do" in again.stdout
    assert "publish: v000002" in again.stdout
    with client_of(folder / "run/published") as client:
        for user in ("u0", "new"):
            assert "i9" in client.recommend("clicks", user, k=3).hits.keys
    assert "publish: v" not in run(folder, "run", "shop.toml").stdout


MISTAKES = {
    "no such relation": (["output.relation=click"], r"\[output\] names the relation click,"),
    "another relation to judge": (
        ['eval.recommend=["follows"]'],
        r"\[eval\] recommend names the relation follows, of which \[output\] learns nothing",
    ),
    "a setting of the model": (["model.dim=7"], r"\[model\] dim does not apply with \[output\]"),
    "a setting of training": (["train.lr=0.3"], r"\[train\] lr does not apply .*set output\.lr"),
    "a misspelt setting": (["output.hed=3"], r"\[output\] hed is not a setting\. .* head\?"),
    "another setting than before": (["output.lr=0.3"], r"begun with output\.lr = 0\.1, now it is"),
    "too little memory": (["train.memory_mb=5"], r"plans for .* and 5 MB are free"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_sentence(name: str, road: tuple[Path, str], run: Run) -> None:
    overrides, message = MISTAKES[name]
    refused = run(road[0], "train", "shop.toml", "train.epochs=9", *overrides)
    assert refused.returncode == 2
    *log, last = refused.stderr.splitlines()
    assert re.match(rf"embedsvc: .*{message}", last), refused.stderr
    assert all(re.match(r"\d{4}-\d\d-\d\d ", line) for line in log), refused.stderr
