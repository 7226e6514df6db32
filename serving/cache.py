"""A shared cache of a version's blobs: Redis, and its twin in memory.

A cache may lose anything at any time, and a caller never sees it fail: whatever a cache does not
give is read from disk. After an error, as before the first ping, Redis is left alone until a ping
succeeds.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

log = logging.getLogger(__name__)

_TIMEOUT_S = 0.5  # to connect, and for each answer
_REFUSED_PAUSE_S = 60.0  # a Redis that is full or read-only won't mend in a second
T = TypeVar("T")


class BlobCache(Protocol):
    """Bytes under names, each kept `ttl_s` seconds after its last put or renewal."""

    name: str  # for logs
    ttl_s: int
    outages: int  # how often it went away so far

    def get(self, names: Sequence[str]) -> list[bytes | None]: ...

    def put(self, blobs: Mapping[str, bytes]) -> None: ...

    def renew(self, names: Sequence[str]) -> list[str]:
        """Keep these for another `ttl_s`; returns the names that are not held."""
        ...

    def ping(self) -> bool:
        """Whether the cache works, by trying."""
        ...


class MemoryCache:
    """The twin: what RedisCache does, in a dict."""

    def __init__(self, ttl_s: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.name, self.ttl_s, self.outages = "memory", ttl_s, 0
        self._clock = clock
        self._held: dict[str, tuple[float, bytes]] = {}  # name -> (end, blob)

    def get(self, names: Sequence[str]) -> list[bytes | None]:
        now = self._clock()
        found = [self._held.get(name, (now, b"")) for name in names]
        return [blob if end > now else None for end, blob in found]

    def put(self, blobs: Mapping[str, bytes]) -> None:
        end = self._clock() + self.ttl_s
        self._held.update((name, (end, blob)) for name, blob in blobs.items())

    def renew(self, names: Sequence[str]) -> list[str]:
        found = dict(zip(names, self.get(names), strict=True))
        self.put({name: blob for name, blob in found.items() if blob is not None})
        return [name for name, blob in found.items() if blob is None]

    def ping(self) -> bool:
        return True


class RedisCache:
    """on_state: called with whether Redis works, at the first ping and at each change."""

    def __init__(
        self, url: str, ttl_s: int, on_state: Callable[[bool], None] = lambda up: None
    ) -> None:
        at = urlsplit(url)  # the URL itself may hold a password
        self.name = f"redis at {at.hostname}:{at.port or 6379}" if at.hostname else "redis"
        self.ttl_s, self.outages = ttl_s, 0
        self._on_state = on_state
        self._up: bool | None = None
        self._paused_until = 0.0
        self._lock = threading.Lock()
        self._redis: Any = redis.Redis.from_url(
            url,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )

    def get(self, names: Sequence[str]) -> list[bytes | None]:
        return self._ask(lambda: self._redis.mget(names), [None] * len(names))

    def put(self, blobs: Mapping[str, bytes]) -> None:
        def send() -> None:
            with self._redis.pipeline(transaction=False) as pipeline:
                for name, blob in blobs.items():
                    pipeline.set(name, blob, ex=self.ttl_s)
                pipeline.execute()

        self._ask(send, None)

    def renew(self, names: Sequence[str]) -> list[str]:
        def send() -> list[str]:
            with self._redis.pipeline(transaction=False) as pipeline:
                for name in names:
                    pipeline.expire(name, self.ttl_s)
                held = pipeline.execute()
            return [name for name, found in zip(names, held, strict=True) if not found]

        return self._ask(send, [])

    def ping(self) -> bool:
        if time.monotonic() >= self._paused_until:
            try:
                self._redis.ping()
            except (redis.RedisError, OSError) as error:
                self._went_away(error)
            else:
                self._set_up(True)
        return bool(self._up)

    def close(self) -> None:
        self._redis.close()

    def _ask(self, question: Callable[[], T], otherwise: T) -> T:
        if not self._up:
            return otherwise
        try:
            return question()
        except (redis.RedisError, OSError) as error:
            self._went_away(error)
            return otherwise

    def _went_away(self, error: Exception) -> None:
        if isinstance(error, redis.ResponseError):
            self._paused_until = time.monotonic() + _REFUSED_PAUSE_S
        if self._set_up(False):
            log.warning("%s does not work, going on without it: %s", self.name, error)

    def _set_up(self, up: bool) -> bool:
        """Whether that is news."""
        with self._lock:
            if up == self._up:
                return False
            self._up = up
            self.outages += not up
            self._on_state(up)
            return True
