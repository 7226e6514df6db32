"""What a checkpoint holds is what is exported, by key, whatever the partitions."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedsvc
from embedsvc.config import ModelConfig
from embedsvc.export import export
from embedsvc.trained import Trained
from partitions import embeddings
from partitions.embeddings import SUFFIXES
from partitions.errors import ConfigError, DataError
from partitions.graph import Graph

MakeGraph, MakeTrained = Callable[..., Graph], Callable[..., Trained]
RELATIONS = {"buys": ("user", "item")}
EDGES = [(f"u {i}", "buys", f"i{i % 7}") for i in range(20)]


def vector_of(entity_type: str, key: str) -> np.ndarray:
    seed = [1, *f"{entity_type}/{key}".encode()]
    return np.random.default_rng(seed).standard_normal(5).astype(np.float32)


@pytest.fixture(params=[1, 3])
def trained(
    request: pytest.FixtureRequest, make_graph: MakeGraph, make_trained: MakeTrained
) -> Trained:
    graph = make_graph({"train": EDGES}, RELATIONS, {"user": request.param})
    return make_trained(graph, ModelConfig(dim=5), vector_of)


@pytest.mark.parametrize("format", list(SUFFIXES))
def test_each_key_is_exported_with_its_vector(
    format: str, trained: Trained, tmp_path: Path
) -> None:
    files = export(trained, tmp_path / "out", format)
    assert files == [tmp_path / "out" / f"{name}{SUFFIXES[format]}" for name in ("user", "item")]
    for name, path in zip(("user", "item"), files, strict=True):
        keys, vectors = embedsvc.load_embeddings(path)
        assert keys.to_pylist() == trained.graph.all_keys(name).to_pylist()
        for key, vector in zip(keys.to_pylist(), vectors, strict=True):
            assert np.array_equal(vector, vector_of(name, key))
        streamed = [k for part in embedsvc.stream_embeddings(path) for k in part.keys.to_pylist()]
        assert streamed == keys.to_pylist()


@pytest.mark.parametrize(
    ("to", "settings", "file", "format"),
    [
        ("u.npy", {"entity_type": "user"}, "u.npy", "npy"),
        ("u.bin", {"entity_type": "user", "format": "arrow"}, "u.bin", "arrow"),
        ("folder", {"entity_type": "user"}, "folder/user.parquet", "parquet"),
        ("v1.2/x", {"entity_type": "item", "format": "word2vec"}, "v1.2/x/item.txt", "word2vec"),
    ],
)
def test_the_target_may_be_a_file_or_a_folder(
    to: str,
    settings: dict[str, Any],
    file: str,
    format: str,
    trained: Trained,
    tmp_path: Path,
) -> None:
    assert export(trained, tmp_path / to, **settings) == [tmp_path / file]
    assert embeddings._format(tmp_path / file) == format


def test_what_does_not_suit_is_refused(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is one file and there are 2 entity types \(user, item"):
        export(trained, tmp_path / "all.parquet")
    with pytest.raises(ConfigError, match=r"no entity type usr\. Did you mean user\?"):
        export(trained, tmp_path / "out", entity_type="usr")
    with pytest.raises(ConfigError, match=r"no embedding format named npz\. Did you mean npy\?"):
        export(trained, tmp_path / "out", "npz")
    endings = r"\.parquet \(parquet\), \.arrow \(arrow\), \.npy \(npy\), \.txt \(word2vec\)"
    with pytest.raises(
        ConfigError, match=rf"ending \.csv names no .* one of {endings}, or .*--for"
    ):
        export(trained, tmp_path / "out.csv", entity_type="user")
    with pytest.raises(
        ConfigError, match=rf"\.parquet is of parquet and --format is npy.*{endings}"
    ):
        export(trained, tmp_path / "out.parquet", "npy", "user")
    assert not list(tmp_path.glob("out*"))


# --- from Python ---------------------------------------------------------------------------------


def settings_of(folder: Path) -> dict[str, Any]:
    (folder / "edges.tsv").write_text("".join(f"{a}\t{b}\n" for a, _, b in EDGES))
    return {
        "run": {"dir": str(folder / "run")},
        "graph": {
            "data": str(folder),
            "entities": {"user": {}, "item": {}},
            "relations": {"buys": {"lhs": "user", "rhs": "item"}},
            "inputs": [{"path": "edges.tsv", "relation": "buys"}],
        },
        "model": {"dim": 4},
        "train": {"epochs": 1, "threads": 1},
    }


def test_the_road_from_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = settings_of(tmp_path)
    report = embedsvc.import_graph(settings)
    assert report.num_edges["train"] == 20 and report.num_entities == {"user": 20, "item": 7}
    trained = embedsvc.train(settings, ["train.epochs=2"])
    assert trained.num_edges == 40 and not trained.resumed
    assert settings["train"]["epochs"] == 1, "overrides do not reach into the caller's dict"
    assert embedsvc.train(settings, ["train.epochs=3"]).num_edges == 20
    [path] = embedsvc.export_embeddings(settings, tmp_path / "u.parquet", entity_type="user")
    keys, vectors = embedsvc.load_embeddings(path)
    assert sorted(keys.to_pylist()) == sorted(a for a, _, _ in EDGES)
    assert vectors.shape == (20, 4)
    with pytest.raises(DataError, match="already holds a graph"):
        embedsvc.import_graph(settings)
    with pytest.raises(ConfigError, match=r"settings: \[train\] epoch is not a setting"):
        embedsvc.train(settings | {"train": {"epoch": 2}})
    assert capsys.readouterr().out == "", "a library prints nothing"


def test_an_evaluation_of_some_edges_leaves_that_of_all(tmp_path: Path) -> None:
    settings = settings_of(tmp_path) | {"eval": {"split": "train"}}
    embedsvc.import_graph(settings)
    embedsvc.train(settings)
    folder = tmp_path / "run/checkpoint"

    def edges_in(name: str) -> int:
        return json.loads((folder / name).read_text())["links"]["edges"]

    embedsvc._road(settings, ["eval.max_edges=5"]).evaluate()
    assert edges_in("evaluation.json") == 5  # there is none of all yet
    embedsvc._road(settings, []).evaluate()
    for some in ("eval.max_edges=7", 'eval.relations=["buys"]'):
        embedsvc._road(settings, [some]).evaluate()
    assert edges_in("evaluation.json") == 20
    found = json.loads((folder / "evaluation-of-some.json").read_text())
    assert found["settings"]["relations"] == ["buys"] and found["settings"]["max_edges"] is None


@pytest.mark.parametrize("where", ["eval.recommend", "eval.relations", "publish.recommend"])
def test_a_misspelt_relation_is_said_before_any_work(tmp_path: Path, where: str) -> None:
    table, key = where.split(".")
    said = rf"\[{table}\] {key} names the relation buy, .*Did you mean buys\?"
    settings, typo = settings_of(tmp_path), f'{where}=["buy"]'
    road = embedsvc._road(settings, [typo])
    with pytest.raises(ConfigError, match=said):
        road.import_graph()
    assert not (tmp_path / "run").exists()
    found = ['graph.inputs=[{path="found.tsv"}]', 'graph.relations.*={lhs="user", rhs="item"}']
    (tmp_path / "found.tsv").write_text("u\tbuys\ti\n")
    embedsvc._road(settings, [*found, typo]).import_graph()
    for work in (road.train, road.evaluate):
        with pytest.raises(ConfigError, match=said):
            if work == road.evaluate:
                embedsvc._road(settings, []).train()
            work()
        assert work == road.evaluate or not (tmp_path / "run/checkpoint/tables").exists()


def test_importing_the_package_loads_no_library() -> None:
    code = "import embedsvc, sys; print(*{'torch', 'numpy', 'pyarrow', 'rich'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout.split()) == (0, []), run.stderr
