"""The script end to end, on few rows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_ranking.py"


@pytest.mark.slow
def test_a_ranker_is_trained_published_and_timed() -> None:
    run = subprocess.run(
        [sys.executable, SCRIPT, "--quick", "--prune", "0.5"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["rows"] == 200 and found["prune"] == 0.5 and found["gap"] < 1e-5
    assert 0 < found["cpu_onnx_ms"] < found["cpu_p50_ms"] <= found["cpu_p99_ms"]
    assert found["p50_ms"] <= found["p99_ms"] and found["encode_ms"] > 0
