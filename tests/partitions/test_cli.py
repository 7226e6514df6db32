"""partitions.cli: one command made of every package's, and mistakes as one line and exit code 2.

The commands here are a toy's, in a package of metadata that hides the installed one: the ground
floor's command line must not need the floors above. Only the last test uses the real commands.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAIN = "from partitions.cli import main; main()"
TOY = '''
import errno, logging, os, signal
from pathlib import Path
import typer

def import_(config: Path, overrides: list[str] = typer.Argument(None)) -> None:
    """Raw edges -> a graph."""
    from partitions import config as settings_file, importer
    settings = settings_file.load(config, overrides or [])
    report = importer.import_graph(
        settings.table("graph", settings_file.GraphConfig),
        settings.table("run", settings_file.RunConfig).graph,
    )
    typer.echo(f"{sum(report.num_edges.values())} edges")

def train(what: str) -> None:
    """Fails as it is told."""
    from partitions.errors import BusyError, ConfigError, DataError
    if what == "interrupt":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
        os.kill(os.getpid(), signal.SIGINT)
    if what == "log":
        logging.getLogger("partitions.toy").info("ours")
        logging.getLogger("others").info("theirs")
        return
    raise {
        "data": DataError("e.tsv:3: wrong."),
        "config": ConfigError("graph.toml: wrong."),
        "busy": BusyError("in use."),
        "full": OSError(errno.ENOSPC, "No space left on device", "runs/x"),
        "quota": OSError(errno.EDQUOT, "Disk quota exceeded"),
        "read-only": OSError(errno.EROFS, "Read-only file system", "runs/x"),
        "memory": MemoryError(),
        "bug": OSError(errno.EBADF, "Bad file descriptor"),
        "our mistake": AssertionError("cannot be"),
    }[what]

more = typer.Typer(help="A command with commands.")

@more.command()
def one() -> None:
    typer.echo("one")

@more.command()
def two() -> None:
    typer.echo("two")
'''
METADATA = "Metadata-Version: 2.1\nName: embedsvc\nVersion: 0\n"
ENTRY_POINTS = """
[embedsvc.commands]
eval = toy:train
more = toy:more
train = toy:train
import = toy:import_
[embedsvc.tables]
run = partitions.config:RunConfig
graph = partitions.config:GraphConfig
"""
CONFIG = """
graph.gate = false
[graph.entities.node]
partitions = 2
[graph.relations.knows]
lhs = "node"
rhs = "node"
[[graph.inputs]]
path = "e.tsv"
relation = "knows"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to run in: toy commands under site/, graph.toml and its edges."""
    site = tmp_path / "site" / "embedsvc-0.dist-info"
    site.mkdir(parents=True)
    (site / "METADATA").write_text(METADATA)
    (site / "entry_points.txt").write_text(ENTRY_POINTS)
    (tmp_path / "site" / "toy.py").write_text(TOY)
    (tmp_path / "graph.toml").write_text(CONFIG)
    write_edges(tmp_path, 100)
    return tmp_path


def write_edges(folder: Path, num_edges: int) -> None:
    lines = [f"{n * 31 % 97}\t{n * 17 % 89}\n" for n in range(num_edges)]
    (folder / "e.tsv").write_text("".join(lines))


def run(folder: Path, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """`embedsvc ARGUMENTS` in the folder; `before` are shell commands such as ulimit."""
    return subprocess.run(
        ["bash", "-c", f'{before}\nexec "$@"', "bash", sys.executable, "-c", MAIN, *arguments],
        cwd=folder,
        env={"PYTHONPATH": f"{folder / 'site'}:{ROOT}", "PATH": "/usr/bin:/bin", "COLUMNS": "100"},
        capture_output=True,
        text=True,
    )


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a refusal says."""
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    line = done.stderr.removesuffix("\n")
    assert "\n" not in line and line.startswith("embedsvc: ") and line.endswith((".", "?")), line
    return line.removeprefix("embedsvc: ")


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_commands_of_all_packages_are_listed_in_the_order_of_the_road(folder: Path) -> None:
    done = run(folder, "--help")
    assert done.returncode == 0
    places = [
        re.search(rf"^\W*{name} ", done.stdout, re.MULTILINE)
        for name in ("import", "train", "eval", "more")
    ]
    assert all(places), done.stdout
    assert [place.start() for place in places if place] == sorted(p.start() for p in places if p)
    assert "Raw edges -> a graph." in done.stdout
    assert run(folder, "more", "two").stdout == "two\n"


def test_an_import_says_what_it_did(folder: Path) -> None:
    done = run(folder, "import", "graph.toml", "run.dir=here")
    assert (done.returncode, done.stdout, done.stderr) == (0, "100 edges\n", "")
    assert (folder / "here" / "graph" / "graph.json").exists()


def test_an_unknown_setting_is_one_line(folder: Path) -> None:
    (folder / "graph.toml").write_text(CONFIG.replace("partitions =", "partitons ="))
    line = refused(run(folder, "import", "graph.toml"))
    assert line == (
        "graph.toml: [graph.entities.node] partitons is not a setting. Did you mean partitions?"
    )
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("data", "e.tsv:3: wrong."),
        ("config", "graph.toml: wrong."),
        ("busy", "in use."),
        ("full", "runs/x: the disk is full; free some space and run the same command again."),
        (
            "quota",
            "writing to disk: the disk quota is used up; free some space and run the same command "
            "again.",
        ),
        (
            "memory",
            "out of memory: what is allowed to this process is less than was free when it "
            "planned. Free some, or choose more partitions or a smaller train.buffer.",
        ),
        ("read-only", "runs/x: the file system is read-only; choose another [run] dir."),
    ],
)
def test_what_a_person_can_mend_is_one_line(folder: Path, what: str, line: str) -> None:
    assert refused(run(folder, "train", what)) == line


@pytest.mark.parametrize(
    ("what", "last"),
    [
        ("bug", "OSError: [Errno 9] Bad file descriptor"),
        ("our mistake", "AssertionError: cannot be"),
    ],
)
def test_a_mistake_of_ours_keeps_its_traceback(folder: Path, what: str, last: str) -> None:
    done = run(folder, "train", what)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "toy.py" in done.stderr
    assert done.stderr.splitlines()[-1] == last


def test_an_interrupt_is_one_line_and_130(folder: Path) -> None:
    done = run(folder, "train", "interrupt")
    assert done.returncode == 130
    assert done.stderr == "embedsvc: stopped; the same command goes on.\n"


def test_our_packages_log_and_others_only_warn(folder: Path) -> None:
    done = run(folder, "train", "log")
    assert done.returncode == 0
    assert done.stderr.endswith(" partitions.toy: ours\n") and "theirs" not in done.stderr


@pytest.mark.parametrize("kilobytes", [30])
def test_a_full_disk_is_one_line_and_nothing_is_lost(folder: Path, kilobytes: int) -> None:
    # A limit on the size of a file stands for a full disk: the write fails at the same places.
    assert run(folder, "import", "graph.toml").returncode == 0
    write_edges(folder, 30_000)
    before = tree(folder)
    done = run(folder, "import", "graph.toml", before=f"ulimit -f {kilobytes}")
    line = refused(done)
    assert line.endswith(
        ": the file grew past the allowed size; raise the limit and run the command again."
    )
    assert tree(folder) == before
    assert run(folder, "import", "graph.toml").stdout == "30000 edges\n"


@pytest.mark.parametrize("file", ["runs", "runs/default"])
def test_a_file_where_a_folder_belongs_is_one_line(folder: Path, file: str) -> None:
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text("in the way")
    assert refused(run(folder, "import", "graph.toml")) == (
        "runs/default: a file is where a folder belongs; move it or choose another [run] dir."
    )


def test_the_installed_commands_refuse_in_the_same_way(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "import", "graph.toml", "graph.skipbad=true"],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert refused(done) == "graph.toml: [graph] skipbad is not a setting. Did you mean skip_bad?"


def test_the_version_is_told(folder: Path) -> None:
    done = run(folder, "--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "embedsvc")


def test_a_run_folder_that_can_not_be_made_is_one_line(folder: Path) -> None:
    line = refused(run(folder, "import", "graph.toml", "run.dir=/proc/nowhere"))
    assert "/proc/nowhere" in line
