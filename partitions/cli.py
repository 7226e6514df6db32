"""The one console command: gathers every package's sub-commands from the entry points.

`embedsvc.commands` maps a name to a function or a typer app, so that the packages above need not
import each other. Here, and only here, an `InputError` becomes a line on stderr and exit code 2.
"""

import errno
import logging
import sys
from importlib.metadata import distribution, entry_points
from typing import Annotated

import typer

from partitions.errors import InputError

_ORDER = (
    *("import", "validate", "inspect", "plan", "train", "eval", "recommend-all"),
    *("export", "publish", "compare", "run"),
    *("gate", "rollback"),
    *("serve", "query"),
)  # the road's order

_INTERRUPTED = 130  # as shells say of a command that Ctrl-C ended

# What a full or broken disk looks like; every other OSError is our mistake and keeps its traceback.
_DISK = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EROFS: "the file system is read-only; choose another [run] dir",
    errno.ENOENT: "it is not there, or vanished while it was needed; put it back or mend the path",
    errno.EACCES: "permission denied; choose another folder or mend its permissions",
    errno.EPERM: "not permitted here; choose another folder",
    errno.EIO: "the disk reported an error; copy your data elsewhere and run again",
    errno.ENOTDIR: "a file is where a folder belongs; move it or choose another [run] dir",
    errno.EEXIST: "a file is where a folder belongs; move it or choose another [run] dir",
    errno.EFBIG: "the file grew past the allowed size; raise the limit and run the command again",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter path",
    errno.EISDIR: "a folder is where a file belongs; move it or choose another [run] dir",
    errno.ELOOP: "its links lead in a circle; mend the path",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n) and run the command again",
    errno.ENFILE: "too many files are open on this machine; run the command again later",
    errno.ESTALE: "the network folder was replaced meanwhile; run the same command again",
}


def build_app() -> typer.Typer:
    app = typer.Typer(
        name="embedsvc",
        help="Graph embeddings larger than memory, learnt and served on plain CPUs.",
        no_args_is_help=True,
        invoke_without_command=True,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    points = {point.name: point for point in entry_points(group="embedsvc.commands")}
    for name in sorted(points, key=lambda n: (_ORDER.index(n) if n in _ORDER else 99, n)):
        command = points[name].load()
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", is_eager=True)
    ] = False,
) -> None:
    if version:
        typer.echo(f"embedsvc {distribution('embedsvc').version}")
        raise typer.Exit


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    for package in ("partitions", "embedsvc", "serving"):
        logging.getLogger(package).setLevel(logging.INFO)
    try:
        build_app()()
    except InputError as error:
        sys.exit(_fail(str(error)))
    except OSError as error:
        if error.errno not in _DISK:
            raise
        sys.exit(_fail(f"{error.filename or 'writing to disk'}: {_DISK[error.errno]}."))
    except MemoryError:
        sys.exit(
            _fail(
                "out of memory: what is allowed to this process is less than was free when it "
                "planned. Free some, or choose more partitions or a smaller train.buffer."
            )
        )
    except KeyboardInterrupt:  # before typer's own code runs
        sys.exit(_stopped())
    except SystemExit as end:
        if end.code == _INTERRUPTED:  # what typer makes of Ctrl-C
            _stopped()
        raise


def _stopped() -> int:
    print("embedsvc: stopped; the same command goes on.", file=sys.stderr)
    return _INTERRUPTED


def _fail(sentence: str) -> int:
    print(f"embedsvc: {sentence}", file=sys.stderr)
    return 2
