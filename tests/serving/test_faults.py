"""Redis may die, lie or be absent: every call is answered, and health says how the store is."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
import redis

from serving.client import Client
from serving.embedded import EmbeddedRedis
from serving.server import SERVICES
from tests.serving.health import NOT_SERVING, SERVING, UNKNOWN, check, watching
from tests.serving.toy import Toy, client_of, publish, wait_until


@contextmanager
def calling(client: Client, toy: Toy) -> Iterator[list[Any]]:
    """Calls, one after the other, as long as the block runs; gives their outcomes."""
    end, outcomes = threading.Event(), []

    def call() -> None:
        while not end.is_set():
            try:
                outcomes.append(client.recommend("identity", toy.users[0], k=5).hits.keys)
            except Exception as error:
                outcomes.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    yield outcomes
    end.set()
    thread.join()


def test_redis_killed_and_restarted_empty_is_refilled_and_no_call_fails(
    toy: Toy, redis_server: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with (
        client_of(toy.root, redis_server.url) as client,
        watching(client.target, "embedsvc.store") as states,
        calling(client, toy) as outcomes,
    ):
        with redis.Redis.from_url(redis_server.url) as admin:
            names = set(admin.scan_iter())
        assert names
        assert redis_server.process
        os.kill(redis_server.process.pid, signal.SIGKILL)
        redis_server.process.wait()
        wait_until(lambda: states == [SERVING, NOT_SERVING])
        assert [check(client.target, name) for name in ("", *SERVICES)] == [SERVING] * 4
        redis_server.__enter__()
        wait_until(lambda: states == [SERVING, NOT_SERVING, SERVING])
        with redis.Redis.from_url(redis_server.url) as admin:
            wait_until(lambda: set(admin.scan_iter()) == names)
            assert 0 < min(admin.ttl(name) for name in names) <= 3600
        wait_until(lambda: "is back" in caplog.text)
    assert len(outcomes) > 10
    assert all(outcome == outcomes[0] for outcome in outcomes), set(map(str, outcomes))
    count = len(names)
    assert [m for m in caplog.messages if "back" in m] == [
        f"redis at 127.0.0.1:{redis_server.port} is back: put back {count} of {count}"
    ]


def test_a_flip_while_redis_is_away_is_read_from_disk(
    toy: Toy, redis_server: EmbeddedRedis
) -> None:
    with client_of(toy.root, redis_server.url) as client, calling(client, toy) as outcomes:
        redis_server.__exit__()
        publish(toy.root, seed=2)
        wait_until(lambda: outcomes[-1] != outcomes[0])
    assert all(isinstance(outcome, list) for outcome in outcomes)


def test_corrupt_blobs_in_redis_are_mended(
    toy: Toy, redis_server: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    with redis.Redis.from_url(redis_server.url) as admin:
        with client_of(toy.root, redis_server.url) as client:
            answer = client.recommend("identity", toy.users[0]).hits.keys
        held = {name: admin.get(name) for name in admin.scan_iter()}
        cut, wrong, *_ = sorted(held)
        admin.setrange(cut, 10, b"????")
        admin.delete(wrong)
        admin.rpush(wrong, "of another type")
        with client_of(toy.root, redis_server.url) as client:
            assert client.recommend("identity", toy.users[0]).hits.keys == answer
        assert {name: admin.get(name) for name in admin.scan_iter()} == held
    assert "held 1 damaged blobs" in caplog.text


@pytest.mark.parametrize("password", ["", ":pa55word@"])
def test_without_a_reachable_redis_the_disk_answers(
    toy: Toy, caplog: pytest.LogCaptureFixture, password: str
) -> None:
    caplog.set_level("DEBUG")
    with client_of(toy.root, f"redis://{password}127.0.0.1:1") as client:
        assert len(client.recommend("identity", toy.users[0]).hits.keys) == 10
        assert check(client.target, "embedsvc.store") == NOT_SERVING
        assert check(client.target, "") == SERVING
    assert "redis at 127.0.0.1:1 does not work, going on without it" in caplog.text
    assert "pa55word" not in caplog.text


def test_without_redis_the_store_is_unknown(client: Client) -> None:
    with watching(client.target, "embedsvc.store") as states:
        wait_until(lambda: states == [UNKNOWN])
    with pytest.raises(grpc.RpcError) as caught:
        check(client.target, "embedsvc.store")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
