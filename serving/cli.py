"""`embedsvc serve` and `embedsvc query`.

Heavy libraries are imported inside the functions, so that --help answers at once.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from partitions.errors import ConfigError

if TYPE_CHECKING:
    from serving.client import Hits, Reply
    from serving.config import ServeConfig
    from serving.versions import Versions

_DEFAULT_SERVER = "127.0.0.1:50051"

Source = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG_OR_FOLDER",
        help="TOML file with your settings, or a published folder.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings that differ, such as serve.poll_s=5.", show_default=False),
]
Port = Annotated[
    int | None, typer.Option(help="0: any free one. Unset: that of [serve].", show_default=False)
]
Redis = Annotated[
    str | None,
    typer.Option(
        help='Redis that caches versions, such as redis://host:6379, or "embedded". Unset: that of '
        "[serve].",
        show_default=False,
    ),
]
Results = Annotated[int, typer.Option("-k", help="Number of results.")]
Server = Annotated[str, typer.Option(help="host:port")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def serve(
    source: Source, overrides: Overrides = None, port: Port = None, redis: Redis = None
) -> None:
    """The live published version -> answers over gRPC, until Ctrl-C; newer versions as they come.

    Example: `embedsvc serve graph.toml --redis embedded`
    """
    import signal
    import threading

    root, config = _settings(source, overrides or [], port, redis)
    from serving.server import serving

    end = threading.Event()
    with serving(root, config) as (address, versions):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: end.set())
        print(f"Serving {versions.live.name} at {address}. {_hint(address, versions)}", flush=True)
        while not end.wait(0.2):  # a signal that another thread gets doesn't wake this one
            pass


def _settings(
    source: Path, overrides: list[str], port: int | None, redis: str | None
) -> tuple[Path, "ServeConfig"]:
    """The published folder and how to serve it."""
    from partitions.config import RunConfig, Settings, load
    from serving.config import ServeConfig

    options = {"port": port, "redis": redis}
    given = {name: value for name, value in options.items() if value is not None}
    if not source.is_dir():
        overrides = [*overrides, *(f"serve.{k}={json.dumps(v)}" for k, v in given.items())]
        settings = load(source, overrides)
        return settings.table("run", RunConfig).published, settings.table("serve", ServeConfig)
    if overrides:
        raise ConfigError(
            f"{overrides[0]} needs a TOML file; with the folder {source} there are --port and "
            "--redis."
        )
    return source, Settings(str(source), {"serve": given}).table("serve", ServeConfig)


def _hint(address: str, versions: "Versions") -> str:
    import shlex

    import numpy as np

    for entities in versions.live.entities.values():
        if len(entities.keys):
            command = ["embedsvc", "query", "neighbors", entities.name]
            command += entities.keys.texts(np.array([0]))
            command += [] if address == _DEFAULT_SERVER else ["--server", address]
            return f"Try: {shlex.join(command)}"
    return "It has no entities."


query = typer.Typer(
    help="Ask a running server.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@query.command()
def neighbors(
    index: Annotated[str, typer.Argument(metavar="TYPE", help="Entity type, or TYPE/INDEX.")],
    key: Annotated[str, typer.Argument(help="Whose neighbours.")],
    k: Results = 10,
    server: Server = _DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """The entities most like one.

    Example: `embedsvc query neighbors symbol numpy.array -k 5`
    """
    from serving.client import Client

    with Client(server) as client:
        found = client.find_neighbors(index, key, k=k, return_attributes=True)
    _show(f"{index} near {key}", found.hits[0], found, as_json)


@query.command()
def recommend(
    relation: Annotated[str, typer.Argument(help="Name of the relation.")],
    key: Annotated[str | None, typer.Argument(help="A left-hand side.", show_default=False)] = None,
    history: Annotated[
        list[str] | None,
        typer.Option(help="Instead of KEY: a right-hand side already seen; may be repeated."),
    ] = None,
    k: Results = 10,
    server: Server = _DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """The best right-hand sides of a relation that were not seen yet.

    Examples: `embedsvc query recommend uses json.decoder`,
    `embedsvc query recommend uses --history numpy.array --history numpy.dot`
    """
    from serving.client import Client

    with Client(server) as client:
        found = client.recommend(
            relation, key, history=history or None, k=k, return_attributes=True
        )
    _show(f"{relation}: {key or ', '.join(history or [])}", found.hits, found, as_json)


def _show(title: str, hits: "Hits", reply: "Reply", as_json: bool) -> None:
    if as_json:
        print(json.dumps(_as_json(hits, reply), ensure_ascii=False))
        return
    from rich.bar import Bar
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    took_ms = sum(reply.server_time_us.values()) / 1000
    table = Table(title=Text(title), caption=f"{reply.version}, {took_ms:.1f} ms", box=None)
    table.add_column("", justify="right")
    table.add_column("key", overflow="fold")
    for name in hits.attributes:
        table.add_column(Text(name), overflow="fold")
    table.add_column("score", justify="right")
    table.add_column("", width=12)
    best, worst = max(hits.scores, default=0), min(hits.scores, default=0)
    for at, (key, score) in enumerate(zip(hits.keys, hits.scores, strict=True)):
        texts = [Text(values[at]) for values in hits.attributes.values()]
        share = 0.1 + 0.9 * float((score - worst) / (best - worst)) if best > worst else 1.0
        table.add_row(str(at + 1), Text(key), *texts, f"{score:.4f}", Bar(1, 0, share, width=12))
    Console().print(table)
    if reply.missing_keys:
        Console().print(Text(f"Not known here: {', '.join(reply.missing_keys)}"))


def _as_json(hits: "Hits", reply: "Reply") -> dict[str, Any]:
    return {
        "version": reply.version,
        "request_id": reply.request_id,
        "missing_keys": reply.missing_keys,
        "results": [
            {
                "key": key,
                "score": round(float(score), 6),
                "attributes": {name: texts[at] for name, texts in hits.attributes.items()},
            }
            for at, (key, score) in enumerate(zip(hits.keys, hits.scores, strict=True))
        ],
    }
