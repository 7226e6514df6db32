"""The cache: Redis and its twin in memory behave alike, and Redis never fails its caller."""

import logging
import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest
import redis

from serving.cache import BlobCache, MemoryCache, RedisCache
from serving.embedded import EmbeddedRedis
from tests.serving.toy import wait_until

BLOBS = {"a": b"\x00\xff" * 50, "b": b"", "c": bytes(1 << 20)}


@pytest.fixture(params=["memory", "redis"])
def cache(request: pytest.FixtureRequest) -> Iterator[BlobCache]:
    if request.param == "memory":
        yield MemoryCache(ttl_s=100)
    else:
        made = RedisCache(request.getfixturevalue("redis_server").url, ttl_s=100)
        made.ping()
        yield made
        made.close()


def test_what_was_put_is_got_and_the_rest_is_none(cache: BlobCache) -> None:
    assert cache.get(["a", "b"]) == [None, None]
    cache.put(BLOBS)
    assert cache.get(["c", "nothing", "a", "b"]) == [BLOBS["c"], None, BLOBS["a"], b""]
    cache.put({"a": b"new"})
    assert cache.get(["a"]) == [b"new"]
    assert cache.renew(["a", "nothing", "b"]) == ["nothing"]
    assert cache.ping() and cache.outages == 0


def test_memory_forgets_what_is_not_renewed() -> None:
    now = 0.0
    cache = MemoryCache(10, lambda: now)
    cache.put({"kept": b"1", "left": b"2"})
    now = 8.0
    assert cache.renew(["kept"]) == []
    now = 12.0
    assert cache.get(["kept", "left"]) == [b"1", None]
    assert cache.renew(["left"]) == ["left"]


def test_redis_keys_expire_and_renewal_puts_it_off(redis_server: EmbeddedRedis) -> None:
    cache = RedisCache(redis_server.url, 100)
    cache.ping()
    cache.put({"a": b"1"})
    with redis.Redis.from_url(redis_server.url) as admin:
        assert 90 < admin.ttl("a") <= 100
        admin.expire("a", 5)
        assert cache.renew(["a"]) == []
        assert 90 < admin.ttl("a") <= 100
    cache.close()


def test_a_dead_redis_is_noticed_once_and_found_again(
    redis_server: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    states: list[bool] = []
    cache = RedisCache(redis_server.url, 100, states.append)
    assert cache.ping() and states == [True]
    assert redis_server.process
    os.kill(redis_server.process.pid, signal.SIGKILL)
    redis_server.process.wait()
    for _ in range(3):
        assert cache.get(["a", "b"]) == [None, None]
        assert cache.renew(["a"]) == []
        cache.put({"a": b"1"})
        assert not cache.ping()
    assert (states, cache.outages) == ([True, False], 1)
    assert len(caplog.messages) == 1
    assert f"redis at 127.0.0.1:{redis_server.port} does not work" in caplog.text
    redis_server.__enter__()
    wait_until(cache.ping)
    cache.put({"a": b"1"})
    assert (cache.get(["a"]), states) == ([b"1"], [True, False, True])
    cache.close()


def test_a_silent_redis_costs_one_short_wait() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, never answers
        cache = RedisCache(f"redis://127.0.0.1:{silent.getsockname()[1]}", 100)
        started = time.monotonic()
        assert not cache.ping()
        assert [cache.get(["a"]) for _ in range(100)] == [[None]] * 100
        assert time.monotonic() - started < 2
        cache.close()


def test_a_full_redis_is_left_alone(
    redis_server: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    with redis.Redis.from_url(redis_server.url) as admin:
        admin.config_set("maxmemory", 1)
        cache = RedisCache(redis_server.url, 100)
        assert cache.ping()
        cache.put({"a": b"1"})
        admin.config_set("maxmemory", 0)
    assert "maxmemory" in caplog.text
    assert not cache.ping()  # for a minute, though it would answer
    cache.close()


def test_the_password_stays_out_of_logs(
    redis_server: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for url in (
        redis_server.url,
        f"redis://user:pa55word@127.0.0.1:{redis_server.port}",
        "redis://:pa55word@127.0.0.1:1/0",
        "redis://:pa55word@no-such-host.invalid:6379/0",
    ):
        cache = RedisCache(url, 100)
        cache.ping()
        cache.put({"a": b"1"})
        cache.close()
    assert caplog.messages
    secret = redis_server.url.split(":")[2].split("@")[0]
    assert "pa55word" not in caplog.text and secret not in caplog.text
