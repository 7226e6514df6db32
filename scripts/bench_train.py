#!/usr/bin/env python3
"""How fast the fast CPU step trains, beside the exact step and the machine's own sgemm.

    scripts/bench_train.py             5 M edges over 200,000 entities, d = 100, chunks of 50 edges
                                       with in-batch and 50 uniform negatives a side, softmax
    scripts/bench_train.py --quick     1 M edges, within a minute
    scripts/bench_train.py --swap      the whole trainer: 4 tables of 16 in memory, the others on
                                       disk, beside all in memory (bench_swap.py); also --quick
    scripts/bench_train.py --device cuda          the step of a GPU; --tf32, --batch-size; --quick
    scripts/bench_train.py --device cpu --quick   the same code where there is none

Entities form communities of 16, and edges stay inside. Speeds are medians of rounds in which sgemm,
the fast step and the exact one take turns, so that whatever else the machine does hits all alike.
The MRR is that of held-out edges of a smaller graph of that kind, filtered, after equal epochs.
Prints one JSON line. `fraction_of_sgemm` counts the operations that the chunks' products need,
6 d (C + 2 U) an edge, against the faster of two libraries' large products on all cores;
`fraction_by_cpu_s` is the same per second of CPU time, which stands on a busy machine too. With
--device the base is a large product on that device, in TF32 where the step uses it:
`matmul_gflops`, `fraction_of_matmul`; tables stay on the device from round to round.
"""

import argparse
import json
import resource
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import monotonic, process_time
from typing import Any

import numba
import numpy as np
import torch
from bench_swap import measure_swaps
from facts import facts
from numpy.typing import NDArray

from embedsvc.config import GPU_BATCH_SIZE, NegativesConfig, TrainConfig
from embedsvc.graph.batches import Group
from embedsvc.graph.comparators import COMPARATORS
from embedsvc.graph.device import Copies, DeviceBatches
from embedsvc.graph.fast import FastStep, num_cores, one_blas_thread
from embedsvc.graph.losses import LOSSES
from embedsvc.graph.model import GraphModel, RelationParameters
from embedsvc.graph.operators import OPERATORS
from embedsvc.graph.optimizers import RowwiseAdagrad
from embedsvc.graph.step import ExactBatches, Step
from embedsvc.training.buffer import IN_MEMORY, Placement
from partitions.edges import Edges
from partitions.schema import Slot
from partitions.tables import Table

COMMUNITY = 16
SLOT = Slot("node", 0)
GROUPS = [Group(SLOT, SLOT, "identity")]
LR = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--entities", type=int, default=200_000)
    parser.add_argument("--edges", type=int, default=5_000_000)
    parser.add_argument("--twin-edges", type=int, default=500_000, help="of the exact step a round")
    parser.add_argument("--dim", type=int, default=100)
    parser.add_argument("--chunk", type=int, default=50)
    parser.add_argument("--uniform", type=int, default=50)
    parser.add_argument("--threads", type=int, default=num_cores())
    parser.add_argument("--products", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", choices=["cpu", "cuda"])
    parser.add_argument("--batch-size", type=int, default=GPU_BATCH_SIZE, help="of --device")
    parser.add_argument("--tf32", action="store_true", help="of --device")
    parser.add_argument("--swap", action="store_true")
    parser.add_argument("--swap-entities", type=int, default=800_000, help="22 edges each")
    parser.add_argument("--swap-rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="of --swap")
    parser.add_argument("--folder", type=Path, help="where --swap puts its files; on a disk")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.edges, arguments.twin_edges, arguments.rounds = 1_000_000, 100_000, 3
        arguments.swap_entities, arguments.swap_rounds = 48_000, 1
    torch.set_num_threads(arguments.threads)
    if arguments.device:
        line = measure_device(arguments)
    else:
        line = measure_swaps(arguments) if arguments.swap else measure(arguments)
    line |= {"products": arguments.products, "seed": arguments.seed}
    print(json.dumps(line | facts() | {"cores": arguments.threads}))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    a = arguments
    edges = community_edges(a.edges, a.entities, a.seed)
    some = Edges(edges.lhs[: a.twin_edges], edges.rel[: a.twin_edges], edges.rhs[: a.twin_edges])
    fast, twin = steps(a)
    tables, twin_tables = ({SLOT: fresh(a.entities, a.dim, a.seed)} for _ in range(2))
    warm = Edges(edges.lhs[:1000], edges.rel[:1000], edges.rhs[:1000])
    for step in (fast, twin):  # compiles
        run(step, {SLOT: fresh(a.entities, a.dim, a.seed)}, warm, a.seed)
    own, other = own_sgemm(a.threads), torch_sgemm()
    flop = 6 * a.dim * (a.chunk + 2 * a.uniform)
    rounds: list[dict[str, float]] = []
    for number in range(a.rounds):
        own_gflops, own_gflop_per_cpu_s = own()
        sgemm = max(own_gflops, other())
        cpu = process_time()
        speed, loss = run(fast, tables, edges, number)
        cpu_speed = a.edges / (process_time() - cpu)
        twin_speed, _ = run(twin, twin_tables, some, number)
        rounds.append(
            {
                "edges_per_s": speed,
                "twin_edges_per_s": twin_speed,
                "ratio": speed / twin_speed,
                "sgemm_gflops": sgemm,
                "fraction_of_sgemm": speed * flop / sgemm / 1e9,
                "edges_per_cpu_s": cpu_speed,
                "fraction_by_cpu_s": cpu_speed * flop / own_gflop_per_cpu_s / 1e9,
                "loss": loss,
            }
        )
    middle = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    speeds = [r["edges_per_s"] for r in rounds]
    quality = {name: mrr(step, a) for name, step in zip(("fast", "twin"), steps(a), strict=True)}
    return {
        "edges_per_s": round(middle["edges_per_s"]),
        "edges_per_s_spread": [round(min(speeds)), round(max(speeds))],
        "twin_edges_per_s": round(middle["twin_edges_per_s"]),
        "ratio": round(middle["ratio"], 2),
        "sgemm_gflops": round(middle["sgemm_gflops"], 1),
        "fraction_of_sgemm": round(middle["fraction_of_sgemm"], 3),
        "edges_per_cpu_s": round(middle["edges_per_cpu_s"]),
        "fraction_by_cpu_s": round(middle["fraction_by_cpu_s"], 3),
        "dim": a.dim,
        "negatives": {"in_batch": a.chunk, "uniform": a.uniform},
        "entities": a.entities,
        "edges": a.edges,
        "loss": round(rounds[0]["loss"], 4),  # of the first pass, per edge
        "mrr_fast": round(quality["fast"], 4),
        "mrr_twin": round(quality["twin"], 4),
        "rounds": a.rounds,
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
    }


def measure_device(arguments: argparse.Namespace) -> dict[str, Any]:
    a, device = arguments, torch.device(arguments.device)
    torch.set_float32_matmul_precision("high" if a.tf32 else "highest")
    edges, copies = community_edges(a.edges, a.entities, a.seed), Copies(device)

    def step() -> Step:
        negatives, optimizer = NegativesConfig(uniform=a.uniform), RowwiseAdagrad()
        sizes = max(a.batch_size, a.chunk), a.chunk
        return DeviceBatches(a_model(a.dim), LR, LR, *sizes, negatives, optimizer, device)

    tables: dict[Slot, Any] = {SLOT: copies.place(fresh(a.entities, a.dim, a.seed))}
    warm = Edges(edges.lhs[:1000], edges.rel[:1000], edges.rhs[:1000])
    run(step(), {SLOT: copies.place(fresh(a.entities, a.dim, a.seed))}, warm, a.seed)
    trained, base = step(), matmul(device)
    flop = 6 * a.dim * (a.chunk + 2 * a.uniform)
    rounds: list[dict[str, float]] = []
    for number in range(a.rounds):
        gflops = base()
        speed, loss = run(trained, tables, edges, number)
        fraction = speed * flop / gflops / 1e9
        rounds.append({"speed": speed, "gflops": gflops, "fraction": fraction, "loss": loss})
    middle = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    speeds = [r["speed"] for r in rounds]
    on_cuda = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(device) if on_cuda else 0
    return {
        "device": torch.cuda.get_device_name(device) if on_cuda else "cpu",
        "edges_per_s": round(middle["speed"]),
        "edges_per_s_spread": [round(min(speeds)), round(max(speeds))],
        "matmul_gflops": round(middle["gflops"], 1),
        "fraction_of_matmul": round(middle["fraction"], 4),
        "tf32": a.tf32,
        "batch_size": a.batch_size,
        "dim": a.dim,
        "negatives": {"in_batch": a.chunk, "uniform": a.uniform},
        "entities": a.entities,
        "edges": a.edges,
        "loss": round(rounds[0]["loss"], 4),  # of the first pass, per edge
        "mrr": round(mrr(step(), a, copies=copies), 4),
        "rounds": a.rounds,
        "device_peak_mb": round(peak / 1e6),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
    }


# --- what is trained ------------------------------------------------------------------------------


def steps(a: argparse.Namespace) -> tuple[Step, Step]:
    """The fast step and its exact twin, with models of their own."""
    model = partial(a_model, a.dim)
    batch_size = max(TrainConfig().batch_size, a.chunk)
    return (
        FastStep(
            *(model(), LR, LR, a.chunk, True, a.uniform, a.threads),
            halves=a.products == "bfloat16",
        ),
        ExactBatches(model(), LR, LR, batch_size, a.chunk, NegativesConfig(uniform=a.uniform)),
    )


def a_model(dim: int) -> GraphModel:
    operators = {"identity": OPERATORS.build("identity")}
    return GraphModel(
        dim=dim,
        operators=operators,
        operator_of=("identity",),
        comparator=COMPARATORS.build("dot"),
        loss=LOSSES.build("softmax"),
        regularizer=None,
        reciprocal=False,
        parameters=RelationParameters.initial(operators, 1, dim, False),
    )


def community_edges(num_edges: int, num_entities: int, seed: int) -> Edges:
    """Both ends drawn evenly from one community; its members are scattered over the table."""
    rng = np.random.default_rng(seed)
    scattered = rng.permutation(num_entities).astype(np.uint32)
    lhs = rng.integers(0, num_entities // COMMUNITY * COMMUNITY, num_edges)
    step = rng.integers(1, COMMUNITY, num_edges)
    rhs = lhs // COMMUNITY * COMMUNITY + (lhs + step) % COMMUNITY
    return Edges(scattered[lhs], np.broadcast_to(np.uint8(0), num_edges), scattered[rhs])


def fresh(num_entities: int, dim: int, seed: int) -> Table:
    vectors = np.random.default_rng(seed).standard_normal((num_entities, dim), np.float32)
    vectors *= np.float32(1e-3)
    return Table(vectors, np.zeros(num_entities, np.float32))


def run(step: Step, tables: dict[Slot, Any], edges: Edges, seed: int) -> tuple[float, float]:
    """Edges a second, and loss an edge, of one pass."""
    start = monotonic()
    loss = sum(loss for _, loss in step(tables, edges, GROUPS, [seed]))
    return len(edges) / (monotonic() - start), loss / len(edges)


def mrr(step: Step, a: argparse.Namespace, epochs: int = 5, copies: Placement = IN_MEMORY) -> float:
    """Filtered, over both sides, of edges held out from 500 communities, 4 of an entity's 15.

    Half of the edges trained on are noise, drawn evenly, so that the answer isn't too easy.
    """
    num_entities = 500 * COMMUNITY
    rng = np.random.default_rng(a.seed)
    lhs, step_to = np.divmod(np.arange(num_entities * (COMMUNITY - 1)), COMMUNITY - 1)
    rhs = lhs // COMMUNITY * COMMUNITY + (lhs + step_to + 1) % COMMUNITY
    scattered = rng.permutation(num_entities).astype(np.uint32)
    pairs = np.stack([scattered[lhs], scattered[rhs]])[:, rng.permutation(len(lhs))]
    held_out, kept = np.split(pairs, [len(lhs) * 4 // (COMMUNITY - 1)], axis=1)
    tables = {SLOT: copies.place(fresh(num_entities, a.dim, a.seed))}
    noise = rng.integers(0, num_entities, kept.shape).astype(np.uint32)
    ends = np.concatenate([kept, noise], axis=1)
    edges = Edges(ends[0], np.broadcast_to(np.uint8(0), ends.shape[1]), ends[1])
    for epoch in range(epochs):
        run(step, tables, edges, epoch)
    true = np.zeros((num_entities, num_entities), np.bool_)
    true[pairs[0], pairs[1]] = True
    lhs_sample, rhs_sample = held_out[:, :4000]
    vectors = copies.fetch(tables[SLOT]).vectors
    both = [
        ranks(vectors, lhs_sample, rhs_sample, true),
        ranks(vectors, rhs_sample, lhs_sample, true.T),
    ]
    return float(np.mean(1 / np.concatenate(both)))


def ranks(
    vectors: NDArray[np.float32],
    query: NDArray[np.uint32],
    answer: NDArray[np.uint32],
    true: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Of each answer among all entities but the other true ones and the query itself."""
    scores = vectors[query] @ vectors.T
    rows = np.arange(len(query))
    wanted = scores[rows, answer]
    scores[true[query]] = -np.inf
    scores[rows, query] = -np.inf
    return 1 + (scores > wanted[:, None]).sum(axis=1)


# --- the machine ----------------------------------------------------------------------------------


@numba.njit(nogil=True)
def _products(a, b, out, count):  # type: ignore[no-untyped-def]
    for _ in range(count):
        np.dot(a, b, out)


def own_sgemm(threads: int, size: int = 1536, count: int = 4) -> Callable[[], tuple[float, float]]:
    """GFLOP/s of the kernel's own BLAS, products of its own for each thread; and per CPU second."""
    matrices = [np.ones((3, size, size), np.float32) for _ in range(threads)]

    def measure_gflops() -> tuple[float, float]:
        with one_blas_thread(), ThreadPoolExecutor(threads) as pool:
            start, cpu = monotonic(), process_time()
            list(pool.map(lambda m: _products(m[0], m[1], m[2], count), matrices))
            gflop = threads * count * 2 * size**3 / 1e9
            return gflop / (monotonic() - start), gflop / (process_time() - cpu)

    measure_gflops()
    return measure_gflops


def torch_sgemm(size: int = 2048, count: int = 6) -> Callable[[], float]:
    a, b, out = (torch.ones(size, size) for _ in range(3))

    def measure_gflops() -> float:
        start = monotonic()
        for _ in range(count):
            torch.mm(a, b, out=out)
        return count * 2 * size**3 / (monotonic() - start) / 1e9

    measure_gflops()
    return measure_gflops


def matmul(device: torch.device) -> Callable[[], float]:
    """GFLOP/s of a large product on the device, in the precision that is set."""
    size, count = (8192, 20) if device.type == "cuda" else (2048, 6)
    a, b, out = (torch.ones(size, size, device=device) for _ in range(3))

    def measure_gflops() -> float:
        start = monotonic()
        for _ in range(count):
            torch.mm(a, b, out=out)
        out[0, 0].item()  # waits
        return count * 2 * size**3 / (monotonic() - start) / 1e9

    measure_gflops()
    return measure_gflops


if __name__ == "__main__":
    main()
