"""The floors hold: imports flow down to partitions, never sideways between embedsvc and serving.

Every import statement counts, also one inside a function or under TYPE_CHECKING: what is written
down there is loaded one day.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OUTSIDE = {"scripts", "tests"}
FORBIDDEN = {
    "partitions": OUTSIDE
    | {"embedsvc", "serving", "torch", "faiss", "redis", "grpc", "onnx", "onnxruntime"},
    "embedsvc": OUTSIDE | {"serving"},
    "serving": OUTSIDE | {"embedsvc", "torch", "numba", "onnx"},
}


def imported_by(module: str, path: Path) -> Iterator[str]:
    """Full names, as far as a statement tells: `from a import b` gives both a and a.b."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from (source, *(f"{source}.{alias.name}" for alias in node.names))


def import_graph(root: Path) -> dict[str, set[str]]:
    """Module -> what it imports, for every module of the three packages."""
    graph = {}
    for path in (path for floor in FORBIDDEN for path in (root / floor).rglob("*.py")):
        names = path.relative_to(root).with_suffix("").parts
        module = ".".join(names[:-1] if names[-1] == "__init__" else names)
        graph[module] = set(imported_by(module, path))
    return graph


def violations(graph: dict[str, set[str]]) -> list[str]:
    """A sentence for each import that no floor plan allows, sorted; serving's as chains."""
    found = set()
    for module, imports in graph.items():
        for top in {name.split(".")[0] for name in imports} & FORBIDDEN[module.split(".")[0]]:
            found.add(f"{module} imports {top}")
    for start in (module for module in graph if module.split(".")[0] == "serving"):
        chains = [[start]]
        seen = {start}
        while chains:
            chain = chains.pop()
            imports = graph[chain[-1]]
            if len(chain) > 1 and any(name.split(".")[0] == "numba" for name in imports):
                found.add(" imports ".join([*chain, "numba"]))
            for name in imports:  # importing a.b.c runs a and a.b too
                parts = name.split(".")
                for module in (".".join(parts[:n]) for n in range(1, len(parts) + 1)):
                    if module in graph and module not in seen:
                        seen.add(module)
                        chains.append([*chain, module])
    return sorted(found)


def test_imports_keep_to_their_floor() -> None:
    graph = import_graph(ROOT)
    assert {module.split(".")[0] for module in graph} == set(FORBIDDEN), "a package has no modules"
    assert violations(graph) == []


@pytest.mark.parametrize(
    ("file", "line", "sentence"),
    [
        ("partitions/order.py", "import torch.nn as nn", "partitions.order imports torch"),
        ("partitions/order.py", "from embedsvc import x", "partitions.order imports embedsvc"),
        ("embedsvc/cli.py", "def f():\n    import serving.x", "embedsvc.cli imports serving"),
        ("serving/shard.py", "from numba import njit", "serving.shard imports numba"),
        ("serving/shard.py", "import tests.toy", "serving.shard imports tests"),
        (
            "partitions/order.py",
            "from .fast import sort",
            "serving.index imports partitions.order imports partitions.fast imports numba",
        ),
    ],
)
def test_planted_violation_is_found(tmp_path: Path, file: str, line: str, sentence: str) -> None:
    for name, text in [
        ("partitions/__init__.py", ""),
        ("partitions/fast.py", "import numba"),
        ("embedsvc/train.py", "import torch, numba\nfrom partitions.fast import sort"),
        ("serving/index.py", "import faiss\nfrom partitions import order"),
        (file, line),
    ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert violations(import_graph(tmp_path)) == [sentence]


@pytest.mark.parametrize("module", ["serving.service", "serving.ranker"])
def test_serving_starts_without_training_libraries(module: str) -> None:
    heavy = "{'torch', 'numba', 'embedsvc', 'onnx'}"
    code = f"import {module}, sys; print(*{heavy} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout.split()) == (0, []), run.stderr
