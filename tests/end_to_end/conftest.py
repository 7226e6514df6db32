"""The console command as a person runs it: a process of its own, its output and exit code."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).with_name("embedsvc")
# Threads that wait for work would only disturb whoever shares the machine.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error", "COLUMNS": "200"}

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]


def _start(folder: Path, *arguments: object, limit_kb: int | None = None) -> subprocess.Popen[str]:
    limit = f"ulimit -f {limit_kb}; " if limit_kb is not None else ""
    return subprocess.Popen(
        ["bash", "-c", f'{limit}exec "$@"', "bash", COMMAND, *map(str, arguments)],
        cwd=folder,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="session")
def start() -> Start:
    """start(folder, *arguments): the running process. limit_kb: no file may grow larger."""
    return _start


@pytest.fixture(scope="session")
def run() -> Run:
    def run(
        folder: Path, *arguments: object, limit_kb: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """run(folder, *arguments), to its end."""
        with _start(folder, *arguments, limit_kb=limit_kb) as process:
            out, err = process.communicate()
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    return run
