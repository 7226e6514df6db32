"""What features are for: items that nobody has bought yet are recommended to the right people.

Groups of users buy the items of their group. A third of each group's items are new: no training or
validation edge has them, only the test. Each item has a tag of its group among tags that say
nothing. With known edges filtered, the rivals of a test edge's item are the other groups' items and
one of its own that is in no edge at all, so whoever has learnt what the tags mean ranks it first or
second.
"""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import embedsvc
from tests.serving.toy import client_of

Run = Callable[..., subprocess.CompletedProcess[str]]

CONFIG = """
[run]
dir = "run"

[graph.entities.user]

[graph.entities.item.features]
path = "tags.tsv"
separator = " "

[graph.relations.buys]
lhs = "user"
rhs = "item"

[[graph.inputs]]
path = "train.tsv"
relation = "buys"
"""
GROUPS, USERS, ITEMS, NEW = 4, 10, 12, 3


def settings(folder: Path, *, features: bool) -> dict[str, Any]:
    tags = {"path": "tags.tsv", "separator": " ", "type": "tag"}
    return {
        "run": {"dir": str(folder / "run")},
        "graph": {
            "data": str(folder),
            "entities": {"user": {}, "item": {"features": tags} if features else {}},
            "relations": {"buys": {"lhs": "user", "rhs": "item"}},
            "inputs": [
                {"path": f"{split}.tsv", "relation": "buys", "split": split}
                for split in ("train", "test")
            ],
        },
        "model": {"dim": 8, "init_scale": 0.1},
        "train": {
            "epochs": 15,
            "batch_size": 60,
            "chunk_size": 10,
            "negatives": {"in_batch": False, "uniform": 10},
            "threads": 1,
        },
    }


def write_inputs(folder: Path) -> None:
    rng = np.random.default_rng(5)
    lines: dict[str, list[str]] = {"train": [], "test": [], "tags": []}
    for group in range(GROUPS):
        for item in range(ITEMS):
            split = "test" if item < NEW else "train"
            for user in range(USERS):
                lines[split].append(f"g{group}-u{user}\tg{group}-i{item}\n")
            noise = rng.choice(4, 1)
            words = rng.permutation([f"about{group}", *(f"noise{n}" for n in noise)])
            lines["tags"].append(f"g{group}-i{item}\t{' '.join(words)}\n")
        lines["tags"].append(f"g{group}-unborn\tabout{group}\n")  # not even a test edge
    for name, rows in lines.items():
        (folder / f"{name}.tsv").write_text("".join(rows))


def road(folder: Path, *, features: bool) -> dict[str, Any]:
    """The whole road; returns the ranks of new items among all items."""
    folder.mkdir(exist_ok=True)
    write_inputs(folder)
    tables = settings(folder, features=features)
    report = embedsvc.import_graph(tables)
    if features:
        assert report.num_entities == {"user": 40, "item": 52, "tag": 8}
        assert report.untrained_entities == {"user": 0, "item": 4 * (NEW + 1), "tag": 0}
    embedsvc.train(tables)
    way = embedsvc._road(tables, [])
    links = way.evaluate()["links"]
    way.publish()
    found: dict[str, Any] = links["by_side"]["rhs"]
    return found


def test_items_never_seen_are_found_by_their_features_and_served(tmp_path: Path) -> None:
    ranks = road(tmp_path / "features", features=True)
    assert ranks["mean_rank"] <= 2
    with client_of(tmp_path / "features/run/published") as client:
        for group in range(GROUPS):
            found = client.recommend("buys", f"g{group}-u1", k=NEW + 1)
            expected = {f"g{group}-i{item}" for item in range(NEW)} | {f"g{group}-unborn"}
            assert set(found.hits.keys) == expected  # what the user has is left out
            alike = client.find_neighbors("item", f"g{group}-unborn", k=ITEMS).hits[0]
            assert all(key.startswith(f"g{group}-") for key in alike.keys)
        near = client.find_neighbors("tag", "about1", k=3).hits[0]
        assert len(near.keys) == 3  # features are published as a type of their own


def test_without_features_nobody_could_know(tmp_path: Path) -> None:
    """The new items stay near 0, wherever that puts them among the others (4.4 and more)."""
    assert road(tmp_path / "plain", features=False)["mean_rank"] > 3


def test_the_command_line_says_how_many_have_no_features(tmp_path: Path, run: Run) -> None:
    write_inputs(tmp_path)
    (tmp_path / "tags.tsv").write_text("g0-i3\tabout0\ng9-i9\t\n")
    (tmp_path / "graph.toml").write_text(CONFIG)
    imported = run(tmp_path, "import", "graph.toml")
    assert imported.returncode == 0, imported.stderr
    assert "(40 user, 37 item, 1 item-feature)" in imported.stdout
    assert "import: 36 item entities have no features: their vector is 0" in imported.stdout
    planned = run(tmp_path, "plan", "graph.toml")
    assert "item: 37 entities, made of item-feature" in planned.stdout, planned.stderr
    shown = run(tmp_path, "inspect", "graph.toml")
    assert "item-feature: 1 entities" in shown.stdout, shown.stderr
