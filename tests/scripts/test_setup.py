"""scripts/setup and its callers, on this repository and on a toy project that needs no network."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = [".ci/run", "scripts/check", "scripts/lock", "scripts/setup", "scripts/test"]
NOT_OURS = {".git", ".venv", "runs", "build", "dist", "__pycache__"} | {
    f".{tool}" for tool in ("hypothesis", "mypy_cache", "pytest_cache", "ruff_cache")
}

# A build backend, so that pip has a project to install without setuptools.
BACKEND = """
import zipfile
def build_editable(folder, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(folder + "/toy-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("toy.py", "")
        info = "toy-1.dist-info/"
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: toy\\nVersion: 1\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return "toy-1-py3-none-any.whl"
"""
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    root = tmp_path / "a toy"
    shutil.copytree(ROOT / "scripts", root / "scripts")
    (root / "backend.py").write_text(BACKEND)
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / "requirements.lock").write_text("# nothing\n")
    return root


def start(root: Path, *command: str, **variables: str) -> subprocess.Popen[str]:
    """From another folder, with no package index in reach."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return subprocess.Popen(
        [root / command[0], *command[1:]],
        cwd="/",
        env={**kept, "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(root: Path, *command: str, **variables: str) -> tuple[int, str]:
    process = start(root, *command, **variables)
    output, _ = process.communicate()
    return process.returncode, output


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_is_executable_and_parses(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", ROOT / script], check=True)


@pytest.mark.skipif(not (ROOT / ".venv/.set-up").exists(), reason="runs outside .venv")
def test_set_up_with_nothing_to_do_takes_less_than_a_fifth_of_a_second() -> None:
    took_s = []
    for _ in range(5):
        begin = time.perf_counter()
        assert run(ROOT, "scripts/test", "--setup-only") == (0, "")
        took_s.append(time.perf_counter() - begin)
    assert min(took_s) < 0.2


def test_set_up_without_a_new_enough_python_says_so(toy: Path) -> None:
    tools = toy / "tools"
    tools.mkdir()
    for tool in ("bash", "cat", "cksum", "dirname", "env"):
        (tools / tool).symlink_to(shutil.which(tool) or "")
    (tools / "python3").write_text("#!/bin/sh\nexit 1\n")  # as Python 3.10 would
    (tools / "python3").chmod(0o755)
    status, output = run(toy, "scripts/setup", PATH=str(tools))
    assert status == 1
    assert "found no Python 3.11 or newer" in output
    assert not (toy / ".venv").exists()


def test_unknown_build_of_torch_is_refused(toy: Path) -> None:
    status, output = run(toy, "scripts/setup", EMBEDSVC_TORCH="rocm")
    assert (status, output) == (
        1,
        "scripts/setup: EMBEDSVC_TORCH is rocm; it can be cpu or cuda.\n",
    )


@pytest.mark.slow
def test_set_up_does_what_changed_and_no_more(toy: Path) -> None:
    left_behind = toy / ".venv/left-behind"

    def what_happens() -> str:
        status, output = run(toy, "scripts/setup")
        assert status == 0, output
        happened = "anew" if not left_behind.exists() else "again" if output else "nothing"
        assert bool(output) == (happened != "nothing")
        left_behind.touch()
        return happened

    assert what_happens() == "anew"
    assert what_happens() == "nothing"
    (toy / "pyproject.toml").write_text(PYPROJECT + "# changed\n")
    assert what_happens() == "again"
    (toy / "requirements.lock").write_text("# changed\n")
    assert what_happens() == "anew"
    (toy / ".venv/.set-up").unlink()
    assert what_happens() == "anew"
    assert what_happens() == "nothing"
    subprocess.run([toy / ".venv/bin/python", "-c", "import toy"], check=True)


@pytest.mark.slow
def test_two_set_ups_at_once_make_one_venv(toy: Path) -> None:
    both = [start(toy, "scripts/setup") for _ in range(2)]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sum("Making .venv" in output for output in outputs) == 1
    assert sum("Waiting for another" in output for output in outputs) == 1
    subprocess.run([toy / ".venv/bin/python", "-c", "import toy"], check=True)


@pytest.mark.slow
def test_set_up_killed_midway_is_made_anew(toy: Path) -> None:
    killed = start(toy, "scripts/setup")
    while not (toy / ".venv/bin/python").exists():
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (toy / ".venv/.set-up").exists()
    status, output = run(toy, "scripts/setup")
    assert status == 0, output
    subprocess.run([toy / ".venv/bin/python", "-c", "import pip, toy"], check=True)


@pytest.mark.slow
def test_missing_cpu_build_of_torch_is_explained(toy: Path) -> None:
    shutil.copy(ROOT / "requirements.lock", toy)
    lines = (toy / "requirements.lock").read_text().splitlines(keepends=True)
    torch = [
        line.partition(";")[0] for line in lines if line.startswith("torch==") and "+cpu" in line
    ]
    (toy / "requirements.lock").write_text("\n".join(torch))
    status, output = run(toy, "scripts/setup")
    assert status == 1
    assert "PIP_EXTRA_INDEX_URL" in output
    assert "EMBEDSVC_TORCH=cuda" in output
    assert not (toy / ".venv/.set-up").exists()


def test_no_file_names_a_package_index() -> None:
    index = re.compile(rb"py[p]i[.]org|python[h]osted|download[.]pytorch|index[-_]url\W{0,4}\w+://")
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in NOT_OURS]
        for path in (Path(folder) / name for name in files):
            assert not index.search(path.read_bytes()), path
