"""`[serve]`: what `embedsvc serve` can be told."""

from typing import Annotated

from pydantic import Field, SecretStr, field_validator

from partitions.config import Table

EMBEDDED = "embedded"
_SCHEMES = ("redis://", "rediss://", "unix://")


class ServeConfig(Table):
    """`[serve]`"""

    host: str = "127.0.0.1"
    """Address to listen on. There is no authentication: keep to loopback or a private network."""
    port: Annotated[int, Field(ge=0, le=65535)] = 50051
    """0: any free one; the first line printed says which."""
    redis: SecretStr | None = None
    """URL of a Redis that caches versions, such as redis://:password@host:6379/0; "embedded" starts
    one that ends with the server; unset: versions are read from disk."""
    redis_ttl_s: Annotated[int, Field(ge=60)] = 3600
    """Seconds that Redis keeps a version after the last server let go of it."""
    poll_s: Annotated[float, Field(gt=0)] = 1.0
    """Seconds between two looks at CURRENT."""
    threads: Annotated[int, Field(ge=1)] = 8
    """Calls answered at a time."""

    @field_validator("redis")
    @classmethod
    def _is_a_url(cls, redis: SecretStr | None) -> SecretStr | None:
        text = EMBEDDED if redis is None else redis.get_secret_value()
        if text == EMBEDDED:
            return redis
        if not text.startswith(_SCHEMES):
            raise ValueError(f'a URL begins with {", ".join(_SCHEMES)}; or write "{EMBEDDED}"')
        from redis.connection import parse_url

        try:
            parse_url(text)
        except ValueError:  # whose message may quote the password
            raise ValueError(
                "the URL is malformed; in a password write %2F for /, %40 for @, %3A for :"
            ) from None
        return redis
