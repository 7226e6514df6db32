"""Training in a process of its own, without paying for its imports each time."""

import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from embedsvc.config import ModelConfig, OutputConfig, TrainConfig
from embedsvc.training import outputs
from embedsvc.training.trainer import train
from partitions.graph import Graph

StartTraining = Callable[[Graph, Path, ModelConfig, TrainConfig], BaseProcess]
StartOutput = Callable[[Graph, Path, OutputConfig, TrainConfig], BaseProcess]


def started(target: Any) -> Iterator[Callable[..., BaseProcess]]:
    """A fork of a server that has imported everything and trained nothing: there at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "embedsvc.training.outputs"])
    all_of_them: list[BaseProcess] = []

    def start(*args: Any) -> BaseProcess:
        process = context.Process(target=target, args=args)
        process.start()
        all_of_them.append(process)
        return process

    yield start
    for process in all_of_them:
        process.kill()
        process.join()
        process.close()


@pytest.fixture
def start_training() -> Iterator[StartTraining]:
    yield from started(train)


@pytest.fixture
def start_output() -> Iterator[StartOutput]:
    """The same of [output]."""
    yield from started(outputs.train)
