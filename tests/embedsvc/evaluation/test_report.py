"""embedsvc.evaluation.report: what the page says is what was found, whatever the keys hold."""

import re
from collections.abc import Callable
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from embedsvc import publish as publishing
from embedsvc.config import ModelConfig, PublishConfig
from embedsvc.evaluation import links, report
from embedsvc.evaluation.lists import Asked, judge
from embedsvc.evaluation.recommend import report_of
from embedsvc.evaluation.report import Evaluated
from embedsvc.evaluation.sampled import MEASURES, name_of, sample_links
from embedsvc.evaluation.significance import FEWEST
from embedsvc.evaluation.sources import OfCheckpoint, OfPopularity
from embedsvc.trained import Trained
from partitions import durable, published
from partitions.graph import Graph

HOSTILE = "<script>alert(1)</script>\"'><img src=//x.example/ onerror=a()>&amp; \u202e\u00e9"
SHOP = {"bought": ("user", "item"), "knows": ("user", "user")}


class Reader(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not {name for name, _ in attrs} & {"src", "href", "onerror", "onload"}

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def __contains__(self, sentence: str) -> bool:
        return sentence in " ".join(" ".join(self.text).split())


def shop(prefix: str = "", num: int = 80) -> dict[str, list[tuple[str, str, str]]]:
    rng = np.random.default_rng(0)
    pairs = {(int(u), int(i)) for u, i in rng.integers(0, [20, 30], (num * 4, 2))}
    edges = [(f"{prefix}u{u}", "bought", f"{prefix}i{i}") for u, i in sorted(pairs)]
    edges += [(f"{prefix}u{n}", "knows", f"{prefix}u{n + 1}") for n in range(12)]
    order = rng.permutation(len(edges)).tolist()
    return {
        "train": [edges[at] for at in order[:num]],
        "test": [edges[at] for at in order[num : num + 40]],
    }


def evaluated(trained: Trained, recommend: list[str], *, with_links: bool = True) -> Evaluated:
    result: dict[str, Any] = {
        "checkpoint": trained.digest,
        "graph": trained.graph.digest,
        "settings": {"k": 5},
        "split": "test",
    }
    ranked, lists = None, {}
    if with_links:
        edges = trained.edges("test")
        ranks, degrees = links.rank_links(trained, edges), links.train_degrees(trained, edges)
        names = [relation.name for relation in trained.graph.relations]
        result["links"] = links.report(ranks, names, degrees, "pessimistic")
        ranked = (ranks, degrees)
    for relation in recommend:
        asked = Asked.of(trained.graph, relation, "test")
        judged = judge(OfCheckpoint(trained, relation), asked, 5)
        popular = judge(OfPopularity(asked.popularity), asked, 5)
        lists[relation] = (asked, judged, popular)
        result.setdefault("recommend", {})[relation] = asdict(report_of(judged, asked))
    return Evaluated(trained, result, lists, ranked)


def page_of(found: Evaluated, tmp_path: Path) -> str:
    path = report.write(tmp_path / "evaluation.html", "A run", found, tmp_path / "published")
    assert path == tmp_path / "evaluation.html"
    return path.read_text()


@pytest.fixture
def make(
    make_graph: Callable[..., Graph],
    make_trained: Callable[..., Trained],
    vector_from: Callable[..., np.ndarray],
) -> Callable[..., Trained]:
    def made(prefix: str = "", seed: int = 1, name: str = "checkpoint", num: int = 80) -> Trained:
        graph = make_graph(shop(prefix, num), SHOP, {"item": 2})
        return make_trained(
            graph, ModelConfig(dim=4), lambda *names: vector_from(seed, 4, *names), name=name
        )

    return made


def test_the_page_says_what_was_found(make: Callable[..., Trained], tmp_path: Path) -> None:
    found = evaluated(make(), ["bought", "knows"])
    text = page_of(found, tmp_path)
    shown = Reader(text)
    for name, one in found.result["recommend"]["bought"]["metrics"].items():
        assert f"{name} {one['value']:.4f} [{one['low']:.4f}, {one['high']:.4f}]" in shown
    whole = found.result["links"]
    mrr = whole["intervals"]["mrr"]
    assert f"both ends 40 {whole['mrr']:.4f} [{mrr['low']:.4f}, {mrr['high']:.4f}]" in shown
    assert f"rhs 40 {whole['by_side']['rhs']['mrr']:.4f} [" in shown
    assert f"nothing left out 40 {whole['raw']['mrr']:.4f} [" in shown
    for row in whole["by_degree"]:
        few = row["ranks"] < FEWEST
        assert f"{row['degree']} {row['ranks']} {row['mrr']:.4f} {'' if few else '['}" in shown
    worst = min(whole["by_relation"], key=lambda name: whole["by_relation"][name]["mrr"])
    assert f"mean rank {worst} {whole['by_relation'][worst]['edges']} " in shown
    assert re.findall(r"<h3>(user|item)</h3>", text) == ["user", "item"] * 2
    graph = found.trained.graph
    keys = {*graph.all_keys("user").to_pylist(), *graph.all_keys("item").to_pylist()}
    assert {*re.findall(r'data-key="([^"]*)"', text)} == keys  # of few, all are on the maps


def test_the_curves_end_at_the_metric_itself(make: Callable[..., Trained], tmp_path: Path) -> None:
    found = evaluated(make(), ["bought"], with_links=False)
    text = page_of(found, tmp_path)
    report_ = found.result["recommend"]["bought"]
    for name in ("recall", "ndcg"):
        assert f"<title>model, k 5: {report_['metrics'][f'{name}@5']['value']:,.6g}</title>" in text
        assert f"<title>most popular, k 5: {report_['popular'][f'{name}@5']:,.6g}</title>" in text
    hits = found.lists["bought"][1].hits[:, :1]
    first = (hits.sum(axis=1) / found.lists["bought"][0].num_goals).mean()
    assert f"<title>model, k 1: {first:,.6g}</title>" in text


def test_keys_of_any_kind_are_shown_as_text(make: Callable[..., Trained], tmp_path: Path) -> None:
    hostile = page_of(evaluated(make(HOSTILE, name="a"), ["bought"]), tmp_path)
    plain = page_of(evaluated(make("k", name="b"), ["bought"]), tmp_path)
    assert {*Reader(hostile).tags} == {*Reader(plain).tags}
    assert Reader(hostile).tags.count("script") == Reader(hostile).tags.count("style") == 1
    start = HOSTILE.replace("\u202e", "\ufffd") + "u"
    assert any(text.startswith(start) for text in Reader(hostile).text)
    for svg in re.findall(r"<svg.*?</svg>", hostile, re.DOTALL):
        ElementTree.fromstring(svg)


def test_the_page_fetches_nothing(make: Callable[..., Trained], tmp_path: Path) -> None:
    text = page_of(evaluated(make(), ["bought"]), tmp_path)
    assert not re.search(r"https?:|<link|<img|@import|url\(|src=|href=", text)
    assert "default-src 'none'" in text


def test_without_lists_links_or_edges_there_is_still_a_page(
    make_graph: Callable[..., Graph], make_trained: Callable[..., Trained], tmp_path: Path
) -> None:
    graph = make_graph({"train": [("a", "r", "b")]}, {"r": ("n", "n")})
    found = evaluated(
        make_trained(graph, ModelConfig(dim=2), lambda *_: [0.0, 0.0]), ["r"], with_links=False
    )
    shown = Reader(page_of(found, tmp_path))
    assert "The split has no edge of it to find." in shown
    assert "2 more have a vector that points nowhere" in shown


def test_what_was_left_out_is_said(make: Callable[..., Trained], tmp_path: Path) -> None:
    found = evaluated(make(), ["bought"])
    found.result["sampled_from"] = 999  # type: ignore[index]
    found.result["links"]["other_relations"] = 3
    found.result["links"]["nan_edges"] = 2
    found.result["recommend"]["bought"]["num_without_goals"] = 4
    shown = Reader(page_of(found, tmp_path))
    for sentence in (
        "40 of 999 edges were ranked, a seeded sample",
        "3 edges of other relations were not ranked",
        "2 edges have an end without a score: ranked last",
        "4 askers of bought had all that was held out of them before",
    ):
        assert sentence in shown


def test_estimates_and_labels_have_their_tables(
    make: Callable[..., Trained], tmp_path: Path
) -> None:
    trained = make()
    found = evaluated(trained, [], with_links=False)
    drawn = sample_links(trained, trained.edges("test"), 5).report()
    interval = {"value": 0.25, "low": 0.2, "high": 0.3}
    share = {"share": 0.1, "num_judged": 90, "micro_f1": interval, "macro_f1": interval}
    nodes = {"type": "user", "num_nodes": 100, "num_labels": 7, "num_unknown": 3, "repeats": 10}
    more = {"sampled_links": drawn, "classify": nodes | {"shares": [share | {"auc": None}]}}
    shown = Reader(page_of(replace(found, result={**found.result, **more}), tmp_path))
    assert "estimates of 40 edges from 5 drawn candidates" in shown
    for name in map(name_of, MEASURES):
        assert f"{name} {drawn[name]:,.4f}" in shown
    assert "10% 90 0.2500 [0.2000, 0.3000] 0.2500 [0.2000, 0.3000]" in shown
    assert "3 keys with labels are not in the graph" in shown


def published_from(trained: Trained, tmp_path: Path) -> None:
    publishing.publish(
        trained, tmp_path / "published", PublishConfig(), {}, {"checkpoint": trained.digest}
    )


def test_the_version_that_was_made_of_the_checkpoint_is_named(
    make: Callable[..., Trained], tmp_path: Path
) -> None:
    trained = make()
    published_from(trained, tmp_path)
    shown = Reader(page_of(evaluated(trained, ["bought"]), tmp_path))
    assert "v000001 is live, and was made of this checkpoint." in shown


def test_what_changed_since_the_live_version_is_told(
    make: Callable[..., Trained], tmp_path: Path
) -> None:
    published_from(make(seed=1, name="old", num=60), tmp_path)
    found = evaluated(make(seed=2, name="new"), ["bought"])
    drift = report.drift_from(found, published.open_version(tmp_path / "published"))
    [change] = drift.lists
    asked, judged, _ = found.lists["bought"]
    assert change.num_asked == len(asked)
    for name, values in judged.values.items():
        assert change.metrics[name].new == pytest.approx(values.mean())
    assert change.churn.set_changed > 0.5
    new = {*found.trained.graph.all_keys("item").to_pylist()}
    assert drift.entities["item"].new == len(new)
    shown = Reader(page_of(found, tmp_path))
    assert f"recall@5 {change.metrics['recall@5'].old:.4f}" in shown
    assert f"of {change.churn.num_lists} lists" in shown


def test_a_graph_without_lists_is_held_to_its_relations_with_the_most_held_out_edges(
    make: Callable[..., Trained], tmp_path: Path
) -> None:
    published_from(make(seed=1, name="old"), tmp_path)
    shown = Reader(page_of(evaluated(make(seed=2, name="new"), []), tmp_path))
    assert "Lists for bought" in shown and "Lists for knows" in shown


def test_a_damaged_live_version_does_not_stop_the_page(
    make: Callable[..., Trained], tmp_path: Path
) -> None:
    published_from(make(seed=1, name="old"), tmp_path)
    damaged = next((tmp_path / "published" / "v000001").rglob("vectors-000.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    shown = Reader(page_of(evaluated(make(seed=2, name="new"), ["bought"]), tmp_path))
    assert "Nothing can be said of it: " in shown and damaged.name in shown


def test_what_was_measured_between_epochs_is_a_curve(
    make: Callable[..., Trained], tmp_path: Path
) -> None:
    lines = "".join(f'{{"epoch": {n}, "mrr": {n / 10}, "time": 1}}\n' for n in (1, 2))
    (tmp_path / "metrics.jsonl").write_text(lines)
    text = page_of(evaluated(make(), [], with_links=False), tmp_path)
    assert "<h2>Validation mrr</h2>" in text and "<title>epoch 2: 0.2</title>" in text


def test_numbers_without_a_value_are_dashes(make: Callable[..., Trained], tmp_path: Path) -> None:
    found = evaluated(make(), ["bought"])
    durable.without_nan(dict(found.result))  # as it is stored
    assert "nan" not in " ".join(Reader(page_of(found, tmp_path)).text).lower().split()
