"""The benchmark of steps: what its numbers are of."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from embedsvc.outputs.generator import Generator
from scripts import bench_softmax_training as bench


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(words)


def test_products_reach_every_layer_and_the_default_is_the_layers_own() -> None:
    for method in ("full", "partition"):
        layer = bench.layer_of(method, 4, 9, products="bfloat16", lr=0.1, seed=1)
        assert layer._settings["products"] == "bfloat16"
    own = bench.layer_of("partition", 4, 9, frequencies=np.ones(9))
    assert arguments().retrieved == own.retrieved  # type: ignore[attr-defined]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets a peak")
def test_steps_warm_up_by_other_examples_and_count_the_memory_of_a_step_alone() -> None:
    seen: list[bytes] = []

    def one(hidden: Tensor, target: Tensor) -> None:
        seen.append(hidden.detach().numpy().tobytes())
        torch.ones(20_000_000)  # 80 MB, gone again

    before = np.ones(50_000_000)  # 400 MB, before the first step
    steps = bench.Steps(one, 4, Generator(50, 8, seed=1))
    del before
    steps.warm_up(2)
    times, _ = steps.run(range(3))
    assert len(times) == 3 and len(set(seen)) == 5
    assert steps.extra_bytes == 0  # less is held than before
    steps = bench.Steps(one, 4, Generator(50, 8, seed=1))
    steps.run([1])
    assert 75e6 < steps.extra_bytes < 90e6
