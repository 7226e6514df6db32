"""partitions.sources: the files that a path names, whether it is local or a URI."""

import errno
import gzip
import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from partitions import readers, sources
from partitions.config import Column, GraphConfig, SourceConfig
from partitions.errors import DataError
from partitions.graph import MANIFEST, Graph
from partitions.importer import import_graph
from partitions.provenance import difference
from partitions.sources import InputFile

EDGE: dict[str, Column] = {"lhs": 0, "rhs": 1}


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names_of(folder: Path, path: str, **source: Any) -> list[str]:
    """The paths below `folder` that `path` names."""
    found = sources.expand(folder, SourceConfig(path=path, **source))
    return [name.removeprefix(f"{folder}/") for name in map(str, found)]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that far://box/ reaches as a remote store would be: by pyarrow.fs alone."""
    folder = tmp_path / "store"
    folder.mkdir()
    inside = pyarrow.fs.SubTreeFileSystem(str(folder), pyarrow.fs.LocalFileSystem())

    def located(address: str, uri: str) -> tuple[Any, str]:
        if not uri.startswith("far://box"):
            return real(address, uri)
        return inside, uri.removeprefix("far://box").lstrip("/")

    real = sources._filesystem_of
    monkeypatch.setattr(sources, "_filesystem_of", located)
    return folder


# --- folders and globs ----------------------------------------------------------------------------


def test_a_folder_gives_its_files_of_known_endings_in_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = ["a.tsv", "b/c=1/d.parquet", "b/e.csv.gz", "f.jsonl.zst", "g.x.arrow", "h.ndjson"]
    touch(tmp_path / "in", *known)
    touch(tmp_path / "in", "_SUCCESS", ".a.tsv.crc", "_log/x.tsv", ".git/y.tsv", "readme.md")
    with caplog.at_level(logging.WARNING):
        assert names_of(tmp_path, "in") == [f"in/{name}" for name in known]
    assert "left out 1 files of unknown endings, such as readme.md" in caplog.text
    assert names_of(tmp_path, f"{tmp_path}/in/") == names_of(tmp_path, "in")


def test_a_folder_is_sorted_name_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "in/a/z.tsv", "in/a-b/a.tsv", "in/a.tsv")  # "-" and "." come before "/"
    assert names_of(tmp_path, "in") == ["in/a/z.tsv", "in/a-b/a.tsv", "in/a.tsv"]


def test_a_named_format_takes_files_of_any_ending(tmp_path: Path) -> None:
    touch(tmp_path, "in/part-0", "in/part-1", "in/_SUCCESS")
    assert names_of(tmp_path, "in", format="text") == ["in/part-0", "in/part-1"]
    with pytest.raises(DataError, match=r"in is a folder without files of a known ending \(\.tsv"):
        names_of(tmp_path, "in")


def test_a_folder_of_archives_is_taken_for_a_member(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.zip", "in/b.tar.gz", "in/c.tsv")
    assert names_of(tmp_path, "in", member="x.tsv") == ["in/a.zip", "in/b.tar.gz"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.tsv", ["a.tsv", "b.tsv", "w[1].tsv"]),
        ("[b-z].tsv", ["b.tsv"]),
        ("?.tsv", ["a.tsv", "b.tsv"]),
        ("d*/*.tsv", ["d1/a.tsv", "d2/a.tsv"]),
        ("**/a.tsv", ["a.tsv", "d1/a.tsv", "d1/e/a.tsv", "d2/a.tsv"]),
        ("d1/**", ["d1/a.tsv", "d1/e/a.tsv"]),
        ("_x/*.tsv", ["_x/a.tsv"]),
        ("_*.tsv", ["_a.tsv"]),
        ("w[1].tsv", ["w[1].tsv"]),
    ],
)
def test_globs_match_name_by_name_and_reach_nothing_hidden(
    tmp_path: Path, pattern: str, found: list[str]
) -> None:
    touch(tmp_path, "a.tsv", "b.tsv", "d1/a.tsv", "d1/e/a.tsv", "d2/a.tsv", "w[1].tsv")
    touch(tmp_path, "_x/a.tsv", "_a.tsv", ".a.tsv", "d1/_tmp/a.tsv")
    assert names_of(tmp_path, pattern) == found
    assert names_of(tmp_path / "d1", f"../{pattern}") == [f"../{name}" for name in found]
    if "?" not in pattern:  # which begins a URI's settings
        assert names_of(tmp_path, f"file://{tmp_path}/{pattern}") == found


def test_a_relative_folder_names_files_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.tsv", "in/b.tsv")
    monkeypatch.chdir(tmp_path)
    found = [str(f) for f in sources.expand(Path("."), SourceConfig(path="**/*.tsv"))]
    assert found == ["a.tsv", "in/b.tsv"]
    assert [str(f) for f in sources.expand(Path("in"), SourceConfig(path="."))] == ["in/b.tsv"]


def test_a_link_back_to_a_folder_above_is_not_followed(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.tsv", "in/b/c.tsv", "far/d.tsv")
    (tmp_path / "in/b/up").symlink_to(tmp_path / "in")
    (tmp_path / "in/self").symlink_to(".")
    (tmp_path / "in/far").symlink_to(tmp_path / "far")
    assert names_of(tmp_path, "in") == ["in/a.tsv", "in/b/c.tsv", "in/far/d.tsv"]
    assert names_of(tmp_path, "in/**/*.tsv") == names_of(tmp_path, "in")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    assert names_of(tmp_path, "link")[0] == "link/a.tsv"


@pytest.mark.parametrize("path", ["in", "in/*.tsv", "**/*.tsv"])
def test_a_name_that_is_not_utf8_is_one_sentence(tmp_path: Path, path: str) -> None:
    touch(tmp_path, "in/a.tsv")
    Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/\xff.tsv")).touch()
    with pytest.raises(DataError) as caught:
        sources.expand(tmp_path, SourceConfig(path=path))
    found = f"{tmp_path}/in/\ufffd.tsv can't be read: its name is not UTF-8. Rename it."
    assert str(caught.value) == found


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gone.tsv", "it is not there, or vanished while it was needed. Put it back or mend"),
        ("circle.tsv", "its links lead in a circle. Mend the path."),
        ("n" * 300, "the name is too long. Mend the path."),
        ("folder", "it is a folder. Name a file, or a glob of files."),
        ("file/e.tsv", "a file is where the path names a folder. Mend the path."),
    ],
)
def test_a_file_that_can_not_be_read_is_one_sentence(
    tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "circle.tsv").symlink_to("circle.tsv")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    file = sources.local(tmp_path / name)
    works = [lambda: file.open().read(), file.sha256, lambda: file.open_random().read()]
    for work in works[:2] if name == "folder" else [*works, lambda: file.num_bytes]:
        with pytest.raises(DataError) as caught:
            work()
        assert str(caught.value).startswith(f"{file} can't be read: {reason}")


def test_an_error_of_the_machine_names_the_file() -> None:
    error = sources.cant_read("e.tsv", OSError(errno.EIO, "Input/output error"))
    assert isinstance(error, OSError) and not isinstance(error, DataError)
    assert (error.errno, error.filename) == (errno.EIO, "e.tsv")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
@pytest.mark.parametrize("name", ["in", "in/a.tsv"])
def test_what_may_not_be_read_is_said_so(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "in/a.tsv")
    (tmp_path / name).chmod(0)
    try:
        with pytest.raises(DataError) as caught:
            for file in sources.expand(tmp_path, SourceConfig(path="in")):
                list(readers.read(file, SourceConfig(path="in"), EDGE))
    finally:
        (tmp_path / name).chmod(0o700)
    found = f"{tmp_path / name} can't be read: permission denied. Mend its permissions."
    assert str(caught.value) == found


# --- URIs -----------------------------------------------------------------------------------------


def test_a_file_uri_is_the_local_file(tmp_path: Path) -> None:
    touch(tmp_path, "a b.tsv", "in/c.tsv")
    (file,) = sources.expand(Path("x"), SourceConfig(path=f"file://{tmp_path}/a%20b.tsv"))
    assert file == sources.local(tmp_path / "a b.tsv") == sources.at(str(tmp_path / "a b.tsv"))
    assert names_of(tmp_path, f"file://{tmp_path}/in") == ["in/c.tsv"]
    assert names_of(tmp_path, f"file://{tmp_path}/a%20*.tsv") == ["a b.tsv"]


def test_files_of_a_store_are_named_by_their_uri(store: Path) -> None:
    touch(store, "ev/a b.tsv", "ev/day=1/c.tsv", "ev/_SUCCESS")
    found = sources.expand(Path("x"), SourceConfig(path="far://box/ev?region=north"))
    assert [str(file) for file in found] == ["far://box/ev/a%20b.tsv", "far://box/ev/day=1/c.tsv"]
    assert found[0].address == "far://box/ev/a%20b.tsv?region=north"
    for pattern in ("far://box/ev/**/*.tsv", "far://box/e[v]/**/*.tsv?x=*"):
        assert len(sources.expand(Path("x"), SourceConfig(path=pattern))) == 2
    with pytest.raises(DataError) as caught:
        sources.expand(Path("x"), SourceConfig(path="far://box/ev/*.csv"))
    assert str(caught.value) == "far://box/ev/*.csv is missing: no such file. Mend the path."


def test_a_file_of_a_store_is_what_the_local_file_is(store: Path) -> None:
    path = store / "a.tsv"
    path.write_bytes(b"a\tb\n" * 999)
    (far,) = sources.expand(Path("x"), SourceConfig(path="far://box/a.tsv"))
    near = sources.local(path)
    assert (far.num_bytes, far.sha256()) == (near.num_bytes, near.sha256())
    assert far.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
    assert far.modified_ns == near.modified_ns
    assert (far.suffixes, far.base_name, far.local) == ([".tsv"], "a.tsv", None)
    assert far.exists and not InputFile("", "", "b.tsv", far.filesystem).exists


CONTENT = pa.table({"l": ["a", "c"], "r": ["b", "d"]})


@pytest.mark.parametrize(
    "name",
    ["e.tsv", "e.tsv.gz", "e.tsv.zst", "e.zip", "e.tar.gz", "e.parquet", "e.arrow", "e.jsonl.gz"],
)
def test_every_format_is_read_from_a_store(store: Path, name: str) -> None:
    import io
    import tarfile
    import zipfile

    path, text, member = store / name, b"a\tb\nc\td\n", None
    columns: dict[str, Column] = EDGE
    if name == "e.tsv":
        path.write_bytes(text)
    elif name == "e.tsv.gz":
        path.write_bytes(gzip.compress(text))
    elif name == "e.tsv.zst":
        path.write_bytes(pa.compress(text, codec="zstd", asbytes=True))
    elif name == "e.zip":
        member = "in/e.tsv"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(member, text)
    elif name == "e.tar.gz":
        member = "in/e.tsv"
        with tarfile.open(path, "w:gz") as tar:
            info = tarfile.TarInfo(member)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
    elif name == "e.parquet":
        pq.write_table(CONTENT, path, compression="zstd")
    elif name == "e.arrow":
        with pa.ipc.new_file(str(path), CONTENT.schema) as writer:
            writer.write_table(CONTENT)
    else:
        columns = {"lhs": "l", "rhs": "r"}
        path.write_bytes(gzip.compress(b'{"l": "a", "r": "b"}\n{"l": "c", "r": "d"}\n'))
    source = SourceConfig(path=f"far://box/{name}", member=member)
    (file,) = sources.expand(Path("x"), source)
    rows = [row for b in readers.read(file, source, columns) for row in b.to_pylist()]
    assert rows == [{"lhs": "a", "rhs": "b"}, {"lhs": "c", "rhs": "d"}]


def test_a_bad_line_of_a_store_is_named_without_its_settings(store: Path) -> None:
    (store / "e.tsv").write_text("a\tb\nc\n")
    source = SourceConfig(path="far://box/e.tsv?key=secret")
    (file,) = sources.expand(Path("x"), source)
    with pytest.raises(DataError, match=r"^far://box/e.tsv:2: expected 2 tab-separated columns"):
        list(readers.read(file, source, EDGE))


def test_pyarrow_reaches_a_store_by_its_uri() -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe("/box/in/a.tsv", b"a\tb\n")
    memory.pipe("/box/in/_SUCCESS", b"")
    try:
        for path in ("in", "in/*.tsv", "**/a.tsv", "in/a.tsv"):
            source = SourceConfig(path=f"fsspec+memory:///box/{path}")
            (file,) = sources.expand(Path("x"), source)
            assert file.address == "fsspec+memory:///box/in/a.tsv"
            assert sources.at(file.address).num_bytes == 4
            assert [b.to_pylist() for b in readers.read(file, source, EDGE)] == [
                [{"lhs": "a", "rhs": "b"}]
            ]
    finally:
        memory.rm("/box", recursive=True)


@pytest.mark.parametrize("uri", ["nosuch://x/y.tsv", "hf://x/y.tsv", "file:///a b.tsv"])
def test_a_uri_that_leads_nowhere_is_one_sentence(uri: str) -> None:
    with pytest.raises(DataError) as caught:
        sources.expand(Path("x"), SourceConfig(path=uri))
    message = str(caught.value)
    assert message.startswith(f"{uri} can't be reached: ")
    assert message.endswith(
        ". Mend the URI, install what its file system needs, or copy the files to a local folder."
    )
    assert "\n" not in message


# --- the importer ---------------------------------------------------------------------------------


def config_of(folder: Path, **settings: Any) -> GraphConfig:
    return GraphConfig.model_validate(
        {
            "data": folder,
            "gate": False,
            "entities": {"user": {"partitions": 2}},
            "relations": {"knows": {"lhs": "user", "rhs": "user"}},
            **settings,
        }
    )


def test_a_graph_from_a_store_equals_the_one_from_local_files(store: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        lines = [f"{name}{n}\tk{n * 7 % 50}\n" for n in range(300)]
        (store / f"{name}.tsv").write_text("".join(lines))
    (store / "names.tsv").write_text("a1\tAnna\n")
    parts: dict[str, Any] = {"partitions": 2}
    named = {"columns": {"key": 0, "title": 1}}
    graphs = {}
    for place in ("far://box", str(store)):
        config = config_of(
            tmp_path,
            inputs=[{"path": f"{place}/[ab].tsv", "relation": "knows"}],
            entities={"user": parts | {"attributes": {"path": f"{place}/names.tsv", **named}}},
        )
        path = tmp_path / ("far" if "far" in place else "near")
        import_graph(config, path)
        assert difference(config, path) is None
        graphs[path.name] = {
            file.relative_to(path): file.read_bytes()
            for file in path.rglob("*")
            if file.is_file() and file.name != MANIFEST
        }
        found = Graph(path).manifest.sources
        assert [s["path"] for s in found] == [f"{place}/{n}.tsv" for n in ("a", "b", "names")]
        (store / "b.tsv").write_text((store / "b.tsv").read_text() + "new\tnewer\n")
        assert difference(config, path) is not None
        (store / "b.tsv").write_text((store / "b.tsv").read_text().removesuffix("new\tnewer\n"))
    assert graphs["far"] == graphs["near"]


def test_a_store_can_be_appended_from(store: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, inputs=[{"path": "far://box/*.tsv", "relation": "knows"}])
    (store / "a.tsv").write_text("".join(f"a{n}\tb{n}\n" for n in range(20)))
    import_graph(config, tmp_path / "graph")
    (store / "b.tsv").write_text("a1\tc\n")
    report = import_graph(config, tmp_path / "graph", append=True)
    assert report.num_edges["train"] == 1
    with pytest.raises(DataError, match="nothing to append"):
        import_graph(config, tmp_path / "graph", append=True)
