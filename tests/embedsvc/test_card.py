"""The page says what card.json says, for people: figures with intervals, settings that differ."""

import json
from typing import Any

import pytest

from embedsvc import card
from embedsvc.config import ModelConfig, TrainConfig
from embedsvc.evaluation.gate import Decision

NOT_LIVE = Decision(False, "v000001", "v000001", why="the test set is used up")
DATA = {
    "entities": {"user": 3},
    "edges": {"train": {"buys": 1234}, "valid": {}},
    "sources": [{"path": "a.tsv", "bytes": 12, "sha256": "0123456789abcdef" * 4}],
}


def made(metrics: dict[str, Any], data: dict[str, Any] | None = None) -> tuple[dict[str, Any], str]:
    settings = {
        "run": {"dir": "runs/shop"},
        "model": ModelConfig(dim=7).model_dump(mode="json"),
        "train": TrainConfig(seed=5).model_dump(mode="json"),
        "graph": {"holdout": {"seed": 9}},
    }
    files = card.files("v000002", "2026-01-02", data or DATA, settings, metrics, NOT_LIVE)
    assert set(files) == {"card.json", "CARD.md"}
    return json.loads(files["card.json"]), files["CARD.md"].decode()


def test_what_was_measured_is_on_the_page_with_its_interval() -> None:
    lists = {
        "k": 20,
        "recall": 0.5,
        "metrics": {"recall@20": {"value": 0.5, "low": 0.4, "high": 0.6}},
        "popular": {"recall@20": 0.3},
        "catalogue": {"coverage@20": 0.25},
    }
    links = {
        "edges": 10,
        "mrr": 0.125,
        "intervals": {"mrr": {"value": 0.125, "low": 0.1, "high": 0.2}},
        "pessimistic": {"mrr": 0.125},
        "mean_rank": float("nan"),
        "by_relation": {"a": {"mrr": 1.0}},
    }
    f1 = {"value": 0.75, "low": 0.7, "high": 0.8}
    shares = [{"share": 0.1, "num_judged": 9, "micro_f1": f1, "macro_f1": f1, "auc": None}]
    metrics = {"seconds": 1.5, "split": "valid", "links": links, "recommend": {"a|b": lists}}
    found, page = made(metrics | {"classify": {"shares": shares}})
    table = [line for line in page.splitlines() if line.startswith("| ")]
    assert table == [
        "| metric | value | 95 % | most popular |",
        "| --- | --- | --- | --- |",
        "| a\\|b recall@20 | 0.5000 | 0.4000 to 0.6000 | 0.3000 |",
        "| a\\|b coverage@20 | 0.2500 |  |  |",
        "| links MRR | 0.1250 | 0.1000 to 0.2000 |  |",
        "| labels taught by 10%: micro-F1 | 0.7500 | 0.7000 to 0.8000 |  |",
        "| labels taught by 10%: macro-F1 | 0.7500 | 0.7000 to 0.8000 |  |",
    ]
    assert "By the valid split." in page
    assert found["metrics"]["links"]["mean_rank"] is None
    assert found["metrics"]["recommend"]["a|b"] == lists


def test_a_rankers_interval_stands_beside_its_auc() -> None:
    clicks = {"auc": 0.7, "auc_low": 0.6, "auc_high": 0.8, "log_loss": 0.5, "gauc": None}
    _, page = made({"checkpoint": "a", "evaluation": {"split": "test", "labels": {"y": clicks}}})
    assert "| y AUC | 0.7000 | 0.6000 to 0.8000 |\n| y log loss | 0.5000 |  |\n" in page
    assert "By the test split." in page


def test_names_from_outside_are_shown_and_do_nothing() -> None:
    odd = "<b>`[x](y)|\n# z\u202e"
    lists = {"metrics": {"recall@20": {"value": 0.5, "low": 0.4, "high": 0.6}}}
    sources = [{"path": odd, "bytes": 1}]
    data = {"entities": {odd: 1}, "edges": {"train": {odd: 1}}, "sources": sources}
    _, page = made({"recommend": {odd: lists}}, data)
    shown = "&lt;b&gt;\\`\\[x\\](y)\\|U+000A# zU+202E"
    assert page.count(shown) == 4 and not {"<", "\u202e"} & set(page) and "\n# z" not in page


def test_settings_that_are_not_the_default_and_every_seed_are_said() -> None:
    found, page = made({})
    assert found["settings"] == {"model": {"dim": 7}, "train": {"seed": 5}}
    assert found["seeds"] == {"train.seed": 5, "graph.holdout.seed": 9}
    assert "- model.dim = 7\n" in page and "- graph.holdout.seed = 9\n" in page
    assert "It was not evaluated" in page and len(found["config_digest"]) == 64
    assert found["software"]["numpy"] in page


def test_the_page_says_why_a_version_is_not_live_and_what_it_was_made_of() -> None:
    found, page = made({})
    assert "did **not** let it live" in page and "It was compared with v000001." in page
    assert (
        "- the test set is used up\n" in page and found["gate"]["why"] == "the test set is used up"
    )
    assert "- entities: 3 user\n" in page
    assert "- edges: train (1,234 buys), valid (none)\n" in page
    assert "- a.tsv: 12 bytes, sha256 0123456789abcdef\n" in page


@pytest.mark.parametrize("count", [20, 21])
def test_many_files_are_counted(count: int) -> None:
    sources = [{"path": f"{at}.tsv", "bytes": 2, "sha256": "0" * 64} for at in range(count)]
    found, page = made({}, {"sources": sources})
    assert len(found["data"]["sources"]) == count
    assert ("- 21 files, 42 bytes" in page) == (count == 21) != ("- 7.tsv: 2 bytes" in page)
