"""The whole road through the console command, and everything a person can get wrong on it."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedsvc.trained import Trained
from partitions import published
from partitions.checkpoint import MANIFEST, PREVIOUS
from partitions.graph import Graph

COMMAND = Path(sys.executable).with_name("embedsvc")
Run = Callable[..., subprocess.CompletedProcess[str]]

GROUPS, USERS, ITEMS, BOUGHT = 4, 15, 12, 7

CONFIG = """
[run]
dir = "run"

[graph]
data = "."

[graph.entities.user]
partitions = 2

[graph.entities.item]

[graph.relations.buys]
lhs = "user"
rhs = "item"

[[graph.inputs]]
path = "buys.tsv"
relation = "buys"

[graph.holdout]
test = 0.2

[model]
dim = 16
init_scale = 0.1

[train]
epochs = 5
batch_size = 50
chunk_size = 25
threads = 1
commit_every_s = 0

[eval]
recommend = ["buys"]
k = 5
"""


def write_inputs(folder: Path) -> None:
    """Each user buys 7 of the 12 items of their own taste group, and nothing else."""
    rng = np.random.default_rng(1)
    lines = [
        f"u{group}-{user}\ti{group}-{item}\n"
        for group in range(GROUPS)
        for user in range(USERS)
        for item in rng.choice(ITEMS, BOUGHT, replace=False)
    ]
    rng.shuffle(lines)
    (folder / "buys.tsv").write_text("".join(lines))
    (folder / "graph.toml").write_text(CONFIG)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file but the locks, which say who came last."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


@dataclass(frozen=True)
class Road:
    folder: Path
    answers: dict[str, subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def road(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Road:
    """Gone once, command by command. Tests copy it before they do any harm."""
    folder = tmp_path_factory.mktemp("road")
    write_inputs(folder)
    answers = {}
    for command in ("import", "train", "eval", "publish"):
        answers[command] = run(folder, command, "graph.toml")
        assert answers[command].returncode == 0, answers[command].stderr
    return Road(folder, answers)


@pytest.fixture
def copy(road: Road, tmp_path: Path) -> Path:
    return shutil.copytree(road.folder, tmp_path / "road")


# --- the road ------------------------------------------------------------------------------------


def test_each_command_says_what_it_did(road: Road) -> None:
    num_edges = GROUPS * USERS * BOUGHT
    out = {command: answer.stdout for command, answer in road.answers.items()}
    assert out["import"].startswith("import: memory plan: ")
    assert f"\nimport: {num_edges} edges (" in out["import"]
    assert "run/schema.toml" in out["import"]
    assert f"{GROUPS * USERS} user, {GROUPS * ITEMS} item" in out["import"]
    assert re.match(r"train: [\d,]+ edges in ", out["train"])
    assert "Filtered ranks of" in out["eval"] and "most popular" in out["eval"]
    assert "maps in run/checkpoint/evaluation.html" in out["eval"]
    assert "v000001 in run/published is live" in out["publish"]
    assert "memory plan: " in road.answers["train"].stderr
    metrics = (road.folder / "run/checkpoint/metrics.jsonl").read_text().splitlines()
    assert len(metrics) == 5 * 2  # epochs x buckets


def test_recommendations_find_the_planted_groups_and_beat_popularity(road: Road) -> None:
    """Of a group's 12 items a user has 7, of which a fifth or so are held out: a list of 5 from the
    right group holds most of them. Popularity knows no groups: 5 of 48 items, so about a tenth."""
    found = json.loads((road.folder / "run/checkpoint/evaluation.json").read_text())
    lists = found["recommend"]["buys"]
    assert lists["recall"] > 0.5 > 0.3 > lists["popular_recall"]
    assert lists["ndcg"] > 2 * lists["popular_ndcg"]
    # An item of the own group has at most 11 rivals of that group and should have no others.
    assert found["links"]["by_side"]["rhs"]["mean_rank"] < 12 / 2

    version = published.open_version(road.folder / "run/published")
    users, items = (version.keys(t).column("key").to_pylist() for t in ("user", "item"))
    scores = version.vectors("user") @ version.vectors("item").T
    starts, ids = version.seen("buys")
    right = 0
    for row, user in enumerate(users):
        scores[row, ids[starts[row] : starts[row + 1]]] = -np.inf
        for item in np.argsort(-scores[row])[:5]:
            right += items[item].split("-")[0][1:] == user.split("-")[0][1:]
    assert right / (5 * len(users)) > 0.9
    assert json.loads(bytes(version.file("metrics.json"))) == found


def test_estimates_are_asked_for_by_name_and_stay_beside_exact_ranks(copy: Path, run: Run) -> None:
    before = (copy / "run/checkpoint/evaluation.json").read_bytes()
    answer = run(copy, "eval", "graph.toml", "eval.sampled_candidates=20", "eval.recommend=[]")
    assert answer.returncode == 0, answer.stderr
    assert "sampled_mrr_estimate" in answer.stdout and "neither published" in answer.stdout
    assert (copy / "run/checkpoint/evaluation.json").read_bytes() == before
    found = json.loads((copy / "run/checkpoint/evaluation-of-some.json").read_text())
    assert "links" not in found and "mrr" not in found["sampled_links"]
    exact = json.loads(before)["links"]["mrr"]
    assert found["sampled_links"]["sampled_mrr_estimate"] == pytest.approx(exact, rel=0.2)

    unknown = run(copy, "eval", "graph.toml", "eval.candidates=20")
    assert unknown.returncode == 2
    assert "Did you mean sampled_candidates?" in unknown.stderr


def test_an_empty_split_is_said_and_counted(copy: Path, run: Run) -> None:
    answer = run(copy, "eval", "graph.toml", "eval.split=valid", "eval.recommend=[]")
    assert answer.returncode == 0, answer.stderr
    assert "the valid split has no edges to rank" in answer.stdout
    links = json.loads((copy / "run/checkpoint/evaluation.json").read_text())["links"]
    assert links == {"edges": 0, "other_relations": 0}


def test_links_are_reported_filtered_and_raw_and_with_their_intervals(road: Road) -> None:
    links = json.loads((road.folder / "run/checkpoint/evaluation.json").read_text())["links"]
    assert links["ties"] == "pessimistic" and links["mrr"] == links["pessimistic"]["mrr"]
    assert links["raw"]["mrr"] < links["mrr"] <= links["realistic"]["mrr"]
    assert links["intervals"]["mrr"]["low"] < links["mrr"] < links["intervals"]["mrr"]["high"]
    assert sum(band["ranks"] for band in links["by_degree"]) == 2 * links["edges"]
    assert links["nan_edges"] == links["nan_candidates"] == links["other_relations"] == 0
    assert 0 <= links["repeats"] <= links["edges"]
    assert "95 % from" in road.answers["eval"].stdout


def test_running_the_road_again_does_nothing_twice(copy: Path, run: Run) -> None:
    before = snapshot(copy)
    again = run(copy, "run", "graph.toml")
    assert again.returncode == 0, again.stderr
    for line in ("import: .*up to date", "train: nothing left to do", "eval: .*up to date",
                 "publish: .*up to date", "done in"):  # fmt: skip
        assert re.search(line, again.stdout), line
    assert snapshot(copy) == before


@pytest.mark.parametrize("page", [None, "of something else"])
def test_figures_without_their_page_are_not_up_to_date(
    copy: Path, run: Run, page: str | None
) -> None:
    path = copy / "run/checkpoint/evaluation.html"
    path.unlink()
    if page is not None:
        path.write_text(page)
    again = run(copy, "run", "graph.toml")
    assert again.returncode == 0, again.stderr
    assert "evaluation.json is up to date" not in again.stdout
    figures = (copy / "run/checkpoint/evaluation.json").read_bytes()
    assert hashlib.sha256(figures).hexdigest() in path.read_text()


def test_a_graph_that_grew_is_said_where_training_has_no_epoch_left(copy: Path, run: Run) -> None:
    (copy / "more.tsv").write_text("".join(f"u0-{n}\tnew{n}\n" for n in range(7)))
    with (copy / "graph.toml").open("a") as config:
        config.write('\n[[graph.inputs]]\npath = "more.tsv"\nrelation = "buys"\nsplit = "train"\n')
    grown = run(copy, "import", "graph.toml", "--append", "graph.gate=false")
    assert grown.returncode == 0, grown.stderr
    idle = run(copy, "train", "graph.toml")
    assert "nothing left to do in train.epochs = 5" in idle.stdout
    assert "7 training edges more than then. Raise train.epochs" in idle.stdout
    trained = run(copy, "train", "graph.toml", "train.epochs=6", "train.only_changed=true")
    assert trained.returncode == 0


def test_the_same_command_does_what_a_changed_setting_asks_for(copy: Path, run: Run) -> None:
    """More epochs: trained on, judged anew, published anew; imported no second time."""
    graph = snapshot(copy / "run/graph")
    more = run(copy, "run", "graph.toml", "train.epochs=6")
    assert more.returncode == 0, more.stderr
    assert "import: run/graph is up to date" in more.stdout
    assert snapshot(copy / "run/graph") == graph
    assert len((copy / "run/checkpoint/metrics.jsonl").read_text().splitlines()) == 6 * 2
    assert published.current(copy / "run/published") == "v000002"
    # Both pages and the terminal say the same of what the epoch changed.
    told = run(copy, "compare", "graph.toml", "v000001", "v000002", "--json")
    assert told.returncode == 0, told.stderr
    [change] = json.loads(told.stdout.splitlines()[-1])["lists"]
    assert change["relation"] == "buys" and "train.epochs: 5 -> 6" in told.stdout
    recall = {side: f"{change['metrics']['recall@5'][side]:.4f}" for side in ("old", "new")}
    assert re.search(rf"recall@5 +{recall['old']} +{recall['new']}", told.stdout)
    for page in ("checkpoint/evaluation.html", "published/compare-v000001-v000002.html"):
        cells = f"<td>{recall['old']}</td><td>{recall['new']}</td>"
        assert cells in (copy / "run" / page).read_text(), page
    unknown = run(copy, "compare", "graph.toml", "v000001", "v000007")
    assert unknown.returncode == 2
    assert "has no version v000007. Did you mean v00000" in unknown.stderr


# --- mistakes ------------------------------------------------------------------------------------


def append(path: str, text: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        with (folder / path).open("a") as file:
            file.write(text)

    return harm


def truncate(pattern: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.write_bytes(path.read_bytes()[:-10])

    return harm


def alter(pattern: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        for path in folder.glob(pattern):
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)

    return harm


def broken_gzip(folder: Path) -> None:
    import gzip

    whole = gzip.compress((folder / "buys.tsv").read_bytes())
    (folder / "buys.tsv.gz").write_bytes(whole[: len(whole) // 2])


def nothing(folder: Path) -> None:
    pass


EDGES = "run/graph/edges/*/*.arrow"
KEYS = "run/graph/entities/user/keys-001.arrow"
TABLES = "run/checkpoint/tables/*"
IMPORT, TRAIN = ["import", "graph.toml", "--replace"], ["train", "graph.toml", "train.epochs=6"]
EVAL, PUBLISH = ["eval", "graph.toml"], ["publish", "graph.toml"]
SERVE = ["serve", "graph.toml", "--port", "0"]

# name: (what is done to the folder, the command, what its one sentence must say)
MISTAKES: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "three columns": (
        append("buys.tsv", "u\ti\tx\n"),
        IMPORT,
        r"buys\.tsv:421: expected 2 tab-separated columns .*found 3",
    ),
    "an empty key": (append("buys.tsv", "u\t\n"), IMPORT, r"buys\.tsv:421: the rhs key is empty"),
    "broken gzip": (
        broken_gzip,
        [*IMPORT, 'graph.inputs=[{path="buys.tsv.gz", relation="buys"}]'],
        r"buys\.tsv\.gz can't be read: ",
    ),
    "missing input": (
        lambda folder: (folder / "buys.tsv").unlink(),
        IMPORT,
        r"buys\.tsv is missing",
    ),
    "missing config": (nothing, ["import", "nothing.toml"], r"nothing\.toml is missing"),
    "unknown setting": (
        nothing,
        [*TRAIN, "train.batch_sise=10"],
        r"\[train\] batch_sise is not a setting\. Did you mean batch_size\?",
    ),
    "unknown entity type": (
        nothing,
        [*IMPORT, "graph.relations.buys.rhs=itm"],
        r"relations\.buys names the entity type itm.*Did you mean item\?",
    ),
    "no partitions": (nothing, [*IMPORT, "graph.entities.user.partitions=0"], r"partitions = 0"),
    "too many partitions": (
        nothing,
        [*IMPORT, "graph.entities.user.partitions=61"],
        r"asks for 61 partitions of 60 entities",
    ),
    "a graph is there already": (nothing, ["import", "graph.toml"], r"--replace to make it anew"),
    "truncated edges": (truncate(EDGES), TRAIN, r"00.\.arrow has .*Import the graph again"),
    "altered edges": (alter(EDGES), EVAL, r"00.\.arrow was altered.*Import the graph again"),
    "altered keys": (alter(KEYS), PUBLISH, r"keys-001\.arrow was altered.*Import the graph again"),
    "truncated table": (
        truncate(TABLES),
        TRAIN,
        r"safetensors has .*Copy .*checkpoint\.previous\.json over",
    ),
    "altered table, eval": (alter(TABLES), EVAL, r"safetensors was altered.*Copy"),
    "altered table, publish": (alter(TABLES), PUBLISH, r"safetensors was altered.*Copy"),
    "truncated manifest": (
        truncate("run/checkpoint/checkpoint.json"),
        TRAIN,
        r"checkpoint\.json is not valid JSON.*Copy",
    ),
    "truncated graph manifest": (
        truncate("run/graph/graph.json"),
        EVAL,
        r"graph\.json is not valid JSON.*Import the graph again",
    ),
    "truncated evaluation": (
        truncate("run/checkpoint/evaluation.json"),
        PUBLISH,
        r"evaluation\.json is not valid JSON.*Run embedsvc eval again",
    ),
    "altered published file": (
        alter("run/published/v000001/entities/item/score.faiss"),
        SERVE,
        r"score\.faiss was altered.*Publish again, or go back",
    ),
    "truncated published file": (
        truncate("run/published/v000001/entities/user/vectors-001.safetensors"),
        SERVE,
        r"vectors-001\.safetensors has .*Publish again, or go back",
    ),
}
_LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [\w.]+: ")


# The others import torch or start a server: seconds each.
QUICK = [name for name, (_, command, _) in MISTAKES.items() if command[0] == "import"]
THOROUGH = [name for name in MISTAKES if name not in QUICK]


# Its answer, the files before, the files after.
Outcome = tuple[subprocess.CompletedProcess[str], dict[str, bytes], dict[str, bytes]]


@pytest.fixture(scope="module")
def make(
    road: Road, run: Run, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[list[str]], dict[str, Outcome]]:
    """Makes mistakes by their names, two at a time."""
    base = tmp_path_factory.mktemp("mistakes")

    def make_one(name: str) -> Outcome:
        harm, command, _ = MISTAKES[name]
        folder = shutil.copytree(road.folder, base / name.replace(" ", "-"))
        harm(folder)
        before = snapshot(folder)
        return run(folder, *command), before, snapshot(folder)

    def make(names: list[str]) -> dict[str, Outcome]:
        with ThreadPoolExecutor(2) as pool:
            return dict(zip(names, pool.map(make_one, names), strict=True))

    return make


@pytest.fixture(scope="module")
def quick(make: Any) -> dict[str, Outcome]:
    return make(QUICK)


@pytest.fixture(scope="module")
def thorough(make: Any) -> dict[str, Outcome]:
    return make(THOROUGH)


@pytest.mark.parametrize("name", QUICK)
def test_a_mistake_in_the_input_gets_one_sentence_and_changes_nothing(
    name: str, quick: dict[str, Outcome]
) -> None:
    check(name, *quick[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", THOROUGH)
def test_a_mistake_or_damage_later_gets_one_sentence_and_changes_nothing(
    name: str, thorough: dict[str, Outcome]
) -> None:
    check(name, *thorough[name])


def check(name: str, answer: Any, before: dict[str, bytes], after: dict[str, bytes]) -> None:
    assert answer.returncode == 2, answer
    *log, last = answer.stderr.splitlines()
    assert re.match(rf"embedsvc: .*{MISTAKES[name][2]}", last), answer.stderr
    assert all(_LOG_LINE.match(line) for line in log), answer.stderr
    assert after == before


@pytest.mark.slow
def test_a_damaged_checkpoint_goes_on_from_the_commit_before(copy: Path, run: Run) -> None:
    folder = copy / "run/checkpoint"
    newest, old = (json.loads((folder / name).read_text()) for name in (MANIFEST, PREVIOUS))
    before = {table["file"]["path"] for table in old["tables"]}
    alter(next(t["file"]["path"] for t in newest["tables"] if t["file"]["path"] not in before))(
        folder
    )
    refused = run(copy, *TRAIN)
    assert refused.returncode == 2
    source, target = re.search(r"Copy (\S+) over (\S+) to go on", refused.stderr).groups()
    shutil.copyfile(copy / source, copy / target)
    mended = run(copy, *TRAIN)
    assert mended.returncode == 0, mended.stderr


def test_a_second_trainer_is_refused_while_the_first_goes_on(
    copy: Path, run: Run, start: Any
) -> None:
    with start(copy, "train", "graph.toml", "train.epochs=1000000") as first:
        try:
            while "epoch=" not in first.stderr.readline():  # its lock is taken by now
                assert first.poll() is None
            for command in (TRAIN, IMPORT):  # nobody may train on a graph that is replaced
                second = run(copy, *command)
                assert second.returncode == 2
                *log, last = second.stderr.splitlines()
                assert re.match(rf"embedsvc: .* is in use: process {first.pid} is training", last)
                assert all(_LOG_LINE.match(line) for line in log)
            assert "epoch=" in first.stderr.readline() and first.poll() is None
        finally:
            first.kill()
    assert run(copy, *EVAL).returncode == 0  # a whole checkpoint, whatever the moment


_MODES_COUNT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)  # PR_CAPBSET_DROP: root loses CAP_DAC_OVERRIDE
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="takes a right from root by Linux's prctl")
def test_a_read_only_folder_is_said_and_the_same_command_goes_on_later(
    copy: Path, run: Run
) -> None:
    tables, before = copy / "run/checkpoint/tables", snapshot(copy)
    tables.chmod(0o555)
    try:
        command = [sys.executable, "-c", _MODES_COUNT, COMMAND, *TRAIN]
        refused = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    finally:
        tables.chmod(0o755)
    assert refused.returncode == 2
    *log, last = refused.stderr.splitlines()
    assert re.fullmatch(r"embedsvc: \S*run/checkpoint/tables\S*: permission denied; .*", last)
    assert all(_LOG_LINE.match(line) for line in log)
    after = snapshot(copy)
    after.pop("run/checkpoint/metrics.jsonl"), before.pop("run/checkpoint/metrics.jsonl")
    assert after == before
    assert run(copy, *EVAL).returncode == run(copy, *TRAIN).returncode == 0


@pytest.mark.slow
def test_a_full_disk_is_said_and_the_same_command_goes_on_later(
    road: Road, copy: Path, tmp_path: Path, run: Run
) -> None:
    whole = shutil.copytree(road.folder, tmp_path / "whole")
    assert run(whole, *TRAIN).returncode == 0
    before = snapshot(copy)

    full = run(copy, *TRAIN, limit_kb=2)  # a table is larger
    assert full.returncode == 2
    *log, last = full.stderr.splitlines()
    assert re.fullmatch(r"embedsvc: .*the file grew past the allowed size; .*", last)
    assert all(_LOG_LINE.match(line) for line in log)
    after = snapshot(copy)
    after.pop("run/checkpoint/metrics.jsonl"), before.pop("run/checkpoint/metrics.jsonl")
    assert after == before

    later = run(copy, *TRAIN)
    assert later.returncode == 0, later.stderr
    graph = Graph(whole / "run/graph")
    contents = [Trained(graph, folder / "run/checkpoint") for folder in (whole, copy)]
    for slot in graph.slots():
        assert np.array_equal(contents[0].vectors(slot), contents[1].vectors(slot))
    assert contents[0].manifest.progress.epoch == contents[1].manifest.progress.epoch == 6
