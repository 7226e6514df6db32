"""How much memory this process has taken, and may still take."""

import os
import resource
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

# Where pandas is installed, pyarrow loads it with the first array that it makes: 56 MB as measured.
PANDAS_BYTES = 60_000_000 if find_spec("pandas") else 0


def available_bytes(limit_mb: int | None = None) -> int:
    """What a setting allows; without one the least of what the machine has free and what the
    container and the process are limited to."""
    if limit_mb is not None:
        return limit_mb * 10**6
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    meminfo = [line.split() for line in _lines(Path("/proc/meminfo"))]
    limits += [int(words[1]) * 1024 for words in meminfo if words[0] == "MemAvailable:"]
    container = _lines(Path("/sys/fs/cgroup/memory.max"))
    limits += [int(line) for line in container if line.isdigit()]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft)
    return min(limits)


def forget_peak() -> None:
    """Let `peak_bytes` count from what is held now; only Linux can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most memory that this process has held so far, or since `forget_peak`."""
    for line in _lines(Path("/proc/self/status")):
        if line.startswith("VmHWM:"):  # getrusage's peak would count the parent before exec too
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
