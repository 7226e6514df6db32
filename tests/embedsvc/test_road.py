"""embedsvc.road: what an import says of the split that it made."""

import json
from pathlib import Path

import pytest

from embedsvc.config import TrainConfig
from embedsvc.road import Road
from partitions.errors import ConfigError

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


SHOP = """
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
path = "bought.tsv"
relation = "bought"
columns = {{ lhs = 0, rhs = 1 }}
[model]
dim = 4
[train]
epochs = 2
threads = 1
[eval]
recommend = ["bought"]
report = false
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Trained and evaluated."""
    rows = (f"u{n}\ti{(n * step) % 7}\n" for n in range(20) for step in (1, 2, 3))
    (tmp_path / "bought.tsv").write_text("".join(rows))
    path = tmp_path / "shop.toml"
    path.write_text(SHOP.format(folder=tmp_path))
    road = Road.open(path, [])
    road.import_graph()
    road.train()
    road.evaluate()
    return path


def test_a_version_tells_what_was_trained_whatever_the_file_says_now(shop: Path) -> None:
    road = Road.open(shop, ["train.lr=0.001", "train.epochs=15", "publish.keep=7"])
    assert road.publish()
    folder = shop.parent / "run/published/v000001"
    settings = json.loads((folder / "config.json").read_text())
    assert (settings["train"]["lr"], settings["train"]["epochs"]) == (0.1, 2)
    assert (settings["model"]["dim"], settings["publish"]["keep"]) == (4, 7)
    assert json.loads((folder / "card.json").read_text())["settings"]["train"]["epochs"] == 2
    for overrides in ([], ["train.lr=0.5"]):
        assert Road.open(shop, [*overrides, "publish.keep=7"]).publish(if_needed=True)
    assert sorted(p.name for p in folder.parent.glob("v*")) == ["v000001"]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.dim=8", "was begun with model.dim = 4, now it is 8. Set it back"),
        ("output.kind=full_softmax", "does not apply with [output]"),
    ],
)
def test_another_model_than_the_trained_one_is_neither_judged_nor_published(
    shop: Path, override: str, sentence: str
) -> None:
    road = Road.open(shop, [override])
    for act in (road.evaluate, road.publish):
        with pytest.raises(ConfigError) as refused:
            act()
        assert sentence in str(refused.value)
    assert not (shop.parent / "run/published").exists()


@pytest.mark.parametrize("off", ["false", "off"])
def test_an_optional_table_is_taken_away_on_the_command_line(shop: Path, off: str) -> None:
    path = shop.with_name("stopping.toml")
    path.write_text(shop.read_text() + "[train.early_stopping]\npatience = 2\n")
    tables = Road.open(path, [f"train.early_stopping={off}"]).settings
    assert tables.table("train", TrainConfig).early_stopping is None
