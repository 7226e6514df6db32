#!/usr/bin/env python3
"""Build `pycode`: the graph of who uses what in the Python code installed on this machine.

Every Python file of the standard library and of the installed packages is a module, and a module
is described by the names it uses, as a person would write them: `numpy.zeros`, `os.path.join`. The
task: given what a file already uses, which symbols would it use next? Anyone who writes Python can
judge the answers by eye.

    imports.tsv.gz     module -> module     sorted; no header, one edge `lhs<TAB>rhs` a line
    uses.tsv.gz        module -> symbol     by module, then in the order of first use in the file
    defines.tsv.gz     module -> symbol     sorted; the module in which the symbol is bound
    belongs_to.tsv.gz  module -> package    sorted; the innermost; a top-level file is its own
    modules.tsv.gz     key, package (top level), depth (dots in the key), size (bytes); with header
    pycode.json        counts: files, entities, edges, and what was dropped

What is a symbol, and why:
* A name is used where code loads it, not where it is imported: re-exports are no uses.
* Each name is followed to the module that binds it, through re-exports and star imports, and all
  its spellings become one symbol. The key is the public spelling with the fewest dots that some
  module uses: sympy.core.symbol.Symbol, sympy.core.Symbol and sympy.Symbol are one.
* Attributes of values (`x.append`) can't be told without running the code: left out.
* Builtins are left out: `len` and `isinstance` stand in nearly every file, so they say nothing
  about one, and such hubs pull all vectors together.

What is a module: each file, and what is imported but has no Python source here, such as `sys`
(size 0). What would flatter an evaluation or only add noise is left out, and counted:
* vendored copies are not read, and a module that uses exactly what another one does (generated
  code, mostly) loses its uses: held out, each would have its twin among the training data;
* tests and benchmarks are not read: they use a little of everything;
* symbols, and modules without source, that fewer than `min_uses` modules use or import: with one
  user there is nothing to generalise from.

The same environment gives the same bytes, whatever the number of workers.
"""

import argparse
import ast
import gc
import gzip
import multiprocessing
import os
import platform
import sys
import sysconfig
import threading
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import track

from partitions.durable import replacing_folder, write_json
from partitions.errors import DataError, InputError

TESTS = {"test", "tests", "testing", "idle_test", "benchmarks"}
SKIPPED_FOLDERS = TESTS | {"_vendor", "site-packages", "dist-packages", "__pycache__"}
MAX_BYTES = 500_000  # of one file; larger ones are tables and generated code
TWIN_USES = 5  # two modules with so many uses, all equal, are no coincidence


class Ref(NamedTuple):
    """A name as Python looks it up: import `module`, then get the attributes one by one."""

    module: str
    attrs: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return ".".join((self.module, *self.attrs))


@dataclass(frozen=True)
class Source:
    """What one file says."""

    size: int  # bytes
    imports: list[Ref]
    stars: list[str]  # modules imported by `from m import *`
    bound: dict[str, Ref | None]  # top-level name -> what it imports, None: its own definition
    uses: list[Ref]  # in the order of first use, each once


class Scope(dict[str, Ref | None]):
    """Names bound in a module, class or function: what they import, None for anything else."""

    def __init__(self, outer: "Scope | None" = None, is_class: bool = False) -> None:
        super().__init__()
        self.outer = outer  # where Python looks next
        self.is_class = is_class  # functions inside don't see the names of a class


class Names(ast.NodeVisitor):
    """Collects the imports, the bound names and the loaded names of one module."""

    def __init__(self, module: str, is_package: bool) -> None:
        self.module = module
        self.package = module if is_package else module.rpartition(".")[0]
        self.top = self.scope = Scope()
        self.imports: list[Ref] = []
        self.stars: list[str] = []
        self.loads: list[tuple[Scope, str, tuple[str, ...]]] = []

    def visit(self, node: ast.AST) -> None:
        method_for(type(node).__name__)(self, node)

    def generic_visit(self, node: ast.AST) -> None:
        for field in node._fields:
            value = getattr(node, field)
            for child in value if isinstance(value, list) else (value,):
                if isinstance(child, ast.AST):
                    self.visit(child)

    def visit_Constant(self, node: ast.Constant) -> None:
        """Nothing inside; every third node is one."""

    def bind(self, name: str, target: Ref | None = None) -> None:
        """An import beats an assignment, and the first import beats its fallbacks."""
        self.scope[name] = self.scope.get(name) or target

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.imports.append(Ref(alias.name))
            first = alias.name.partition(".")[0]
            self.bind(alias.asname or first, Ref(alias.name if alias.asname else first))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = self.absolute(node.module or "", node.level)
        for alias in node.names:
            if module in ("", "__future__"):
                self.bind(alias.asname or alias.name)
            elif alias.name == "*":
                self.imports.append(Ref(module))
                self.stars.append(module)
            else:
                self.imports.append(Ref(module, (alias.name,)))
                self.bind(alias.asname or alias.name, Ref(module, (alias.name,)))

    def absolute(self, module: str, level: int) -> str:
        """The full name of a relative import; "" where it climbs above the root."""
        if level == 0:
            return module
        parents = self.package.split(".") if self.package else []
        if level > len(parents):
            return ""
        return ".".join(parents[: len(parents) - level + 1] + ([module] if module else []))

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self.loads.append((self.scope, node.id, ()))
        else:
            self.bind(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        value: ast.expr = node
        attrs: list[str] = []
        while isinstance(value, ast.Attribute):
            attrs.append(value.attr)
            value = value.value
        if isinstance(value, ast.Name):
            self.loads.append((self.scope, value.id, tuple(reversed(attrs))))
        else:
            self.visit(value)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.bind(node.name)
        self.visit_each(*node.decorator_list, node.args, node.returns)  # evaluated outside
        self.visit_inside(node.body, node.args)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.visit(node.args)
        self.visit_inside([node.body], node.args)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.bind(node.name)
        self.visit_each(*node.decorator_list, *node.bases, *node.keywords)
        self.visit_inside(node.body, is_class=True)

    def visit_comprehension_scope(self, node: ast.expr) -> None:
        self.visit_inside(ast.iter_child_nodes(node))

    visit_ListComp = visit_SetComp = visit_DictComp = visit_comprehension_scope
    visit_GeneratorExp = visit_comprehension_scope

    def visit_capture(self, node: ast.ExceptHandler | ast.MatchAs | ast.MatchStar) -> None:
        if node.name:
            self.bind(node.name)
        self.generic_visit(node)

    visit_ExceptHandler = visit_MatchAs = visit_MatchStar = visit_capture

    def visit_each(self, *nodes: ast.AST | None) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    def visit_inside(
        self, body: Iterable[ast.AST], args: ast.arguments | None = None, is_class: bool = False
    ) -> None:
        """Visit `body` in a scope of its own, in which the names of `args` are bound."""
        before = self.scope
        self.scope = Scope(before.outer if before.is_class else before, is_class)
        if args:
            named = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
            self.scope.update((arg.arg, None) for arg in named if arg)
        self.visit_each(*body)
        self.scope = before

    def uses(self) -> Iterator[Ref]:
        """Loaded names that come from an import, and free ones where a star may have brought them.

        Names are looked up after the visit, since Python binds a name in the whole of its scope.
        """
        for scope, name, attrs in self.loads:
            within: Scope | None = scope
            while within is not None and name not in within:
                within = within.outer
            if within is None and self.stars:
                yield Ref(self.module, (name, *attrs))
            elif within is not None and (target := within[name]):
                yield Ref(target.module, target.attrs + attrs)


@cache
def method_for(kind: str) -> Callable[[Names, Any], None]:
    """What visits nodes of one type; to look it up anew for every node takes twice as long."""
    method: Callable[[Names, Any], None] = getattr(Names, f"visit_{kind}", Names.generic_visit)
    return method


def read(module: str, path: Path) -> Source | str:
    """What one file says, or in a few words why it was skipped."""
    try:
        text = path.read_bytes()
        if len(text) > MAX_BYTES:
            return "too large"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the code that is read, not ours
            tree = ast.parse(text)
        names = Names(module, is_package=path.name == "__init__.py")
        names.visit(tree)
    except OSError:
        return "unreadable"
    except (SyntaxError, ValueError):  # ValueError: a null byte
        return "not valid Python"
    except (RecursionError, MemoryError):
        return "nested too deeply"
    imports, uses = dict.fromkeys(names.imports), dict.fromkeys(names.uses())
    return Source(len(text), list(imports), names.stars, dict(names.top), list(uses))


def python_files(roots: Iterable[Path]) -> dict[str, Path]:
    """Module -> file, sorted. Of two files for one module, the first root's wins, as in Python."""
    found: dict[str, Path] = {}
    for root in roots:
        for folder, subfolders, names in os.walk(root):
            subfolders[:] = [s for s in subfolders if s.isidentifier() and s not in SKIPPED_FOLDERS]
            package = Path(folder).relative_to(root).parts
            for stem in (name.removesuffix(".py") for name in names if name.endswith(".py")):
                is_test = stem.startswith("test_") or stem.endswith("_test") or stem == "conftest"
                parts = package if stem == "__init__" else (*package, stem)
                if stem.isidentifier() and parts and not is_test:
                    found.setdefault(".".join(parts), Path(folder, f"{stem}.py"))
    return dict(sorted(found.items()))


def start_worker() -> None:
    """A worker ends with its parent; of a killed one it would otherwise wait for work for ever."""
    gc.disable()  # syntax trees have no cycles; looking for them takes a quarter of the time
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def read_all(files: dict[str, Path], workers: int) -> tuple[dict[str, Source], Counter[str]]:
    """Sources by module, in the order of `files`, and how many files were skipped for what."""
    sources: dict[str, Source] = {}
    skipped: Counter[str] = Counter()
    console = Console(stderr=True)
    spawn = multiprocessing.get_context("spawn")  # the progress bar has threads: no fork
    with ProcessPoolExecutor(workers, spawn, initializer=start_worker) as pool:
        results = pool.map(read, files.keys(), files.values(), chunksize=16)
        hidden = not console.is_terminal
        shown = track(results, "Reading", len(files), console=console, disable=hidden)
        for module, result in zip(files, shown, strict=True):
            if isinstance(result, Source):
                sources[module] = result
            else:
                skipped[result] += 1
    return sources, skipped


class Resolver:
    """Follows a name to where it is defined, the way Python's import system would."""

    def __init__(self, sources: dict[str, Source]) -> None:
        self.sources = sources
        imported = {ref.module for source in sources.values() for ref in source.imports}
        self.modules = {above for module in imported | set(sources) for above in lineage(module)}
        self.packages = {module.rpartition(".")[0] for module in self.modules}

    def definition(self, ref: Ref) -> Ref:
        """Where `ref` is bound by anything but an import. Without attrs left it is a module."""
        seen = set()
        while ref.attrs and ref not in seen:
            seen.add(ref)
            (module, (name, *rest)) = ref
            inner = Ref(f"{module}.{name}", tuple(rest))
            bound = self.sources[module].bound if module in self.sources else {}
            target = bound.get(name) or self.star(module, name, set())
            moved = Ref(target.module, (*target.attrs, *rest)) if target else ref
            if inner.module in self.modules and inner.module not in self.sources:
                ref = inner  # not Python source, or a name that only looks like a file: os.path
            elif moved not in seen:
                ref = moved
            elif inner.module in self.sources and (target or name not in bound):
                ref = inner
        return ref

    def package(self, module: str) -> str:
        """The package a module lies in; a package lies in itself, and so does a top-level file."""
        parent = module.rpartition(".")[0]
        return module if module in self.packages else parent or module

    def star(self, module: str, name: str, seen: set[str]) -> Ref | None:
        """The module whose `name` comes into `module` by `from m import *`; None: there is none."""
        if module not in self.sources or module in seen or name.startswith("_"):
            return None
        seen.add(module)
        for star in self.sources[module].stars:
            known = star in self.sources and name in self.sources[star].bound
            if known or self.star(star, name, seen):
                return Ref(star, (name,))
        return None


def lineage(module: str) -> list[str]:
    """`a.b.c` -> `a`, `a.b`, `a.b.c`."""
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def best_spelling(definition: Ref, spellings: Counter[str]) -> str:
    """The key that a person would write: public, of the same library, short, usual; then a to z."""

    def cost(key: str) -> tuple[bool, bool, int, int, str]:
        parts = key.split(".")
        private = any(part.startswith("_") and not part.endswith("__") for part in parts)
        foreign = parts[0] != definition.module.partition(".")[0]
        return private, foreign, len(parts), -spellings[key], key

    return min(spellings, key=cost)


@dataclass(frozen=True)
class Graph:
    """Rows of the files to write, and what was dropped."""

    edges: dict[str, list[tuple[str, str]]]  # relation -> (lhs, rhs)
    modules: list[tuple[str, str, int, int]]  # key, package, depth, size
    dropped: dict[str, int]


def graph_of(sources: dict[str, Source], min_uses: int) -> Graph:
    """Resolve what the files say; `sources` is sorted."""
    resolver = Resolver(sources)
    imports: set[tuple[str, str]] = set()
    uses: list[tuple[str, Ref]] = []
    spellings: defaultdict[Ref, Counter[str]] = defaultdict(Counter)
    known: set[frozenset[Ref]] = set()
    twins = 0
    for module, source in sources.items():
        for ref in source.imports:
            found = resolver.definition(ref)
            imports.add((module, ref.module if found.attrs else found.module))
        spelled: dict[Ref, list[str]] = {}
        for ref in source.uses:
            found = resolver.definition(ref)
            if found.attrs and found.module != module:  # neither a bare module nor its own name
                starred = ref.module == module  # what a star brought in has no spelling of its own
                spelled.setdefault(found, []).append(found.key if starred else ref.key)
        if len(spelled) >= TWIN_USES and frozenset(spelled) in known:
            twins += 1
            continue
        known.add(frozenset(spelled))
        for symbol, keys in spelled.items():
            uses.append((module, symbol))
            spellings[symbol].update(keys)

    users = Counter(symbol for _, symbol in uses)
    kept = [symbol for symbol, count in users.items() if count >= min_uses]
    key_of = {symbol: best_spelling(symbol, spellings[symbol]) for symbol in kept}
    importers = Counter(rhs for lhs, rhs in imports if lhs != rhs)
    modules = {module for module, count in importers.items() if count >= min_uses}
    modules |= {symbol.module for symbol in kept} | set(sources)
    edges = {
        "imports": sorted((lhs, rhs) for lhs, rhs in imports if lhs != rhs and rhs in modules),
        "uses": list(dict.fromkeys((lhs, key_of[rhs]) for lhs, rhs in uses if rhs in key_of)),
        "defines": sorted({(symbol.module, key) for symbol, key in key_of.items()}),
        "belongs_to": [(module, resolver.package(module)) for module in sorted(modules)],
    }
    features = [
        (key, lineage(key)[0], key.count("."), sources[key].size if key in sources else 0)
        for key in sorted(modules)
    ]
    dropped = {
        "symbols": len(users) - len(kept),
        "uses": len(uses) - len(edges["uses"]),
        "imports": importers.total() - len(edges["imports"]),
        "twins": twins,
    }
    return Graph(edges, features, dropped)


def write_rows(path: Path, rows: Iterable[tuple[object, ...]]) -> None:
    """Tab-separated text, gzipped without name or time so that equal rows give equal bytes."""
    text = "".join("\t".join(map(str, row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode(), compresslevel=6, mtime=0))


def installed_roots() -> list[Path]:
    """The standard library, then the installed packages of the running interpreter."""
    paths = sysconfig.get_paths()
    return list(dict.fromkeys(Path(paths[name]) for name in ("stdlib", "purelib", "platlib")))


def build(
    out: Path, roots: list[Path] | None = None, *, min_uses: int = 2, workers: int = 2
) -> dict[str, Any]:
    """Read all Python files under `roots` and write the graph to the folder `out`.

    roots: folders whose sub-folders are importable; default: what this interpreter has installed.
    Returns the content of pycode.json. `out` appears, or is replaced, only when it is complete.
    Raises DataError for a root that is no folder or holds no Python, and for an `out` that holds
    something else.
    """
    roots = installed_roots() if roots is None else roots
    for root in roots:
        if not root.is_dir():
            raise DataError(f"{root} is not a folder. Name a folder that holds Python packages.")
    occupied = any(out.iterdir()) if out.is_dir() else out.exists()
    if occupied and not (out / "pycode.json").is_file():
        raise DataError(f"{out} holds something else. Name a new folder, or one written by pycode.")
    files = python_files(roots)
    if not files:
        raise DataError(f"No Python file under {', '.join(map(str, roots))}. Name another --root.")

    sources, skipped = read_all(files, workers)
    graph = graph_of(sources, min_uses)
    summary = {
        "python": platform.python_version(),
        "min_uses": min_uses,
        "files": {"read": len(sources), "skipped": dict(sorted(skipped.items()))},
        "entities": {
            "module": len(graph.modules),
            "package": len({package for _, package in graph.edges["belongs_to"]}),
            "symbol": len({symbol for _, symbol in graph.edges["uses"]}),
        },
        "edges": {relation: len(edges) for relation, edges in graph.edges.items()},
        "dropped": graph.dropped,
    }
    with replacing_folder(out) as folder:
        for relation, edges in graph.edges.items():
            write_rows(folder / f"{relation}.tsv.gz", edges)
        header = ("key", "package", "depth", "size")
        write_rows(folder / "modules.tsv.gz", [header, *graph.modules])
        write_json(folder / "pycode.json", summary)
    return summary


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Build the graph of who uses what in the Python code installed here.",
        epilog="example: scripts/pycode.py data/pycode --min-uses 3",
    )
    rare = "drop symbols that fewer modules use (default 2)"
    instead = "read this folder instead of what is installed; may be repeated"
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    parser.add_argument("--min-uses", metavar="N", type=int, default=2, help=rare)
    parser.add_argument("--root", metavar="PATH", type=Path, action="append", help=instead)
    args = parser.parse_args()
    started = time.perf_counter()
    try:
        summary = build(args.out, args.root, min_uses=args.min_uses)
    except (InputError, OSError) as error:
        print(f"pycode: {error}", file=sys.stderr)
        return 2
    for name in ("files", "entities", "edges", "dropped"):
        print(f"{name}: {summary[name]}")
    print(f"{args.out}: written in {time.perf_counter() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
