#!/usr/bin/env python3
"""What training large outputs costs, what it learns, and how classes are found.

    scripts/bench_softmax.py --only step        1 M classes of 128 numbers, 10 minutes
    scripts/bench_softmax.py --only parity      100,000 classes, 3 seeds, some hours
    scripts/bench_softmax.py --only retrieval   1 M classes, half an hour
    scripts/bench_softmax.py --only real        shared data sets and code, half an hour
    scripts/bench_softmax.py --only step --quick            within a minute; so the others

Prints a JSON line for each method, then one with what they have in common. What is measured, and
how, is said in bench_softmax_training.py (step, parity), _retrieval.py and _real.py.
"""

import argparse
import json
import resource
from typing import Any

import bench_softmax_real
import bench_softmax_retrieval
import bench_softmax_training
import torch
from facts import facts

from embedsvc.graph.fast import num_cores

RUNS = {
    "step": bench_softmax_training.step,
    "parity": bench_softmax_training.parity,
    "retrieval": bench_softmax_retrieval.retrieval,
    "real": bench_softmax_real.real,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=list(RUNS), default="step")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--classes", type=int, default=1_000_000, help="of step and retrieval")
    parser.add_argument("--dim", type=int, default=128, help="of step and retrieval")
    parser.add_argument("--generators", nargs="+", help="of parity and retrieval")
    parser.add_argument("--methods", nargs="+", help="the first words of those to run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    for module in (bench_softmax_training, bench_softmax_retrieval, bench_softmax_real):
        module.add_arguments(parser)
    a = parser.parse_args()
    torch.set_num_threads(num_cores())
    for line in RUNS[a.only](a):
        show({"bench": a.only} | line)
    show({"bench": a.only} | around(a))


def show(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def around(a: argparse.Namespace) -> dict[str, Any]:
    return {
        "seed": a.seed,
        **facts(),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
    }


if __name__ == "__main__":
    main()
