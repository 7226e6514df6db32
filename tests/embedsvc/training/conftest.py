"""Training in a process of its own, without paying for its imports each time."""

import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from embedsvc.config import ModelConfig, TrainConfig
from embedsvc.training.trainer import train
from partitions.graph import Graph

StartTraining = Callable[[Graph, Path, ModelConfig, TrainConfig], BaseProcess]


@pytest.fixture
def start_training() -> Iterator[StartTraining]:
    """A fork of a server that has imported everything and trained nothing: there at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "embedsvc.training.trainer"])
    started: list[BaseProcess] = []

    def start(graph: Graph, folder: Path, model: ModelConfig, config: TrainConfig) -> BaseProcess:
        process = context.Process(target=train, args=(graph, folder, model, config))
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()
        process.close()
