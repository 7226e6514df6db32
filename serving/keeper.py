"""Keeps the served version in the cache: asks once a second whether the cache works, renews what it
holds before it expires, and puts back what it lost, by an outage or otherwise, from disk.
"""

import logging
import math
import threading
import time
from collections.abc import Callable

from partitions.errors import DataError
from serving.blobs import GROUP, VersionBlobs
from serving.cache import BlobCache

log = logging.getLogger(__name__)

_PERIOD_S = 1.0
_REFILL_PAUSE_S = 30.0  # between two refills without an outage: the cache may be too small


class Keeper:
    def __init__(self, cache: BlobCache, served: Callable[[], VersionBlobs]) -> None:
        self._cache = cache
        self._served = served
        self._next = 0
        self._outages = 0
        self._refill_from = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._end.set()
        self._thread.join()

    def tick(self) -> None:
        try:
            if self._cache.ping():
                self._keep(self._served())
        except (DataError, OSError) as error:  # the version's files are gone or damaged
            log.warning("%s can't be refilled: %s", self._cache.name, error)

    def _keep(self, blobs: VersionBlobs) -> None:
        # All names come round within a third of their time to live.
        names = blobs.names
        step = max(GROUP, math.ceil(len(names) * 3 * _PERIOD_S / self._cache.ttl_s))
        self._next = self._next if self._next < len(names) else 0
        lost = self._cache.renew(names[self._next : self._next + step])
        self._next += step
        returned = self._cache.outages != self._outages
        if returned or (lost and time.monotonic() >= self._refill_from):
            self._refill(blobs, "is back" if returned else "had lost blobs")

    def _refill(self, blobs: VersionBlobs, why: str) -> None:
        self._outages = self._cache.outages
        self._refill_from = time.monotonic() + _REFILL_PAUSE_S
        refilled, names = 0, blobs.names
        for at in range(0, len(names), GROUP):
            lost = self._cache.renew(names[at : at + GROUP])
            self._cache.put({name: blobs.read(name) for name in lost})
            if self._cache.outages != self._outages or self._end.is_set():
                return  # away again: the tick that finds it back starts anew
            refilled += len(lost)
        log.info("%s %s: put back %d of %d", self._cache.name, why, refilled, len(names))

    def _run(self) -> None:
        while not self._end.wait(_PERIOD_S):
            self.tick()
