"""A published version, a server that answers from it, and a Redis."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.client import Client
from serving.embedded import EmbeddedRedis
from tests.serving.toy import Toy, client_of, publish


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return publish(tmp_path / "published")


@pytest.fixture(scope="session")
def shared_toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """For tests that only ask."""
    return publish(tmp_path_factory.mktemp("shared") / "published")


@pytest.fixture(scope="session")
def client(shared_toy: Toy) -> Iterator[Client]:
    with client_of(shared_toy.root) as client:
        yield client


@pytest.fixture
def redis_server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis() as server:
        yield server
