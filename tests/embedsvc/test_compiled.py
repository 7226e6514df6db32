"""A kernel kept on disk is renewed when anything that went into it changes."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import pytest

import embedsvc.compiled
from embedsvc.compiled import sources_of, telling_of_compiling

_TREE = {
    "embedsvc/__init__.py": "",
    "embedsvc/graph/__init__.py": "",
    "embedsvc/graph/leaf.py": """
        from embedsvc.compiled import jit
        @jit
        def leaf(x):
            return x + 1
    """,
    "embedsvc/graph/middle.py": """
        from embedsvc.compiled import jit
        from embedsvc.graph.leaf import leaf
        @jit
        def middle(x):
            return 10 * leaf(x)
    """,
    "embedsvc/graph/top.py": """
        from embedsvc.compiled import jit
        from embedsvc.graph import other
        from embedsvc.graph.middle import (
            middle,
        )
        @jit(error_model="numpy")
        def top(x):
            return middle(x)
        if __name__ != "__main__":
            found = top(1)
            print(found, sum(top.stats.cache_hits.values()))
    """,
    "embedsvc/graph/other.py": "",
}


def run(tree: Path) -> str:
    """What top(1) is, and how many kernels came from the disk for it."""
    command = [sys.executable, "-B", "-c", "import embedsvc.graph.top"]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    environment.pop("NUMBA_CACHE_DIR", None)
    done = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_kernel_is_renewed_when_a_callee_of_a_callee_changes(tmp_path: Path) -> None:
    for name, text in _TREE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("\n        ", "\n"))
    shutil.copy(embedsvc.compiled.__file__, tmp_path / "embedsvc")
    assert run(tmp_path) == "20 0"
    assert run(tmp_path) == "20 1"
    (tmp_path / "embedsvc/graph/other.py").write_text("# not compiled")
    assert run(tmp_path) == "20 1"
    leaf = tmp_path / "embedsvc/graph/leaf.py"
    leaf.write_text(leaf.read_text().replace("x + 1", "x + 2"))
    assert run(tmp_path) == "30 0"
    assert run(tmp_path) == "30 1"


def test_the_kernel_of_1_vs_all_is_made_of_these_files() -> None:
    root = Path(embedsvc.compiled.__file__).parents[1]
    found = {
        path.relative_to(root).as_posix()
        for path in sources_of(root / "embedsvc/graph/every.py", root)
    }
    assert found == {
        "embedsvc/compiled.py",
        *(f"embedsvc/graph/{name}.py" for name in ("every", "kernels", "products", "rounding")),
        "embedsvc/prefetch.py",
        "partitions/hashing.py",
    }
    of_outputs = sources_of(root / "embedsvc/outputs/kernels.py", root)
    assert root / "embedsvc/graph/kernels.py" in of_outputs


def test_compiling_that_takes_long_is_said_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(embedsvc.compiled._Compiling, "said", False)
    logger = logging.getLogger("test")

    def compile_one(after_s: float) -> None:
        kernel = numba.njit(lambda x: x + 1)
        with telling_of_compiling(logger, after_s):
            kernel(1)
            kernel(2.0)

    compile_one(after_s=600)
    with telling_of_compiling(logger, 0):
        pass  # nothing to compile
    assert not caplog.messages
    compile_one(after_s=0)
    compile_one(after_s=0)
    assert caplog.messages == [
        "compiling kernels for the first step; the next run finds them on disk"
    ]
