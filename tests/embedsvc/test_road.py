"""embedsvc.road: what an import says of the split that it made."""

from pathlib import Path

import pytest

from embedsvc.road import Road

CONFIG = """
[run]
dir = "{folder}/run"
[graph]
data = "{folder}"
gate = false
[graph.entities.user]
[graph.entities.item]
[graph.relations.bought]
lhs = "user"
rhs = "item"
[[graph.inputs]]
path = "day*.tsv"
relation = "bought"
columns = {{ lhs = 0, rhs = 1, timestamp = 2 }}
[graph.holdout]
test = 0.1
"""


def said(road: Road, capsys: pytest.CaptureFixture[str], *, append: bool = False) -> list[str]:
    capsys.readouterr()
    road.import_graph(append=append, replace=not append)
    lines = capsys.readouterr().out.splitlines()
    return [line.removeprefix("import: ") for line in lines if "after" in line]


def test_an_import_says_how_it_cut_in_time_and_how_to_get_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.toml").write_text(CONFIG.format(folder=tmp_path))
    (tmp_path / "day0.tsv").write_text("".join(f"u\ti{n}\t{n}\n" for n in range(20)))
    cut = "held out by time: test after 1970-01-01T00:00:17Z"
    road = Road.open(tmp_path / "c.toml", [])
    other = '; graph.holdout.by = "edge" draws them at random instead'
    assert said(road, capsys) == [cut + other]
    (tmp_path / "day1.tsv").write_text("".join(f"u\tj{n}\t{n}\n" for n in range(20)))
    assert said(road, capsys, append=True) == [
        "the graph's cuts in time stay: test after 1970-01-01T00:00:17Z. Later edges do not train: "
        "graph.holdout.test_after (and valid_after) in place of shares moves the cuts"
    ]
    assert said(Road.open(tmp_path / "c.toml", ["graph.holdout.by=edge"]), capsys) == []
    asked = Road.open(tmp_path / "c.toml", ["graph.holdout.by=time"])
    assert said(asked, capsys) == [cut]
