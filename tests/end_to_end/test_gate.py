"""A worse model does not go live: through the console command, forced, taken back, and killed."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from partitions import published, releases

Run = Callable[..., subprocess.CompletedProcess[str]]

GROUPS, USERS, ITEMS, BOUGHT = 4, 250, 12, 7

CONFIG = """
[run]
dir = "run"

[graph.entities.user]

[graph.entities.item]

[graph.relations.buys]
lhs = "user"
rhs = "item"

[[graph.inputs]]
path = "buys.tsv"
relation = "buys"

[graph.holdout]
test = 0.2

[model]
dim = 16
init_scale = 0.1

[train]
epochs = 5
threads = 1
batch_size = 200
chunk_size = 50

[eval]
recommend = ["buys"]
links = false

[gate]
conditions = ["recall@5: new - old > -0.2 +- 0.15 at 0.9", "changed@5 < 1.1"]
max_uses = 4
"""
WORSE = ("train.lr=1e-9", "train.epochs=1")


def write(folder: Path) -> None:
    """Each user buys 7 of the 12 items of their own group."""
    rng = np.random.default_rng(1)
    rows = [
        f"u{group}-{user}\ti{group}-{item}\n"
        for group in range(GROUPS)
        for user in range(USERS)
        for item in rng.choice(ITEMS, BOUGHT, replace=False)
    ]
    (folder / "buys.tsv").write_text("".join(rows))
    (folder / "shop.toml").write_text(CONFIG)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    """A shop with a good model live."""
    folder = tmp_path_factory.mktemp("live")
    write(folder)
    done = run(folder, "run", "shop.toml")
    assert done.returncode == 0, done.stderr
    assert "skipped, no version is live yet" in done.stdout
    return folder


@pytest.fixture
def shop(live: Path, tmp_path: Path) -> Path:
    shutil.copytree(live, tmp_path / "shop")
    return tmp_path / "shop"


def current(folder: Path) -> str:
    return published.current(folder / "run/published")


@pytest.mark.slow
def test_a_worse_model_is_kept_back_forced_and_taken_back(shop: Path, run: Run) -> None:
    again = run(shop, "run", "shop.toml")
    assert again.returncode == 0 and "is up to date" in again.stdout

    shutil.rmtree(shop / "run/checkpoint")
    worse = run(shop, "run", "shop.toml", *WORSE)
    assert worse.returncode == 1 and "embedsvc: " not in worse.stderr
    assert "publish: v000002 in run/published is written, and not live" in worse.stdout
    assert "gate: buys/recall@5: new - old > -0.2 +- 0.15 at 0.9: fail, of " in worse.stdout
    assert "gate: use 1 of 4 of this test set" in worse.stdout
    assert "gate: v000001 stays live. Train another" in worse.stdout
    assert current(shop) == "v000001"

    waits = run(shop, "run", "shop.toml", *WORSE)
    assert waits.returncode == 1 and "v000002 is waiting at the gate" in waits.stdout
    assert published.versions(shop / "run/published") == ["v000001", "v000002"]

    decided = run(shop, "gate", "shop.toml", *WORSE)
    assert decided.returncode == 1 and "gate: use 2 of 4" in decided.stdout
    forced = run(shop, "gate", "shop.toml", "--force")
    assert forced.returncode == 0 and current(shop) == "v000002"
    assert "gate: v000002 in run/published is live" in forced.stdout
    assert run(shop, "gate", "shop.toml").stdout.startswith("gate: v000002 in run/published is liv")

    back = run(shop, "rollback", "shop.toml")
    assert back.returncode == 0 and current(shop) == "v000001"
    assert back.stdout == "rollback: v000001 in run/published is live, in place of v000002\n"
    stays = run(shop, "run", "shop.toml", *WORSE)
    assert stays.returncode == 1 and "v000002 was gone back from" in stays.stdout
    assert current(shop) == "v000001"
    nothing = run(shop, "rollback", "shop.toml")
    assert nothing.returncode == 2 and "v000001 is the first that was live" in nothing.stderr
    named = run(shop, "rollback", "shop.toml", "--to", "v000002")
    assert named.returncode == 0 and current(shop) == "v000002"

    text = (shop / "run/published/gate.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["kind"], line["to"], line["moved"]) for line in lines] == [
        ("decision", "v000001", True),
        ("decision", "v000002", False),
        ("decision", "v000002", False),
        ("forced", "v000002", True),
        ("rollback", "v000001", True),
        ("rollback", "v000002", True),
    ]


KILLED_AT = """
import os, signal, sys
from partitions import published, releases
modules = {"record": releases, "set_current": published}
setattr(modules[sys.argv[1]], sys.argv[1], lambda *_: os.kill(os.getpid(), signal.SIGKILL))
sys.argv = ["embedsvc", "publish", "shop.toml"]
from partitions.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("at", ["record", "set_current"])
def test_the_next_run_makes_good_what_kill_9_kept_from_going_live(
    at: str, shop: Path, run: Run
) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_AT, at], cwd=shop, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    root = shop / "run/published"
    assert published.versions(root) == ["v000001", "v000002"] and current(shop) == "v000001"
    [uses] = json.loads((shop / "run" / releases.USES).read_text())["test_sets"]
    assert uses["uses"] == 1
    # What is live is the same model: the one that was killed is not needed any more.
    assert run(shop, "run", "shop.toml").returncode == 0 and current(shop) == "v000001"
    shutil.rmtree(root / "v000001")
    done = run(shop, "run", "shop.toml")
    assert done.returncode == 0, done.stderr
    assert current(shop) == "v000002"
    assert "v000002 in run/published passed the gate before, and is live now" in done.stdout


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        (
            'gate.conditions=["recal@5: new > 0 +- 0.1 at 0.9"]',
            'shop.toml: [gate.conditions] The condition "recal@5: new > 0 +- 0.1 at 0.9", '
            "character 1: recal is not a metric. Did you mean recall?",
        ),
        (
            'gate.conditions=["bys/recall@5: new > 0 +- 0.1 at 0.9"]',
            "shop.toml: [gate] conditions names the relation bys, which the graph does not have. "
            "Did you mean buys?",
        ),
        ("gate.condition=[]", "[gate] condition is not a setting. Did you mean conditions?"),
    ],
)
def test_what_the_gate_can_not_read_is_said_before_any_work(
    setting: str, sentence: str, tmp_path: Path, run: Run
) -> None:
    write(tmp_path)
    done = run(tmp_path, "run", "shop.toml", setting)
    assert done.returncode == 2 and sentence in done.stderr
    assert not (tmp_path / "run/graph").exists()
