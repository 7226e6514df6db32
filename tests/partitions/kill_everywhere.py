"""Run `act` again and again, killed at its first, second, ... file operation; `check` after each.

    python kill_everywhere.py TEST_MODULE ACT CHECK FOLDER

Prints the number of kills; the last run of `act` ends alive. A process of its own, because it
forks: this one never starts a thread, its children do.
"""

import os
import runpy
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

# The audit events of operations that change what is on disk, or open a file to do so. (Arrow's own
# readers are not heard, but they change nothing.) A test may add a step by sys.audit("test.step").
STEPS = {"open", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "test.step"}


def in_child(function: Callable[[Path], object], folder: Path, kill_at: int | None) -> int:
    """The wait status of a child that runs the function; killed before its `kill_at`-th step."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    steps = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal steps
        changes = event in STEPS
        if event == "open":
            path, _, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR)
            changes = bool(writes) and str(path).startswith(str(folder))
        if changes:
            steps += 1
            if steps == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    try:
        function(folder)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main(module: str, act: str, check: str, folder: str) -> None:
    functions = runpy.run_path(module)
    kills = 0
    while True:
        status = in_child(functions[act], Path(folder), kills + 1)
        if in_child(functions[check], Path(folder), None) != 0:
            sys.exit(f"{check} failed after a kill at step {kills + 1} of {act}")
        if not os.WIFSIGNALED(status):
            break
        kills += 1
    if status != 0:
        sys.exit(f"{act} failed")
    print(kills)


if __name__ == "__main__":
    main(*sys.argv[1:])
