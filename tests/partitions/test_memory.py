"""What is said of memory."""

import subprocess
import sys
from pathlib import Path

import pytest

_FORGET = """
from partitions.memory import forget_peak, peak_bytes
size = 200_000_000
bytes(bytearray(b"x") * size)
before = peak_bytes()
forget_peak()
print(before > size, peak_bytes() < size)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets")
def test_a_peak_can_be_forgotten() -> None:
    found = subprocess.run([sys.executable, "-c", _FORGET], capture_output=True, text=True)
    assert found.stdout.split() == ["True", "True"], found.stderr
