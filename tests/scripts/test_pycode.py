"""The data set `pycode`: every edge of a small tree of Python files, known by hand."""

import gzip
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from partitions.errors import DataError
from scripts import pycode

ROOT = Path(__file__).parents[2]


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def rows(folder: Path, name: str) -> list[tuple[str, ...]]:
    text = gzip.decompress((folder / f"{name}.tsv.gz").read_bytes()).decode()
    return [tuple(line.split("\t")) for line in text.splitlines()]


def graph(tmp_path: Path, files: dict[str, str], min_uses: int = 1) -> dict[str, Any]:
    """Build with one worker; pycode.json, and the rows of each file by its name."""
    out = tmp_path / "out"
    root = write(tmp_path / "root", files)
    summary = pycode.build(out, [root], min_uses=min_uses, workers=1)
    names = ("imports", "uses", "defines", "belongs_to", "modules")
    return summary | {name: rows(out, name) for name in names}


def uses(tmp_path: Path, text: str) -> list[str]:
    """What the one module `m` uses, in order."""
    return [symbol for _, symbol in graph(tmp_path, {"m.py": text})["uses"]]


def test_every_relation_of_a_small_tree(tmp_path: Path) -> None:
    found = graph(
        tmp_path,
        {
            "shop/__init__.py": "from .basket import Basket\n",
            "shop/basket.py": "import json\nclass Basket:\n    text = json.dumps([])\n",
            "shop/web/__init__.py": "",
            "shop/web/page.py": (
                "from json import dumps\nfrom ..basket import Basket\nfrom .. import basket\n"
                "dumps(Basket(), basket.LIMIT)\n"
            ),
            "main.py": "import shop, json as j\nshop.Basket()\nj.dumps(1)\n",
        },
    )
    assert found["imports"] == [
        ("main", "json"),
        ("main", "shop"),
        ("shop", "shop.basket"),
        ("shop.basket", "json"),
        ("shop.web.page", "json"),
        ("shop.web.page", "shop.basket"),
    ]
    assert found["uses"] == [
        ("main", "shop.Basket"),
        ("main", "json.dumps"),
        ("shop.basket", "json.dumps"),
        ("shop.web.page", "json.dumps"),
        ("shop.web.page", "shop.Basket"),
        ("shop.web.page", "shop.basket.LIMIT"),
    ]
    assert found["defines"] == [
        ("json", "json.dumps"),
        ("shop.basket", "shop.Basket"),
        ("shop.basket", "shop.basket.LIMIT"),
    ]
    assert found["belongs_to"] == [
        ("json", "json"),
        ("main", "main"),
        ("shop", "shop"),
        ("shop.basket", "shop"),
        ("shop.web", "shop.web"),
        ("shop.web.page", "shop.web"),
    ]
    assert found["modules"] == [
        ("key", "package", "depth", "size"),
        ("json", "json", "0", "0"),
        ("main", "main", "0", "48"),
        ("shop", "shop", "0", "27"),
        ("shop.basket", "shop", "1", "52"),
        ("shop.web", "shop", "1", "0"),
        ("shop.web.page", "shop", "2", "103"),
    ]
    assert found["files"] == {"read": 5, "skipped": {}}
    assert found["entities"] == {"module": 6, "package": 4, "symbol": 3}
    assert found["edges"] == {"imports": 6, "uses": 6, "defines": 3, "belongs_to": 6}
    assert found["dropped"] == {"symbols": 0, "uses": 0, "imports": 0, "twins": 0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import numpy as np\nnp.zeros(3)", ["numpy.zeros"]),
        ("import numpy as np\nnp.random.default_rng().normal()", ["numpy.random.default_rng"]),
        ("import os.path\nos.path.join(os.sep)", ["os.path.join", "os.sep"]),
        ("import os.path as p\np.join()", ["os.path.join"]),
        ("from json import loads as read\nread('')", ["json.loads"]),
        ("from json import loads", []),  # imported is not used
        ("import json\nf(json)", []),  # a module is no symbol
        ("import json\njson.loads.cache = 1", ["json.loads.cache"]),
        ("from __future__ import annotations\nannotations", []),
        ("from ...above import x\nx()", []),
        ("len([])\nprint(isinstance(1, int))", []),
        ("x = []\nx.append(1)\n''.join(x)", []),
        ("import b, a\na.f\nb.g\na.f", ["a.f", "b.g"]),  # once, in the order of first use
        ("try:\n    import fast as f\nexcept ImportError:\n    f = None\nf.go()", ["fast.go"]),
        (
            "try:\n    import fast as f\nexcept ImportError:\n    import slow as f\nf.go()",
            ["fast.go"],
        ),
        (
            "import a\n@a.decorator\nclass C(a.Base): x = a.field()",
            ["a.decorator", "a.Base", "a.field"],
        ),
    ],
)
def test_names_are_written_in_full(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert uses(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import a\ndef f(a): return a.x", []),
        ("import a\ndef f(a: a.T = a.D): return a.x", ["a.D", "a.T"]),
        ("import a\nasync def f() -> a.T: await a.g()", ["a.T", "a.g"]),
        ("import a\ng = lambda a: a.x", []),
        ("import a\nprint([a.x for a in y])\na.z", ["a.z"]),
        ("import a\ndef f():\n    a.x\n    a = 1", []),  # local in all of f
        ("def f():\n    import a\n    a.x\na.y", ["a.x"]),
        ("def f():\n    g()\n    a.x\nimport a", ["a.x"]),  # bound later, yet before the call
        ("import a\nclass C:\n    a = 1\n    def f(self): return a.x", ["a.x"]),
        ("import a\ndef f():\n    try: pass\n    except E as a: a.x", []),
        ("import a\ndef f(v):\n    match v:\n        case [*a]: a.x", []),
    ],
)
def test_names_follow_the_scopes_of_python(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert sorted(uses(tmp_path, text)) == expected


def test_all_spellings_of_a_symbol_are_one_and_the_shortest_public_one_names_it(
    tmp_path: Path,
) -> None:
    found = graph(
        tmp_path,
        {
            "sym/__init__.py": "from .core import Symbol\n",
            "sym/core/__init__.py": "from ._symbol import Symbol\n",
            "sym/core/_symbol.py": "class Symbol: ...\n",
            "other/__init__.py": "from sym import Symbol as S\n",
            "a.py": "from sym.core._symbol import Symbol\nSymbol('x')\n",
            "b.py": "import sym\nsym.core.Symbol.new()\nsym.Symbol()\n",
            "c.py": "import other\nother.S()\n",
        },
    )
    assert found["uses"] == [
        ("a", "sym.Symbol"),
        ("b", "sym.core.Symbol.new"),
        ("b", "sym.Symbol"),
        ("c", "sym.Symbol"),
    ]
    assert ("sym.core._symbol", "sym.Symbol") in found["defines"]


def test_a_function_wins_over_the_submodule_of_its_name(tmp_path: Path) -> None:
    found = graph(
        tmp_path,
        {
            "p/__init__.py": "from .simplify import simplify\n",
            "p/simplify.py": "def simplify(): ...\ndef more(): ...\n",
            "a.py": "from p import simplify\nsimplify()\n",
            "b.py": "from p.simplify import more\nmore()\n",
        },
    )
    assert found["uses"] == [("a", "p.simplify"), ("b", "p.simplify.more")]


def test_star_imports_are_followed_and_builtins_are_not_mistaken_for_them(tmp_path: Path) -> None:
    found = graph(
        tmp_path,
        {
            "lib/__init__.py": "from .inner import *\nfrom .missing import *\n",
            "lib/inner.py": "from . import *\ndef f(): ...\ndef _hidden(): ...\n",
            "a.py": "from lib import *\nf()\nlen(f)\n_hidden()\nunknown()\n",
            "b.py": "import lib\nlib.f()\n",
        },
    )
    assert found["uses"] == [("a", "lib.f"), ("b", "lib.f")]
    assert found["defines"] == [("lib.inner", "lib.f")]
    assert ("a", "lib") in found["imports"]


def test_imports_in_a_circle_end(tmp_path: Path) -> None:
    found = graph(
        tmp_path,
        {
            "a.py": "from b import x, y\nx()\n",
            "b.py": "from a import x\ndef y(): ...\n",
            "c.py": "from c import z\nimport a\nz()\na.x()\na.y()\n",
        },
    )
    assert found["uses"] == [("c", "a.x"), ("c", "a.y")]
    assert found["defines"] == [("b", "a.x"), ("b", "a.y")]


def test_rare_symbols_and_rarely_imported_modules_are_dropped_and_counted(tmp_path: Path) -> None:
    found = graph(
        tmp_path,
        {
            "a.py": "import json, once\njson.loads('')\njson.dumps(1)\nonce.f()\n",
            "b.py": "import json\njson.loads('')\n",
        },
        min_uses=2,
    )
    assert found["uses"] == [("a", "json.loads"), ("b", "json.loads")]
    assert found["imports"] == [("a", "json"), ("b", "json")]
    assert [row[0] for row in found["modules"]] == ["key", "a", "b", "json"]
    assert found["dropped"] == {"symbols": 2, "uses": 2, "imports": 1, "twins": 0}


def test_a_module_that_uses_exactly_what_another_does_loses_its_uses(tmp_path: Path) -> None:
    text = "import z\nz.a, z.b, z.c, z.d, z.e\n"
    found = graph(tmp_path, {"one.py": text, "two.py": text, "three.py": text + "z.f\n"})
    assert {module for module, _ in found["uses"]} == {"one", "three"}
    assert ("two", "z") in found["imports"]
    assert found["dropped"]["twins"] == 1


def test_tests_vendored_copies_and_folders_that_are_no_packages_are_not_read(
    tmp_path: Path,
) -> None:
    names = ["a/tests/x.py", "a/test_x.py", "a/x_test.py", "conftest.py", "a/_vendor/x.py"]
    names += ["site-packages/x.py", "a-1.0.dist-info/x.py", "not-a-name.py", "__init__.py"]
    found = graph(tmp_path, dict.fromkeys(names, "") | {"a/real.py": ""})
    assert [row[0] for row in found["modules"][1:]] == ["a.real"]


def test_of_two_files_for_one_module_the_first_root_wins(tmp_path: Path) -> None:
    first = write(tmp_path / "1", {"m.py": "import a\na.x\n"})
    second = write(tmp_path / "2", {"m.py": "import b\nb.x\n"})
    pycode.build(tmp_path / "out", [first, second], min_uses=1, workers=1)
    assert rows(tmp_path / "out", "uses") == [("m", "a.x")]


def test_files_that_can_not_be_read_are_counted_and_warn_nobody(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = write(
        tmp_path / "root",
        {
            "good.py": "import a\na.x is 1\n'\\d'\n",  # SyntaxWarning, DeprecationWarning
            "syntax.py": "def f(:\n",
            "deep.py": "x = " + "-" * 5000 + "1\n",
            "wide.py": "x = " + "1 + " * 5000 + "1\n",
            "null.py": "x = 1\0\n",
            "huge.py": "#" * (pycode.MAX_BYTES + 1),
        },
    )
    (root / "latin.py").write_bytes(b"# coding: latin-1\nimport a\na.x\nname = '\xe9'\n")
    (root / "bytes.py").write_bytes(b"name = '\xe9'\n")
    os.symlink(tmp_path / "nowhere", root / "broken.py")
    summary = pycode.build(tmp_path / "out", [root], min_uses=1, workers=1)
    assert summary["files"]["read"] == 2
    assert summary["files"]["skipped"] == {
        "nested too deeply": 2,
        "not valid Python": 3,
        "too large": 1,
        "unreadable": 1,
    }
    assert rows(tmp_path / "out", "uses") == [("good", "a.x"), ("latin", "a.x")]
    assert capfd.readouterr().err == ""


def test_the_bytes_are_the_same_for_any_number_of_workers_and_when_run_again(
    tmp_path: Path,
) -> None:
    files = {
        f"p{i}/m{j}.py": f"import q\nfrom p{j} import m{i} as k\nk.f(q.g{i}, q.g{j})\n"
        for i in range(6)
        for j in range(6)
    }
    root = write(tmp_path / "root", files)
    written = []
    for out, workers in [("one", 1), ("two", 2), ("two", 2)]:
        pycode.build(tmp_path / out, [root], workers=workers)
        written.append({path.name: path.read_bytes() for path in (tmp_path / out).iterdir()})
    assert len(written[0]) == 6
    assert written[0] == written[1] == written[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "root", "two"]


def environment() -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": paths}


def run(*args: object, limit: str = "") -> subprocess.CompletedProcess[str]:
    """The command line, in a shell that first runs `limit`."""
    command = [sys.executable, ROOT / "scripts" / "pycode.py", *args]
    return subprocess.run(
        ["sh", "-c", f'{limit}\nexec "$@"', "sh", *map(str, command)],
        capture_output=True,
        text=True,
        env=environment(),
    )


def test_a_failed_run_leaves_nothing_new_and_keeps_the_old(tmp_path: Path) -> None:
    names = [f"a.x{hashlib.sha256(bytes([i])).hexdigest()}" for i in range(200)]
    root = write(tmp_path / "root", {"m.py": "\n".join(["import a", *names])})
    out = tmp_path / "out"
    args = (out, "--min-uses", "1", "--root", root)
    for there_before in (set(), {"out"}):
        failed = run(*args, limit="ulimit -f 2")  # no file above 1 or 2 KiB, by the shell's unit
        assert failed.returncode == 2
        assert "File too large" in failed.stderr
        assert {path.name for path in tmp_path.iterdir()} == {"root"} | there_before
        assert run(*args).returncode == 0
    assert rows(out, "uses") == [("m", name) for name in names]


def test_a_killed_run_leaves_neither_a_folder_nor_workers(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "pycode.py"), str(tmp_path / "out")]
    running = subprocess.Popen(  # on what is installed here: that takes well over 2 s
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    time.sleep(2)
    running.kill()
    running.communicate(timeout=20)  # ends when the last process that holds the pipes has ended
    assert running.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_errors_say_what_is_wrong_and_what_to_do(tmp_path: Path) -> None:
    root = write(tmp_path / "root", {"m.py": ""})
    occupied = write(tmp_path / "occupied", {"thesis.txt": "years of work"})
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"occupied holds something else\. Name a new folder"):
        pycode.build(occupied, [root])
    with pytest.raises(DataError, match="nowhere is not a folder"):
        pycode.build(tmp_path / "out", [tmp_path / "nowhere"])
    with pytest.raises(DataError, match=r"No Python file under .*empty\. Name another --root\."):
        pycode.build(tmp_path / "out", [empty])
    assert (occupied / "thesis.txt").read_text() == "years of work"


def test_the_command_line_writes_the_folder_and_exits_2_on_an_error(tmp_path: Path) -> None:
    root = write(tmp_path / "root", {"m.py": "import json\njson.loads('')\n"})

    out = tmp_path / "out"
    done = run(out, "--min-uses", "1", "--root", root)
    assert (done.returncode, done.stderr) == (0, "")
    assert rows(out, "uses") == [("m", "json.loads")]
    failed = run(out, "--root", tmp_path / "nowhere")
    assert failed.returncode == 2
    assert failed.stderr.startswith("pycode: ") and failed.stderr.count("\n") == 1
    assert "example: scripts/pycode.py" in run("--help").stdout
