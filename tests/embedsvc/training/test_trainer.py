"""Training ends in the same bits, however it was carried out or broken off."""

import errno
import json
import logging
import math
import resource
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedsvc.config import ModelConfig, TrainConfig
from embedsvc.evaluation.links import rank_links
from embedsvc.graph.optimizers import OPTIMIZERS
from embedsvc.trained import Trained
from embedsvc.training.trainer import METRICS, train
from partitions.checkpoint import MANIFEST, PREVIOUS, Checkpoint
from partitions.errors import BusyError, ConfigError, DataError
from partitions.graph import Graph
from partitions.precision import DTYPES, nearest, widen

MakeGraph = Callable[..., Graph]
Content = Callable[[Graph, Path], dict[Any, bytes]]

RELATIONS = {"buys": ("user", "item"), "tagged": ("item", "tag"), "like": ("item", "item")}
MODEL = ModelConfig(dim=8, operator="complex_diagonal", reciprocal=True, init_scale=0.1)
CONFIG = TrainConfig(
    epochs=2,
    batch_size=20,
    chunk_size=5,
    negatives={"uniform": 4},
    buffer=3,
    threads=1,
    commit_every_s=0,
)


def but(config: TrainConfig, **changes: object) -> TrainConfig:
    return TrainConfig.model_validate(config.model_dump() | changes)


@pytest.fixture(scope="module")
def graph(make_graph: MakeGraph) -> Graph:
    """2 partitions, 4 buckets; a buffer of 3 tables can't hold all 4."""
    return a_graph(make_graph, partitions=2)


@pytest.fixture(scope="module")
def large_graph(make_graph: MakeGraph) -> Graph:
    """The same edges in 4 partitions, 16 buckets."""
    return a_graph(make_graph, partitions=4)


def a_graph(make_graph: MakeGraph, partitions: int, num_edges: int = 300) -> Graph:
    """Two partitioned types and one that is not; three relations; weights."""
    rng = np.random.default_rng(1)
    sizes = {"user": 40, "item": 30, "tag": 5}
    edges = []
    for _ in range(num_edges):
        relation = str(rng.choice(list(RELATIONS)))
        lhs, rhs = (f"{t}{rng.integers(sizes[t])}" for t in RELATIONS[relation])
        edges.append((lhs, relation, rhs, round(float(rng.uniform(0.5, 2)), 3)))
    return make_graph(
        {"train": edges, "test": edges[:20]}, RELATIONS, {"user": partitions, "item": partitions}
    )


def records(folder: Path) -> list[dict[str, Any]]:
    text = (folder / METRICS).read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


# --- the same bits -------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["fast", "exact", "device"])
def test_the_same_command_gives_the_same_bits(
    step: str, graph: Graph, tmp_path: Path, content_of: Content
) -> None:
    first = train(graph, tmp_path / "a", MODEL, but(CONFIG, step=step))
    second = train(graph, tmp_path / "b", MODEL, but(CONFIG, step=step))
    assert first.loss == second.loss
    losses = [[r["loss"] for r in records(tmp_path / name)] for name in "ab"]
    assert losses[0] == losses[1]
    assert content_of(graph, tmp_path / "a") == content_of(graph, tmp_path / "b")


def test_another_seed_gives_other_vectors(
    graph: Graph, tmp_path: Path, content_of: Content
) -> None:
    train(graph, tmp_path / "a", MODEL, CONFIG)
    train(graph, tmp_path / "b", MODEL, but(CONFIG, seed=2))
    a, b = content_of(graph, tmp_path / "a"), content_of(graph, tmp_path / "b")
    for slot in graph.slots():
        assert a[slot, "vectors"] != b[slot, "vectors"]


@pytest.mark.parametrize("step", ["fast", "exact", "device"])
def test_two_epochs_equal_one_and_a_resumed_one_bit_for_bit(
    step: str, large_graph: Graph, tmp_path: Path, content_of: Content
) -> None:
    config = but(CONFIG, step=step)
    whole = train(large_graph, tmp_path / "whole", MODEL, config)
    train(large_graph, tmp_path / "halves", MODEL, but(config, epochs=1))
    second = train(large_graph, tmp_path / "halves", MODEL, config)
    assert second.resumed and not whole.resumed
    assert second.num_edges == large_graph.num_edges("train") and second.loss == whole.loss
    halves = content_of(large_graph, tmp_path / "halves")
    assert halves == content_of(large_graph, tmp_path / "whole")


DEGREE = {"uniform": 2, "degree": 3, "alpha": 0.75}


@pytest.mark.parametrize(
    ("model", "negatives"),
    [
        ({"dropout": 0.3, "relation_dropout": 0.2}, DEGREE),
        ({"loss": "sampled_softmax", "relation_weights": {"like": 0.5}}, DEGREE),
        ({"loss": "softmax", "regularizer": "l2"}, {"all": True}),
        ({"operator": "linear", "reciprocal": False}, {"all": True}),
        ({"operator": "affine", "operators": {"like": "rotate"}}, {"uniform": 4}),
    ],
    ids=str,
)
def test_whatever_is_learnt_a_resumed_run_has_the_same_bits(
    model: dict[str, Any],
    negatives: dict[str, Any],
    graph: Graph,
    tmp_path: Path,
    content_of: Content,
) -> None:
    chosen = ModelConfig.model_validate(MODEL.model_dump() | model)
    config = but(CONFIG, negatives=negatives)
    whole = train(graph, tmp_path / "whole", chosen, config)
    train(graph, tmp_path / "halves", chosen, but(config, epochs=1))
    assert train(graph, tmp_path / "halves", chosen, config).loss == whole.loss
    assert content_of(graph, tmp_path / "halves") == content_of(graph, tmp_path / "whole")


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != "rowwise_adagrad"])
def test_a_resumed_run_has_what_its_optimizer_kept(
    optimizer: str, large_graph: Graph, tmp_path: Path, content_of: Content
) -> None:
    """Bit for bit, the numbers of whole tables as well. Another one's checkpoint is not resumed."""
    config = but(CONFIG, optimizer=optimizer)
    whole = train(large_graph, tmp_path / "whole", MODEL, config)
    train(large_graph, tmp_path / "halves", MODEL, but(config, epochs=1))
    assert train(large_graph, tmp_path / "halves", MODEL, config).loss == whole.loss
    halves = content_of(large_graph, tmp_path / "halves")
    assert halves == content_of(large_graph, tmp_path / "whole")
    with pytest.raises(ConfigError, match=f"begun with train.optimizer = '{optimizer}'"):
        train(large_graph, tmp_path / "halves", MODEL, CONFIG)


@pytest.mark.parametrize(
    ("precision", "step"),
    [("bfloat16", "fast"), ("bfloat16", "exact"), ("bfloat16", "device"), ("float16", "exact")],
)
def test_rounding_is_the_same_at_every_run_and_on_resume(
    precision: str, step: str, large_graph: Graph, tmp_path: Path, content_of: Content
) -> None:
    config = but(CONFIG, precision=precision, step=step)
    whole = train(large_graph, tmp_path / "whole", MODEL, config)
    train(large_graph, tmp_path / "halves", MODEL, but(config, epochs=1))
    assert train(large_graph, tmp_path / "halves", MODEL, config).loss == whole.loss
    halves = content_of(large_graph, tmp_path / "halves")
    assert halves == content_of(large_graph, tmp_path / "whole")
    with pytest.raises(ConfigError, match=f"begun with train.precision = '{precision}'"):
        train(large_graph, tmp_path / "halves", MODEL, CONFIG)
    trained = Trained(large_graph, tmp_path / "whole")
    [slot, *_] = trained.manifest.tables
    vectors = trained.vectors(slot)
    assert vectors.dtype == np.float32
    dtype = DTYPES[precision]
    np.testing.assert_array_equal(widen(nearest(vectors, dtype)), vectors)
    float32 = train(large_graph, tmp_path / "float32", MODEL, but(CONFIG, step=step))
    assert float32.loss == pytest.approx(whole.loss, rel=0.02)


@pytest.mark.parametrize(
    "settings",
    [{"buffer": 3}, {"buffer": 8, "commit_every_s": 1e9}, {"buffer": 3, "optimizer": "sm3"}],
    ids=str,
)
def test_tables_on_a_device_come_and_go_and_end_in_the_bits_of_the_exact_step(
    settings: dict[str, Any], large_graph: Graph, tmp_path: Path, content_of: Content
) -> None:
    """The device is the CPU here, which adds in the same order; a checkpoint of one step goes on
    with another."""
    config = but(CONFIG, **settings)
    exact = train(large_graph, tmp_path / "exact", MODEL, but(config, step="exact"))
    train(large_graph, tmp_path / "device", MODEL, but(config, step="device", epochs=1))
    report = train(large_graph, tmp_path / "device", MODEL, but(config, step="device"))
    assert report.loss == pytest.approx(exact.loss, rel=1e-6)
    wanted = content_of(large_graph, tmp_path / "exact")
    assert content_of(large_graph, tmp_path / "device") == wanted
    train(large_graph, tmp_path / "both", MODEL, but(config, step="exact", epochs=1))
    train(large_graph, tmp_path / "both", MODEL, but(config, step="device"))
    assert content_of(large_graph, tmp_path / "both") == wanted


def test_a_relation_that_weighs_nothing_is_not_learnt(
    graph: Graph, tmp_path: Path, content_of: Content
) -> None:
    """Only tags occur with this relation alone."""
    model = ModelConfig.model_validate(MODEL.model_dump() | {"relation_weights": {"tagged": 0}})
    train(graph, tmp_path / "checkpoint", model, CONFIG)
    found = content_of(graph, tmp_path / "checkpoint")
    [tags] = [slot for slot in graph.slots() if slot.entity_type == "tag"]
    assert not any(found[tags, "state"])
    assert all(any(found[s, "state"]) for s in graph.slots() if s != tags)


def test_a_weight_on_every_edge_of_a_relation_is_that_relations_weight(
    make_graph: MakeGraph, tmp_path: Path, content_of: Content
) -> None:
    """From the column of the input to the bits of the vectors."""
    names = [("like" if i % 3 else "hate", f"e{i % 20}", f"e{i * 7 % 20}") for i in range(60)]
    relations = {"like": ("e", "e"), "hate": ("e", "e")}
    found = []
    for weight in (1.0, 2.5):
        rows = [(a, r, b, weight if r == "hate" else 1.0) for r, a, b in names]
        graph = make_graph({"train": rows}, relations)
        weights = {} if weight != 1 else {"hate": 2.5}
        model = ModelConfig.model_validate(MODEL.model_dump() | {"relation_weights": weights})
        train(graph, tmp_path / str(weight), model, CONFIG)
        found.append(content_of(graph, tmp_path / str(weight)))
    assert found[0] == found[1]


def test_a_checkpoint_from_before_a_setting_existed_goes_on(graph: Graph, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    train(graph, folder, MODEL, but(CONFIG, epochs=1))
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["config"]["model"]["dropout"], manifest["config"]["train"]["negatives"]["degree"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert train(graph, folder, MODEL, CONFIG).resumed


@pytest.mark.parametrize("order", ["inside_out", "random"])
def test_how_often_one_commits_and_how_much_one_holds_changes_no_bit(
    order: str, large_graph: Graph, tmp_path: Path, content_of: Content
) -> None:
    thrifty = train(large_graph, tmp_path / "a", MODEL, but(CONFIG, order=order))
    lavish = train(large_graph, tmp_path / "b", MODEL, but(CONFIG, order=order, **LAVISH))
    assert thrifty.table_reads > 0 and thrifty.io_bytes > lavish.io_bytes
    assert lavish.table_reads == 0 and lavish.table_writes == 2 * len(large_graph.slots())
    assert content_of(large_graph, tmp_path / "a") == content_of(large_graph, tmp_path / "b")


LAVISH = {"commit_every_s": 1e9, "buffer": 8}


def test_spilling_without_committing_changes_no_bit(
    make_graph: MakeGraph, tmp_path: Path, content_of: Content
) -> None:
    """One partitioned type and buffer = 2: tables leave and come back between two commits."""
    edges = [(f"e{i}", "r", f"e{(i * 7 + 1) % 50}") for i in range(50)]
    graph = make_graph({"train": edges}, {"r": ("e", "e")}, {"e": 4})
    small = but(CONFIG, buffer=2, order="inside_out")  # an order that does not ask for the buffer
    spilled = train(graph, tmp_path / "a", MODEL, but(small, commit_every_s=1e9))
    assert spilled.table_reads > 0
    train(graph, tmp_path / "b", MODEL, small)
    train(graph, tmp_path / "c", MODEL, but(small, **LAVISH))
    contents = [content_of(graph, tmp_path / name) for name in "abc"]
    assert contents[0] == contents[1] == contents[2]


def test_ten_kills_at_random_moments_change_no_bit(
    large_graph: Graph, tmp_path: Path, content_of: Content, start_training: Any
) -> None:
    assert_kills_change_no_bit(large_graph, CONFIG, 10, tmp_path, content_of, start_training)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("partitions", "buffer", "step"),
    [(7, 2, "fast"), (7, 3, "exact"), (6, 3, "fast"), (6, 3, "device")],
)
def test_twenty_kills_while_tables_come_and_go_change_no_bit(
    partitions: int,
    buffer: int,
    step: str,
    make_graph: MakeGraph,
    tmp_path: Path,
    content_of: Content,
    start_training: Any,
) -> None:
    """Commits are rare, so that kills meet tables that were spilled and belong to no manifest."""
    rng = np.random.default_rng(3)
    edges = [(f"e{a}", "r", f"e{b}") for a, b in rng.integers(0, 600, (4000, 2))]
    graph = make_graph({"train": edges}, {"r": ("e", "e")}, {"e": partitions})
    config = but(CONFIG, buffer=buffer, step=step, commit_every_s=0.05, page_cache=False)
    assert_kills_change_no_bit(graph, config, 20, tmp_path, content_of, start_training)


def test_what_a_kill_left_is_swept_even_where_nothing_is_left_to_do(
    graph: Graph, tmp_path: Path
) -> None:
    """As a kill after the last manifest was renamed, and before its sweep."""
    folder = tmp_path / "checkpoint"
    train(graph, folder, MODEL, CONFIG)
    before = {path for path in folder.rglob("*") if path.is_file()}
    (folder / "tables" / "user-000.0000000001.safetensors").touch(exist_ok=False)
    (folder / "parameters.0000000001.safetensors").touch(exist_ok=False)
    train(graph, folder, MODEL, CONFIG)
    assert {path for path in folder.rglob("*") if path.is_file()} == before


def assert_kills_change_no_bit(
    graph: Graph,
    config: TrainConfig,
    num_kills: int,
    tmp_path: Path,
    content_of: Content,
    start_training: Any,
) -> None:
    for name in ("warm", "whole"):  # the first one waits for the server of forks
        begin = time.monotonic()
        unbroken = start_training(graph, tmp_path / name, MODEL, config)
        unbroken.join()
        run_s = time.monotonic() - begin
        assert unbroken.exitcode == 0
    wanted = content_of(graph, tmp_path / "whole")

    rng = np.random.default_rng(11)
    num_killed = num_finished = 0
    while num_killed < num_kills or not num_finished:
        folder = tmp_path / f"broken-{num_finished}"
        process = start_training(graph, folder, MODEL, config)
        process.join(timeout=rng.uniform(0, 0.2) * run_s if num_killed < num_kills else None)
        process.kill()  # nothing to a process that has ended
        process.join()
        assert process.exitcode in (0, -9)
        if (folder / MANIFEST).exists():  # whatever is there is a whole checkpoint
            found = content_of(graph, folder)
        if process.exitcode:
            num_killed += 1
            continue
        num_finished += 1
        assert found == wanted
        assert len({(r["epoch"], *r["bucket"]) for r in records(folder)}) == 2 * len(
            graph.buckets("train")
        )
        left = {path.name for path in (folder / "tables").iterdir()}
        assert not [name for name in left if ".tmp-" in name]
        # A sweep keeps what the newest two manifests name.
        assert len(left) <= 2 * len(graph.slots())


def test_prefetching_and_the_page_cache_change_no_bit_and_no_count(
    make_graph: MakeGraph, tmp_path: Path, content_of: Content
) -> None:
    edges = [(f"e{i}", "r", f"e{(i * 7 + 1) % 90}") for i in range(90)]
    graph = make_graph({"train": edges}, {"r": ("e", "e")}, {"e": 6})
    base = but(CONFIG, buffer=3, commit_every_s=1e9, prefetch=0)
    ways = {"none": {}, "one": {"prefetch": 1}, "two": {"prefetch": 2, "page_cache": False}}
    reports = {
        name: train(graph, tmp_path / name, MODEL, but(base, **way)) for name, way in ways.items()
    }
    contents = [content_of(graph, tmp_path / name) for name in ways]
    assert contents[0] == contents[1] == contents[2]
    counts = {(r.swaps, r.table_reads, r.table_writes, r.io_bytes) for r in reports.values()}
    assert len(counts) == 1
    # Six swaps an epoch for 6 partitions and 3 in memory, and a new first fill between the two.
    report = reports["one"]
    assert report.least_swaps == 12 <= report.swaps <= 15


def test_a_full_disk_ends_training_and_loses_no_commit(
    large_graph: Graph, tmp_path: Path, content_of: Content
) -> None:
    train(large_graph, tmp_path / "whole", MODEL, CONFIG)
    folder = tmp_path / "checkpoint"
    rare = but(CONFIG, commit_every_s=1e9)
    train(large_graph, folder, MODEL, but(rare, epochs=1))
    before = content_of(large_graph, folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4200, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            train(large_graph, folder, MODEL, rare)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert str(caught.value.filename).startswith(str(folder / "tables"))
    assert content_of(large_graph, folder) == before
    assert train(large_graph, folder, MODEL, CONFIG).resumed
    assert content_of(large_graph, folder) == content_of(large_graph, tmp_path / "whole")


def test_table_files_that_vanish_in_mid_training_are_named_and_go_on_when_put_back(
    large_graph: Graph, tmp_path: Path, content_of: Content
) -> None:
    train(large_graph, tmp_path / "whole", MODEL, CONFIG)
    folder, away = tmp_path / "checkpoint", tmp_path / "away"
    away.mkdir()
    rare = but(CONFIG, commit_every_s=1e9)
    train(large_graph, folder, MODEL, but(rare, epochs=1))
    manifest = (folder / MANIFEST).read_bytes()

    class MovesTablesAway(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "done=5/16" in record.getMessage():
                for path in (folder / "tables").glob("*.safetensors"):  # not what is being written
                    path.rename(away / path.name)

    handler, logger = MovesTablesAway(), logging.getLogger("embedsvc.training.ledger")
    level = logger.level
    logger.addHandler(handler), logger.setLevel(logging.INFO)
    try:
        with pytest.raises(DataError, match=r"tables/\S+ is missing\.") as e:
            train(large_graph, folder, MODEL, rare)
    finally:
        logger.removeHandler(handler), logger.setLevel(level)
    assert "\n" not in str(e.value)
    assert (folder / MANIFEST).read_bytes() == manifest
    for path in away.iterdir():
        path.rename(folder / "tables" / path.name)
    assert train(large_graph, folder, MODEL, CONFIG).resumed
    assert content_of(large_graph, folder) == content_of(large_graph, tmp_path / "whole")


# --- which step ----------------------------------------------------------------------------------


def test_steps_learn_alike_chunk_by_chunk(graph: Graph, tmp_path: Path) -> None:
    """With a chunk a batch they differ in the order of edges and the negatives drawn, no more."""
    config = but(CONFIG, epochs=20, batch_size=5)
    losses = {}
    for step in ("fast", "exact"):
        train(graph, tmp_path / step, MODEL, but(config, step=step))
        found = records(tmp_path / step)[-len(graph.buckets("train")) :]
        losses[step] = sum(r["loss"] * r["edges"] for r in found) / sum(r["edges"] for r in found)
    assert losses["fast"] == pytest.approx(losses["exact"], rel=0.1)


def test_products_that_the_exact_step_ignores_are_said(
    graph: Graph, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        train(graph, tmp_path / "a", MODEL, but(CONFIG, epochs=1, step="exact"))
        assert "train.products" not in caplog.text
        train(
            graph, tmp_path / "b", MODEL, but(CONFIG, epochs=1, step="exact", products="bfloat16")
        )
    assert caplog.text.count("train.products = bfloat16 is of the fast step") == 1


def test_what_the_fast_step_does_not_cover_trains_by_the_exact_one_which_is_said(
    graph: Graph, tmp_path: Path, caplog: pytest.LogCaptureFixture, content_of: Content
) -> None:
    sentence = "the fast one does not cover model.comparator = l2"
    l2 = ModelConfig(dim=8, comparator="l2", init_scale=0.1)
    with caplog.at_level("INFO"):
        train(graph, tmp_path / "auto", l2, CONFIG)
        assert caplog.text.count(sentence) == 1
        train(graph, tmp_path / "fast", MODEL, CONFIG)
        assert caplog.text.count(sentence) == 1
    train(graph, tmp_path / "exact", l2, but(CONFIG, step="exact"))
    assert content_of(graph, tmp_path / "auto") == content_of(graph, tmp_path / "exact")


def test_a_device_that_can_not_train_is_refused_before_anything_is_written(
    graph: Graph, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"step = exact runs on the CPU only\. Set "):
        train(graph, tmp_path / "checkpoint", MODEL, but(CONFIG, device="cuda", step="exact"))
    with pytest.raises(ConfigError, match=r"step = device does not cover train\.precision"):
        config = but(CONFIG, step="device", precision="float16")
        train(graph, tmp_path / "checkpoint", MODEL, config)
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.gpu
def test_a_gpu_trains_resumes_and_learns_what_the_exact_step_learns(
    large_graph: Graph, tmp_path: Path
) -> None:
    gpu = but(CONFIG, device="cuda")
    train(large_graph, tmp_path / "gpu", MODEL, but(gpu, epochs=1))
    report = train(large_graph, tmp_path / "gpu", MODEL, gpu)
    assert report.resumed and report.table_reads > 0
    exact = train(large_graph, tmp_path / "exact", MODEL, but(CONFIG, step="exact"))
    assert report.loss == pytest.approx(exact.loss, rel=0.01)


def test_asking_for_the_fast_step_where_it_does_not_cover_is_refused(
    graph: Graph, tmp_path: Path
) -> None:
    l2 = ModelConfig(dim=8, comparator="l2")
    with pytest.raises(ConfigError, match=r"fast does not cover model\.comparator = l2\. Set "):
        train(graph, tmp_path / "checkpoint", l2, but(CONFIG, step="fast"))
    assert not (tmp_path / "checkpoint" / METRICS).exists()


@pytest.mark.parametrize("step", ["fast", "exact", "device"])
def test_several_threads_train_the_same_edges(step: str, graph: Graph, tmp_path: Path) -> None:
    report = train(graph, tmp_path / "checkpoint", MODEL, but(CONFIG, step=step, threads=2))
    assert report.num_edges == 2 * graph.num_edges("train")
    assert math.isfinite(report.loss)


# --- one at a time -------------------------------------------------------------------------------


def test_a_second_trainer_is_refused_while_the_first_goes_on(
    graph: Graph, tmp_path: Path, start_training: Any
) -> None:
    folder = tmp_path / "checkpoint"
    first = start_training(graph, folder, MODEL, but(CONFIG, epochs=100_000))
    while not (folder / MANIFEST).exists():
        first.join(timeout=0.01)
        assert first.exitcode is None
    with pytest.raises(BusyError, match=rf"is in use: process {first.pid} is training into it"):
        train(graph, folder, MODEL, CONFIG)
    progress = len((folder / METRICS).read_bytes())
    while len((folder / METRICS).read_bytes()) == progress:
        first.join(timeout=0.01)
        assert first.exitcode is None, "the first trainer goes on"
    first.kill()
    first.join()
    # The lock ended with its process: no one has to remove anything.
    report = train(graph, folder, MODEL, but(CONFIG, epochs=1))
    assert report.resumed


# --- what may change on resume, and what may not -------------------------------------------------


@pytest.mark.parametrize(
    ("model", "config", "sentence"),
    [
        ({"dim": 10}, {}, r"begun with model\.dim = 8, now it is 10\. Set it back"),
        ({"comparator": "cos"}, {}, r"begun with model\.comparator = 'dot', now it is 'cos'"),
        ({}, {"lr": 0.2}, r"begun with train\.lr = 0\.1, now it is 0\.2"),
        ({}, {"seed": 2}, r"begun with train\.seed = 1, now it is 2"),
        ({}, {"negatives": {"uniform": 5}}, r"begun with train\.negatives = .*uniform"),
    ],
)
def test_resuming_with_another_setting_is_refused_by_its_name(
    model: dict[str, Any], config: dict[str, Any], sentence: str, graph: Graph, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    train(graph, folder, MODEL, but(CONFIG, epochs=1))
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    changed = ModelConfig.model_validate(MODEL.model_dump() | model)
    with pytest.raises(ConfigError, match=sentence):
        train(graph, folder, changed, but(CONFIG, **config))
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_how_a_run_is_carried_out_may_change_on_resume(graph: Graph, tmp_path: Path) -> None:
    train(graph, tmp_path / "checkpoint", MODEL, but(CONFIG, epochs=1, step="exact"))
    other = but(CONFIG, epochs=2, buffer=8, commit_every_s=5, memory_mb=4000, threads=None)
    assert train(graph, tmp_path / "checkpoint", MODEL, other).resumed


def test_resuming_on_another_graph_is_refused(
    graph: Graph, make_graph: MakeGraph, tmp_path: Path
) -> None:
    train(graph, tmp_path / "checkpoint", MODEL, CONFIG)
    other = make_graph({"train": [("a", "like", "b")]}, {"like": ("item", "item")}, name="other")
    with pytest.raises(ConfigError, match=r"was trained on another graph than .*other holds now"):
        train(other, tmp_path / "checkpoint", MODEL, CONFIG)


def test_nothing_left_to_do_does_nothing(graph: Graph, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    train(graph, folder, MODEL, CONFIG)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "lock"}
    for epochs in (2, 1):  # fewer than were trained is nothing left to do, too
        report = train(graph, folder, MODEL, but(CONFIG, epochs=epochs))
        assert report.num_edges == report.table_writes == report.table_reads == 0
        assert math.isnan(report.loss) and report.resumed
    assert before == {p: p.read_bytes() for p in before}


def test_a_graph_without_training_edges_is_refused(make_graph: MakeGraph, tmp_path: Path) -> None:
    graph = make_graph({"test": [("a", "r", "b")]}, {"r": ("e", "e")})
    with pytest.raises(DataError, match="has no training edges"):
        train(graph, tmp_path / "checkpoint", MODEL, CONFIG)


def test_a_buffer_too_small_for_a_bucket_is_refused(graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Set train\.buffer=3 or more"):
        train(graph, tmp_path / "checkpoint", MODEL, but(CONFIG, buffer=2))
    assert not (tmp_path / "checkpoint" / METRICS).exists(), "before any bucket is trained"


def test_a_partition_may_be_empty(make_graph: MakeGraph, tmp_path: Path) -> None:
    """Few keys, many partitions: a hash leaves some without any."""
    edges = [(f"e{i}", "r", f"e{i + 1}") for i in range(8)]
    graph = make_graph({"train": edges, "test": edges}, {"r": ("e", "e")}, {"e": 8})
    assert 0 in [graph.num_rows(slot) for slot in graph.slots()]
    train(graph, tmp_path / "checkpoint", MODEL, but(CONFIG, buffer=2))
    trained = Trained(graph, tmp_path / "checkpoint")
    ranks = rank_links(trained, trained.edges("test"))
    assert ((ranks.lhs >= 1) & (ranks.lhs <= 9)).all()


# --- damage --------------------------------------------------------------------------------------


def damage(path: Path, kind: str) -> None:
    data = bytearray(path.read_bytes())
    if kind == "truncated":
        del data[-1]
    elif kind == "altered":
        data[-100] ^= 1
    if kind == "missing":
        path.unlink()
    else:
        path.write_bytes(data)


@pytest.mark.parametrize("kind", ["truncated", "altered", "missing"])
@pytest.mark.parametrize("what", ["table", "parameters"])
def test_a_damaged_checkpoint_names_the_file_and_the_commit_before_goes_on(
    what: str, kind: str, graph: Graph, tmp_path: Path, content_of: Content
) -> None:
    train(graph, tmp_path / "whole", MODEL, CONFIG)
    folder = tmp_path / "checkpoint"
    train(graph, folder, MODEL, but(CONFIG, epochs=1))
    newest = json.loads((folder / MANIFEST).read_text())
    before = json.loads((folder / PREVIOUS).read_text())
    old = {table["file"]["path"] for table in before["tables"]}
    new = [t["file"]["path"] for t in newest["tables"] if t["file"]["path"] not in old]
    path = folder / (new[0] if what == "table" else newest["parameters"]["path"])
    damage(path, kind)
    with pytest.raises(DataError) as refused:
        train(graph, folder, MODEL, CONFIG)
    sentence = str(refused.value)
    assert str(path) in sentence
    assert f"Copy {folder / PREVIOUS} over {folder / MANIFEST}" in sentence
    assert f"or remove {folder}" in sentence

    (folder / MANIFEST).write_bytes((folder / PREVIOUS).read_bytes())
    report = train(graph, folder, MODEL, CONFIG)
    assert report.resumed and report.num_edges > graph.num_edges("train")
    assert content_of(graph, folder) == content_of(graph, tmp_path / "whole")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format_version": 1}'])
def test_a_damaged_manifest_is_named_with_what_to_do(
    text: str, graph: Graph, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    train(graph, folder, MODEL, but(CONFIG, epochs=1))
    (folder / MANIFEST).write_text(text)
    with pytest.raises(DataError, match=rf"{MANIFEST}.*(Copy|Remove)"):
        train(graph, folder, MODEL, CONFIG)
    (folder / MANIFEST).write_bytes((folder / PREVIOUS).read_bytes())
    assert train(graph, folder, MODEL, CONFIG).resumed


# --- divergence ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"step": "exact"}, {"threads": 1}, {"threads": 2}], ids=str)
def test_divergence_is_named_by_epoch_and_bucket(
    how: dict[str, Any], graph: Graph, tmp_path: Path
) -> None:
    with pytest.raises(
        DataError, match=r"Training diverged: the .* in epoch 1, bucket \(1, 1\)\. Lower train\.lr"
    ):
        train(graph, tmp_path / "checkpoint", MODEL, but(CONFIG, **DIVERGES, **how))


DIVERGES = {"lr": 1e30, "order": "inside_out"}


@pytest.mark.parametrize("how", [{"step": "exact"}, {"threads": 1}, {"threads": 2}], ids=str)
def test_divergence_in_a_later_epoch_is_caught_in_its_first_bucket_and_the_commit_judged(
    how: dict[str, Any], large_graph: Graph, tmp_path: Path, content_of: Content
) -> None:
    """The second epoch's step size is 1e30: whatever it touches is too large to be scored."""
    config = but(CONFIG, order="inside_out", lr=0.1, **how)
    folder = tmp_path / "checkpoint"
    train(large_graph, folder, MODEL, but(config, epochs=1))
    before = content_of(large_graph, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["config"]["train"]["lr"] = 1e30  # which a resumed run may not change otherwise
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"in epoch 2, bucket \(3, 3\)\. Lower train\.lr") as e:
        train(large_graph, folder, MODEL, but(config, lr=1e30))
    assert "\n" not in str(e.value)
    assert content_of(large_graph, folder) == before
    trained = Trained(large_graph, folder)
    assert 0 < rank_links(trained, trained.edges("test")).summary()["mrr"] <= 1


def test_vectors_too_large_to_be_scored_are_never_committed(
    make_graph: MakeGraph, tmp_path: Path
) -> None:
    """One update of 1e25: every number is finite still, but no product of two of them."""
    graph = make_graph({"train": [("a", "r", "b"), ("c", "r", "d")]}, {"r": ("e", "e")})
    with pytest.raises(DataError, match=r"Training diverged: .* in epoch 1, bucket \(0, 0\)"):
        train(graph, tmp_path / "checkpoint", MODEL, but(CONFIG, epochs=1, lr=1e25))
    assert not (tmp_path / "checkpoint" / MANIFEST).exists()


def test_divergence_leaves_the_last_commit_as_it_was(
    make_graph: MakeGraph, tmp_path: Path, content_of: Content
) -> None:
    """One edge weighs so much that its loss overflows, in a bucket of the last layer."""
    edges = [(f"e{i}", "r", f"e{(i * 7 + 1) % 50}", 1.0) for i in range(50)]
    relations, partitions = {"r": ("e", "e")}, {"e": 3}
    sound = make_graph({"train": edges}, relations, partitions, name="sound")
    last = sound.buckets("train")[0]  # (0, 0); inside out: among the last
    key = sound.keys(sound.slot_of("e", 0))[int(sound.edges("train", last).lhs[0])].as_py()
    at = next(i for i, edge in enumerate(edges) if edge[0] == key and in_bucket(sound, edge, last))
    edges[at] = (*edges[at][:3], 3e38)
    graph = make_graph({"train": edges}, relations, partitions, name="heavy")
    folder = tmp_path / "checkpoint"
    with pytest.raises(DataError, match=r"in epoch 1, bucket \(0, 0\)"):
        train(graph, folder, MODEL, but(CONFIG, epochs=1, order="inside_out"))
    trained = Trained(graph, folder)
    others = {bucket for bucket in graph.buckets("train") if 0 not in bucket}
    assert others <= set(trained.manifest.progress.done)
    assert last not in trained.manifest.progress.done
    for slot in graph.slots():
        assert np.isfinite(trained.vectors(slot)).all()
    content_of(graph, folder)


def in_bucket(graph: Graph, edge: tuple[Any, ...], bucket: Any) -> bool:
    lhs, rhs = (graph.keys(graph.slot_of("e", part)).to_pylist() for part in bucket)
    return edge[0] in lhs and edge[2] in rhs


def test_vectors_that_are_no_numbers_are_never_committed(
    make_graph: MakeGraph, tmp_path: Path
) -> None:
    """The loss was finite when it was measured; the only update after it overflows."""
    graph = make_graph({"train": [("a", "r", "b"), ("c", "r", "d")]}, {"r": ("e", "e")})
    model = ModelConfig(dim=4, init_scale=0.1)
    with pytest.raises(DataError, match=r"Training diverged: .* in epoch 1, bucket \(0, 0\)"):
        train(graph, tmp_path / "checkpoint", model, but(CONFIG, epochs=1, lr=3e38))
    assert not (tmp_path / "checkpoint" / MANIFEST).exists()


# --- what is written down ------------------------------------------------------------------------


def test_metrics_have_one_line_a_bucket(graph: Graph, tmp_path: Path) -> None:
    report = train(graph, tmp_path / "checkpoint", MODEL, CONFIG)
    found = records(tmp_path / "checkpoint")
    buckets = graph.buckets("train")
    assert Counter((r["epoch"], *r["bucket"]) for r in found) == Counter(
        (epoch, *bucket) for epoch in (1, 2) for bucket in buckets
    )
    assert [r["done"] for r in found] == [*range(1, len(buckets) + 1)] * 2
    assert [r["token"] for r in found] == [*range(1, 2 * len(buckets) + 1)]
    for record in found:
        bucket = tuple(record["bucket"])
        assert record["edges"] == graph.num_edges("train", bucket)
        assert record["buckets"] == len(buckets)
        assert record["edges_per_s"] > 0 and record["wait_s"] >= 0
        assert math.isfinite(record["loss"])
    assert report.num_edges == sum(r["edges"] for r in found) == 2 * graph.num_edges("train")
    assert report.loss == found[-1]["loss"]


def test_a_torn_last_line_of_the_metrics_is_dropped(graph: Graph, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    train(graph, folder, MODEL, but(CONFIG, epochs=1))
    whole = (folder / METRICS).read_text()
    (folder / METRICS).write_text(whole + '{"epoch": 2, "buck')
    train(graph, folder, MODEL, CONFIG)
    assert (folder / METRICS).read_text().startswith(whole)
    assert len(records(folder)) == 2 * len(graph.buckets("train"))


def test_the_loss_falls_and_the_first_one_is_that_of_chance(
    make_graph: MakeGraph, tmp_path: Path
) -> None:
    """Of n tied candidates the softmax loss is log n on either side."""
    graph = a_graph(make_graph, partitions=1)
    model = ModelConfig(dim=8, init_scale=1e-6)
    config = but(CONFIG, epochs=30, negatives={"in_batch": False, "uniform": 200}, lr=0.05)
    train(graph, tmp_path / "checkpoint", model, config)
    losses = [r["loss"] for r in records(tmp_path / "checkpoint")]
    assert losses[-1] < 0.9 * losses[0]
    one_step = but(config, epochs=1, step="exact", batch_size=10_000)
    weight = float(np.mean(graph.edges("train", graph.buckets("train")[0]).weight))
    first = train(graph, tmp_path / "first", model, one_step)
    # One batch a group, so nothing is learnt before it is measured. An edge's own entity is
    # left out of its negatives, so that n is a little below 201: less than 1/5 for the 5 tags.
    assert 2 * math.log(201 * 0.75) * weight < first.loss < 2 * math.log(201) * weight


def test_the_checkpoint_says_what_it_was_made_with(graph: Graph, tmp_path: Path) -> None:
    train(graph, tmp_path / "checkpoint", MODEL, CONFIG)
    manifest = Checkpoint(tmp_path / "checkpoint").read_manifest()
    assert manifest.config == {
        "model": MODEL.model_dump(mode="json"),
        "train": CONFIG.model_dump(mode="json"),
    }
    assert manifest.graph_digest == graph.digest
    assert set(manifest.tables) == set(graph.slots())
