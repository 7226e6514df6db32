"""The commit that a benchmark names: in a repository of its own, and outside of any."""

import os
import subprocess
from pathlib import Path

import pytest

from scripts.facts import commit, facts


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    command = ["git", "-C", str(folder), *who, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_commit_is_short_whatever_its_tag_and_dirty_once_a_file_changes(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "first")
    git(tmp_path, "tag", "-a", "v1", "-m", "a release")
    (tmp_path / "new").write_text("that git does not track")
    short = git(tmp_path, "rev-parse", "--short", "HEAD")
    assert commit(tmp_path) == short
    (tmp_path / "file").write_text("two!")
    assert commit(tmp_path) == f"{short}-dirty"


def test_outside_of_git_and_without_it_the_commit_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert commit(tmp_path) == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(Path(__file__).parent) == "unknown"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores can't be taken away here")
def test_cores_are_those_that_the_process_may_use() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert facts()["cores"] == 1
    finally:
        os.sched_setaffinity(0, before)
