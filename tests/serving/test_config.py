import pytest
from pydantic import SecretStr

from partitions.config import Settings
from partitions.errors import ConfigError
from serving.config import ServeConfig


def table(**values: object) -> ServeConfig:
    return Settings("toy.toml", {"serve": values}).table("serve", ServeConfig)


def test_a_redis_password_stays_out_of_what_is_saved() -> None:
    config = table(redis="rediss://user:pa55word@host:6379/1")
    assert config.redis == SecretStr("rediss://user:pa55word@host:6379/1")
    assert "pa55word" not in repr(config) + str(config.model_dump(mode="json"))


@pytest.mark.parametrize("redis", ["http://:pa55word@host", "localhost:6379", "", "embeded"])
def test_what_is_no_redis_is_refused(redis: str) -> None:
    with pytest.raises(ConfigError, match=r"toy.toml: \[serve.redis\] a URL begins with") as caught:
        table(redis=redis)
    assert "pa55word" not in str(caught.value)


@pytest.mark.parametrize(
    "redis", ["redis://:pa55/word@host", "redis://host:abc", "redis://host?socket_timeout=pa55"]
)
def test_a_malformed_url_is_not_quoted(redis: str) -> None:
    with pytest.raises(ConfigError, match="the URL is malformed") as caught:
        table(redis=redis)
    assert "pa55" not in str(caught.value)


def test_embedded_is_a_redis_too() -> None:
    assert table(redis="embedded").redis == SecretStr("embedded")
    assert table().redis is None
