from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import keys
from serving.keys import KeyTable


@given(st.lists(st.text(st.characters(codec="utf-8")), unique=True), st.lists(st.text()))
def test_every_key_has_its_row_and_no_other_has_one(known: list[str], asked: list[str]) -> None:
    asked = [key.encode("utf-8", "ignore").decode() for key in asked]
    half = len(known) // 2
    table = KeyTable(pa.chunked_array([known[:half], known[half:]], pa.string()))
    assert table.ids(known).tolist() == list(range(len(known))) == list(range(len(table)))
    assert table.texts(np.arange(len(known))) == known
    expected = [known.index(key) if key in known else -1 for key in asked]
    assert table.ids(asked).tolist() == expected


def test_keys_of_equal_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_length(texts: Any) -> Any:
        return np.array([len(text) for text in texts], np.int64)

    monkeypatch.setattr(keys, "_hash", by_length)
    known = ["bb", "a", "cc", "b", "dd", "ccc"]
    table = KeyTable(pa.chunked_array([known]))
    assert table.ids([*known, "zz", "z"]).tolist() == [0, 1, 2, 3, 4, 5, -1, -1]


def test_a_hint_is_a_neighbour_that_looks_alike() -> None:
    table = KeyTable(pa.chunked_array([["numpy.array", "numpy.dot", "json.loads", "json.load"]]))
    assert table.near("numpy.arry") == "numpy.array"
    assert table.near("json.loadz") in {"json.load", "json.loads"}
    assert table.near("quaternion") is None
    assert KeyTable(pa.chunked_array([[]], pa.string())).near("anything") is None
