"""`bench_softmax.py --only step|parity`: what a training step costs, and what it learns.

Ways to train the same layer, by name:

    torch full        torch.nn.functional.cross_entropy on all scores, SGD
    torch sampled     1,000 log-uniform draws a step shared by the batch, log-Q, torch's own sparse
                      gradients and SGD
    torch adaptive    torch.nn.AdaptiveLogSoftmaxWithLoss, AdaGrad (parity)
    full              FullSoftmax: exact, chunked, in place
    partition         LSHSoftmax as it comes
    sampled           LSHSoftmax without a retriever
    wta               the hashes of 2015 in place of the partition
    uncorrected       LSHSoftmax as it comes, with correction="none"
    paper             wta, no head, random classes, no correction: 2015 and SLIDE
"""

import argparse
import ctypes
import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from statistics import mean, median
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from embedsvc.outputs.full import FullSoftmax
from embedsvc.outputs.generator import Frequencies, Generator
from embedsvc.outputs.lsh_softmax import LSHSoftmax
from partitions.memory import forget_peak, peak_bytes

Line = dict[str, Any]
WTA = {"name": "wta", "permutations": 160, "window": 8, "bands": 32}


def layer_of(method: str, dim: int, classes: int, **settings: Any) -> FullSoftmax:
    if method == "full":
        return FullSoftmax(dim, classes, **_only(settings, "lr", "seed", "products"))
    special: dict[str, dict[str, Any]] = {
        "partition": {},
        "sampled": {"retriever": None},
        "wta": {"retriever": WTA},
        "uncorrected": {"correction": "none"},
        "paper": {"retriever": WTA, "head": 0, "sampler": UNIFORM, "correction": "none"},
    }
    return LSHSoftmax(dim, classes, **(settings | special[method]))


UNIFORM = {"name": "unigram", "alpha": 0.0}


def _only(settings: Line, *names: str) -> Line:
    return {name: settings[name] for name in names if name in settings}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    step = parser.add_argument_group("step")
    step.add_argument("--batches", type=int, nargs="+", default=[128, 512])
    step.add_argument("--step-head", type=int, default=1024)
    step.add_argument("--retrieved", type=int, default=12)
    step.add_argument("--train-probes", type=int)
    step.add_argument("--samples", type=int, default=1024)
    step.add_argument("--hard-rows", type=int, help="of a cell that a step of partition looks at")
    step.add_argument("--products", choices=["float32", "bfloat16"], default="float32")
    parity = parser.add_argument_group("parity")
    parity.add_argument("--parity-classes", type=int, default=100_000)
    parity.add_argument("--parity-dim", type=int, default=64)
    parity.add_argument("--parity-noise", type=float, default=1.0)
    parity.add_argument("--parity-lr", type=float, default=0.3)
    parity.add_argument("--parity-steps", type=int, default=6000)
    parity.add_argument("--parity-rows", type=int, default=100_000)
    parity.add_argument("--seeds", type=int, default=3)


# --- step -----------------------------------------------------------------------------------------


def step(a: argparse.Namespace) -> Iterator[Line]:
    """Zipf's frequencies; rows as trained (Generator.weights), so that an index has what to find.

    Methods run one after the other, each with examples of its own to warm up by and the same ones
    to be timed by; a step's time is the median of its rounds. active: classes that a step looks at.
    upkeep_share: of the step, what the index needs to follow it by `touch`. Rebuilds are in no
    step; rebuild_s is what one takes. extra_mb: memory beside weights and optimizer state, as the
    most that the process held in a step less what it held before the first one; index_mb of an
    index was there by then. threads: all cores.
    """
    if a.quick:
        a.classes, a.rounds = 50_000, 2
    generator = Generator(a.classes, a.dim, seen=float(a.classes), noise=3.0, seed=a.seed)
    for batch in a.batches:
        for method in a.methods or ["full", "sampled", "partition", "wta", *TORCH]:
            if method in TORCH:
                line = _torch_step(a, method, batch, generator)
            else:
                line = _own_step(a, method, batch, generator)
            yield {"classes": a.classes, "dim": a.dim} | line


def _own_step(a: argparse.Namespace, method: str, batch: int, generator: Generator) -> Line:
    settings = {"frequencies": generator.probability_C, "lr": 1e-4, "seed": a.seed}
    settings["products"] = a.products
    if method != "full":
        settings |= {"head": a.step_head, "train_probes": a.train_probes, "retrieved": a.retrieved}
        settings |= {"samples": a.samples, "auto_rebuild": False}
        if a.hard_rows and method == "partition":
            settings["retriever"] = {"name": "partition", "hard_rows": a.hard_rows}
    _load_kernels(method, a.dim, batch, settings)
    layer = layer_of(method, a.dim, a.classes, **settings)
    layer.optimizer_state.zero_()  # in memory, as is the weight
    weight, bias = generator.weights()
    layer.weight.data.copy_(torch.from_numpy(weight))
    layer.bias.data.copy_(torch.from_numpy(bias))  # type: ignore[union-attr]
    del weight, bias
    rebuild_s, retriever = 0.0, getattr(layer, "retriever", None)
    if isinstance(layer, LSHSoftmax):
        start = perf_counter()
        layer.rebuild()
        rebuild_s = perf_counter() - start
    active: list[int] = []

    def one(hidden: Tensor, target: Tensor) -> None:
        before = int(layer.num_touches[0]) if isinstance(layer, LSHSoftmax) else 0
        layer(hidden, target).loss.backward()
        if isinstance(layer, LSHSoftmax):
            active.append(int(layer.num_touches[0]) - before + len(layer._ranks().head))

    rounds = a.rounds if method == "full" else 40 * a.rounds
    steps = Steps(one, batch, generator)
    steps.warm_up(max(1, rounds // 10))
    spent = retriever.upkeep_s if retriever else 0.0
    times, cpu = steps.run(range(rounds))
    upkeep = (retriever.upkeep_s - spent) / sum(times) if retriever else 0.0
    return {
        "method": method,
        "batch": batch,
        "active": round(mean(active)) if active else a.classes,
        "step_ms": round(median(times) * 1e3, 3),
        "step_ms_min": round(min(times) * 1e3, 3),
        "cpu_ms": round(cpu * 1e3, 3),
        "upkeep_share": round(upkeep, 4),
        "extra_mb": round(steps.extra_bytes / 1e6, 1),
        "index_mb": round(retriever.num_bytes / 1e6, 1) if retriever else 0,
        "rebuild_s": round(rebuild_s, 1),
        "rounds": rounds,
    }


def _load_kernels(method: str, dim: int, batch: int, settings: Line) -> None:
    """By a step of a small layer: they are the process's, and no layer's."""
    classes = 2000
    layer = layer_of(method, dim, classes, **(settings | {"frequencies": np.ones(classes)}))
    hidden = torch.randn(batch, dim, requires_grad=True)
    layer(hidden, torch.randint(classes, (batch,))).loss.backward()


class Steps:
    """A layer's steps, timed, and the memory they take beside what was there before the first."""

    def __init__(
        self, one: Callable[[Tensor, Tensor], None], batch: int, generator: Generator
    ) -> None:
        self._one, self._batch, self._generator = one, batch, generator
        gc.collect()
        with suppress(AttributeError):  # what a build freed is the system's again
            ctypes.CDLL(None).malloc_trim(0)
        self._before = self._most = held_bytes()

    @property
    def extra_bytes(self) -> int:
        return self._most - self._before

    def warm_up(self, rounds: int) -> None:
        self.run(range(_WARM_UP, _WARM_UP + rounds))

    def run(self, seeds: Iterable[int]) -> tuple[list[float], float]:
        """Seconds of each round, and CPU seconds of a round on average."""
        times = []
        cpu = 0.0
        for seed in seeds:
            x, y = self._generator.examples(self._batch, seed)
            hidden, target = torch.from_numpy(x).requires_grad_(), torch.from_numpy(y)
            forget_peak()  # of making examples; and of a build before the first step
            start, start_cpu = perf_counter(), process_time()
            self._one(hidden, target)
            times.append(perf_counter() - start)
            cpu += process_time() - start_cpu
            self._most = max(self._most, peak_bytes())
        return times, cpu / len(times)


_WARM_UP = 1_000_000  # seeds from here on, of examples that no timed round sees


def held_bytes() -> int:
    """Memory of this process now: VmRSS."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


TORCH = ("torch sampled", "torch full")


def _torch_step(a: argparse.Namespace, method: str, batch: int, generator: Generator) -> Line:
    sampled = method == "torch sampled"
    weight = torch.from_numpy(generator.weights()[0])
    rows = nn.Parameter(weight)
    optimizer = torch.optim.SGD([rows], lr=1e-4)
    draws = 1000
    classes = a.classes
    order = torch.from_numpy(np.argsort(-generator.probability_C, kind="stable"))
    rank = torch.empty_like(order)
    rank[order] = torch.arange(classes)

    def log_expected(at: Tensor) -> Tensor:
        chance = torch.log1p(1 / (at + 1.0)) / np.log(classes + 1.0)
        return torch.log(-torch.expm1(draws * torch.log1p(-chance)))

    def one_sampled(hidden: Tensor, target: Tensor) -> None:
        at = (torch.exp(torch.rand(draws) * np.log(classes + 1.0)).long() - 1).clamp(
            max=classes - 1
        )
        at, goal = at.unique(), rank[target]
        own = functional.embedding(target, rows, sparse=True)
        others = functional.embedding(order[at], rows, sparse=True)
        label = (hidden * own).sum(1) - log_expected(goal)
        scores = hidden @ others.T - log_expected(at)
        scores = scores.masked_fill(goal[:, None] == at, -torch.inf)
        scores = torch.cat([label[:, None], scores], 1)
        optimizer.zero_grad()
        functional.cross_entropy(scores, torch.zeros_like(target)).backward()
        optimizer.step()

    def one_full(hidden: Tensor, target: Tensor) -> None:
        optimizer.zero_grad()
        functional.cross_entropy(hidden @ rows.T, target).backward()
        optimizer.step()

    rounds = 40 * a.rounds if sampled else 2
    one = one_sampled if sampled else one_full
    steps = Steps(one, batch, generator)
    steps.warm_up(max(1, rounds // 10))
    times, cpu = steps.run(range(rounds))
    return {
        "method": method,
        "batch": batch,
        "active": draws if sampled else classes,
        "step_ms": round(median(times) * 1e3, 3),
        "step_ms_min": round(min(times) * 1e3, 3),
        "cpu_ms": round(cpu * 1e3, 3),
        "upkeep_share": 0,
        "extra_mb": round(steps.extra_bytes / 1e6, 1),
        "rounds": rounds,
    }


# --- parity ---------------------------------------------------------------------------------------


def parity(a: argparse.Namespace) -> Iterator[Line]:
    """Classes of a generator, learnt from equally many examples by each method, at each seed.

    All methods see the same examples through towers that begin alike, at one lr, chosen for the
    full softmax. p1, r10, nll: of all test examples, by a scan of all classes, the exact softmax.
    seconds are of training alone, without making examples; cpu_seconds of all cores.
    """
    if a.quick:
        a.parity_classes, a.parity_steps, a.parity_rows, a.seeds = 2000, 300, 2000, 1
    for generator in a.generators or ("zipf", "flat"):
        full: Line = {}
        for method in a.methods or ["full", "partition", "sampled", "uncorrected", "paper"]:
            seeds = range(a.seed, a.seed + a.seeds)
            runs = [_learn(a, method, generator, seed) for seed in seeds]
            line: Line = {"method": method, "generator": generator, "seeds": a.seeds}
            line |= {key: round(mean(r[key] for r in runs), 5) for key in runs[0]}
            full = line if method == "full" else full
            if full:
                line["p1_full"], line["seconds_full"] = full["p1"], full["seconds"]
                line["p1_ratio"] = round(line["p1"] / full["p1"], 4)
                line["r10_ratio"] = round(line["r10"] / full["r10"], 4)
                line["nll_gap"] = round(line["nll"] - full["nll"], 4)
            line["p1_of_seeds"] = [round(r["p1"], 4) for r in runs]
            yield line


def _learn(a: argparse.Namespace, method: str, name: Frequencies, seed: int) -> Line:
    dim = a.parity_dim
    generator = Generator(a.parity_classes, dim, frequencies=name, noise=a.parity_noise, seed=seed)
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # of the tower, which is small; layers have threads of their own
    tower = nn.Linear(dim, dim)
    settings: Line = {"frequencies": generator.probability_C, "lr": a.parity_lr, "seed": seed}
    layer = layer_of(method, dim, a.parity_classes, **settings)
    optimizer = torch.optim.Adagrad(tower.parameters(), lr=0.02)
    seconds = cpu_seconds = 0.0
    for number in range(a.parity_steps):
        x, y = generator.examples(128, 1_000_000 * seed + number)
        hidden, target = torch.from_numpy(8 * x), torch.from_numpy(y)
        start, cpu = perf_counter(), process_time()
        loss = layer(tower(hidden), target).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds += perf_counter() - start
        cpu_seconds += process_time() - cpu
    tower.eval(), layer.eval()
    return _judge(a, layer, tower, generator) | {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "classes": a.parity_classes,
        "examples": 128 * a.parity_steps,
    }


@torch.no_grad()
def _judge(
    a: argparse.Namespace, layer: FullSoftmax, tower: nn.Module, generator: Generator
) -> Line:
    found = {"p1": 0.0, "r10": 0.0, "nll": 0.0, "r10_index": 0.0}
    rows, chunk = a.parity_rows, min(1000, a.parity_rows)
    for begin in range(0, rows, chunk):
        x, y = generator.examples(chunk, 10**12 + begin)
        hidden, target = tower(torch.from_numpy(8 * x)), torch.from_numpy(y)
        share = chunk / rows
        best = FullSoftmax.topk(layer, hidden, 10).indices
        found["nll"] += layer(hidden, target).loss.item() * share
        found["p1"] += (best[:, 0] == target).float().mean().item() * share
        found["r10"] += (best == target[:, None]).any(1).float().mean().item() * share
        index = layer.topk(hidden, 10).indices
        found["r10_index"] += (index == target[:, None]).any(1).float().mean().item() * share
    return found
