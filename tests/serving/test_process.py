"""The commands as a user meets them: `embedsvc serve` in its own process, `embedsvc query`."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from partitions.cli import main
from serving.client import Client, Unavailable
from serving.server import SERVICES
from tests.serving.health import NOT_SERVING, SERVING, watching
from tests.serving.test_versions import alter, truncate
from tests.serving.toy import Toy, publish, wait_until

COMMAND = [sys.executable, "-c", "from partitions.cli import main; main()"]


@contextlib.contextmanager
def serve(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process and its address. Killed in the end, if it still runs."""
    process = subprocess.Popen(
        [*COMMAND, "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            found = re.match(r"Serving v\d+ at (\S+)\. Try: embedsvc query neighbors ", line)
            assert found, line
            yield process, found[1]
        finally:
            process.kill()


def embedsvc(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The console command, in this process, for 20 s at most; its exit code."""

    def too_late(*_: object) -> None:
        raise TimeoutError(f"embedsvc {' '.join(arguments)} does not end")

    monkeypatch.setattr(sys, "argv", ["embedsvc", *arguments])
    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(20)
    try:
        with pytest.raises(SystemExit) as caught:
            main()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert caught.value.code is None or isinstance(caught.value.code, int)
    return caught.value.code or 0


def test_sigterm_drains_and_exits_0(toy: Toy) -> None:
    last_errors: list[Exception] = []

    def ask(client: Client) -> None:
        try:
            for _ in range(100_000):
                assert len(client.find_neighbors("item", toy.items, k=40).hits) == len(toy.items)
        except Exception as error:
            last_errors.append(error)

    with serve(str(toy.root), "--port", "0") as (process, address):
        with Client(address) as client, watching(address, "") as states:
            threads = [threading.Thread(target=ask, args=(client,)) for _ in range(8)]
            for thread in threads:
                thread.start()
            wait_until(lambda: states == [SERVING])
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: states == [SERVING, NOT_SERVING])
            for thread in threads:
                thread.join()
        assert process.wait(timeout=20) == 0
    assert [type(error) for error in last_errors] == [Unavailable] * 8, last_errors


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc here")
def test_the_server_process_holds_no_training_library(toy: Toy) -> None:
    with serve(str(toy.root), "--port", "0") as (process, address):
        with Client(address) as client:
            assert len(client.recommend("identity", toy.users[0]).hits.keys) == 10
        loaded = Path(f"/proc/{process.pid}/maps").read_text()
    assert "faiss" in loaded
    assert "torch" not in loaded and "numba" not in loaded and "llvm" not in loaded


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_killed_server_leaves_no_redis_behind(tmp_path: Path) -> None:
    toy = publish(tmp_path / "run" / "published")
    config = tmp_path / "toy.toml"
    config.write_text(f'[run]\ndir = "{tmp_path / "run"}"\n\n[serve]\nport = 0\n')
    with serve(str(config), "serve.poll_s=0.1", "--redis", "embedded") as (process, address):
        with Client(address) as client, watching(address, "embedsvc.store") as states:
            wait_until(lambda: states == [SERVING])
            assert client.get_embeddings("item", toy.items[0]).keys == toy.items[:1]
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (redis,) = [Path(f"/proc/{pid}/exe") for pid in children]
        assert redis.resolve().name == "redis-server"
        os.kill(process.pid, signal.SIGKILL)
        wait_until(lambda: not redis.exists())  # a process that has ended has no exe any more


def test_a_taken_port_is_one_sentence(
    client: Client, shared_toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    port = client.target.rpartition(":")[2]
    assert embedsvc(monkeypatch, "serve", str(shared_toy.root), "--port", port) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1] == (
        f"embedsvc: {client.target} can't be listened on: another program does, or the host is not "
        "this machine. Choose another --port (0: any free one)."
    )


@pytest.mark.parametrize("damage", [truncate, alter, Path.unlink])
@pytest.mark.parametrize(
    "file", ["entities/item/similar.faiss", "relations.safetensors", "seen/0000.arrow"]
)
def test_a_damaged_version_is_one_sentence(
    toy: Toy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    file: str,
    damage: Callable[[Path], None],
) -> None:
    damage(toy.root / toy.name / file)
    assert embedsvc(monkeypatch, "serve", str(toy.root), "--port", "0") == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("embedsvc: ") and Path(file).name in error


@pytest.mark.parametrize("damage", [truncate, Path.unlink])
def test_a_damaged_manifest_is_one_sentence(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, damage: Any
) -> None:
    path = toy.root / toy.name / "manifest.json"
    damage(path)
    assert embedsvc(monkeypatch, "serve", str(toy.root), "--port", "0") == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"embedsvc: {path} is ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["serve", "no.toml"], "no.toml is missing: name a TOML file with your settings."),
        (["serve", "."], ". holds no published version. Run embedsvc publish."),
        (["serve", ".", "serve.port=0"], "serve.port=0 needs a TOML file; with the folder . "),
        (["serve", ".", "--redis", "http://:secret@x"], ".: [serve.redis] a URL begins with "),
        (["query", "recommend", "uses"], "recommend takes either a key or a history."),
    ],
)
def test_a_wrong_command_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert embedsvc(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"embedsvc: {sentence}")
    assert error.count("\n") == 1 and "secret" not in error


def test_query_neighbors_prints_a_table_or_json(
    client: Client, shared_toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    command = ["query", "neighbors", "item", "item07", "-k", "3", "--server", client.target]
    expected = client.find_neighbors("item", "item07", k=3, return_attributes=True).hits[0]
    assert embedsvc(monkeypatch, *command) == 0
    table = capsys.readouterr().out
    for key, title, score in zip(
        expected.keys, expected.attributes["title"], expected.scores, strict=True
    ):
        assert re.search(rf"{key}\s+{title}\s+{score:.4f}", table)
    assert "item near item07" in table and shared_toy.name in table
    assert embedsvc(monkeypatch, *command, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [result["key"] for result in found["results"]] == expected.keys
    assert [r["attributes"]["title"] for r in found["results"]] == expected.attributes["title"]


def test_query_recommend_takes_a_key_or_a_history(
    client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    command = ["query", "recommend", "diagonal", "--server", client.target]
    assert embedsvc(monkeypatch, *command, "user03", "--json") == 0
    keys = [result["key"] for result in json.loads(capsys.readouterr().out)["results"]]
    assert keys == client.recommend("diagonal", "user03").hits.keys
    history = ["--history", "item03", "--history", "item04", "--history", "nobody"]
    assert embedsvc(monkeypatch, *command, *history) == 0
    table = capsys.readouterr().out
    assert client.recommend("diagonal", history=["item03", "item04"]).hits.keys[0] in table
    assert "Not known here: nobody" in table
    assert embedsvc(monkeypatch, *command, "user3") == 2
    assert "embedsvc: There is no user user3. Did you mean user" in capsys.readouterr().err


def test_reflection_lists_the_services(client: Client) -> None:
    with grpc.insecure_channel(client.target) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        (reply,) = stub.ServerReflectionInfo(iter([ask]))
    names = {service.name for service in reply.list_services_response.service}
    assert names >= {*SERVICES, "grpc.health.v1.Health"}
