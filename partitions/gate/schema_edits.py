"""Changes to single lines of schema.toml that keep all else: a person's comments and order."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from partitions.errors import ConfigError
from partitions.gate.data_schema import header_of, parse, toml_of


@dataclass(frozen=True)
class Edit:
    """One line of the file as it would have to be; value None: without it."""

    table: tuple[str, ...]
    key: str
    value: Any

    @property
    def line(self) -> str:
        return f"{self.key} = {toml_of(self.value)}" if self.value is not None else f"no {self.key}"

    def __str__(self) -> str:
        return f"{header_of(self.table)} {self.line}"


def combined(edits: Sequence[Edit]) -> list[Edit]:
    """One edit a rule: where several change it, the one that accepts them all."""
    found: dict[tuple[tuple[str, ...], str], Edit] = {}
    for edit in edits:
        at = (edit.table, edit.key)
        value = edit.value if at not in found else _wider(edit.key, found[at].value, edit.value)
        found[at] = Edit(edit.table, edit.key, value)
    return list(found.values())


def _wider(key: str, one: Any, other: Any) -> Any:
    if one is None or other is None:
        return None
    if isinstance(one, list):
        return sorted({*one, *other})
    if isinstance(one, tuple):
        return (min(one[0], other[0]), max(one[1], other[1]))
    if isinstance(one, str):
        return other
    return min(one, other) if key in ("min", "presence", "earliest") else max(one, other)


def edited(text: str, edits: Sequence[Edit], name: str) -> str:
    """The file's text with each edit's line changed or added; all else stays, comments too."""
    lines = text.removesuffix("\n").split("\n")  # splitlines would also cut inside a name
    for edit in combined(edits):
        _edit(lines, edit)
    text = "\n".join(lines) + "\n"
    try:
        schema = parse(text, name)
    except ConfigError:  # such as a line behind an inline table
        schema = None
    for edit in combined(edits):
        if schema is None or _plain(schema.at(edit.table, edit.key)) != _plain(edit.value):
            raise ConfigError(f"{name}: can't change it by itself; write {edit} there by hand.")
    return text


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _edit(lines: list[str], edit: Edit) -> None:
    start = next((i for i, line in enumerate(lines) if _table_of(line) == edit.table), None)
    if start is None and edit.value is None:
        return
    if start is None:
        lines += ["", header_of(edit.table), edit.line]
        return
    end = next((i for i in range(start + 1, len(lines)) if _table_of(lines[i])), len(lines))
    for first in range(start + 1, end):
        for last in range(first, end):
            try:
                found = tomllib.loads("\n".join(lines[first : last + 1]))
            except tomllib.TOMLDecodeError:
                continue  # an array goes on over several lines
            if edit.key in found:
                changed = [edit.line + _comment(lines[last])] if edit.value is not None else []
                lines[first : last + 1] = changed
                return
            break
    if edit.value is not None:
        lines.insert(start + 1, edit.line)


def _table_of(line: str) -> tuple[str, ...]:
    """The names in a table header, () for any other line."""
    if not line.lstrip().startswith("["):
        return ()
    try:
        found = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return ()
    names = []
    while isinstance(found, dict) and found:
        name, found = next(iter(found.items()))
        names.append(name)
    return tuple(names)


def _comment(line: str) -> str:
    """The comment at the end of a line, with the blanks before it; a person's, or "seen ..."."""
    for at in (i for i, character in enumerate(line) if character == "#"):
        before = line[:at].rstrip()
        quoted = before.count('"') % 2 or before.count("'") % 2
        if not quoted:
            return line[len(before) :]
    return ""
