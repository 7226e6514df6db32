"""`[ranker]` from files to probabilities: what it learns, resumes, begins with and refuses."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedsvc.config import TrainConfig
from embedsvc.evaluation.rankers import judge
from embedsvc.ranker_road import RankerRoad
from embedsvc.ranking.config import RankerConfig
from embedsvc.ranking.encoding import TRAIN, Encoding
from embedsvc.ranking.trained import TrainedRanker, model_of, predict
from embedsvc.ranking.wide_deep import WideDeep
from embedsvc.training import ranker
from embedsvc.training.ranker import RankerFolders, plan_of, train
from partitions import durable, encoded
from partitions.config import from_tables
from partitions.errors import BusyError, ConfigError, DataError

ROWS = 4000
FEATURES: dict[str, Any] = {
    "user": {"kind": "category"},
    "item": {"kind": "category"},
    "tags": {"kind": "category", "list": True, "separator": "|"},
    "age": {"kind": "number", "scale": "standard"},
}


def clicks(seed: int, rows: int = ROWS, users: int = 15) -> pa.Table:
    """A click's chance follows from who and what, from their pair, and from age."""
    rng = np.random.default_rng(seed)
    taste = np.random.default_rng(7).normal(size=(200, 30))
    user, item = rng.integers(0, users, rows), rng.integers(0, 30, rows)
    age = rng.normal(40, 10, rows)
    logit = 1.5 * taste[user, item] + 0.5 * (age - 40) / 10
    label = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int8)
    tags = ["|".join(sorted({f"t{i % 5}", f"t{i % 3}"})) for i in item]
    return pa.table(
        {"user": [f"u{u}" for u in user], "item": item, "tags": tags, "age": age, "label": label}
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for seed, split in enumerate(("train", "valid", "test")):
        pq.write_table(
            clicks(seed, ROWS if split == "train" else 2000), tmp_path / f"{split}.parquet"
        )
    return tmp_path


def config_of(data: Path, **changes: Any) -> RankerConfig:
    files = {split: str(data / f"{split}.parquet") for split in ("train", "valid", "test")}
    found: dict[str, Any] = {**files, "features": FEATURES, "batch_size": 64, "user": "user"}
    found["wide"] = {"alpha": 0.3}
    found["crosses"] = {"pair": {"of": ["user", "item"], "buckets": 5000}}
    found["deep"] = {"dim": 8, "hidden": [16], "lr": 0.02, "row_lr": 0.1}
    return RankerConfig.model_validate(found | changes)


def auc_of(data: Path, config: RankerConfig, **settings: Any) -> float:
    folders = RankerFolders(data / "run")
    train(folders, config, TrainConfig(threads=1, **({"epochs": 4} | settings)))
    found = judge(TrainedRanker(folders.checkpoint), config, "test")
    return float(found["labels"]["label"]["auc"])


def tables_in(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("tables/*"))]


def test_the_cross_memorises_what_the_rest_cannot(data: Path) -> None:
    found = {}
    for name, changes in {
        "linear": {"crosses": {}, "deep": {"enabled": False}},
        "wide": {"deep": {"enabled": False}},
        "joint": {},
    }.items():
        found[name] = auc_of(data, config_of(data, **changes))
        (data / "run").rename(data / name)
    assert found["linear"] < found["wide"] - 0.05
    assert found["joint"] > 0.72


@pytest.mark.parametrize("threads", [1, 2])
def test_two_epochs_equal_one_and_one_more(data: Path, threads: int) -> None:
    config = config_of(data)
    whole, broken = RankerFolders(data / "whole"), RankerFolders(data / "broken")
    train(whole, config, TrainConfig(threads=threads, epochs=2))
    train(broken, config, TrainConfig(threads=threads, epochs=1))
    report = train(broken, config, TrainConfig(threads=threads, epochs=2))
    assert report.resumed and report.num_edges == ROWS
    assert tables_in(whole.checkpoint) == tables_in(broken.checkpoint)
    assert train(broken, config, TrainConfig(threads=threads, epochs=2)).num_edges == 0


def test_a_stop_between_windows_loses_nothing(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ranker, encoded):
        monkeypatch.setattr(module, "BLOCK_ROWS", 500)
    monkeypatch.setattr(ranker, "WINDOW_BLOCKS", 3)
    config = config_of(data, deep={"hidden": [8], "dropout": 0.2, "optimizer": "adam"})
    once = TrainConfig(threads=1, epochs=2, commit_every_s=0)
    whole, broken = RankerFolders(data / "whole"), RankerFolders(data / "broken")
    report = train(whole, config, once)
    assert report.num_edges == 2 * ROWS

    windows = 0
    learn = ranker._Trainer._train_window

    def stops(self: Any, *args: Any) -> None:
        nonlocal windows
        windows += 1
        if windows == 3:
            raise KeyboardInterrupt
        learn(self, *args)

    monkeypatch.setattr(ranker._Trainer, "_train_window", stops)
    with pytest.raises(KeyboardInterrupt):
        train(broken, config, once)
    report = train(broken, config, once)
    assert 0 < report.num_edges < 2 * ROWS
    assert tables_in(whole.checkpoint) == tables_in(broken.checkpoint)


def test_early_stopping_keeps_the_best_epoch(data: Path) -> None:
    config = config_of(data, deep={"hidden": [64], "lr": 0.3, "row_lr": 1.0})
    folders = RankerFolders(data / "run")
    settings = TrainConfig.model_validate(
        {"threads": 1, "epochs": 30, "early_stopping": {"patience": 2}}
    )
    report = train(folders, config, settings)
    assert report.stopped_early and report.best_epoch is not None and report.best_epoch < 28
    assert judge(TrainedRanker(folders.checkpoint), config, "valid")["labels"]["label"]["auc"] > 0.6


def test_a_warm_start_knows_what_was_learnt_and_takes_new_values(data: Path) -> None:
    before = config_of(data, test=str(data / "test.parquet"))
    first = RankerFolders(data / "run")
    train(first, before, TrainConfig(threads=1, epochs=4))
    old = TrainedRanker(first.checkpoint)
    pq.write_table(clicks(9, 300, users=25), data / "train.parquet")  # 10 users are new
    after = config_of(data, start_from=str(first.checkpoint))
    second = RankerFolders(data / "second")
    train(second, after, TrainConfig(threads=1, epochs=1))
    new = TrainedRanker(second.checkpoint)
    sizes = [t.features.layout.slots[0].size for t in (old, new)]
    assert sizes[1] > sizes[0]
    warm = judge(new, before, "test")["labels"]["label"]["auc"]
    (data / "second").rename(data / "warm")
    train(second, after.model_copy(update={"start_from": None}), TrainConfig(threads=1, epochs=1))
    cold = judge(TrainedRanker(second.checkpoint), before, "test")["labels"]["label"]["auc"]
    assert warm > cold + 0.05


def test_text_files_are_read_as_parquet_is(data: Path) -> None:
    table = pq.read_table(data / "train.parquet")
    with (data / "train.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table.schema.names)
        writer.writerows(zip(*table.to_pydict().values(), strict=True))
    found = []
    for ending in ("parquet", "csv"):
        features = FEATURES | {"item": {"kind": "category", "type": "text"}}
        config = config_of(data, train=str(data / f"train.{ending}"), features=features)
        folders = RankerFolders(data / ending)
        train(folders, config, TrainConfig(threads=1, epochs=1))
        found.append(tables_in(folders.checkpoint))
    assert found[0] == found[1]


def test_tasks_share_the_body_and_may_be_unknown(data: Path) -> None:
    for split in ("train", "valid", "test"):
        table = pq.read_table(data / f"{split}.parquet")
        like = np.array(table["label"].to_numpy(), np.float64)
        like[::3] = np.nan
        pq.write_table(table.append_column("like", pa.array(like)), data / f"{split}.parquet")
    config = config_of(data, labels=["label", "like"])
    folders = RankerFolders(data / "run")
    train(folders, config, TrainConfig(threads=1, epochs=4))
    found = judge(TrainedRanker(folders.checkpoint), config, "test")["labels"]
    assert found["like"]["rows"] < found["label"]["rows"] == 2000
    assert min(found["like"]["auc"], found["label"]["auc"]) > 0.7


@pytest.mark.parametrize("kind", ["none", "platt", "isotonic"])
def test_balanced_training_says_true_probabilities(data: Path, kind: str) -> None:
    for split in ("train", "valid", "test"):
        table = pq.read_table(data / f"{split}.parquet")
        rare = np.flatnonzero(table["label"].to_numpy())[::6]
        rest = np.flatnonzero(table["label"].to_numpy() == 0)
        kept = np.random.default_rng(0).permutation(np.concatenate([rare, rest]))
        pq.write_table(table.take(kept), data / f"{split}.parquet")
    config = config_of(data, positive_weight="balanced", calibration=kind)
    folders = RankerFolders(data / "run")
    train(folders, config, TrainConfig(threads=1, epochs=2))
    trained = TrainedRanker(folders.checkpoint)
    assert trained.positive_weight[0] > 4
    found = judge(trained, config, "test")["labels"]["label"]
    assert found["calibration"] == pytest.approx(1, abs=0.35 if kind == "none" else 0.2)
    assert found["ece"] < 0.1


def test_what_is_wrong_with_rows_is_one_sentence_with_file_and_row(data: Path) -> None:
    def fails(sentence: str, **changes: Any) -> None:
        with pytest.raises((DataError, ConfigError), match=sentence):
            train(RankerFolders(data / "run"), config_of(data, **changes), TrainConfig(epochs=1))

    table = pq.read_table(data / "train.parquet")
    labels = table["label"].to_numpy().copy()
    labels[17] = 2
    odd = data / "odd.parquet"
    pq.write_table(table.set_column(4, "label", pa.array(labels)), odd)
    fails(
        r"odd\.parquet: label label, row 18: found 2\.0, expected 0, 1 or nothing", train=str(odd)
    )
    fails("column.*lable|lable.*column", labels=["lable"])
    fails("no column", features=FEATURES | {"who": {"kind": "category"}})
    pq.write_table(table.slice(0, 0), odd)
    fails("no rows", train=str(odd))
    fails("missing|no file|match", train=str(data / "none.parquet"))
    fails("no checkpoint", start_from=str(data / "nowhere"))
    odd.write_bytes(b"PAR1 cut")
    fails("odd.parquet", train=str(odd))


def test_a_checkpoint_goes_on_with_its_own_settings_and_rows_only(data: Path) -> None:
    folders = RankerFolders(data / "run")
    train(folders, config_of(data), TrainConfig(threads=1, epochs=1))
    with pytest.raises(ConfigError, match="batch_size = 64, now it is 128"):
        train(folders, config_of(data, batch_size=128), TrainConfig(threads=1, epochs=2))
    pq.write_table(clicks(5), data / "train.parquet")
    with pytest.raises(ConfigError, match="other rows"):
        train(folders, config_of(data), TrainConfig(threads=1, epochs=2))


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"wide": {"features": ["usr"]}}, "no feature usr. Did you mean user"),
        ({"deep": {"towers": [["user"], ["user"]]}}, "both sides"),
        ({"wide": {"enabled": False}, "deep": {"enabled": False}}, "nothing is left to learn"),
        ({"calibration": "platt", "valid": []}, "set valid"),
        ({"labels": []}, "labels are names"),
        ({"features": {}, "crosses": {}}, "features are missing"),
    ],
)
def test_settings_that_make_no_model_are_refused(
    data: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        config_of(data, **changes)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (
            {"crosses": {"pair": {"of": ["user", "itm"], "buckets": 9}}},
            "[ranker] crosses.pair names itm, which is not a feature. Did you mean item?",
        ),
        (
            {"crosses": {"user": {"of": ["user", "item"], "buckets": 9}}},
            "[ranker] crosses.user is the name of a feature too: rename one.",
        ),
        (
            {"features": FEATURES | {"my city": {"kind": "category", "column": "item"}}},
            "[ranker] features.'my city': a name is made of letters, digits, - and _.",
        ),
        (
            {"positive_weight": "balance"},
            "[ranker.positive_weight] expected a number above 0, or \"balanced\", found 'balance'.",
        ),
        (
            {"positive_weight": 0},
            '[ranker.positive_weight] expected a number above 0, or "balanced", found 0.',
        ),
        ({"labels": [""]}, "[ranker] labels are names of columns, each once."),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(
    data: Path, changes: dict[str, Any], sentence: str
) -> None:
    given = config_of(data).model_dump(mode="json", exclude_none=True) | changes
    with pytest.raises(ConfigError) as error:
        from_tables({"ranker": given}, name="x.toml").table("ranker", RankerConfig)
    assert str(error.value) == f"x.toml: {sentence}"


def test_changed_settings_are_refused_before_rows_are_encoded(data: Path) -> None:
    folders, settings = RankerFolders(data / "run"), TrainConfig(threads=1, epochs=1)
    train(folders, config_of(data), settings)
    about = (folders.encoded / "about.json").read_bytes()
    changed = FEATURES | {"age": {"kind": "number", "scale": "log"}}
    sentence = r'ranker\.features\.age\.scale = "standard", now it is "log"\. Set it back to go on'
    with pytest.raises(ConfigError, match=sentence):
        train(folders, config_of(data, features=changed), settings)
    more = FEATURES | {"older": {"kind": "number", "column": "age"}}
    with pytest.raises(ConfigError, match=r"was begun without ranker\.features\.older, now it is"):
        train(folders, config_of(data, features=more), settings)
    with pytest.raises(ConfigError, match=r"train\.seed = \d+, now it is 77\. Set it back"):
        train(folders, config_of(data), TrainConfig(threads=1, epochs=1, seed=77))
    assert (folders.encoded / "about.json").read_bytes() == about


def road_of(data: Path, ranker: RankerConfig, **tables: Any) -> RankerRoad:
    tables |= {"run": {"dir": str(data / "run")}}
    tables |= {"ranker": ranker.model_dump(mode="json", exclude_none=True)}
    return RankerRoad(from_tables(tables, name="x.toml"))


@pytest.mark.parametrize(
    "changes, settings, sentence",
    [
        ({"valid": []}, {"early_stopping": {"patience": 2}}, "early_stopping needs rows"),
        ({"train": "trian.parquet"}, {}, "trian.parquet is missing"),
        ({"valid": "vaild.parquet"}, {}, "vaild.parquet is missing"),
        (
            {"test": "tset*.parquet"},
            {},
            "tset*.parquet is missing: no such file. Mend the path (it starts from the folder of "
            "the command).",
        ),
    ],
)
def test_plan_and_train_refuse_before_rows_are_encoded(
    data: Path, changes: dict[str, Any], settings: dict[str, Any], sentence: str
) -> None:
    road = road_of(data, config_of(data, **changes), train=settings)
    for command in (road.plan, road.train):
        with pytest.raises((ConfigError, DataError)) as error:
            command()
        assert sentence in str(error.value)
    assert not road.folders.encoded.exists()


def test_plan_refuses_what_does_not_fit_the_memory_that_is_set(data: Path) -> None:
    road = road_of(data, config_of(data), train={"memory_mb": 100})
    for command in (road.plan, road.train):
        with pytest.raises(ConfigError, match=r"Training plans for .* raise"):
            command()


def test_a_graph_beside_a_ranker_is_refused(data: Path) -> None:
    with pytest.raises(ConfigError, match=r"x\.toml: \[graph\] and \[ranker\] are two models"):
        road_of(data, config_of(data), graph={"inputs": []})


def test_a_plan_encodes_as_training_does(data: Path) -> None:
    """With the values of the ranker that training begins with: train need not do it again."""
    earlier = RankerFolders(data / "earlier")
    train(earlier, config_of(data), TrainConfig(threads=1, epochs=1))
    config = config_of(data, start_from=str(earlier.checkpoint))
    road = road_of(data, config, train={"threads": 1, "epochs": 1})
    road.plan()
    made = (road.folders.encoded / "about.json").stat().st_mtime_ns
    road.train()
    assert (road.folders.encoded / "about.json").stat().st_mtime_ns == made


def test_train_says_that_it_fitted_a_calibration(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"threads": 1, "epochs": 1}
    road_of(data, config_of(data), train=settings).train()
    capsys.readouterr()
    for kind, said in {
        "platt": "train: nothing left to learn, platt calibration fitted on ranker.valid",
        "none": "train: nothing left to do",
    }.items():
        road_of(data, config_of(data, calibration=kind), train=settings).train()
        assert capsys.readouterr().out.splitlines() == [said]


def test_names_that_are_empty_are_unset(data: Path) -> None:
    config = config_of(data, weight="", user="")
    assert config.weight is None and config.user is None


@pytest.mark.parametrize(
    ("deep", "expected"),
    [
        ({"dims": {"pair": 3}}, {"user": 4, "item": 4, "tags": 4, "pair": 3}),
        ({"dims": {"pair": 3}, "features": ["user"]}, {"user": 4, "pair": 3}),
        ({"towers": [["user"], ["pair", "age"]]}, {"user": 4, "pair": 4}),
        (
            {"towers": [["user"], ["pair", "age"]], "features": ["user", "item"]},
            {"user": 4, "pair": 4},
        ),
        ({"features": ["item"], "dims": {"item": 2}}, {"item": 2}),
    ],
)
def test_what_dims_or_towers_name_has_an_embedding(
    data: Path, deep: dict[str, Any], expected: dict[str, int]
) -> None:
    config = config_of(data, deep={"dim": 4, "hidden": [8], **deep}, wide={"enabled": False})
    encoding = Encoding.prepare(data / "encoded", config)
    model = model_of(encoding.features.layout, config, [1.0], TrainConfig(threads=1))
    assert {t.slot.name: t.dim for t in model.slots.tables if t.dim} == expected
    if "features" not in deep or "towers" in deep:
        assert "age" in model.inputs
    planned = sum(4 * t.slot.size * (t.dim + 1) for t in model.slots.tables if t.dim)
    assert plan_of(encoding, config).tables == planned  # with a row optimizer's state


@pytest.mark.parametrize(
    ("deep", "held"),
    [
        ({}, 2 + 1 + 3),  # and a copy, and gradients of three threads
        ({"optimizer": "adam"}, 3 + 1 + 3),
        ({"optimizer": "adam", "dropout": 0.5}, 3 + 2),  # by autograd
        ({"towers": [["user", "age"], ["item"]]}, 2 + 2),
        ({"enabled": False}, 0),
    ],
)
def test_the_plan_counts_every_weight_of_the_layers(
    data: Path, deep: dict[str, Any], held: int
) -> None:
    config = config_of(data, deep={"dim": 4, "hidden": [9, 8], **deep})
    encoding = Encoding.prepare(data / "encoded", config)
    body = model_of(encoding.features.layout, config, [1.0], TrainConfig(threads=1)).body
    weights = sum(p.numel() for p in body.parameters()) if body is not None else 0
    weights -= 2 * ("towers" in deep)  # scale and bias
    assert plan_of(encoding, config, threads=3).layers == 4 * held * weights


def test_layers_that_do_not_fit_are_refused_before_they_are_made(data: Path) -> None:
    config = config_of(data, deep={"hidden": [9000, 9000]})
    with pytest.raises(ConfigError, match=r"most of it is for layers, .* ranker.deep.hidden"):
        train(RankerFolders(data / "run"), config, TrainConfig(memory_mb=600))


def test_the_plan_counts_the_model_that_training_starts_from(data: Path) -> None:
    wide = {"crosses": {"pair": {"of": ["user", "item"], "buckets": 200_000}}}
    first = RankerFolders(data / "first")
    train(first, config_of(data, **wide), TrainConfig(threads=1, epochs=1))
    config = config_of(data, start_from=first.checkpoint)
    encoding = Encoding.prepare(data / "encoded", config)
    plan, alone = plan_of(encoding, config), plan_of(encoding, config_of(data))
    assert plan.start > 200_000 * 8 > alone.total - alone.process
    assert plan.total == plan.process + plan.tables + plan.layers + plan.vocabularies + plan.start
    assert plan.vocabularies == 100 * sum(
        slot.size for slot in encoding.features.layout.slots if slot.name != "pair"
    )


PEAK = """
import sys
from embedsvc.config import TrainConfig
from embedsvc.ranking.config import RankerConfig
from embedsvc.training.ranker import RankerFolders, plan_of, train
from partitions.memory import forget_peak, peak_bytes
from pathlib import Path
forget_peak()
config = RankerConfig.model_validate_json(sys.argv[2])
report = train(RankerFolders(Path(sys.argv[1])), config, TrainConfig(epochs=2, threads=1))
print(peak_bytes(), report.planned_bytes)
"""


def test_training_takes_no_more_memory_than_the_plan_said(data: Path) -> None:
    """In a process of its own, libraries included."""
    config = config_of(data).model_dump_json()
    command = [sys.executable, "-c", PEAK, str(data / "run"), config]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak, planned = map(int, done.stdout.split())
    assert peak <= planned


def test_calibration_may_be_chosen_after_training(data: Path) -> None:
    folders, settings = RankerFolders(data / "run"), TrainConfig(threads=1, epochs=1)
    kinds = []
    for kind in ("none", "platt", "isotonic", "none"):
        report = train(folders, config_of(data, calibration=kind), settings)
        kinds.append(TrainedRanker(folders.checkpoint).calibration[0].kind)
    assert kinds == ["none", "platt", "isotonic", "none"]
    assert report.num_edges == 0


def test_early_stopping_begins_anew_with_other_validation_rows(data: Path) -> None:
    """An AUC of other rows says nothing about which epoch was best."""
    settings = {"threads": 1, "early_stopping": {"patience": 5}}
    folders = RankerFolders(data / "run")
    train(folders, config_of(data), TrainConfig.model_validate(settings | {"epochs": 2}))
    table = clicks(5, 2000).set_column(4, "label", clicks(1, 2000)["label"])  # no longer theirs
    pq.write_table(table, data / "valid.parquet")
    train(folders, config_of(data), TrainConfig.model_validate(settings | {"epochs": 3}))
    judged = json.loads((folders.checkpoint / "stopping.json").read_text())["history"]
    assert [epoch for epoch, _ in judged] == [2, 3]
    assert max(auc for _, auc in judged) < 0.6


def test_rows_are_judged_few_at_a_time(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The units of a block of 65,536 rows would be more memory than training takes."""
    folders = RankerFolders(data / "run")
    train(folders, config_of(data), TrainConfig(threads=1, epochs=1))
    model = TrainedRanker(folders.checkpoint).model
    rows = Encoding.prepare(folders.encoded, config_of(data)).open(TRAIN)
    whole = model(rows.read(0, ROWS)[0]).numpy()
    sizes: list[int] = []
    forward = WideDeep.forward
    monkeypatch.setattr(
        WideDeep, "forward", lambda self, rows: sizes.append(len(rows)) or forward(self, rows)
    )
    logits, labels, weight = predict(model, rows)
    np.testing.assert_allclose(logits, whole, rtol=1e-4, atol=1e-5)
    assert len(labels) == len(weight) == sum(sizes) == ROWS and max(sizes) <= 1024


def with_columns(data: Path, split: str, **columns: Any) -> None:
    """The file of a split, with other columns."""
    table = pq.read_table(data / f"{split}.parquet")
    kept = [name for name in table.column_names if name not in columns]
    whole = {name: table[name] for name in kept} | columns
    pq.write_table(pa.table(whole), data / f"{split}.parquet")


@pytest.mark.parametrize(
    ("value", "lacking"), [(0.0, "ones"), (1.0, "zeros"), (None, "known rows")]
)
def test_a_label_of_one_kind_is_not_balanced(
    data: Path, value: float | None, lacking: str, caplog: pytest.LogCaptureFixture
) -> None:
    with_columns(data, "train", odd=pa.array([value] * ROWS, pa.float64()))
    config = config_of(data, labels=["label", "odd"], positive_weight="balanced", valid=[])
    folders = RankerFolders(data / "run")
    train(folders, config, TrainConfig(threads=1, epochs=1))
    trained = TrainedRanker(folders.checkpoint)
    assert trained.positive_weight[0] != 1 and trained.positive_weight[1] == 1
    assert f"label odd has no {lacking} to learn from" in caplog.text
    said = trained.probabilities(trained.features.encode(clicks(2, 10).to_batches()[0]))
    assert np.isfinite(said).all()


STOPPING = {"threads": 1, "epochs": 2, "early_stopping": {"patience": 2}}


def history_of(folders: RankerFolders) -> list[float]:
    found = json.loads((folders.checkpoint / "stopping.json").read_text())
    return [value for _, value in found["history"]]


def test_early_stopping_judges_by_labels_of_both_kinds_and_by_weights(data: Path) -> None:
    rng = np.random.default_rng(5)
    for split, rows in (("train", ROWS), ("valid", 2000)):
        odd = rng.integers(0, 2, rows) if split == "train" else np.zeros(rows, int)
        with_columns(data, split, odd=odd, count=np.where(np.arange(rows) % 2, 20.0, 0.5))
    config = config_of(data, labels=["odd", "label"], weight="count")
    folders = RankerFolders(data / "run")
    train(folders, config, TrainConfig.model_validate(STOPPING))
    best = max(history_of(folders))
    found = judge(TrainedRanker(folders.checkpoint), config, "valid")["labels"]
    assert best == pytest.approx(found["label"]["auc"], abs=1e-6) and best != 0.5
    assert np.isnan(found["odd"]["auc"])


@pytest.mark.parametrize("change", [{"label": np.zeros(2000)}, {"count": np.zeros(2000)}])
def test_early_stopping_needs_both_kinds_of_rows(data: Path, change: dict[str, Any]) -> None:
    for split, rows in (("train", ROWS), ("valid", 2000)):
        with_columns(data, split, count=np.ones(rows))
    with_columns(data, "valid", **change)
    config = config_of(data, weight="count")
    folders = RankerFolders(data / "run")
    with pytest.raises(ConfigError, match=r"early_stopping judges by AUC, but no label"):
        train(folders, config, TrainConfig.model_validate(STOPPING))
    assert not (folders.checkpoint / "manifest.json").exists()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_encoded_rows_that_were_altered_are_not_learnt_from(data: Path, split: str) -> None:
    folders = RankerFolders(data / "run")
    config = config_of(data, calibration="platt")
    train(folders, config, TrainConfig(threads=1, epochs=1))
    path = folders.encoded / f"{split}.arrow"
    flip(path)
    with pytest.raises(DataError, match=rf"{split}\.arrow was altered.*Remove .*encoded"):
        train(folders, config, TrainConfig(threads=1, epochs=2))


@pytest.mark.parametrize("content", ["[]", "{}", '{"format_version": 2}', "{", "3"])
def test_an_about_that_cannot_be_read_is_made_anew(data: Path, content: str) -> None:
    folders = RankerFolders(data / "run")
    train(folders, config_of(data), TrainConfig(threads=1, epochs=1))
    about = folders.encoded / "about.json"
    right = about.read_bytes()
    about.write_text(content)
    assert train(folders, config_of(data), TrainConfig(threads=1, epochs=2)).resumed
    assert about.read_bytes() == right


def test_a_calibration_that_was_altered_is_named(data: Path) -> None:
    folders = RankerFolders(data / "run")
    train(folders, config_of(data, calibration="isotonic"), TrainConfig(threads=1, epochs=1))
    path = folders.checkpoint / "calibration.json"
    right = json.loads(path.read_text())
    [task] = right["tasks"]
    damaged: list[Any] = [[], 3, {}, right | {"kind": "odd"}, right | {"tasks": []}]
    damaged += [{key: value for key, value in right.items() if key != "kind"}]
    changes: list[dict[str, Any]] = [{"a": "1"}, {"at": []}, {"kind": 3}, {"b": None}, {"at": 3}]
    damaged += [right | {"tasks": [task | change]} for change in changes]
    for content in damaged:
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=r"calibration\.json can't be read.*Remove it"):
            TrainedRanker(folders.checkpoint)
    path.write_text(json.dumps(right))
    assert TrainedRanker(folders.checkpoint).calibrated == "isotonic"


def test_features_of_another_training_are_refused(data: Path) -> None:
    folders, other = RankerFolders(data / "run"), RankerFolders(data / "other")
    train(folders, config_of(data), TrainConfig(threads=1, epochs=1))
    pq.write_table(clicks(5), data / "train.parquet")
    train(other, config_of(data), TrainConfig(threads=1, epochs=1))
    for name in ("features.json", "features.arrow"):
        shutil.copy(other.checkpoint / "features" / name, folders.checkpoint / "features")
    with pytest.raises(DataError, match="not the features that"):
        TrainedRanker(folders.checkpoint)


def test_a_plan_leaves_the_rows_of_a_running_training_alone(data: Path) -> None:
    first, folders = RankerFolders(data / "first"), RankerFolders(data / "run")
    train(first, config_of(data), TrainConfig(threads=1, epochs=1))
    config = config_of(data, start_from=str(first.checkpoint))
    train(folders, config, TrainConfig(threads=1, epochs=1))
    about = (folders.encoded / "about.json").stat().st_ino
    planned = ranker.plan(folders, config)
    assert (folders.encoded / "about.json").stat().st_ino == about  # of the same start
    assert planned.total > 0
    with (
        durable.only_writer(folders.checkpoint, "training into"),
        pytest.raises(BusyError, match="in use"),
    ):
        ranker.plan(folders, config_of(data))
    assert (folders.encoded / "about.json").stat().st_ino == about


def test_validation_rows_are_opened_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    known = Encoding.open
    monkeypatch.setattr(Encoding, "open", lambda self, s: opened.append(s) or known(self, s))
    settings = {"threads": 1, "epochs": 3, "early_stopping": {"patience": 5}}
    config = config_of(data, calibration="platt")
    train(RankerFolders(data / "run"), config, TrainConfig.model_validate(settings))
    assert sorted(opened) == ["train", "valid"]
