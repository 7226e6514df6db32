"""A new ranker goes live only where users' own AUC is no worse, scored as it is served."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from embedsvc.evaluation.ranker_gate import _LiveFails, _Scorer
from embedsvc.ranker_road import RankerRoad
from partitions import published, releases
from partitions.config import from_tables
from partitions.errors import ConfigError, DataError
from partitions.ranker_files import FOLDER
from serving.ranker import Ranker
from tests.toy_ranker import FEATURES, clicks, road, write_rows

SAME = "click/user_auc: new - old > -0.65 +- 0.6 at 0.5"


def gated(folder: Path, conditions: list[str], ranker: dict[str, Any], **gate: Any) -> RankerRoad:
    settings = road(folder, {"user": "user", "calibration": "none", **ranker}).settings
    tables = {**settings._tables, "gate": {"conditions": conditions, "max_uses": 1, **gate}}
    return RankerRoad(from_tables(tables), quiet=True)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learnt")
    write_rows(folder)
    gated(folder, [], {}).train()
    return folder


@pytest.fixture
def folder(learnt: Path, tmp_path: Path) -> Path:
    shutil.copytree(learnt / "run", tmp_path / "run")
    for path in learnt.glob("*.parquet"):
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def test_the_figure_is_that_of_what_is_served(folder: Path) -> None:
    made = gated(folder, [SAME], {}, adaptivity="none")
    assert made.publish() and made.publish()
    card = json.loads((made.published / "v000002/card.json").read_text())
    [outcome] = card["gate"]["outcomes"]
    rows = clicks(2, 2000)  # test.parquet
    said = Ranker.live(made.published).score(rows)[:, 0].astype(np.float64)
    who = np.array([int(u[1:]) for u in rows["user"].to_pylist()])
    label = rows["click"].to_numpy()
    each = [roc_auc_score(label[who == u], said[who == u]) for u in range(15)]
    assert outcome["new"] == outcome["old"] == pytest.approx(np.mean(each), abs=1e-9)
    assert outcome["users"] == 15 and outcome["verdict"] == "pass"
    assert card["gate"]["askers"] == {"click": 15} and card["gate"]["use"] == 1
    assert card["data"]["training_rows"] == 4000
    shown = made.evaluate()["labels"]["click"]
    assert shown["user_auc"] == pytest.approx(np.mean(each), abs=1e-5) and shown["user_auc_users"]
    assert shown["user_auc_low"] < shown["user_auc"] < shown["user_auc_high"]


def test_a_worse_ranker_stays_unpublished_and_can_be_forced_and_taken_back(folder: Path) -> None:
    assert gated(folder, [SAME], {}).publish()
    shutil.rmtree(folder / "run/ranker")
    worse = gated(folder, [SAME], {"features": {"user": FEATURES["user"]}, "crosses": {}})
    worse.train()
    assert not worse.publish() and published.current(worse.published) == "v000001"
    [outcome] = releases.trace(worse.published)[-1].conditions
    assert outcome["verdict"] == "unknown" and outcome["new"] is outcome["value"] is None
    assert not worse.publish(if_needed=True)  # waits
    assert published.versions(worse.published) == ["v000001", "v000002"]
    assert not worse.gate()  # used up
    assert "has decided 1 times" in releases.trace(worse.published)[-1].why
    assert worse.gate(force=True) and published.current(worse.published) == "v000002"
    releases.roll_back(worse.published)
    assert published.current(worse.published) == "v000001"


def test_a_label_that_the_live_ranker_lacks_is_nothing_to_compare_with(folder: Path) -> None:
    only = gated(folder, [], {"labels": ["click"]})
    shutil.rmtree(folder / "run/ranker")
    only.train()
    only.publish()
    shutil.rmtree(folder / "run/ranker")
    both = gated(folder, ["like/user_auc: new - old > 0 +- 0.1 at 0.9"], {})
    both.train()
    assert not both.publish() and published.current(both.published) == "v000001"
    [line] = releases.trace(both.published)[-1].conditions
    assert line["verdict"] == "nothing to compare with"
    assert line["why"] == "v000001, which is live, has no label like"


def test_rows_that_the_live_ranker_can_not_score_keep_the_new_one_waiting(
    folder: Path,
) -> None:
    """A column of the rows has a new name: the new ranker reads it, the live one does not."""
    assert gated(folder, [SAME], {}, max_uses=2).publish()
    for path in folder.glob("*.parquet"):
        table = pq.read_table(path)
        path.unlink()
        names = ["years" if name == "age" else name for name in table.column_names]
        pq.write_table(table.rename_columns(names), path)
    shutil.rmtree(folder / "run/ranker")
    features = {"years" if name == "age" else name: spec for name, spec in FEATURES.items()}
    made = gated(folder, [SAME], {"features": features}, max_uses=2)
    made.train()
    assert not made.publish() and not made.gate()
    assert published.versions(made.published) == ["v000001", "v000002"]
    line = releases.trace(made.published)[-1]
    assert line.use is None and not line.conditions
    assert "v000001, which is live, can't score the rows of ranker.test" in line.why
    assert "age" in line.why and "--force" in line.why and "train again" not in line.why
    assert made.gate(force=True) and published.current(made.published) == "v000002"


@pytest.mark.parametrize("of_live", [True, False])
def test_what_is_no_number_is_said_of_whom_it_is(of_live: bool, folder: Path) -> None:
    made = gated(folder, [SAME], {}, max_uses=2)
    assert made.publish()
    broken, whole = (_Scorer(made.published / "v000001" / FOLDER) for _ in range(2))
    score = broken._session.run
    broken._session = _Broken(score)  # type: ignore[assignment]
    scorers = [whole, broken] if of_live else [broken, whole]
    with pytest.raises(DataError) as error:
        made._judge()._rows(scorers)
    assert isinstance(error.value, _LiveFails) == of_live
    assert ("The new ranker's click of 2,000 rows" in str(error.value)) != of_live


@dataclass
class _Broken:
    """A graph that overflowed."""

    score: Any

    def run(self, *asked: Any) -> list[NDArray[np.float32]]:
        return [found * np.float32("nan") for found in self.score(*asked)]


@pytest.mark.parametrize(
    ("condition", "ranker", "gate", "sentence"),
    [
        ("recall@5: new > 0 +- 0.1 at 0.9", {}, {}, "a [ranker] scores rows and makes no lists."),
        (
            "user_auc: new > 0 +- 0.1 at 0.9",
            {},
            {},
            "there are labels click, like: name one, such as",
        ),
        ("clck/user_auc: new > 0 +- 0.1 at 0.9", {}, {}, "no label clck. Did you mean click?"),
        (SAME, {"user": None}, {}, "set ranker.user, the column of the user."),
        (
            SAME,
            {"valid": []},
            {"split": "valid"},
            'split = "valid", but ranker.valid names no rows',
        ),
    ],
)
def test_what_a_ranker_can_not_be_asked_is_refused_before_a_version_is_made(
    condition: str, ranker: dict[str, Any], gate: dict[str, Any], sentence: str, folder: Path
) -> None:
    made = gated(folder, [condition], ranker, **gate)
    with pytest.raises(ConfigError) as error:
        made.publish()
    assert sentence in str(error.value) and not made.published.exists()
