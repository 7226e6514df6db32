"""embedsvc.evaluation.nodes: by a plain loop, by scikit-learn, and where the answer is known."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score

from embedsvc.config import ClassifyConfig
from embedsvc.evaluation.nodes import (
    VALIDATION,
    Bools,
    Floats,
    Labels,
    _coded,
    classify,
    f1_scores,
    most_probable,
)
from embedsvc.road import Road
from partitions.errors import ConfigError, DataError

CONFIG = ClassifyConfig(labels="labels.tsv", type="node", repeats=3)


# --- the numbers ----------------------------------------------------------------------------------

TABLES = st.tuples(st.integers(1, 12), st.integers(2, 6)).flatmap(
    lambda shape: st.tuples(arrays(np.bool_, shape), arrays(np.bool_, shape))
)


@given(TABLES)
def test_f1_is_what_scikit_learn_says(tables: tuple[Bools, Bools]) -> None:
    truth, found = tables
    expected = [f1_score(truth, found, average=a, zero_division=0) for a in ("micro", "macro")]
    assert f1_scores(truth, found) == pytest.approx(expected, abs=1e-12)


@given(
    arrays(np.float64, (5, 4), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0])),
    arrays(np.int64, 5, elements=st.integers(0, 4)),
)
def test_each_row_gets_its_most_probable_labels(probability: Floats, counts: Any) -> None:
    found = most_probable(probability, counts)
    for row, count in enumerate(counts):
        best = sorted(range(4), key=lambda label: (-probability[row, label], label))[:count]
        assert np.flatnonzero(found[row]).tolist() == sorted(best)


# --- the protocol ---------------------------------------------------------------------------------


def planted(
    rng: np.random.Generator, nodes: int, names: int, noise: float = 1.0
) -> tuple[Floats, Labels]:
    """One to three labels a node; a vector is the sum of its labels' directions, and noise."""
    held = np.zeros((nodes, names), np.bool_)
    for row in held:
        row[rng.choice(names, rng.integers(1, 4), replace=False)] = True
    directions = rng.normal(size=(names, 8))
    vectors = held @ directions + noise * rng.normal(size=(nodes, 8))
    return vectors, Labels(np.arange(nodes), tuple(map(str, range(names))), held, 0)


def plainly(
    vectors: Floats, labels: Labels, share: float, config: ClassifyConfig
) -> list[tuple[float, float]]:
    found = []
    for repeat in range(config.repeats):
        order = np.random.default_rng([config.seed, repeat]).permutation(len(labels))
        end = round(share * len(labels))
        taught, judged = order[:end], order[end:]
        mean, deviation = vectors[taught].mean(axis=0), vectors[taught].std(axis=0)
        scaled = (vectors - mean) / deviation
        probability = []
        for label in range(len(labels.names)):
            truth = labels.held[taught, label]
            if len(set(truth)) == 1:
                probability.append(np.full(len(judged), float(truth[0])))
                continue
            model = LogisticRegression(C=config.c, max_iter=1000).fit(scaled[taught], truth)
            probability.append(model.predict_proba(scaled[judged])[:, 1])
        given = np.zeros((len(judged), len(labels.names)), int)
        for row, node in enumerate(judged):
            ranked = sorted(range(len(labels.names)), key=lambda at: -probability[at][row])
            given[row, ranked[: labels.held[node].sum()]] = 1
        truth = labels.held[judged].astype(int)
        micro, macro = (f1_score(truth, given, average=a, zero_division=0) for a in AVERAGES)
        found.append((micro, macro))
    return found


AVERAGES = ("micro", "macro")


def test_the_protocol_is_that_of_a_plain_loop() -> None:
    vectors, labels = planted(np.random.default_rng(1), 60, 9)
    labels.held[:, 8] = False
    labels.held[5, 8] = True  # one that most shuffles do not teach
    config = CONFIG.model_copy(update={"shares": [0.2, 0.6], "c": 0.5, "repeats": 10})
    report = classify(vectors, labels, config, "test")
    assert [found.share for found in report.shares] == [0.2, 0.6]
    assert [found.num_taught for found in report.shares] == [12, 36]
    for found in report.shares:
        expected = plainly(vectors, labels, found.share, config)
        assert found.micro_f1.value == pytest.approx(np.mean([micro for micro, _ in expected]))
        assert found.macro_f1.value == pytest.approx(np.mean([macro for _, macro in expected]))
        assert found.micro_f1.low <= found.micro_f1.value <= found.micro_f1.high
        assert found.auc is None


def binary(truth: Bools) -> Labels:
    held = np.stack([truth, ~truth], axis=1)
    return Labels(np.arange(len(truth)), ("a", "b"), held, 0)


def test_a_binary_target_has_an_auc_and_its_micro_f1_is_the_accuracy() -> None:
    rng = np.random.default_rng(2)
    truth = rng.random(200) < 0.3
    vectors = rng.normal(size=(200, 3)) + truth[:, None] * [1.0, 0.0, 0.5]
    config = CONFIG.model_copy(update={"shares": [0.5], "repeats": 1, "scale": "none"})
    [found] = classify(vectors, binary(truth), config, "test").shares
    order = np.random.default_rng([config.seed, 0]).permutation(200)
    model = LogisticRegression(max_iter=1000).fit(vectors[order[:100]], truth[order[:100]])
    said = model.predict_proba(vectors[order[100:]])[:, 1]
    assert found.auc is not None
    assert found.auc.value == pytest.approx(roc_auc_score(truth[order[100:]], said))
    accuracy = ((said > 0.5) == truth[order[100:]]).mean()
    assert found.micro_f1.value == pytest.approx(accuracy)


def test_shuffled_labels_are_told_by_chance() -> None:
    rng = np.random.default_rng(3)
    truth = np.arange(2000) % 2 == 0
    vectors = rng.normal(size=(2000, 4)) + 3.0 * truth[:, None]
    told = classify(vectors, binary(truth), CONFIG, "test").shares[-1]
    chance = classify(vectors, binary(rng.permutation(truth)), CONFIG, "test").shares[-1]
    assert told.micro_f1.value > 0.99 and told.auc is not None and told.auc.value > 0.99
    assert abs(chance.micro_f1.value - 0.5) < 0.06
    assert chance.auc is not None and abs(chance.auc.value - 0.5) < 0.06


def test_validation_looks_at_no_label_that_the_test_judges_by() -> None:
    vectors, labels = planted(np.random.default_rng(4), 100, 5)
    config = CONFIG.model_copy(update={"repeats": 1, "shares": [0.5]})
    judged = np.random.default_rng([config.seed, 0]).permutation(100)[50:]
    other = replace(labels, held=labels.held.copy())
    other.held[judged] = other.held[judged][:, ::-1]
    first, second = (classify(vectors, each, config, "valid").shares for each in (labels, other))
    assert first == second and first[0].num_judged == round(50 * VALIDATION)
    assert classify(vectors, labels, config, "test") != classify(vectors, other, config, "test")


@pytest.mark.parametrize("scale", ["standard", "unit"])
def test_the_length_that_a_trainer_leaves_does_not_matter(scale: str) -> None:
    vectors, labels = planted(np.random.default_rng(5), 80, 4)
    config = CONFIG.model_copy(update={"scale": scale, "shares": [0.5]})
    found, longer = (classify(v, labels, config, "test").shares[0] for v in (vectors, 64 * vectors))
    assert found == longer


def test_the_same_seed_gives_the_same_numbers() -> None:
    vectors, labels = planted(np.random.default_rng(6), 80, 4, noise=3)
    other = CONFIG.model_copy(update={"seed": 2})
    first, second, third = (
        classify(vectors, labels, config, "test") for config in (CONFIG, CONFIG, other)
    )
    assert first == second != third


def test_what_can_not_be_judged_is_one_sentence() -> None:
    vectors, labels = planted(np.random.default_rng(7), 3, 4)
    with pytest.raises(DataError, match="3 labelled entities leave none to learn from"):
        classify(vectors, labels, CONFIG, "test")
    with pytest.raises(ConfigError, match=r"judges eval.split = test or valid"):
        classify(vectors, labels, CONFIG, "train")


def test_who_has_no_finite_vector_is_left_out_and_counted() -> None:
    vectors, labels = planted(np.random.default_rng(8), 80, 5)
    labels.held[:, 0] = True
    labels.held[:, 4] = False
    labels.held[7, 4] = True  # a label that nobody else has
    odd = vectors.copy()
    odd[7, 2], odd[9, 0] = np.nan, np.inf
    kept = np.setdiff1d(np.arange(80), [7, 9])
    names = labels.names[:4]
    rest = replace(labels, ids=kept, held=labels.held[kept][:, :4], names=names)
    found = classify(odd, labels, CONFIG, "test")
    assert found.num_unscored == 2 and found.num_nodes == 78 and found.num_labels == 4
    assert replace(found, num_unscored=0) == classify(vectors[kept], rest, CONFIG, "test")
    with pytest.raises(DataError, match=r"vectors of 80 labelled node are not finite"):
        classify(vectors * np.nan, labels, CONFIG, "test")


@given(st.lists(st.text(), min_size=1))
def test_labels_are_numbered_in_their_order(texts: list[str]) -> None:
    names, place = _coded(pa.array(texts, pa.large_string()))
    assert list(names) == sorted(set(texts)) and [names[at] for at in place] == texts


# --- from a config --------------------------------------------------------------------------------

CLIQUE = 12
TOML = """
[run]
dir = "{folder}/run"
[graph]
data = "{folder}"
gate = false
[graph.entities.node]
[graph.relations.knows]
lhs = "node"
rhs = "node"
[[graph.inputs]]
path = "edges.tsv"
relation = "knows"
[model]
dim = 8
init_scale = 0.1
[train]
epochs = 10
batch_size = 50
chunk_size = 25
threads = 1
[eval]
links = false
[eval.classify]
labels = "labels.tsv"
type = "node"
shares = [0.5]
"""


def two_cliques(folder: Path, labels: str | None = None) -> Path:
    edges = [
        f"{side}{a}\t{side}{b}\n" for side in "ab" for a in range(CLIQUE) for b in range(CLIQUE)
    ]
    (folder / "edges.tsv").write_text("".join([*edges, "a0\tb0\n"]))
    if labels is None:
        labels = "".join(f"{side}{n}\tof {side}\n" for side in "ab" for n in range(CLIQUE))
    (folder / "labels.tsv").write_text(labels)
    (folder / "c.toml").write_text(TOML.format(folder=folder))
    return folder / "c.toml"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = two_cliques(tmp_path_factory.mktemp("cliques"))
    road = Road.open(config, [])
    road.import_graph()
    road.train()
    return config


def evaluated(config: Path, *overrides: str) -> dict[str, Any]:
    found: dict[str, Any] = Road.open(config, list(overrides)).evaluate()
    return found


def test_two_cliques_are_told_apart(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(trained)["classify"]
    assert (found["num_nodes"], found["num_labels"], found["repeats"]) == (2 * CLIQUE, 2, 10)
    [share] = found["shares"]
    assert share["micro_f1"]["value"] == share["macro_f1"]["value"] == share["auc"]["value"] == 1.0
    assert "Labels of 24 node entities" in capsys.readouterr().out
    assert (trained.parent / "run" / "checkpoint" / "evaluation.json").exists()


def test_evaluation_is_up_to_date_until_the_labels_change(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = trained.parent / "labels.tsv"
    kept = labels.read_text()
    try:
        for text, fresh in ((kept, True), (kept, False), (kept + "a0\tthird\n", True)):
            labels.write_text(text)
            capsys.readouterr()
            Road.open(trained, ["eval.classify.repeats=2"]).evaluate(if_needed=True)
            assert ("is up to date" in capsys.readouterr().out) != fresh
    finally:
        labels.write_text(kept)


def test_keys_that_the_graph_lacks_are_counted_and_said(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained.parent
    rows = [(f"{side}{n}", f"of {side}") for side in "ab" for n in range(CLIQUE)]
    rows += [("nobody", "of a"), ("nobody", "of b"), ("no one", "of a")]
    table = pa.table({"who": [key for key, _ in rows], "what": [label for _, label in rows]})
    pq.write_table(table, folder / "labels.parquet")
    found = evaluated(
        trained,
        "eval.classify.labels=labels.parquet",
        'eval.classify.columns={key="who", label="what"}',
    )["classify"]
    assert found["num_unknown"] == 2 and found["num_nodes"] == 2 * CLIQUE
    said = capsys.readouterr().out
    assert "2 keys of labels.parquet: the graph has no such node ('nobody', 'no one')" in said


def test_a_node_may_have_several_labels_in_a_row_or_in_rows(trained: Path) -> None:
    folder = trained.parent
    names = {f"{side}{n}": [f"of {side}", f"{n % 3}"] for side in "ab" for n in range(CLIQUE)}
    (folder / "rows.tsv").write_text(
        "".join(f"{key}\t{label}\n" for key, both in names.items() for label in [*both, both[0]])
    )
    (folder / "lists.tsv").write_text(
        "".join(f"{key}\t{'|'.join(both)}|\n" for key, both in names.items())
    )
    results = [
        evaluated(trained, "eval.classify.labels=rows.tsv"),
        evaluated(trained, "eval.classify.labels=lists.tsv", "eval.classify.separator=|"),
    ]
    assert results[0]["classify"] == results[1]["classify"]
    assert results[0]["classify"]["num_labels"] == 5


@pytest.mark.parametrize(
    ("labels", "overrides", "sentence"),
    [
        ("", [], "none.tsv has no rows. Name a file of keys"),
        ("x\ty\n", [], "No key of none.tsv is a node of"),
        ("a0\tone\na1\tone\n", [], "the label one: nothing is to be told apart"),
        ("a0\tone\n", ["eval.classify.type=nod"], "type = nod has no learnt vectors. Did you mean"),
        ("a0\n", [], "none.tsv:1: expected 2 "),
    ],
)
def test_labels_that_tell_nothing_are_one_sentence(
    trained: Path, labels: str, overrides: list[str], sentence: str
) -> None:
    (trained.parent / "none.tsv").write_text(labels)
    with pytest.raises((DataError, ConfigError), match=sentence):
        evaluated(trained, "eval.classify.labels=none.tsv", *overrides)


def test_a_mistake_in_the_table_is_named(trained: Path) -> None:
    for override, sentence in (
        ("eval.classify.shares=[1.0]", "less than 1"),
        ("eval.classify.columns={key=0}", "columns does not map label"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            evaluated(trained, override)
