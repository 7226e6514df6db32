"""A published ranker says what training's model says, or it does not go live."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest

from embedsvc import publish_ranker
from embedsvc.config import PublishConfig
from embedsvc.evaluation.rankers import judge
from embedsvc.ranking.trained import TrainedRanker
from partitions import published
from partitions.errors import ConfigError, DataError
from partitions.ranker_files import RankerFiles
from serving.ranker import Ranker
from tests.toy_ranker import FEATURES, clicks, road, write_rows


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learnt")
    write_rows(folder)
    road(folder).train()
    return folder


@pytest.fixture
def folder(learnt: Path, tmp_path: Path) -> Path:
    """Its own run, of the rows that all share."""
    shutil.copytree(learnt / "run", tmp_path / "run")
    for path in learnt.glob("*.parquet"):
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def publish(folder: Path, **settings: Any) -> Path:
    """The live version's folder of the ranker. Its training rows lie where they were learnt."""
    made = road(folder, **settings)
    made.publish()
    return made.published / published.current(made.published) / "ranker"


def weights(ranker: Path) -> dict[str, np.ndarray]:
    graph = onnx.load(ranker / "ranker.onnx").graph
    return {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}


def metrics_of(ranker: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ranker.parent / "metrics.json").read_text())
    return found


def variants(ranker: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((ranker.parent / "metrics.json").read_text())[
        "variants"
    ]
    assert RankerFiles(ranker).about.metrics["variants"] == found
    return found


def test_what_is_served_is_what_was_trained(folder: Path) -> None:
    ranker = publish(folder)
    trained = TrainedRanker(folder / "run/ranker/checkpoint")
    served, rows = Ranker.open(ranker), clicks(9, 1000)
    right = trained.probabilities(trained.features.encode(rows))
    assert np.abs(served.score(rows) - right).max() < 1e-5
    golden, said = served.files.golden()
    assert len(golden) == 1000 and golden.schema.names == ["age", "item", "tags", "user"]
    assert np.abs(served.score(golden) - said).max() < 1e-5 and np.ptp(said, axis=0).min() > 0.3
    assert served.labels == ("click", "like")
    [only] = variants(ranker)
    assert 0.6 < only["auc"]["click"] < 0.9 and set(only["auc_cost"].values()) == {0.0}
    manifest = published.read_manifest(folder / "run/published", ranker.parent.name)
    assert {"ranker/ranker.onnx", "ranker/golden.arrow"} <= set(manifest.files)


@pytest.mark.parametrize(
    "ranker",
    [
        {"wide": {"enabled": False}, "calibration": "platt"},
        {"deep": {"enabled": False}, "calibration": "none", "positive_weight": 3.0},
        {"deep": {"hidden": [8], "towers": [["user", "age"], ["item", "tags"]]}},
        {"labels": ["like"], "valid": [], "calibration": "none"},
    ],
    ids=["deep", "wide", "towers", "without validation rows"],
)
def test_every_kind_of_ranker_is_published(tmp_path: Path, ranker: dict[str, Any]) -> None:
    write_rows(tmp_path)
    made = road(tmp_path, ranker)
    made.train()
    made.publish()
    served = Ranker.live(made.published)
    trained = TrainedRanker(made.folders.checkpoint)
    rows = clicks(9, 500)
    right = trained.probabilities(trained.features.encode(rows))
    assert np.abs(served.score(rows) - right).max() < 1e-5
    judged = made.config.valid != []
    for value in served.files.about.metrics["variants"][0]["auc"].values():
        assert (value is not None) == judged


def test_pruned_layers_are_zeros_and_said_so(folder: Path) -> None:
    ranker = publish(folder, prune=0.8, prune_epochs=2)
    layers = [w for w in weights(ranker).values() if w.ndim == 2 and w.shape[1] in (32, 16)]
    assert len(layers) == 2
    assert all(abs((layer == 0).mean() - 0.8) < 0.01 for layer in layers)
    whole, pruned = variants(ranker)
    metrics = json.loads((ranker.parent / "metrics.json").read_text())
    assert metrics["evaluation_of"] == whole["name"]
    assert pruned["zeros"] == pytest.approx(0.8, abs=0.01) and whole["zeros"] is None
    cost = pruned["auc_cost"]["click"]
    assert cost == pytest.approx(whole["auc"]["click"] - pruned["auc"]["click"]) and cost < 0.05
    assert RankerFiles(ranker).about.golden_gap < 1e-5  # of the pruned model


def test_int8_layers_are_smaller_and_near(folder: Path) -> None:
    ranker = publish(folder, quantize="int8")
    kinds = [w.dtype for w in weights(ranker).values() if w.ndim == 2]
    assert kinds.count(np.dtype(np.int8)) == 3  # two layers and the heads
    _, small = variants(ranker)
    assert abs(small["auc_cost"]["click"]) < 0.02
    files = RankerFiles(ranker)
    assert 1e-5 < files.about.golden_gap < 0.2
    assert files.about.options["quantize"] == "int8"
    rows, said = files.golden()
    gap = np.abs(Ranker.open(ranker).score(rows) - said).max()
    assert gap == pytest.approx(files.about.golden_gap)


def test_a_graph_that_disagrees_does_not_go_live(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publish(folder)
    export = publish_ranker.export

    def worse(*args: Any) -> onnx.ModelProto:
        graph = export(*args)
        for one in graph.graph.initializer:
            array = onnx.numpy_helper.to_array(one)
            if array.dtype == np.float32 and array.shape == (16, 2):  # the heads
                one.CopyFrom(onnx.numpy_helper.from_array(array * np.float32(1.01), one.name))
        return graph

    with monkeypatch.context() as patch:
        patch.setattr(publish_ranker, "export", worse)
        with pytest.raises(DataError, match=r"off by .* not published"):
            publish(folder)
    assert published.versions(folder / "run/published") == [first.parent.name]


def test_encoders_that_disagree_do_not_go_live(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written is read back: here golden rows are asked that were not answered."""
    first = publish(folder)
    write = publish_ranker.ranker_files.write_golden

    def other(folder: Path, rows: Any, said: Any) -> None:
        write(folder, rows.take(np.arange(len(rows))[::-1].copy()), said)

    monkeypatch.setattr(publish_ranker.ranker_files, "write_golden", other)
    with pytest.raises(DataError, match="golden rows are answered off"):
        publish(folder)
    assert published.versions(folder / "run/published") == [first.parent.name]
    assert published.current(folder / "run/published") == first.parent.name


def test_old_versions_go(folder: Path) -> None:
    for _ in range(3):
        publish(folder, keep=1)
    assert published.versions(folder / "run/published") == ["v000002", "v000003"]  # to go back to


def test_what_is_live_already_is_not_published_again(folder: Path) -> None:
    made = road(folder)
    made.evaluate()
    for _ in range(2):
        made.publish(if_needed=True)
    assert published.versions(made.published) == ["v000001"]
    made.evaluate()  # takes another time, and says the same
    made.publish(if_needed=True)
    assert published.versions(made.published) == ["v000001"]
    road(folder, quantize="int8").publish(if_needed=True)
    assert published.current(made.published) == "v000002"
    (made.published / "v000002/ranker/ranker.onnx").write_bytes(b"")
    road(folder, quantize="int8").publish(if_needed=True)
    assert published.current(made.published) == "v000003"


def test_an_evaluation_of_another_calibration_is_not_published(folder: Path) -> None:
    road(folder).evaluate()
    assert metrics_of(publish(folder))["evaluation"]["labels"]
    other = road(folder, {"calibration": "platt"})
    other.train()
    other.publish()
    ranker = other.published / published.current(other.published) / "ranker"
    assert metrics_of(ranker)["evaluation"] == {}
    other.evaluate()
    other.publish(if_needed=True)
    ranker = other.published / published.current(other.published) / "ranker"
    metrics = metrics_of(ranker)
    assert metrics["evaluation"]["calibration"] == metrics["calibration"]


def test_variants_are_judged_by_what_rows_count(folder: Path) -> None:
    shutil.rmtree(folder / "run")
    made = road(folder, {"weight": "age", "calibration": "none"})
    made.train()
    made.publish()
    ranker = made.published / published.current(made.published) / "ranker"
    found = judge(TrainedRanker(made.folders.checkpoint), made.config, "valid")["labels"]
    for label, value in variants(ranker)[0]["auc"].items():
        assert value == pytest.approx(found[label]["auc"], abs=1e-6)


def test_settings_of_graphs_do_not_apply(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[publish\] golden does not apply with \[ranker\]"):
        publish(folder, golden=5)


def test_settings_of_rankers_do_not_apply_to_graphs() -> None:
    config = PublishConfig(prune=0.5)
    with pytest.raises(ConfigError, match="prune does not apply without"):
        config.check("graph.toml", config.OF_RANKERS, "without [ranker]")


def test_a_graphs_version_is_not_replaced(folder: Path) -> None:
    publish(folder)
    root = folder / "run/published"
    path = root / published.current(root) / published.MANIFEST
    entities = {"name": "user", "shards": [], "indexes": {}, "attributes": []}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"entity_types": [entities]}))
    with pytest.raises(ConfigError, match=r"a graph's: give the .* a .* dir of its own"):
        publish(folder)
    path.write_text("{")  # but a damaged one is
    assert publish(folder).parent.name == "v000002"


def test_validation_rows_that_were_never_encoded_are_missed(folder: Path) -> None:
    (folder / "run/ranker/encoded/valid.arrow").unlink()
    with pytest.raises(DataError, match=r"valid\.arrow is missing: run embedsvc train"):
        publish(folder)


def test_features_changed_since_training_are_those_of_training(folder: Path) -> None:
    made = road(folder, {"features": {"user": FEATURES["user"]}, "crosses": {}})
    rows = publish_ranker.Rows(made.folders.encoded, made.config)
    trained = TrainedRanker(made.folders.checkpoint)
    publish_ranker.publish(trained, rows, made.published, PublishConfig(), {}, {})
    served = Ranker.live(made.published)
    golden, said = served.files.golden()
    assert golden.schema.names == ["age", "item", "tags", "user"]
    assert np.abs(served.score(golden) - said).max() < 1e-5


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (
            {"features": FEATURES | {"age": {"kind": "number", "default": 41.0}}},
            "was begun with ranker.features.age.default = 40.0, now it is 41.0. Set it back",
        ),
        (
            {"deep": {"dim": 8, "hidden": [32, 16], "row_lr": 0.2}},
            "was begun with ranker.deep.row_lr = 0.1, now it is 0.2. Set it back",
        ),
        (
            {"crosses": {}},
            'was begun with ranker.crosses.pair = {"of": ["user", "item"], "buckets": 5000}, now '
            "it is unset. Set it back",
        ),
        ({"weight": "age"}, 'was begun without ranker.weight, now it is "age". Set it back'),
        (
            {"calibration": "platt"},
            'has ranker.calibration = "isotonic", now it is "platt": run embedsvc train first',
        ),
    ],
)
def test_what_is_not_as_the_file_says_is_neither_judged_nor_published(
    folder: Path, changes: dict[str, Any], sentence: str
) -> None:
    made = road(folder, changes)
    for command in (made.evaluate, made.publish):
        with pytest.raises(ConfigError) as error:
            command()
        assert f"{folder}/run/ranker/checkpoint {sentence}" in str(error.value)
    assert not made.published.exists()
    assert not (made.folders.checkpoint / "evaluation.json").exists()


def test_settings_that_may_change_are_judged_and_published(folder: Path) -> None:
    made = road(folder, {"user": "user", "test": str(folder / "valid.parquet")})
    made.evaluate()
    made.publish()
    assert made.published.exists()


def test_rows_that_are_gone_are_said_with_where_their_path_starts(folder: Path) -> None:
    (folder / "test.parquet").unlink()
    (folder / "valid.parquet").unlink()
    made = road(folder)
    for command in (made.evaluate, made.publish):
        with pytest.raises(DataError, match="starts from the folder of the command"):
            command()


def test_other_validation_rows_are_not_judged_by_the_old_ones(folder: Path) -> None:
    valid = folder / "valid.parquet"
    valid.unlink()
    pq.write_table(clicks(11, 900), valid)
    with pytest.raises(DataError, match=r"other rows than ranker\.valid.*embedsvc train"):
        publish(folder)
    road(folder).train()
    publish(folder)
