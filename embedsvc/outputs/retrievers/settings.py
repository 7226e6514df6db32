"""What settings of retrievers are checked for, and how it is said."""

from partitions.errors import ConfigError


def check_least(retriever: str, least: int, **settings: float) -> None:
    for name, value in settings.items():
        if not value >= least:  # which NaN is not
            raise ConfigError(
                f"retriever {retriever}: {name} is {value}; it must be {least} or more."
            )


def check_touches(retriever: str, check_every: int) -> None:
    if not 1 <= check_every <= 255:
        raise ConfigError(
            f"retriever {retriever}: check_every is {check_every}; it must be 1 to 255 touches of "
            f"a class."
        )
