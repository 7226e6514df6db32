"""Public data sets through the console command, where they lie beside the repository."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from partitions.graph import Graph

ROOT = Path(__file__).parent.parent.parent
DATA = ROOT.parent / "shared/data"


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "fb15k-237").is_dir(), reason=f"no FB15k-237 under {DATA}")
def test_fb15k237_is_imported_whole_and_learnt_in_an_epoch(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    answer = run(
        ROOT,
        "run",
        "scripts/examples/fb15k237.toml",
        f"run.dir={tmp_path}",
        f"graph.data={DATA / 'fb15k-237'}",
        "train.epochs=1",
        "train.chunk_size=100",
        "train.negatives={uniform = 100}",
        "model.dim=32",
        "eval.max_edges=5000",
    )
    assert answer.returncode == 0, answer.stderr
    graph = Graph(tmp_path / "graph")
    # As the data set's authors count it (Toutanova and Chen 2015).
    counts = [graph.num_edges(split) for split in ("train", "valid", "test")]
    assert counts == [272_115, 17_535, 20_466]
    assert graph.num_entities("entity") == 14_541
    assert len(graph.relations) == 237
    edge_bytes = sum(file.stat().st_size for file in (graph.path / "edges").rglob("*.arrow"))
    assert 0 < edge_bytes < 10 * sum(counts)

    found = json.loads((tmp_path / "checkpoint/evaluation.json").read_text())
    assert found["sampled_from"] == 20_466 and found["links"]["edges"] == 5000
    # By chance about ln(14541) / 14541 = 0.0007; .18 here; .33 with ten times the dimension.
    assert found["links"]["mrr"] > 0.1
    assert found["links"]["hits10"] > 0.2
    assert len(found["links"]["by_relation"]) > 150
