"""What the data gate says of files that can't be read to their end."""

import gzip
from pathlib import Path

import pytest

from partitions import validation
from partitions.config import SourceConfig
from partitions.gate.anomalies import Anomaly
from partitions.gate.data_files import Input
from partitions.validation import Gate


def anomalies_of(path: Path) -> list[Anomaly]:
    given = Input(path.parent, SourceConfig(path=path.name), {"lhs": 0, "rhs": 1}, "knows")
    gate = Gate(None, None, {"knows": ("user", "user")}, 1_700_000_000)
    return list(validation.stream(gate, [given]).anomalies)


@pytest.mark.parametrize("name", ["e.csv", "e.csv.gz"])
def test_a_quote_that_is_never_closed_makes_a_file_unreadable(tmp_path: Path, name: str) -> None:
    text = b"".join(b"a%d,%sb%d\n" % (n, b'"' * (n == 5), n) for n in range(99))
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    (found,) = anomalies_of(tmp_path / name)
    assert (found.name, found.fatal) == ("unreadable_file", True)
    assert found.what.startswith(f"{tmp_path / name}:6: a quoted cell begins here and holds whole")
