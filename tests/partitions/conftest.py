"""What the tests of the ground floor share: kill -9 at every step that touches the disk."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("kill_everywhere.py")
ROOT = SCRIPT.parents[2]


@pytest.fixture
def kill_everywhere(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Callable[[Callable[[Path], Any], Callable[[Path], Any]], int]:
    """kill_everywhere(act, check) -> kills. Both are functions of the test's module and take
    tmp_path; see kill_everywhere.py."""

    def run(act: Callable[[Path], Any], check: Callable[[Path], Any]) -> int:
        arguments = [SCRIPT, request.path, act.__name__, check.__name__, tmp_path]
        done = subprocess.run(
            [sys.executable, "-W", "error", *map(str, arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    return run
