"""A published version says what the checkpoint says, or it does not go live."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from embedsvc import publish as publishing
from embedsvc.config import ModelConfig, PublishConfig
from embedsvc.graph.operators import OPERATORS
from embedsvc.publish import publish
from embedsvc.trained import Trained
from partitions import published
from partitions.config import GraphConfig
from partitions.errors import DataError
from partitions.graph import Graph
from partitions.importer import import_graph
from partitions.published import Draft, PublishedVersion

MakeGraph, MakeTrained = Callable[..., Graph], Callable[..., Trained]

DIM = 4
BUYS, LIKE, EMPTY = "/shop/user/buys", "like it/very much", "never"
RELATIONS = {BUYS: ("user", "item"), LIKE: ("item", "item"), EMPTY: ("item", "user")}
SPECS: list[Any] = ["dot", {"name": "cos", "scale": 10.0}, "l2", "squared_l2"]


def real_numbers(*names: str) -> NDArray[np.float32]:
    seed = [3, *"|".join(names).encode()]
    return np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)


def random_edges() -> dict[str, list[tuple[str, str, str]]]:
    rng = np.random.default_rng(5)
    edges = [(f"u{u}", BUYS, f"i{u % 25}") for u in range(30)]
    for _ in range(60):
        edges.append((f"u{rng.integers(30)}", BUYS, f"i{rng.integers(25)}"))
        edges.append((f"i{rng.integers(25)}", LIKE, f"i{rng.integers(25)}"))
    return {"train": edges[:110] + edges[:3], "valid": edges[108:130], "test": edges[130:]}


@pytest.fixture(scope="module")
def graphs(make_graph: MakeGraph) -> dict[int, Graph]:
    """The same edges in 1 and 3 partitions."""
    return {
        partitions: make_graph(random_edges(), RELATIONS, {"user": partitions, "item": partitions})
        for partitions in (1, 3)
    }


def build(graph: Graph, make_trained: MakeTrained, spec: Any = "dot", **settings: Any) -> Trained:
    model = ModelConfig(dim=DIM, comparator=spec, **settings)
    return make_trained(graph, model, real_numbers, real_numbers)


def do_publish(trained: Trained, root: Path, **settings: Any) -> PublishedVersion:
    publish(trained, root, PublishConfig(**settings), {"run": {"dir": "x"}}, {"mrr": 0.5})
    return published.open_version(root)


def all_vectors(trained: Trained, entity_type: str) -> NDArray[np.float32]:
    count = trained.graph.num_entities(entity_type)
    return trained.gather(entity_type, np.arange(count)).numpy()


@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize("operator", list(OPERATORS))
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_published_version_equals_the_checkpoint(
    spec: Any,
    operator: str,
    partitions: int,
    graphs: dict[int, Graph],
    make_trained: MakeTrained,
    plain: SimpleNamespace,
    tmp_path: Path,
) -> None:
    operators = {BUYS: operator}
    trained = build(graphs[partitions], make_trained, spec, operators=operators)
    version = do_publish(trained, tmp_path / "published")
    manifest = version.manifest
    assert manifest.dim == DIM and manifest.graph_digest == trained.graph.digest
    assert manifest.comparator == trained.model.comparator.metric
    assert [(r.name, r.lhs, r.rhs) for r in manifest.relations] == [
        (name, *ends) for name, ends in RELATIONS.items()
    ]
    keys = {}
    for name in ("user", "item"):
        entities = manifest.entities(name)
        assert len(entities.shards) == partitions
        assert entities.num_rows == trained.graph.num_entities(name)
        keys[name] = version.keys(name).column("key").to_pylist()
        assert keys[name] == trained.graph.all_keys(name).to_pylist()
        assert np.array_equal(version.vectors(name), all_vectors(trained, name))
        assert np.array_equal(
            version.vectors(name), [real_numbers(name, key) for key in keys[name]]
        )

    for name, (lhs_type, rhs_type) in RELATIONS.items():
        used = operator if name == BUYS else "identity"
        assert manifest.relation(name).operator == used
        params = version.operator_params(name)
        if used == "identity":
            assert params is None
        else:
            count = OPERATORS.build(used).num_params(DIM)
            assert params is not None and len(params) == count
            assert np.array_equal(params[:DIM], real_numbers(used, name)[:count])
        starts, ids = version.seen(name)
        for row, lhs in enumerate(keys[lhs_type]):
            found = [keys[rhs_type][i] for i in ids[starts[row] : starts[row + 1]]]
            wanted = {
                b
                for split in ("train", "valid")
                for a, r, b in random_edges()[split]
                if (a, r) == (lhs, name)
            }
            assert len(found) == len(wanted) and set(found) == wanted

    comparator, scale = (spec, 1.0) if isinstance(spec, str) else (spec["name"], spec["scale"])
    served = {"squared_l2": "l2"}.get(
        comparator, comparator
    )  # a distance, whose square ranks alike
    score, move = plain.comparators[served], plain.operators
    golden = version.golden()
    assert {g["relation"] for g in golden} == set(RELATIONS)
    for name in RELATIONS:
        queries = [g for g in golden if g["relation"] == name]
        assert len({g["lhs"] for g in queries}) == 64 // len(RELATIONS)
    for query in golden:
        lhs_type, rhs_type = RELATIONS[query["relation"]]
        used = operator if query["relation"] == BUYS else "identity"
        params = [float(p) for p in real_numbers(used, query["relation"])]
        moved = move[used]([float(x) for x in real_numbers(lhs_type, query["lhs"])], params)
        truth = {
            key: scale * score(moved, [float(x) for x in real_numbers(rhs_type, key)])
            for key in keys[rhs_type]
        }
        best = sorted(truth, key=lambda key: -truth[key])[:10]
        assert query["rhs"] == best
        assert query["scores"] == pytest.approx([truth[key] for key in best], abs=1e-9)

    assert json.loads(bytes(version.file("config.json"))) == {"run": {"dir": "x"}}
    assert json.loads(bytes(version.file("metrics.json"))) == {"mrr": 0.5}


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_indexes_rank_as_the_comparator_and_by_likeness(
    spec: Any, graphs: dict[int, Graph], make_trained: MakeTrained, tmp_path: Path
) -> None:
    trained = build(graphs[3], make_trained, spec)
    version = do_publish(trained, tmp_path / "published")
    rows = version.vectors("item").astype(np.float64)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    distance = -np.linalg.norm(rows[:, None] - rows[None], axis=2)
    wanted = {"dot": rows @ rows.T, "cos": unit @ unit.T, "l2": distance}
    described = version.manifest.entities("item").indexes
    metric = trained.model.comparator.metric
    assert described["score"].metric == metric
    assert described["score"].scale == (10.0 if metric == "cos" else 1.0)
    assert described["similar"].metric == ("l2" if metric == "l2" else "cos")
    for name in ("score", "similar"):
        index = faiss.deserialize_index(np.frombuffer(version.index("item", name), np.uint8))
        queries = unit if described[name].normalised else rows
        found, ids = index.search(queries.astype(np.float32), len(rows))
        found = -np.sqrt(np.maximum(found, 0)) if described[name].metric == "l2" else found
        truth = wanted[described[name].metric]
        assert np.array_equal(ids, np.argsort(-truth, axis=1))
        np.testing.assert_allclose(found, -np.sort(-truth, axis=1), atol=2e-3)


def test_attributes_go_with_their_keys(make_trained: MakeTrained, tmp_path: Path) -> None:
    (tmp_path / "edges.tsv").write_text("".join(f"u{i}\ti{i}\n" for i in range(20)))
    titles = "".join(f"i{i}\tTitle {i}\n" for i in range(0, 30, 2))
    (tmp_path / "titles.tsv").write_text(titles)
    columns = {"key": 0, "title": 1}
    config = GraphConfig.model_validate(
        {
            "data": tmp_path,
            "gate": False,
            "entities": {
                "user": {},
                "item": {
                    "partitions": 3,
                    "attributes": {"path": "titles.tsv", "columns": columns},
                },
            },
            "relations": {"buys": {"lhs": "user", "rhs": "item"}},
            "inputs": [{"path": "edges.tsv", "relation": "buys"}],
        }
    )
    import_graph(config, tmp_path / "graph")
    trained = make_trained(Graph(tmp_path / "graph"), ModelConfig(dim=DIM), real_numbers)
    version = do_publish(trained, tmp_path / "published")
    assert version.manifest.entities("item").attributes == ["title"]
    assert version.manifest.entities("user").attributes == []
    for row in version.keys("item").to_pylist():
        number = int(row["key"][1:])
        assert row["title"] == ("" if number % 2 else f"Title {number}")


@pytest.mark.parametrize("golden", [1, 25, 1000])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_any_number_of_golden_queries_agrees(
    spec: Any, golden: int, graphs: dict[int, Graph], make_trained: MakeTrained, tmp_path: Path
) -> None:
    """An entity is its own nearest neighbour here: a distance of 0, where rounding shows most."""
    trained = build(graphs[3], make_trained, spec)
    version = do_publish(trained, tmp_path / "published", golden=golden, recommend=[LIKE])
    assert len(version.golden()) == min(golden, trained.graph.num_entities("item"))


@pytest.mark.parametrize("golden", [16, 25])
def test_vectors_far_from_the_origin_can_be_published(
    golden: int, graphs: dict[int, Graph], make_trained: MakeTrained, tmp_path: Path
) -> None:
    """Some versions of FAISS search batches of 20 by |a|^2 + |b|^2 - 2 ab, where all cancels."""
    trained = make_trained(
        graphs[3],
        ModelConfig(dim=DIM, comparator="l2"),
        lambda *names: 100 + 0.1 * real_numbers(*names),
    )
    version = do_publish(trained, tmp_path / "published", golden=golden, recommend=[LIKE])
    assert len(version.golden()) == golden


def test_without_golden_queries_or_recommendations_a_version_is_published(
    graphs: dict[int, Graph], make_trained: MakeTrained, tmp_path: Path
) -> None:
    trained = build(graphs[3], make_trained)
    first = do_publish(trained, tmp_path / "published", golden=0)
    assert first.golden() == [] and first.seen(BUYS) is not None
    second = do_publish(trained, tmp_path / "published", recommend=[])
    assert second.golden() == [] and second.seen(BUYS) is None
    assert published.current(tmp_path / "published") == "v000002"


def test_a_relation_to_recommend_that_does_not_exist_is_refused(
    graphs: dict[int, Graph], make_trained: MakeTrained, tmp_path: Path
) -> None:
    trained = build(graphs[3], make_trained)
    with pytest.raises(DataError, match=r"has no relation nevr\. Did you mean never\?"):
        do_publish(trained, tmp_path / "published", recommend=["nevr"])
    assert published.versions(tmp_path / "published") == []


# --- what must not go live -----------------------------------------------------------------------


def noisy(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    rng = np.random.default_rng(1)
    return (vectors * (1 + 0.01 * rng.standard_normal(vectors.shape))).astype(np.float32)


def permuted(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every score is right, and belongs to another key."""
    return np.roll(vectors, 1, axis=0)


@pytest.fixture
def live(graphs: dict[int, Graph], make_trained: MakeTrained, tmp_path: Path) -> Trained:
    """A checkpoint of which v000001 is published."""
    trained = build(graphs[3], make_trained, operators={BUYS: "diagonal"})
    do_publish(trained, tmp_path / "published")
    return trained


def assert_unchanged(root: Path, before: Mapping[str, bytes]) -> None:
    assert snapshot(root) == before
    assert published.current(root) == "v000001"


def snapshot(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


@pytest.mark.parametrize("harm", [noisy, permuted, np.zeros_like], ids=lambda f: f.__name__)
def test_an_index_that_answers_otherwise_is_not_published(
    harm: Callable[..., Any], live: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(tmp_path / "published")
    write = publishing._write_index

    def write_harmed(draft: Draft, entity_type: str, name: str, vectors: Any, metric: Any) -> Any:
        return write(draft, entity_type, name, harm(vectors), metric)

    monkeypatch.setattr(publishing, "_write_index", write_harmed)
    with pytest.raises(DataError, match=r"golden queries of relation /shop/user/buys"):
        do_publish(live, tmp_path / "published")
    assert_unchanged(tmp_path / "published", before)


@pytest.mark.parametrize("harm", [noisy, permuted], ids=lambda f: f.__name__)
def test_shards_that_answer_otherwise_are_not_published(
    harm: Callable[..., Any], live: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(tmp_path / "published")
    write = Draft.write_shard

    def write_harmed(self: Draft, entity_type: str, at: int, keys: Any, vectors: Any) -> Any:
        return write(self, entity_type, at, keys, harm(vectors))

    monkeypatch.setattr(Draft, "write_shard", write_harmed)
    with pytest.raises(DataError, match="golden queries of relation"):
        do_publish(live, tmp_path / "published")
    assert_unchanged(tmp_path / "published", before)


def test_other_operator_parameters_are_not_published(
    live: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(tmp_path / "published")
    write = Draft.write_tensors

    def write_harmed(self: Draft, path: str, arrays: Mapping[str, Any]) -> str:
        if path == "relations.safetensors":
            arrays = {name: noisy(array) for name, array in arrays.items()}
        return write(self, path, arrays)

    monkeypatch.setattr(Draft, "write_tensors", write_harmed)
    with pytest.raises(DataError, match=r"golden queries of relation /shop/user/buys"):
        do_publish(live, tmp_path / "published")
    assert_unchanged(tmp_path / "published", before)


@pytest.mark.parametrize(
    "name", ["entities/item/score.faiss", "entities/user/keys-001.arrow", "golden.json"]
)
def test_a_file_that_changes_while_it_is_published_is_noticed(
    name: str, live: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(tmp_path / "published")
    finish = Draft.finish

    def finish_and_harm(self: Draft, **parts: Any) -> Any:
        manifest = finish(self, **parts)
        data = bytearray((self.folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (self.folder / name).write_bytes(data)
        return manifest

    monkeypatch.setattr(Draft, "finish", finish_and_harm)
    with pytest.raises(DataError, match=rf"{name} was altered"):
        do_publish(live, tmp_path / "published")
    assert_unchanged(tmp_path / "published", before)


def test_a_damaged_checkpoint_is_not_published(live: Trained, tmp_path: Path) -> None:
    before = snapshot(tmp_path / "published")
    entry = live.manifest.tables[live.graph.slots()[-1]]
    path = tmp_path / "checkpoint" / entry.path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{path.name} has .* bytes where its manifest says"):
        do_publish(live, tmp_path / "published")
    assert_unchanged(tmp_path / "published", before)


def test_a_first_publication_that_fails_leaves_nothing_live(
    graphs: dict[int, Graph],
    make_trained: MakeTrained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained, root = build(graphs[3], make_trained), tmp_path / "published"
    with monkeypatch.context() as patch:
        write = publishing._write_index
        patch.setattr(
            publishing, "_write_index", lambda d, e, n, v, m: write(d, e, n, permuted(v), m)
        )
        with pytest.raises(DataError):
            do_publish(trained, root)
    with pytest.raises(DataError, match="holds no published version"):
        published.current(root)
    assert do_publish(trained, root).name == "v000001"


# --- versions ------------------------------------------------------------------------------------


def test_old_versions_go_but_the_live_one_and_the_one_before(live: Trained, tmp_path: Path) -> None:
    root = tmp_path / "published"
    for number in (2, 3, 4):
        assert do_publish(live, root, keep=2).name == f"v{number:06}"
    assert published.versions(root) == ["v000003", "v000004"]
    do_publish(live, root, keep=1)
    assert published.versions(root) == ["v000004", "v000005"]
    assert published.current(root) == "v000005"
    assert not [path for path in root.iterdir() if ".tmp-" in path.name]


def test_a_version_published_twice_is_the_same_but_for_its_name_and_date(
    live: Trained, tmp_path: Path
) -> None:
    root = tmp_path / "published"
    do_publish(live, root)
    first, second = (published.read_manifest(root, f"v00000{n}") for n in (1, 2))
    cards = {"card.json", "CARD.md"}  # which say both
    same = [{k: v for k, v in one.files.items() if k not in cards} for one in (first, second)]
    assert same[0] == same[1] and cards <= set(first.files)
    fields = {"version": "", "created": "", "files": {}}
    assert first.model_copy(update=fields) == second.model_copy(update=fields)
