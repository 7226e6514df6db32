"""[output]: what comes next is learnt, into an ordinary checkpoint, in the same bits however a run
was carried out or broken off."""

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embedsvc.config import ModelConfig, OutputConfig, TrainConfig
from embedsvc.evaluation.recommend import evaluate_lists
from embedsvc.export import export
from embedsvc.trained import Trained
from embedsvc.training import output_plan, outputs, trainer
from embedsvc.training.events import relation_of
from embedsvc.training.output_plan import plan_output
from embedsvc.training.trainer import METRICS
from partitions import importer
from partitions.checkpoint import MANIFEST, Checkpoint
from partitions.config import GraphConfig
from partitions.errors import ConfigError, DataError
from partitions.graph import Graph, slots_of
from partitions.schema import Slot

MakeGraph = Callable[..., Graph]

NUM_ITEMS, NUM_USERS, LENGTH = 60, 50, 9
LSH: dict[str, Any] = {
    "kind": "lsh_softmax",
    "relation": "clicks",
    "examples": {"name": "next_item", "max_history": 3},
    "dim": 8,
    "batch_size": 2,  # so that an epoch has two pieces
    "head": 8,
    "retrieved": 2,
    "samples": 8,
    "retriever": {"name": "partition", "check_every": 2},
    "lr": 0.5,
}
CONFIG = TrainConfig(epochs=3, threads=1, commit_every_s=0)


def an_output(**changes: object) -> OutputConfig:
    settings = LSH | changes
    if settings["kind"] == "full_softmax":
        of_lsh = ("retriever", "head", "retrieved", "samples")
        settings = {key: value for key, value in settings.items() if key not in of_lsh}
    return OutputConfig.model_validate(settings)


def but(config: TrainConfig, **changes: object) -> TrainConfig:
    return TrainConfig.model_validate(config.model_dump() | changes)


@pytest.fixture(scope="module")
def graph(make_graph: MakeGraph) -> Graph:
    """Each user clicks through a stretch of a ring of items; another relation is not learnt."""
    rng = np.random.default_rng(1)
    train, valid, test = [], [], []
    for user, first in enumerate(rng.integers(0, NUM_ITEMS, NUM_USERS).tolist()):
        stretch = [f"i{(first + at) % NUM_ITEMS}" for at in range(LENGTH + 2)]
        clicks = [(f"u{user}", "clicks", item) for item in stretch]
        train += clicks[:-2]
        valid.append(clicks[-2])  # what comes next
        test.append(clicks[-1])
    train += [(f"i{at}", "tagged", f"t{at % 3}") for at in range(NUM_ITEMS)]
    relations = {"clicks": ("user", "item"), "tagged": ("item", "tag")}
    return make_graph({"train": train, "test": test, "valid": valid}, relations, {"user": 2})


def contents(graph: Graph, folder: Path) -> dict[Any, bytes]:
    """Every bit that training made."""
    checkpoint = Checkpoint(folder)
    manifest = checkpoint.read_manifest()
    found: dict[Any, bytes] = {
        name: array.tobytes()
        for name, array in checkpoint.read_parameters(manifest.parameters).items()
    }
    for slot, entry in manifest.tables.items():
        found[slot] = entry.sha256.encode()
    found["progress"] = repr((manifest.progress.epoch, manifest.progress.done)).encode()
    return found


def clicks_of(trained: Trained, user: int, *splits: str) -> NDArray[np.int64]:
    """Ids of items, in order."""
    found = []
    for split in splits:
        edges = trained.edges(split)
        clicks = edges.rel == trained.graph.relation_id("clicks")
        found.append(edges.rhs[(edges.lhs == user) & clicks])
    return np.concatenate(found)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


# --- the outcome ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"retriever": "simhash"},
        {"retriever": "none", "sampler": "log_uniform", "correction": "none"},
        {"kind": "full_softmax", "optimizer": "sgd"},
        {"tower": {"name": "attention"}, "hidden": 4, "optimizer": "adam_lite", "lr": 0.05},
        {"tower": "gru", "tower_lr": 0.2},
    ],
    ids=str,
)
def test_what_follows_is_learnt(changes: dict[str, Any], graph: Graph, tmp_path: Path) -> None:
    """The next item of a ring of 60: lists of 5 that knew nothing would hold .08 of them."""
    config = but(CONFIG, epochs=8)
    report = outputs.train(graph, tmp_path, an_output(**changes), config)
    assert report.num_edges == 8 * NUM_USERS * (LENGTH - 1)
    losses = [record["loss"] for record in records(tmp_path)]
    assert losses[-1] < losses[0] / 2
    lists = evaluate_lists(Trained(graph, tmp_path), "clicks", "test", 5)
    assert lists.recall > 0.8 > 0.3 > lists.popular_recall


def test_tables_give_the_scores_of_the_layer(graph: Graph, tmp_path: Path) -> None:
    """<[x, 1], [w, b]>, x being made of the last three items: from the stored rows, by hand."""
    output = an_output()
    outputs.train(graph, tmp_path, output, CONFIG)
    trained = Trained(graph, tmp_path)
    stored = Checkpoint(tmp_path).read_manifest().tables
    checkpoint = Checkpoint(tmp_path)
    [slot] = slots_of(graph.entity_types["item"])
    rows = checkpoint.read_table(
        stored[slot._replace(entity_type="item.input")],
        lambda offsets: np.zeros((len(offsets), 8), np.float32),
        NUM_ITEMS,
    ).vectors
    parameters = checkpoint.read_parameters(trained.manifest.parameters)
    items, users = (graph.all_keys(name).to_pylist() for name in ("item", "user"))
    for user in range(NUM_USERS):
        clicked = clicks_of(trained, user, "train")
        # Which three came last: the file is in the order of time, and so is a user's bucket.
        x = rows[clicked[-3:]].mean(axis=0) + parameters["tower.bias"]
        found = trained.before("valid").gather("user", np.array([user])).numpy()[0]
        np.testing.assert_allclose(found, [*x, 1], rtol=1e-5, atol=1e-6)
    assert len(items) == NUM_ITEMS and len(users) == NUM_USERS
    assert trained.vectors(slot).shape == (NUM_ITEMS, 9)
    assert trained.entity_types == ["user", "item"]
    assert [relation.name for relation in trained.relations] == ["clicks"]


def test_what_was_not_learnt_is_not_exported(graph: Graph, tmp_path: Path) -> None:
    outputs.train(graph, tmp_path / "c", an_output(), but(CONFIG, epochs=1))
    trained = Trained(graph, tmp_path / "c")
    files = export(trained, tmp_path / "vectors")
    assert sorted(path.name for path in files) == ["item.parquet", "user.parquet"]
    with pytest.raises(ConfigError, match="learnt no vectors of tag, only of user, item"):
        export(trained, tmp_path / "tag.parquet", entity_type="tag")


@pytest.mark.parametrize("sequences", ["histories", {"name": "walks", "length": 8}])
def test_skip_grams_bring_together_what_is_near_and_users_are_means(
    sequences: Any, graph: Graph, tmp_path: Path
) -> None:
    changes = {"sequences": sequences, "examples": {"name": "skip_gram", "window": 2}}
    outputs.train(graph, tmp_path, an_output(**changes), but(CONFIG, epochs=4))
    trained = Trained(graph, tmp_path)
    assert evaluate_lists(trained, "clicks", "test", 5).recall > 0.3
    checkpoint = Checkpoint(tmp_path)
    [slot] = slots_of(graph.entity_types["item"])
    entry = trained.manifest.tables[slot._replace(entity_type="item.input")]
    found = checkpoint.stored_rows(entry, NUM_ITEMS, 8)
    assert len(found.rows) == NUM_ITEMS
    bias = checkpoint.read_parameters(trained.manifest.parameters)["tower.bias"]
    clicked = clicks_of(trained, 7, "train", "valid", "test")
    mean = found.vectors[clicked].mean(axis=0) + bias  # of all of them
    np.testing.assert_allclose(
        trained.gather("user", np.array([7])).numpy()[0, :-1], mean, rtol=1e-5, atol=1e-6
    )


def test_a_relation_within_one_type_has_class_rows_only(
    make_graph: MakeGraph, tmp_path: Path
) -> None:
    edges = [(f"i{at}", "next", f"i{(at + 1) % 40}") for at in range(40)]
    ring = make_graph({"train": edges}, {"next": ("item", "item")})
    walks = {"name": "walks", "length": 6, "per_entity": 4}
    output = an_output(relation=None, sequences=walks, examples="skip_gram")
    outputs.train(ring, tmp_path, output, CONFIG)
    trained = Trained(ring, tmp_path)
    assert sorted({slot.entity_type for slot in trained.manifest.tables}) == ["item", "item.input"]
    rows = trained.vectors(slots_of(ring.entity_types["item"])[0])[:, :8]
    keys = ring.all_keys("item").to_pylist()
    at = {key: row for row, key in enumerate(keys)}
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    near = np.mean([unit[at[f"i{i}"]] @ unit[at[f"i{(i + 1) % 40}"]] for i in range(40)])
    far = np.mean([unit[at[f"i{i}"]] @ unit[at[f"i{(i + 20) % 40}"]] for i in range(40)])
    assert near > 0.5 > 0.2 > far


# --- the same bits -------------------------------------------------------------------------------

KINDS = [
    {},
    {"retriever": "simhash"},
    {"kind": "full_softmax", "optimizer": "sgd", "tower": "attention", "hidden": 4},
    {"tower": "gru", "tower_lr": 0.05},
]


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_a_run_broken_off_after_each_epoch_has_the_same_bits(
    changes: dict[str, Any], graph: Graph, tmp_path: Path
) -> None:
    output = an_output(**changes)
    whole = outputs.train(graph, tmp_path / "whole", output, CONFIG)
    for epochs in (1, 2, 3):
        last = outputs.train(graph, tmp_path / "parts", output, but(CONFIG, epochs=epochs))
    assert last.resumed and not whole.resumed and last.loss == whole.loss
    assert contents(graph, tmp_path / "parts") == contents(graph, tmp_path / "whole")


def test_mapped_rows_and_rare_commits_change_no_bit(graph: Graph, tmp_path: Path) -> None:
    outputs.train(graph, tmp_path / "a", an_output(mapped=False), CONFIG)
    outputs.train(graph, tmp_path / "b", an_output(mapped=True), but(CONFIG, commit_every_s=99))
    a, b = (contents(graph, tmp_path / name) for name in "ab")
    assert a == b
    left = [path.name for path in (tmp_path / "b").iterdir() if ".tmp-" in path.name]
    assert not left
    again = outputs.train(graph, tmp_path / "b", an_output(mapped=False), CONFIG)
    assert again.num_edges == 0  # free to differ, and nothing was left to do


def test_another_seed_gives_other_rows(graph: Graph, tmp_path: Path) -> None:
    outputs.train(graph, tmp_path / "a", an_output(), but(CONFIG, epochs=1))
    outputs.train(graph, tmp_path / "b", an_output(), but(CONFIG, epochs=1, seed=2))
    a, b = (contents(graph, tmp_path / name) for name in "ab")
    assert all(a[slot] != b[slot] for slot in a if isinstance(slot, Slot))


@pytest.mark.parametrize("mapped", [False, True])
def test_ten_kills_at_random_moments_change_no_bit(
    mapped: bool, graph: Graph, tmp_path: Path, start_output: Any
) -> None:
    output = an_output(mapped=mapped)
    for name in ("warm", "whole"):  # the first one waits for the server of forks
        begin = time.monotonic()
        unbroken = start_output(graph, tmp_path / name, output, CONFIG)
        unbroken.join()
        run_s = time.monotonic() - begin
        assert unbroken.exitcode == 0
    wanted = contents(graph, tmp_path / "whole")
    pieces = len(records(tmp_path / "whole"))
    assert pieces == 3 * 2
    rng = np.random.default_rng(5)
    num_killed = num_finished = 0
    while num_killed < 10 or not num_finished:
        folder = tmp_path / f"broken-{num_finished}"
        process = start_output(graph, folder, output, CONFIG)
        process.join(timeout=rng.uniform(0, 0.4) * run_s if num_killed < 10 else None)
        process.kill()
        process.join()
        assert process.exitcode in (0, -9)
        if process.exitcode:
            num_killed += 1
            continue
        num_finished += 1
        assert contents(graph, folder) == wanted
        assert len({(r["epoch"], *r["bucket"]) for r in records(folder)}) == pieces
        assert not [path for path in folder.rglob("*") if ".tmp-" in path.name]


def test_an_index_of_many_cells_goes_on_as_it_would_have(
    make_graph: MakeGraph, tmp_path: Path
) -> None:
    """More cells than are near one, and pieces enough between two rebuilds for many moves."""
    rng = np.random.default_rng(2)
    edges = [
        (f"u{user}", "clicks", f"i{(first + at) % 3000}")
        for user, first in enumerate(rng.integers(0, 3000, 1500).tolist())
        for at in range(8)
    ]
    large = make_graph({"train": edges}, {"clicks": ("user", "item")})
    output = an_output(retriever={"name": "partition", "check_every": 1}, batch_size=21)
    outputs.train(large, tmp_path / "whole", output, CONFIG)
    assert len(records(tmp_path / "whole")) == 3 * 5
    for epochs in (1, 2, 3):
        outputs.train(large, tmp_path / "parts", output, but(CONFIG, epochs=epochs))
    assert contents(large, tmp_path / "parts") == contents(large, tmp_path / "whole")


# --- stopping early, growing ---------------------------------------------------------------------


def test_the_best_epoch_by_recall_is_kept(graph: Graph, tmp_path: Path) -> None:
    config = but(CONFIG, epochs=40, early_stopping={"patience": 2})
    report = outputs.train(graph, tmp_path, an_output(), config)
    judged = {r["epoch"]: r["recall20"] for r in records(tmp_path) if "recall20" in r}
    assert report.stopped_early and len(judged) < 40
    assert judged[report.best_epoch] == max(judged.values())
    best = evaluate_lists(Trained(graph, tmp_path), "clicks", "valid", 20)
    assert best.recall == judged[report.best_epoch]


def test_a_graph_that_grew_goes_on_with_its_new_classes(
    make_graph: MakeGraph, tmp_path: Path
) -> None:
    def config_of(*paths: str) -> GraphConfig:
        inputs = [{"path": path, "relation": "clicks", "split": "train"} for path in paths]
        return GraphConfig.model_validate(
            {
                "data": tmp_path,
                "gate": False,
                "entities": {"user": {}, "item": {"partitions": 2}},
                "relations": {"clicks": {"lhs": "user", "rhs": "item"}},
                "inputs": inputs,
            }
        )

    for name, items in (("a.tsv", range(30)), ("b.tsv", range(30, 45))):
        lines = [f"u{u}\ti{i}\n" for u in range(20) for i in items if (u + i) % 4]
        (tmp_path / name).write_text("".join(lines))
    importer.import_graph(config_of("a.tsv"), tmp_path / "graph")
    outputs.train(Graph(tmp_path / "graph"), tmp_path / "c", an_output(), but(CONFIG, epochs=2))
    importer.import_graph(config_of("a.tsv", "b.tsv"), tmp_path / "graph", append=True)
    grown = Graph(tmp_path / "graph")
    report = outputs.train(grown, tmp_path / "c", an_output(), CONFIG)
    assert report.resumed and report.num_edges == 20 * 45 * 3 // 4 - 20
    trained = Trained(grown, tmp_path / "c")
    assert trained.manifest.trained_batches == 1
    rows = np.concatenate([trained.vectors(slot) for slot in slots_of(grown.entity_types["item"])])
    assert rows.shape == (45, 9) and np.isfinite(rows).all()


# --- memory --------------------------------------------------------------------------------------


def test_the_plan_counts_what_is_held_and_says_what_would_help(
    graph: Graph, tmp_path: Path
) -> None:
    folder = tmp_path / "not-yet"
    held = plan_output(graph, an_output(mapped=False, dim=10_000), CONFIG, folder)
    assert held.rows == NUM_ITEMS * 4 * (2 * 10_000 + 1 + 2)
    mapped = plan_output(graph, an_output(mapped=True, dim=10_000), CONFIG, folder)
    assert held.total - mapped.total == held.rows and "in mapped files" in str(mapped)
    with pytest.raises(ConfigError, match=r"for rows, 9,000 MB: use output\.mapped = true"):
        replace(held, rows=9 * 10**9).check(600)
    with pytest.raises(ConfigError, match=r"for work on a batch, .*: use a smaller output\.batch"):
        outputs.train(graph, folder, an_output(dim=10_000_000), but(CONFIG, memory_mb=600))
    with pytest.raises(ConfigError, match=r"has .* of disk free: make room"):
        plan_output(graph, an_output(mapped=True, dim=1 << 50), CONFIG, folder)
    with pytest.raises(ConfigError, match=r"^\[output\] takes .* MB for its commits, and .* has"):
        plan_output(graph, an_output(mapped=False, dim=1 << 50), CONFIG, folder)
    bits = {"name": "simhash", "bits": 10}
    few, many = (
        plan_output(graph, an_output(retriever=bits | {"tables": n}), CONFIG, folder).index
        for n in (4, 32)
    )
    assert many > 6 * few - 6 * 36 * NUM_ITEMS > 0  # 36 bytes a class are of its frequency
    assert not folder.exists()
    room = but(CONFIG, memory_mb=round(mapped.total / 1e6) + 1)
    assert plan_output(graph, an_output(dim=10_000), room, folder).mapped


def test_commits_that_are_kept_count_beside_mapped_rows(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit has a row of each class twice; three are there at once."""
    output = an_output(mapped=True, dim=10_000)
    rows = NUM_ITEMS * 4 * (2 * 10_000 + 1 + 2)
    need = 4 * rows
    monkeypatch.setattr(output_plan, "_disk_free", lambda _: need)
    assert plan_output(graph, output, CONFIG, tmp_path).mapped
    monkeypatch.setattr(output_plan, "_disk_free", lambda _: need - 1)
    with pytest.raises(ConfigError, match="5 MB of files for mapped rows and 14 MB for its com"):
        plan_output(graph, output, CONFIG, tmp_path)
    (tmp_path / "tables").mkdir()  # of a commit that will make place
    (tmp_path / "tables" / "item").write_bytes(b"1")
    assert plan_output(graph, output, CONFIG, tmp_path).mapped


_MAP_LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
from pathlib import Path
from embedsvc.training.rows import RowTable
from partitions.errors import DataError

try:
    RowTable.empty(1000, 300, 1, bias=True, optimizer="sgd", folder=Path(sys.argv[1]))
except DataError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="disk can't be reserved here")
def test_mapped_rows_that_find_no_room_are_refused_before_they_are_written(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", _MAP_LIMITED, str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path} has no room for a file of 1 MB of mapped rows" in done.stdout
    assert not list(tmp_path.iterdir())


_TRAIN = """
import json, sys
from pathlib import Path
from embedsvc.config import OutputConfig, TrainConfig
from embedsvc.training.outputs import train
from partitions.graph import Graph
from partitions.memory import peak_bytes

output = OutputConfig(
    kind="lsh_softmax", relation="clicks", dim=16, mapped=False, retriever=sys.argv[3]
)
report = train(Graph(Path(sys.argv[1])), Path(sys.argv[2]), output, TrainConfig(epochs=1))
print(json.dumps({"peak": peak_bytes(), "plan": report.planned_bytes}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's VmHWM")
@pytest.mark.parametrize(
    ("num_items", "retriever"),
    [
        (0, "partition"),
        pytest.param(400_000, "partition", marks=pytest.mark.slow),
        pytest.param(400_000, "simhash", marks=pytest.mark.slow),
        pytest.param(400_000, "wta", marks=pytest.mark.slow),
    ],
)
def test_the_measured_peak_is_within_the_plan_and_not_far_below(
    num_items: int, retriever: str, make_graph: MakeGraph, graph: Graph, tmp_path: Path
) -> None:
    """130 MB of the plan are for compiling kernels; so much is left where they are compiled."""
    if num_items:
        edges = [("shop", "has", f"i{at}") for at in range(num_items)]
        edges += [(f"u{at % 2000}", "clicks", f"i{at * 7}") for at in range(20_000)]
        graph = make_graph({"train": edges}, {"has": ("shop", "item"), "clicks": ("user", "item")})
    for folder in ("warm", "checkpoint"):  # all kernels of a large index take more, once
        found = subprocess.run(
            [sys.executable, "-c", _TRAIN, str(graph.path), str(tmp_path / folder), retriever],
            capture_output=True,
            text=True,
            check=True,
        )
    measured = json.loads(found.stdout.splitlines()[-1])
    assert 0.7 * measured["plan"] < measured["peak"] < measured["plan"], measured


_TRAIN_LIMITED = """
import resource, sys
limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
from pathlib import Path
from embedsvc.config import OutputConfig, TrainConfig
from embedsvc.training.outputs import train
from partitions.graph import Graph

output = OutputConfig(
    kind="lsh_softmax", relation="clicks", dim=256, mapped=sys.argv[4] == "yes"
)
config = TrainConfig(epochs=1, threads=1, memory_mb=10**6)
print(train(Graph(Path(sys.argv[1])), Path(sys.argv[2]), output, config).num_edges)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only there RLIMIT_DATA counts mappings")
def test_mapped_rows_three_times_the_memory_allowed_are_trained_to_the_end(
    make_graph: MakeGraph, graph: Graph, tmp_path: Path
) -> None:
    """RLIMIT_DATA counts what a process may write to and shares with nobody; a mapped file is the
    system's own to keep in memory or not."""
    num_items, num_clicks = 1_000_000, 20_000
    edges = [("shop", "has", f"i{at}") for at in range(num_items)]
    edges += [(f"u{at % 2000}", "clicks", f"i{at}") for at in range(num_clicks)]
    large = make_graph({"train": edges}, {"has": ("shop", "item"), "clicks": ("user", "item")})
    limit = num_items * 4 * (2 * 256 + 1 + 2) // 3
    # The first use of the kernels compiles them, for which so little is too little.
    outputs.train(graph, tmp_path / "warm", an_output(), CONFIG)

    def run(mapped: str) -> subprocess.CompletedProcess[str]:
        arguments = [str(large.path), str(tmp_path / mapped), str(limit), mapped]
        return subprocess.run(
            [sys.executable, "-c", _TRAIN_LIMITED, *arguments],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    mapped, held = run("yes"), run("no")
    assert mapped.returncode == 0, mapped.stderr
    assert mapped.stdout.split() == [str(num_clicks - 2000)]
    assert held.returncode and "Unable to allocate" in held.stderr


# --- mistakes ------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such relation": ({"relation": "click"}, r"names the relation click,.* Did you mean clicks"),
    "several relations": ({"relation": None}, r"relation is missing: choose one of clicks, tagged"),
    "nothing follows": ({"relation": "tagged"}, r"no sequence of tagged longer than 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_gives_nothing_to_learn_is_refused(name: str, graph: Graph, tmp_path: Path) -> None:
    changes, message = REFUSED[name]
    with pytest.raises((ConfigError, DataError), match=message):
        outputs.train(graph, tmp_path / "c", an_output(**changes), CONFIG)
    assert not (tmp_path / "c" / MANIFEST).exists()


def test_a_softmax_of_one_class_is_refused(make_graph: MakeGraph) -> None:
    one = make_graph(
        {"train": [("u", "buys", "i"), ("v", "buys", "i")]}, {"buys": ("user", "item")}
    )
    with pytest.raises(DataError, match="has 1 item entities: a softmax chooses among at least 2"):
        relation_of(one, an_output(relation=None))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.2}, r"begun with output\.lr = 0\.5, now it is 0\.2"),
        ({"dim": 9}, r"begun with output\.dim = 8, now it is 9"),
    ],
)
def test_resuming_with_another_setting_is_refused_by_its_name(
    changes: dict[str, Any], message: str, graph: Graph, tmp_path: Path
) -> None:
    outputs.train(graph, tmp_path, an_output(), but(CONFIG, epochs=1))
    with pytest.raises(ConfigError, match=message):
        outputs.train(graph, tmp_path, an_output(**changes), CONFIG)


def test_a_checkpoint_of_the_other_kind_is_refused(graph: Graph, tmp_path: Path) -> None:
    outputs.train(graph, tmp_path / "a", an_output(), but(CONFIG, epochs=1))
    with pytest.raises(ConfigError, match=r"was begun with \[output\]\. Change that back"):
        trainer.train(graph, tmp_path / "a", ModelConfig(dim=9), CONFIG)
    trainer.train(graph, tmp_path / "b", ModelConfig(dim=9), but(CONFIG, epochs=1))
    with pytest.raises(ConfigError, match=r"was begun without \[output\], now there is one"):
        outputs.train(graph, tmp_path / "b", an_output(), CONFIG)


@pytest.mark.parametrize(
    ("model", "train", "message"),
    [
        ({"dim": 5}, {}, r"shop\.toml: \[model\] dim does not apply .*: set output\.dim"),
        ({"operator": "diagonal"}, {}, r"\[model\] operator does not apply .*: remove it"),
        ({}, {"epochs": 3, "lr": 0.2}, r"\[train\] lr does not apply .*: set output\.lr"),
        ({}, {"negatives": {"uniform": 5}}, r"\[train\] negatives does not apply"),
        ({}, {"device": "cuda"}, r"\[train\] device does not apply .*: remove it"),
        (
            {},
            {"early_stopping": {"metric": "mrr"}},
            r"\[train\.early_stopping\] metric .*Recall@20",
        ),
    ],
)
def test_settings_that_do_not_apply_are_named(
    model: dict[str, Any], train: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        outputs.check_covered(
            "shop.toml", ModelConfig.model_validate(model), TrainConfig.model_validate(train)
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 5}, "kind is missing"),
        ({"kind": "lsh_softmax", "tower": "men"}, "Did you mean mean"),
        ({"kind": "lsh_softmax", "retriever": "annoy"}, "named annoy.*Known here: exact, none, p"),
        ({"kind": "lsh_softmax", "retriever": "non"}, "named non.*Did you mean none"),
        ({"kind": "lsh_softmax", "examples": {"name": "next_item", "window": 2}}, "window"),
        (
            {"kind": "lsh_softmax", "examples": "skip_gram", "tower": "attention"},
            "remove tower and hidden",
        ),
        ({"kind": "lsh_softmax", "sequences": {"name": "walks", "length": 1}}, "length of 2"),
        ({"kind": "full_softmax", "head": 5}, "head is of lsh_softmax"),
    ],
)
def test_mistakes_in_the_table_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OutputConfig.model_validate(settings)


def test_divergence_is_said_and_leaves_the_last_commit(graph: Graph, tmp_path: Path) -> None:
    wild = an_output(optimizer="sgd", lr=1e30)
    with pytest.raises(
        DataError, match=r"diverged in epoch 1: .*Lower output\.lr.* nothing was com"
    ):
        outputs.train(graph, tmp_path, wild, CONFIG)


def test_divergence_later_on_says_what_to_remove(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs.train(graph, tmp_path, an_output(), but(CONFIG, epochs=1))
    monkeypatch.setattr(outputs._Trainer, "_step", lambda *_: float("nan"))
    with pytest.raises(DataError, match=rf"in epoch 2: .*, remove {tmp_path} and train again; its"):
        outputs.train(graph, tmp_path, an_output(), CONFIG)


def test_the_log_speaks_of_examples_and_pieces(
    graph: Graph, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "embedsvc")
    outputs.train(graph, tmp_path, an_output(), but(CONFIG, epochs=1))
    [first, _] = [text for text in caplog.messages if text.startswith("epoch=1/1 ")]
    assert re.match(r"epoch=1/1 piece=\(0,\d\) done=1/2 examples_per_s=\d+ loss=", first)
    assert "edges" in records(tmp_path)[0]  # as every reader of metrics.jsonl knows them
