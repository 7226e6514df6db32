"""The memory plan is said beforehand, refuses what can't fit, and holds."""

import json
import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedsvc.config import ModelConfig, NegativesConfig, TrainConfig
from embedsvc.graph import every
from embedsvc.graph.batches import Batcher, Group
from embedsvc.graph.negatives import Sampling
from embedsvc.graph.products import fast_bfloat16
from embedsvc.training.plan import (
    MemoryPlan,
    advise,
    batching_bytes,
    check_device,
    check_memory,
    plan_memory,
)
from embedsvc.training.trainer import train
from partitions.edges import Edges
from partitions.errors import ConfigError
from partitions.graph import Graph
from partitions.memory import PANDAS_BYTES
from partitions.schema import Slot

MakeGraph = Callable[..., Graph]


def a_graph(make_graph: MakeGraph, partitions: int, num_edges: int = 40) -> Graph:
    edges = [(f"u{i % 40}", "buys", f"i{i % 7}") for i in range(num_edges)]
    return make_graph(
        {"train": edges},
        {"buys": ("user", "item")},
        {"user": partitions},
        name=f"graph-{partitions}-{num_edges}",
    )


def test_the_plan_counts_what_is_held(make_graph: MakeGraph) -> None:
    one, four = a_graph(make_graph, 1), a_graph(make_graph, 4)
    model, config = ModelConfig(dim=99), TrainConfig(buffer=2)
    row = 100 * 4
    assert plan_memory(one, model, config).tables == (40 + 7) * row
    sizes = sorted(four.num_rows(slot) for slot in four.slots() if slot.entity_type == "user")
    assert plan_memory(four, model, config).tables == (sizes[-1] + sizes[-2] + 7) * row
    all_four = TrainConfig(buffer=8)
    assert plan_memory(four, model, all_four).tables == (40 + 7) * row
    assert plan_memory(four, model, config).prefetch == sizes[-3] * row
    assert plan_memory(four, model, TrainConfig(buffer=2, prefetch=9)).total == (
        plan_memory(four, model, all_four).total
    )
    assert plan_memory(four, model, all_four).prefetch == 0
    assert plan_memory(one, model, config).edges > plan_memory(four, model, config).edges


def test_the_plan_counts_the_numbers_of_the_optimizer_and_of_short_vectors(
    make_graph: MakeGraph,
) -> None:
    graph, model = a_graph(make_graph, 1), ModelConfig(dim=10)
    sizes = {
        setting: plan_memory(graph, model, TrainConfig.model_validate({key: setting})).tables
        for key, setting in [
            *(("optimizer", name) for name in ("rowwise_adagrad", "adagrad", "adam")),
            *(("precision", name) for name in ("float32", "bfloat16", "float16")),
        ]
    }
    bytes_a_row = {"rowwise_adagrad": 44, "adagrad": 80, "adam": 88}
    bytes_a_row |= {"float32": 44, "bfloat16": 24, "float16": 24}
    assert sizes == {name: (40 + 7) * count for name, count in bytes_a_row.items()}


def test_larger_batches_and_more_negatives_plan_for_more(make_graph: MakeGraph) -> None:
    graph = a_graph(make_graph, 1, num_edges=200)

    def batch(**settings: object) -> int:
        sizes = {"batch_size": 1000, "chunk_size": 50, "threads": 1, "step": "exact"}
        config = TrainConfig.model_validate(sizes | settings)
        return plan_memory(graph, ModelConfig(), config).batch

    assert batch() < batch(batch_size=2000) < batch(batch_size=2000, negatives={"uniform": 500})
    assert batch(negatives={"in_batch": False}) < batch()
    fast = batch(step="fast")
    assert fast == batch(step="fast", batch_size=2000), "its unit of work is the chunk"
    assert fast < batch(step="fast", chunk_size=100)
    assert fast < batch(step="fast", negatives={"uniform": 500})
    assert batch(step="fast", threads=3) == 3 * fast
    whole = batch(step="fast", chunk_size=200)
    assert whole == batch(step="fast", batch_size=10**6, chunk_size=10**6), "a bucket is a chunk"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"chunk_size": 200, "negatives": {"uniform": 20_000}},
            "work on a batch, 1[0-9]{2} MB: use a smaller train.chunk_size, "
            "train.negatives.uniform or model.dim, fewer train.threads, or raise train.memory_mb.",
        ),
        (
            {"step": "exact", "batch_size": 10**6},
            "work on a batch, [0-9,]* MB: use a smaller train.batch_size, "
            "train.negatives.uniform or model.dim, or raise train.memory_mb.",
        ),
        (
            {"negatives": {"all": True}, "threads": 500},
            "work on a batch, [0-9]* MB: use more partitions (now 1), a smaller "
            "train.chunk_size or model.dim, fewer train.threads, or raise train.memory_mb.",
        ),
    ],
    ids=["fast", "exact", "all"],
)
def test_a_refusal_names_what_would_help(
    settings: dict[str, object], sentence: str, make_graph: MakeGraph
) -> None:
    graph, model = a_graph(make_graph, 1, num_edges=200), ModelConfig()
    config = TrainConfig.model_validate({"memory_mb": 100, "threads": 1} | settings)
    with pytest.raises(ConfigError) as refused:
        check_memory(plan_memory(graph, model, config), graph, model, config)
    pattern = "most of it is for " + sentence.replace("(", r"\(").replace(")", r"\)")
    assert re.search(pattern, str(refused.value)), str(refused.value)


def test_a_refusal_names_the_largest_part(make_graph: MakeGraph) -> None:
    graph, model, config = a_graph(make_graph, 4), ModelConfig(), TrainConfig(memory_mb=100)
    part = {"tables": 0, "prefetch": 0, "edges": 0, "batch": 0, "evaluation": 0}
    for name, sentence in {
        "tables": "tables in memory, 90 MB: use more partitions (now 4), a smaller train.buffer "
        "or model.dim, or raise",
        "prefetch": "tables loaded ahead, 90 MB: use a smaller train.prefetch, more partitions",
        "edges": "the largest bucket's edges, 90 MB: use more partitions (now 4), or raise",
        "evaluation": "early stopping, 90 MB: use a smaller train.early_stopping.max_edges",
    }.items():
        with pytest.raises(ConfigError) as refused:
            check_memory(MemoryPlan(**part | {name: 90_000_000}), graph, model, config)
        assert sentence in str(refused.value)


@pytest.mark.parametrize("num_rows", [5_000, 400_000])
@pytest.mark.parametrize("corrects", [False, True])
@pytest.mark.parametrize(
    "negatives",
    [NegativesConfig(), NegativesConfig(degree=50), NegativesConfig(in_batch=False, degree=50)],
    ids=["in_batch", "degree", "only_degree"],
)
def test_a_bucket_s_edges_take_at_most_what_is_planned_while_batches_are_made(
    negatives: NegativesConfig, corrects: bool, num_rows: int
) -> None:
    """Measured by what numpy asks for. At most twice as much is planned; tables dwarf it."""
    num_edges, rng = 300_000, np.random.default_rng(1)
    slots = [Slot("a", 0), Slot("b", 0)]
    lhs, rhs = rng.integers(0, num_rows, (2, num_edges)).astype(np.uint32)
    edges = Edges(lhs, rng.integers(0, 5, num_edges).astype(np.uint8), rhs)
    sampling = Sampling(negatives.degree, in_batch=negatives.in_batch, log_q=corrects)
    rows = dict.fromkeys(slots, num_rows)
    batcher = Batcher([Group(*slots, "identity")] * 5, rows, 1000, 50, 50, True, sampling)
    tracemalloc.start()
    for _ in zip(range(3), batcher.batches(edges, rng), strict=False):
        pass
    _, measured = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    planned = batching_bytes(num_edges, [num_rows] * 2, negatives, corrects)
    a_batch = 2_000_000  # planned elsewhere
    assert measured - a_batch < planned < 2 * measured + a_batch, measured / num_edges


def test_what_the_fast_step_does_not_cover_is_planned_as_the_exact_one(
    make_graph: MakeGraph,
) -> None:
    graph, l2 = a_graph(make_graph, 1), ModelConfig(comparator="l2")
    exact, auto = TrainConfig(step="exact"), TrainConfig(step="auto")
    assert plan_memory(graph, l2, auto) == plan_memory(graph, l2, exact)
    assert plan_memory(graph, ModelConfig(), auto) != plan_memory(graph, ModelConfig(), exact)
    unused = ModelConfig(operator="rotate", operators={"buys": "identity"})
    assert plan_memory(graph, unused, auto) == plan_memory(graph, ModelConfig(), auto)


@pytest.mark.parametrize("products", ["float32", "bfloat16"])
def test_1_vs_all_of_the_fast_step_plans_for_what_its_kernel_says(
    make_graph: MakeGraph, products: str
) -> None:
    graph, model = a_graph(make_graph, 1, num_edges=200), ModelConfig(dim=20)

    def batch(**changes: object) -> int:
        settings = {"negatives": {"all": True}, "products": products, "threads": 1}
        config = TrainConfig.model_validate(settings | changes)
        return plan_memory(graph, model, config).batch

    halves = products == "bfloat16" and fast_bfloat16()
    work = every.bytes_of(40, 7, 50, 20, halves)
    assert work <= batch() <= work + 200 * 64, "and a run's places, 52 bytes an edge"
    more = every.bytes_of(40, 7, 100, 20, halves) - work
    assert batch(chunk_size=100) - batch() == more > 0
    assert batch(threads=3) == 3 * batch()


def test_the_plan_is_one_line_whose_parts_add_up() -> None:
    plan = MemoryPlan(
        tables=3_000_000, prefetch=2_000_000, edges=1_000_000, batch=4_000_000, process=10_000_000
    )
    assert plan.total == 20_000_000
    assert str(plan) == (
        "memory plan: 20 MB (tables in memory 3, loaded ahead 2, largest bucket 1, "
        "batch 4, process 10)"
    )


def test_a_gpu_is_planned_for_apart_and_its_tables_take_no_memory_here(
    make_graph: MakeGraph,
) -> None:
    graph, model = a_graph(make_graph, 4), ModelConfig(dim=99)
    cpu = plan_memory(graph, model, TrainConfig(step="exact", batch_size=10_000))
    gpu = plan_memory(graph, model, TrainConfig(device="cuda"))
    assert cpu.device == 0
    assert gpu.device == cpu.tables + cpu.prefetch + cpu.batch
    assert gpu.tables == 0 and gpu.edges == cpu.edges
    assert gpu.total == sum(vars(gpu).values()) - gpu.device
    process, device = (f"{size / 1e6:,.0f}" for size in (gpu.process, gpu.device))
    assert str(gpu).endswith(f"process {process}), and {device} MB on the device")
    check_device(gpu, gpu.device, graph)
    with pytest.raises(ConfigError, match=r"MB are free there\. Use more partitions \(now 4\)"):
        check_device(gpu, gpu.device - 1, graph)


def test_a_plan_that_does_not_fit_is_refused_before_anything_is_written(
    make_graph: MakeGraph, tmp_path: Path
) -> None:
    graph = a_graph(make_graph, 4)
    with pytest.raises(ConfigError) as refused:
        train(graph, tmp_path / "checkpoint", ModelConfig(), TrainConfig(memory_mb=100))
    plan = plan_memory(graph, ModelConfig(), TrainConfig())
    assert str(refused.value).startswith(
        f"Training plans for {plan.total / 1e6:,.0f} MB and 100 MB are free. Beside the program "
        f"itself, {plan.process / 1e6:,.0f} MB, most of it is for "
    )
    assert not (tmp_path / "checkpoint").exists()
    advice = advise(graph, ModelConfig(), TrainConfig(memory_mb=100))
    assert advice[-1] == str(refused.value) and "are free: " not in "".join(advice)
    assert "no partitioning needed" in advise(graph, ModelConfig(), TrainConfig(memory_mb=9000))[-1]


def test_memory_mb_is_the_limit_to_the_byte(make_graph: MakeGraph) -> None:
    graph, limited = a_graph(make_graph, 1), TrainConfig(memory_mb=500)
    check_memory(MemoryPlan(0, 0, 0, 500_000_000, 0), graph, ModelConfig(), limited)
    with pytest.raises(ConfigError):
        check_memory(MemoryPlan(0, 0, 0, 500_000_001, 0), graph, ModelConfig(), limited)


def test_without_a_limit_the_machine_is_the_limit(make_graph: MakeGraph) -> None:
    graph = a_graph(make_graph, 1)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    check_memory(MemoryPlan(1, 0, 0, 0, 0), graph, ModelConfig(), TrainConfig())
    with pytest.raises(ConfigError, match="are free"):
        check_memory(MemoryPlan(memory + 1, 0, 0, 0, 0), graph, ModelConfig(), TrainConfig())


_TRAIN = """
import gc, json, sys
from pathlib import Path
from embedsvc.config import ModelConfig, TrainConfig
from embedsvc.training.plan import plan_memory
from embedsvc.training.trainer import train
from partitions.graph import Graph
from partitions.memory import peak_bytes

graph, folder = Graph(Path(sys.argv[1])), Path(sys.argv[2])
model, base = ModelConfig(dim=120), TrainConfig(threads=1, buffer=3, step=sys.argv[3])
plans = []
for epochs in (1, 2):  # the second reads back what the first wrote
    config = base.model_copy(update={"epochs": epochs})
    plans.append(plan_memory(graph, model, config).total)
    train(graph, folder, model, config)
    gc.collect()
tables = plan_memory(graph, model, base).tables
print(json.dumps({"peak": peak_bytes(), "plan": max(plans), "tables": tables}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's VmHWM")
@pytest.mark.parametrize(
    ("step", "partitions", "num_edges"),
    [
        ("fast", 8, 60_000),
        pytest.param("fast", 1, 1_500_000, marks=pytest.mark.slow),
        pytest.param("exact", 1, 700_000, marks=pytest.mark.slow),
        pytest.param("exact", 8, 60_000, marks=pytest.mark.slow),
        pytest.param("device", 8, 60_000, marks=pytest.mark.slow),
    ],
)
def test_the_measured_peak_is_what_the_plan_said(
    step: str, partitions: int, num_edges: int, make_graph: MakeGraph, tmp_path: Path
) -> None:
    """Within a tenth. 150 MB of tables in memory, in 8 partitions 3 and one more: 200 MB."""
    num = 310_000 if partitions == 1 else 310_000 * 8 // 3
    drawn = np.random.default_rng(1).integers(0, num, (num_edges, 2)).tolist()
    edges = [(a, "r", b) for a, b in drawn]
    never = [(i, "r", i + 1) for i in range(0, num, 2)]
    graph = make_graph({"train": edges, "test": never}, {"r": ("e", "e")}, {"e": partitions})
    # The first use of the kernel compiles it, which takes memory that is not planned for.
    train(a_graph(make_graph, 1), tmp_path / "warm", ModelConfig(dim=120), TrainConfig(threads=1))
    found = subprocess.run(
        [sys.executable, "-c", _TRAIN, graph.path, tmp_path / "checkpoint", step],
        capture_output=True,
        text=True,
        check=True,
    )
    measured = json.loads(found.stdout)
    assert 140e6 < measured["tables"] < 160e6
    assert 0.9 * measured["plan"] < measured["peak"] < 1.05 * measured["plan"], measured


_TRAIN_LIMITED = """
import resource, sys
limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
from pathlib import Path
from embedsvc.config import ModelConfig, TrainConfig
from embedsvc.training.trainer import train
from partitions.graph import Graph

config = TrainConfig(epochs=2, threads=1, buffer=int(sys.argv[4]), memory_mb=10**6)
print(train(Graph(Path(sys.argv[1])), Path(sys.argv[2]), ModelConfig(dim=400), config).num_edges)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only there RLIMIT_DATA counts mappings")
def test_tables_three_times_the_memory_allowed_are_trained_to_the_end(
    make_graph: MakeGraph, tmp_path: Path
) -> None:
    """RLIMIT_DATA counts what a process may write to, wherever it got it: the heap, mappings,
    stacks. RLIMIT_AS would count addresses too, of which libraries take three times as much as
    they use; there is no limit on resident memory that Linux heeds."""
    edges = [(f"u{i}", "buys", f"i{i % 1000}") for i in range(1_000_000)]
    graph = make_graph({"train": edges}, {"buys": ("user", "item")}, {"user": 64})
    row_bytes = 401 * 4
    limit = sum(map(graph.num_rows, graph.slots())) * row_bytes // 3 + PANDAS_BYTES
    # The first use of the kernel compiles it, for which so little is too little.
    train(a_graph(make_graph, 1), tmp_path / "warm", ModelConfig(dim=400), TrainConfig(threads=1))

    def run(buffer: int) -> subprocess.CompletedProcess[str]:
        script = [sys.executable, "-c", _TRAIN_LIMITED, graph.path, tmp_path / str(buffer)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [*script, str(limit), str(buffer)], capture_output=True, text=True, env=environment
        )

    few, all_of_them = run(2), run(64)
    assert few.returncode == 0, few.stderr
    assert few.stdout.split() == [str(2 * len(edges))]
    assert all_of_them.returncode and "Unable to allocate" in all_of_them.stderr
