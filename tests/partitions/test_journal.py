"""partitions.journal: an import goes on from an entry, never from a damaged or foreign one."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pytest

from partitions.dictionary import Dictionary
from partitions.journal import Journal, JournalEntry

IDENTITY = {"config": {"a": 1}, "files": [["e.tsv", 10, 20]]}


def entry_of(rows_done: int) -> JournalEntry:
    return JournalEntry(
        files_done=2,
        pieces_done=1,
        rows_done=rows_done,
        spool_rows={(0, 1, 2): 30, (2, 0, 0): 4},
        spool_checksums={(0, 1, 2): 1 << 31, (2, 0, 0): 0},
        relations=["a", "é"],
        sources=[{"path": "a.tsv", "bytes": 1, "sha256": "00", "rows": 3}],
        skipped=5,
        skipped_bytes=50,
        num_read=6,
        gate={"as_of": 7},
    )


class Heard:
    """A restore that only listens."""

    def __init__(self, answer: bool = True) -> None:
        self.answer = answer
        self.entry: JournalEntry | None = None
        self.keys: list[tuple[str, list[str]]] = []

    def __call__(self, entry: JournalEntry, keys: Iterable[tuple[str, pa.Array]]) -> bool:
        if self.answer:
            self.entry = entry
            self.keys = [(name, texts.to_pylist()) for name, texts in keys]
        return self.answer


@pytest.fixture
def noted(tmp_path: Path) -> Path:
    """A folder with two entries: users were learnt before both, items before the second."""
    folder = tmp_path / "work"
    folder.mkdir()
    dictionaries = {"user": Dictionary(2), "item": Dictionary(1)}
    journal = Journal(folder)
    assert journal.open(IDENTITY, Heard()) is None
    dictionaries["user"].encode(pa.array(["u1", "u2", "u3"]))
    journal.write(entry_of(7), dictionaries)
    dictionaries["user"].encode(pa.array(["u2", "u4"]))
    dictionaries["item"].encode(pa.array(["i1"]))
    journal.write(entry_of(8), dictionaries)
    journal.write(entry_of(9), dictionaries)
    return folder


def test_the_newest_entry_comes_back_with_the_keys_in_their_order(noted: Path) -> None:
    heard = Heard()
    assert Journal(noted).open(IDENTITY, heard) == entry_of(9)
    assert heard.entry == entry_of(9)
    grown = {"user": Dictionary(2), "item": Dictionary(1)}
    for name, keys in heard.keys:
        grown[name].encode(pa.array(keys))
    expected = Dictionary(2)
    expected.encode(pa.array(["u1", "u2", "u3", "u4"]))
    assert [grown["user"].keys(p) for p in range(2)] == [expected.keys(p) for p in range(2)]
    assert grown["item"].keys(0).to_pylist() == ["i1"]
    assert len(heard.keys) == 3, "an entry without new keys writes none"


def test_writing_goes_on_where_the_entry_was(noted: Path) -> None:
    heard = Heard()
    journal = Journal(noted)
    journal.open(IDENTITY, heard)
    dictionaries = {"user": Dictionary(2), "item": Dictionary(1)}
    for name, keys in heard.keys:
        dictionaries[name].encode(pa.array(keys))
    dictionaries["item"].encode(pa.array(["i2"]))
    journal.write(entry_of(10), dictionaries)
    again = Heard()
    assert Journal(noted).open(IDENTITY, again) == entry_of(10)
    assert again.keys == [*heard.keys, ("item", ["i2"])]


def begins_anew(folder: Path, identity: dict[str, object] = IDENTITY, answer: bool = True) -> bool:
    heard = Heard(answer)
    began = Journal(folder).open(identity, heard) is None
    if began:
        assert heard.entry is None
        assert {path.name for path in folder.iterdir()} == {"spool", "keys"}
        assert not list((folder / "keys").iterdir())
    return began


def test_another_config_or_another_file_begins_anew(noted: Path, tmp_path: Path) -> None:
    others = [IDENTITY | {"config": {"a": 2}}, IDENTITY | {"files": [["e.tsv", 10, 21]]}]
    for at, identity in enumerate(others):
        copy = tmp_path / str(at)
        shutil.copytree(noted, copy)
        assert begins_anew(copy, identity)
    assert not begins_anew(noted)


def test_a_restore_that_declines_begins_anew(noted: Path) -> None:
    assert begins_anew(noted, answer=False)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_a_damaged_key_file_begins_anew(noted: Path, damage: Callable[[Path], object]) -> None:
    damage(sorted((noted / "keys").iterdir())[1])
    assert begins_anew(noted)


def test_a_journal_torn_at_any_byte_begins_anew(noted: Path, tmp_path: Path) -> None:
    text = (noted / "journal.json").read_bytes()
    for length in [0, 1, *range(2, len(text) - 2, 97), len(text) - 2]:
        copy = tmp_path / str(length)
        shutil.copytree(noted, copy)
        (copy / "journal.json").write_bytes(text[:length])
        assert begins_anew(copy)


def test_a_flipped_bit_anywhere_in_a_journal_begins_anew_or_changes_nothing(noted: Path) -> None:
    text = (noted / "journal.json").read_bytes()
    anew = 0
    for at in range(len(text)):
        flipped = text[:at] + bytes([text[at] ^ 1 << at % 8]) + text[at + 1 :]
        (noted / "journal.json").write_bytes(flipped)
        journal = Journal(noted)
        journal._identity = IDENTITY
        found = journal._read()
        assert found in (None, entry_of(9))
        anew += found is None
    assert anew > 0.95 * len(text)  # a blank between two values may become another


def test_a_restore_that_fails_begins_anew(noted: Path) -> None:
    def failing(entry: JournalEntry, keys: Iterable[tuple[str, pa.Array]]) -> bool:
        raise ZeroDivisionError

    assert Journal(noted).open(IDENTITY, failing) is None
    assert not (noted / "journal.json").exists()


def test_a_journal_that_lacks_a_key_begins_anew(noted: Path, tmp_path: Path) -> None:
    value = json.loads((noted / "journal.json").read_text())
    content = value["content"]
    missing = [["content"], *(["content", key] for key in content), ["sha256"]]
    missing += [["content", "entry", key] for key in content["entry"]]
    for at, (*parents, key) in enumerate(missing):
        copy = tmp_path / str(at)
        shutil.copytree(noted, copy)
        changed = json.loads(json.dumps(value))
        inner = changed
        for parent in parents:
            inner = inner[parent]
        del inner[key]
        if "content" in changed and key != "sha256":  # whole, but of another program
            changed["sha256"] = hashlib.sha256(json.dumps(changed["content"]).encode()).hexdigest()
        (copy / "journal.json").write_text(json.dumps(changed))
        assert begins_anew(copy), key
