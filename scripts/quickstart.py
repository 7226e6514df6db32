"""The whole road once, on the Python code of this machine: pycode -> graph -> vectors -> answers.

Every step is the command a user would type; this script only strings them together, times them and
prints what they say. The last line is one JSON object.
"""

import argparse
import json
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from partitions.graph import Graph
from partitions.schema import SPLITS

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "scripts/examples/pycode.toml"
FOLDER = Path("runs/pycode")
LOG = Path("runs/pycode/server.log")
EMBEDSVC = str(Path(sys.executable).with_name("embedsvc"))
NEIGHBORS = ["numpy.zeros", "json.loads", "os.path.join"]
HISTORY = ["socket.socket", "threading.Thread", "json.dumps"]  # what an imagined file uses
START_S = 60.0  # a server that says nothing for so long has failed

console = Console(highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/quickstart",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: scripts/quickstart --keep",
    )
    parser.add_argument("--keep", action="store_true", help="leave the server running")
    keep = parser.parse_args().keep
    os.chdir(ROOT)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.perf_counter()
    shutil.rmtree(FOLDER, ignore_errors=True)  # its own folder: a quickstart starts anew
    seconds = {
        "pycode": step(sys.executable, "scripts/pycode.py", str(FOLDER / "data")),
        "import": step(EMBEDSVC, "import", CONFIG),
        "train": step(EMBEDSVC, "train", CONFIG),
        "evaluate": step(EMBEDSVC, "eval", CONFIG),
        "publish": step(EMBEDSVC, "publish", CONFIG),
    }
    with Server(keep) as server:
        seconds["serve"] = server.start_s
        start = time.perf_counter()
        answered = [ask(server, "neighbors", "symbol", key, "-k", "5") for key in NEIGHBORS]
        history = [word for key in HISTORY for word in ("--history", key)]
        recommended = ask(server, "recommend", "uses", *history, "-k", "5")
        seconds["ask"] = time.perf_counter() - start
        redis = server.has_redis()
    total = time.perf_counter() - began
    show_times(seconds, total)
    if keep:
        server.say_how_to_talk()
    print(json.dumps(summary(seconds, total, answered, recommended, redis)))


def step(*words: str) -> float:
    """Run one command of the road, its output shown; returns its seconds."""
    show_command(words)
    start = time.perf_counter()
    done = subprocess.run(words)
    if done.returncode:
        sys.exit(f"quickstart: {Path(words[0]).name} {words[1]} ended with {done.returncode}")
    return time.perf_counter() - start


def show_command(words: Sequence[str]) -> None:
    shown = shlex.join([Path(words[0]).name, *words[1:]])
    console.print(f"\n[bold]$ {escape(shown)}[/bold]", soft_wrap=True)


class Server:
    """`embedsvc serve` with an embedded Redis, on a free port; ends with the block unless kept."""

    def __init__(self, keep: bool) -> None:
        self.keep = keep

    def __enter__(self) -> "Server":
        words = [EMBEDSVC, "serve", CONFIG, "--redis", "embedded", "--port", "0"]
        show_command(words)
        start = time.perf_counter()
        # A session of its own, so that Ctrl-C in the terminal doesn't end a kept server.
        with LOG.open("wb") as log:
            self.process = subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], START_S)
        line = self.process.stdout.readline() if ready else ""
        if " at " not in line:
            self._end()
            sys.exit(f"quickstart: the server did not start:\n{LOG.read_text()}")
        console.print(escape(line.strip()), soft_wrap=True)
        self.address = line.split(" at ")[1].split()[0].rstrip(".")
        self.start_s = time.perf_counter() - start
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None or not self.keep:
            self._end()

    def _end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(START_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def has_redis(self) -> bool:
        """What the standard health service says of the store."""
        with grpc.insecure_channel(self.address) as channel:
            request = health_pb2.HealthCheckRequest(service="embedsvc.store")
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def say_how_to_talk(self) -> None:
        console.print(
            f"\nThe server goes on at {self.address}; its log is {LOG}. Ask it, for example:\n"
            f"  .venv/bin/embedsvc query neighbors symbol re.compile --server {self.address}\n"
            f"  .venv/bin/embedsvc query recommend uses http.server --server {self.address}\n"
            f"End it with: kill {self.process.pid}",
            soft_wrap=True,
        )


def ask(server: Server, *words: str) -> list[str]:
    """Ask, show the table, and return the keys of the answer."""
    command = [EMBEDSVC, "query", *words, "--server", server.address]
    step(*command)
    answer = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
    return [result["key"] for result in json.loads(answer.stdout)["results"]]


def show_times(seconds: dict[str, float], total: float) -> None:
    table = Table(title="The road's timings", box=None)
    table.add_column("step")
    table.add_column("seconds", justify="right")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.1f}")
    table.add_row("[bold]all", f"[bold]{total:.1f}")
    console.print("", table)


def summary(
    seconds: dict[str, float],
    total: float,
    answered: list[list[str]],
    recommended: list[str],
    redis: bool,
) -> dict[str, Any]:
    graph = Graph(FOLDER / "graph")
    evaluation = json.loads((FOLDER / "checkpoint" / "evaluation.json").read_text())
    return {
        "entities": sum(graph.num_entities(name) for name in graph.entity_types),
        "edges": sum(graph.num_edges(split) for split in SPLITS),
        "train_s": round(seconds["train"], 1),
        "mrr": round(evaluation["links"]["mrr"], 4),
        "hits10": round(evaluation["links"]["hits10"], 4),
        "neighbors": dict(zip(NEIGHBORS, answered, strict=True)),
        "recommendations": recommended,
        "redis": redis,
        "total_s": round(total, 1),
    }


if __name__ == "__main__":
    main()
