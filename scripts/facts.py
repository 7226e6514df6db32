"""What benchmarks and evaluations say of the code and the machine that made their figures.

Needs nothing but the standard library, as peers' environments import the scripts too.
"""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def facts() -> dict[str, Any]:
    """`cores`: those this process may use; `load`: a minute's; `hardware`: with all cores."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cores": usable,
        "load": round(os.getloadavg()[0], 1),
        "commit": commit(ROOT),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def commit(folder: Path) -> str:
    """Its short name, then -dirty where files that git tracks are changed; unknown outside git."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run.stdout.strip()
