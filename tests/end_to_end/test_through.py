"""A live server lists what the checkpoint ranks best, and recommend-all writes the same."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.end_to_end.test_road import write_inputs

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]

pytestmark = pytest.mark.slow  # a command is a process, seconds each


@pytest.fixture(scope="module")
def shop(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("through")
    write_inputs(folder)
    answer = run(folder, "run", "graph.toml")
    assert answer.returncode == 0, answer.stderr
    return folder


@contextmanager
def served(start: Start, folder: Path) -> Iterator[str]:
    """grpc://HOST:PORT of what `folder` has published."""
    with start(folder, "serve", "graph.toml", "--port", "0") as process:
        try:
            assert process.stdout is not None
            found = re.match(r"Serving v\d+ at (\S+)\. Try", process.stdout.readline())
            assert found
            yield f"grpc://{found[1]}"
        finally:
            process.terminate()
            process.communicate(timeout=30)


def test_a_server_is_held_to_the_checkpoint(run: Run, start: Start, shop: Path) -> None:
    before = (shop / "run/checkpoint/evaluation.json").read_bytes()
    with served(start, shop) as url:
        answer = run(shop, "eval", "graph.toml", "--through", url)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1].startswith("eval: passed for buys")
    found = json.loads((shop / "run/checkpoint/evaluation-through.json").read_text())
    through = found["through"]["buys"]
    assert through["alike"] == through["lists"] == found["recommend"]["buys"]["num_lists"]
    assert through["versions"] == ["v000001"] and through["unknown_lhs"] == 0
    assert through["served"]["recall"] == pytest.approx(found["recommend"]["buys"]["recall"])
    assert "links" not in found and through["retrieved"] == 1
    assert (shop / "run/checkpoint/evaluation.json").read_bytes() == before


def test_a_server_of_another_checkpoint_fails(
    run: Run, start: Start, shop: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(shop, tmp_path / "shop")
    assert run(copy, "train", "graph.toml", "train.epochs=7").returncode == 0
    with served(start, copy) as url:
        answer = run(copy, "eval", "graph.toml", "eval.links=false", "--through", url)
    assert answer.returncode == 1
    assert "FAILED for buys: v000001 was not made" in answer.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--through", "grpc"], "expected grpc://HOST:PORT"),
        (["--through", "http://localhost:1"], "expected grpc://HOST:PORT"),
        (["--through", "grpc://localhost:1", "eval.split=valid"], "needs eval.split = test"),
        (["--through", "grpc://localhost:1", "eval.recommend=[]"], "names no relation"),
        (["--through", "localhost:1"], "localhost:1"),  # nobody is there
    ],
)
def test_a_wrong_server_is_one_sentence(
    run: Run, shop: Path, arguments: list[str], sentence: str
) -> None:
    answer = run(shop, "eval", "graph.toml", "eval.links=false", *arguments)
    assert answer.returncode == 2
    assert sentence in answer.stderr and "Traceback" not in answer.stderr
    assert "Top-" not in answer.stdout  # nothing was ranked before


def test_lists_of_everybody_are_those_that_are_judged(run: Run, shop: Path, tmp_path: Path) -> None:
    for arguments in ([], ["--long"]):
        to = tmp_path / "lists.parquet"
        answer = run(shop, "recommend-all", "graph.toml", "--to", to, "-k", 4, *arguments)
        assert answer.returncode == 0, answer.stderr
    table = pq.read_table(to)
    assert table.column_names == ["lhs", "place", "rhs", "score"]
    assert "60 lists of 4 for buys" in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--to", "x.parquet", "--relation", "buy"], "Did you mean buys?"),
        (["--to", "x.parquet", "-k", "0"], "at least 1 place"),
        (["--to", "nowhere/x.parquet"], "the folder nowhere does not exist"),
    ],
)
def test_a_wrong_job_is_one_sentence(
    run: Run, shop: Path, arguments: list[str], sentence: str
) -> None:
    answer = run(shop, "recommend-all", "graph.toml", *arguments)
    assert answer.returncode == 2
    assert sentence in answer.stderr and "Traceback" not in answer.stderr
