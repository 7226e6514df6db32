"""Errors a person can mend. Each message is one sentence: what, where, what to do.

They are caught only at the edges: the command line prints them and exits 2, the server maps them
to status codes. `assert` and every other exception mean a mistake of ours.
"""


class InputError(Exception):
    """Something outside the program is wrong: a file, a setting, a busy directory."""


class DataError(InputError):
    """A file is missing, malformed, truncated or altered; or its content breaks a rule."""


class ConfigError(InputError):
    """A setting is unknown, of the wrong type, or contradicts another."""


class BusyError(InputError):
    """Another process holds the directory."""


def did_you_mean(name: str, known: list[str]) -> str:
    """The tail of a sentence about an unknown name: the nearest known one, else all of them."""
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"Did you mean {near[0]}?"
    return f"Known here: {', '.join(sorted(known)) or 'none'}."
