"""The rows that an import with skip_bad left out, for people to look at: one JSON object a line.

    {"file": "events/day-3.tsv", "why": "expected 3 columns, found 2", "row": "u17\\tbought"}

`row` is the line as it stands, or, where its cells could be told apart, an object of them as JSON
text. The file grows in the import's work folder and moves beside the graph when that is whole
(notes.py); the rows of an import replace those of the one before.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from partitions.readers import BadRow


def path_of(graph: Path) -> Path:
    return graph.with_name(f"{graph.name}.skipped.jsonl")


class SkippedRows:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._file = path.open("ab")

    def add(self, file: str, rows: Sequence[BadRow]) -> None:
        for row in rows:
            line = {"file": file, "why": row.why, "row": row.text}
            self._file.write(
                json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
            )
        self.count += len(rows)

    def sync(self) -> int:
        """How many bytes are on disk now."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def restore(self, num_bytes: int, count: int) -> None:
        """Back to what `sync` said; what came after is cut off."""
        self._file.truncate(num_bytes)
        self._file.seek(num_bytes)
        self.count = count

    def close(self) -> None:
        self._file.close()

    def kept(self) -> Path | None:
        """The file on disk, for notes.py to move; None where no row was left out."""
        self.sync()
        return self.path if self.count else None
