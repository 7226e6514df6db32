"""The served version: one reference, exchanged whole when CURRENT names another version.

A request takes `live` once, so that no reply mixes versions, and the old version lives until the
last request lets go of it. A version that can't be loaded leaves the old one serving.
"""

import logging
import threading
import time
from pathlib import Path

from partitions.errors import InputError
from partitions.published import current
from serving.cache import BlobCache
from serving.loaded import LoadedVersion, load

log = logging.getLogger(__name__)

_MAX_RETRY_S = 60.0


class Versions:
    """Raises DataError where there is no version to begin with."""

    def __init__(self, root: Path, cache: BlobCache | None, poll_s: float) -> None:
        self._root = root
        self._cache = cache
        self._poll_s = poll_s
        self._problem = ""  # the last one, told once
        self._failed = ""  # the version that could not be loaded
        self._retry_s = self._retry_at = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="versions", daemon=True)
        self.live: LoadedVersion = load(root, current(root), cache)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._end.set()
        self._thread.join()

    def look(self) -> None:
        """Load what CURRENT names, if it is another version than the served one."""
        name = self._failed
        try:
            name = current(self._root)
            if name != self.live.name and not self._must_wait(name):
                self.live = load(self._root, name, self._cache)
            if name == self.live.name:
                self._failed = self._problem = ""
        except Exception as error:  # whatever it is, the old version serves on
            self._wait_longer(name)
            if str(error) != self._problem:
                self._problem = str(error)
                expected = isinstance(error, (InputError, OSError))
                log.error(
                    "still serving %s: %s",
                    self.live.name,
                    error,
                    exc_info=None if expected else error,
                )

    def _must_wait(self, name: str) -> bool:
        return name == self._failed and time.monotonic() < self._retry_at

    def _wait_longer(self, name: str) -> None:
        again = name == self._failed
        self._retry_s = min(self._retry_s * 2, _MAX_RETRY_S) if again else self._poll_s
        self._failed, self._retry_at = name, time.monotonic() + self._retry_s

    def _run(self) -> None:
        while not self._end.wait(self._poll_s):
            self.look()
