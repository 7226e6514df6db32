"""`embedsvc import | train | eval | export | publish | run | gate | rollback`.

Heavy libraries are imported inside the functions, so that --help answers at once.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from partitions.commands import AsOf, moment_of

Config = Annotated[
    Path,
    # readable: partitions.config says it in a sentence
    typer.Argument(help="TOML file with your settings.", show_default=False, readable=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings that differ, such as train.lr=0.05.", show_default=False),
]
Append = Annotated[
    bool, typer.Option("--append", help="Add input files that are new to the graph that is there.")
]
Replace = Annotated[bool, typer.Option("--replace", help="Replace the graph that is there.")]
Accept = Annotated[
    bool,
    typer.Option("--accept", help="Let the data in whatever the gate says, and edit its schema."),
]


if TYPE_CHECKING:
    from embedsvc.ranker_road import RankerRoad
    from embedsvc.road import Road


def _road(config: Path, overrides: list[str] | None) -> "Road | RankerRoad":
    """Of what the file describes: a graph, or rows for a [ranker]."""
    from embedsvc.ranking.config import RankerConfig
    from partitions import config as settings_file

    settings = settings_file.load(config, overrides or [])
    if settings.table("ranker", RankerConfig).train:
        from embedsvc.ranker_road import RankerRoad

        return RankerRoad(settings)
    from embedsvc.road import Road

    return Road(settings)


def import_(
    config: Config,
    overrides: Overrides = None,
    replace: Replace = False,
    append: Append = False,
    accept: Accept = False,
    as_of: AsOf = None,
) -> None:
    """Raw edges -> a partitioned graph in [run] dir, once the data gate lets them in.

    Examples: `embedsvc import graph.toml graph.skip_bad=true`,
    `embedsvc import graph.toml --append` when the inputs' globs match new files
    """
    _road(config, overrides).import_graph(
        replace=replace, append=append, accept=accept, as_of=moment_of(as_of)
    )


def plan(config: Config, overrides: Overrides = None) -> None:
    """What training would take: bytes, and how many partitions the memory at hand wants.

    Example: `embedsvc plan graph.toml model.dim=200`
    """
    _road(config, overrides).plan()


def inspect(
    graph: Annotated[
        Path,
        typer.Argument(help="A graph folder, or the TOML file of its run.", show_default=False),
    ],
) -> None:
    """What a graph looks like: counts, degrees, hubs, relations, balance.

    Example: `embedsvc inspect runs/shop/graph`
    """
    from embedsvc.inspection import show

    show(graph)


def train(config: Config, overrides: Overrides = None) -> None:
    """Graph -> checkpoint. The same command goes on after a stop, a kill or more train.epochs.

    Example: `embedsvc train graph.toml train.lr=0.05 model.dim=200`
    """
    _road(config, overrides).train()


def eval_(
    config: Config,
    overrides: Overrides = None,
    through: Annotated[
        str | None,
        typer.Option(
            "--through",
            help="Hold a live server's lists to the exact ones, and nothing else: HOST:PORT.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Checkpoint -> exact filtered ranks and recommendation metrics.

    Exit code 1: what the server lists is not what the checkpoint ranks best.

    Examples: `embedsvc eval graph.toml eval.split=valid`,
    `embedsvc eval graph.toml --through grpc://localhost:50051`
    """
    result = _road(config, overrides).evaluate(through=through)
    if any(found["failed"] for found in result.get("through", {}).values()):
        raise typer.Exit(1)


def recommend_all(
    config: Config,
    to: Annotated[Path, typer.Option("--to", help="Parquet file to write.", show_default=False)],
    overrides: Overrides = None,
    relation: Annotated[
        str | None,
        typer.Option("--relation", help="Unset: the only one.", show_default=False),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Length of the lists.")] = 20,
    long: Annotated[
        bool, typer.Option("--long", help="A row a place instead of a row a list.")
    ] = False,
) -> None:
    """Checkpoint -> the best lists of everybody, exact, as Parquet; what they had is left out.

    Example: `embedsvc recommend-all shop.toml --relation bought --to lists.parquet -k 20`
    """
    _road(config, overrides).recommend_all(relation, to, k, long=long)


def export(
    config: Config,
    to: Annotated[
        Path,
        typer.Option(
            "--to", help="File for one entity type, or folder for all.", show_default=False
        ),
    ],
    overrides: Overrides = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="parquet, arrow, npy or word2vec; unset: by the file's name, else parquet.",
            show_default=False,
        ),
    ] = None,
    entity_type: Annotated[
        str | None,
        typer.Option("--type", help="Entity type; unset: all of them.", show_default=False),
    ] = None,
) -> None:
    """Checkpoint -> vectors by key, as files for other programs.

    Example: `embedsvc export graph.toml --to vectors --format parquet --type user`
    """
    _road(config, overrides).export(to, format, entity_type)


def publish(config: Config, overrides: Overrides = None) -> None:
    """Checkpoint -> a published version that `embedsvc serve` answers from, if the gate lets it.

    Exit code 1: the version is written, and the gate did not let it live.

    Example: `embedsvc publish graph.toml`
    """
    if not _road(config, overrides).publish():
        raise typer.Exit(1)


def gate(
    config: Config,
    overrides: Overrides = None,
    version: Annotated[
        str | None,
        typer.Option("--version", help="Unset: the newest.", show_default=False),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Let it live unasked, which leaves a trace.")
    ] = False,
) -> None:
    """Decide again whether a version goes live, by the conditions of [gate] as they are now.

    Exit code 1: it does not.

    Examples: `embedsvc gate shop.toml`, `embedsvc gate shop.toml --version v000007 --force`
    """
    if not _road(config, overrides).gate(version, force=force):
        raise typer.Exit(1)


def rollback(
    config: Config,
    overrides: Overrides = None,
    to: Annotated[
        str | None,
        typer.Option("--to", help="Unset: what was live before.", show_default=False),
    ] = None,
) -> None:
    """Make the version live again that was before; servers notice within serve.poll_s.

    Example: `embedsvc rollback shop.toml`
    """
    from partitions import config as settings_file
    from partitions import releases
    from partitions.config import RunConfig

    root = settings_file.load(config, overrides or []).table("run", RunConfig).published
    move = releases.roll_back(root, to)
    if move.why:
        typer.echo(f"rollback: {move.why}")
    typer.echo(f"rollback: {move.to} in {root} is live, in place of {move.was}")


def compare(
    config: Config,
    old: Annotated[
        str,
        typer.Argument(
            help="A version's name, its folder, or a run's TOML file: its live version.",
            show_default=False,
        ),
    ],
    new: Annotated[str, typer.Argument(help="Another one.", show_default=False)],
    overrides: Overrides = None,
    relation: Annotated[
        list[str] | None,
        typer.Option("--relation", help="Whose lists; may be repeated.", show_default=False),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="HTML file; unset: beside the versions.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="All of it as the last line.")] = False,
) -> None:
    """Two published versions side by side: metrics on the held-out split, churn, entities, files.

    Example: `embedsvc compare shop.toml v000003 v000004`
    """
    _road(config, overrides).compare(old, new, relation or [], to, as_json=json)


def run(config: Config, overrides: Overrides = None) -> None:
    """The whole road: import, train, eval, publish. What is done already is not done again.

    Exit code 1: the gate did not let the newest version live.

    Example: `embedsvc run scripts/examples/fb15k237.toml`
    """
    start = time.perf_counter()
    road = _road(config, overrides)
    road.import_graph(if_needed=True)
    road.train()
    road.evaluate(if_needed=True)
    live = road.publish(if_needed=True)
    typer.echo(f"done in {time.perf_counter() - start:.1f} s")
    if not live:
        raise typer.Exit(1)
