"""The same ranker.onnx in onnxruntime-web, as a browser runs it, here by Node.

Wants node, and the package in the folder that EMBEDSVC_NODE_MODULES names:

    npm install --prefix FOLDER onnxruntime-web
    EMBEDSVC_NODE_MODULES=FOLDER/node_modules scripts/test tests/serving/test_ranker_web.py
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from partitions.ranker_files import LOGIT, PROBABILITY, RankerFiles, fed
from serving.ranker import Ranker
from tests.toy_ranker import road, write_rows

SCRIPT = Path(__file__).with_name("ranker_web.mjs")
MODULES = os.environ.get("EMBEDSVC_NODE_MODULES", "")
pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="there is no node"),
    pytest.mark.skipif(
        not MODULES or not (Path(MODULES) / "onnxruntime-web").is_dir(),
        reason="EMBEDSVC_NODE_MODULES names no folder with onnxruntime-web",
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labels, a list, a cross, isotonic calibration."""
    folder = tmp_path_factory.mktemp("web")
    write_rows(folder)
    road(folder).train()
    return folder


def in_node(files: RankerFiles, inputs: Path) -> dict[str, np.ndarray]:
    rows, _ = files.golden()
    asked: dict[str, Any] = {
        name: {"type": str(x.dtype), "dims": x.shape, "data": x.ravel().tolist()}
        for name, x in fed(files.features.encode(rows)).items()
    }
    inputs.write_text(json.dumps(asked))
    command = ["node", SCRIPT, MODULES, files.model, inputs]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    return {name: np.array(values).reshape(len(rows), -1) for name, values in said.items()}


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_browser_says_what_python_says(
    folder: Path, tmp_path: Path, quantize: str | None
) -> None:
    made = road(folder, quantize=quantize)
    made.publish()
    ranker = Ranker.live(made.published)
    rows, golden = ranker.files.golden()
    asked = fed(ranker.features.encode(rows))
    right = ranker.session.run([LOGIT, PROBABILITY], asked)
    found = in_node(ranker.files, tmp_path / "inputs.json")
    assert len(golden) == 1000
    for name, said in zip((LOGIT, PROBABILITY), right, strict=True):
        assert found[name].shape == said.shape == (1000, 2)
    limit = 1e-5 if quantize is None else 1e-3
    assert np.abs(found[PROBABILITY] - right[1]).max() < limit
    if quantize is None:
        assert np.abs(found[PROBABILITY] - golden).max() < 1e-5
