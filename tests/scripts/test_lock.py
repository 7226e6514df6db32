"""requirements.lock agrees with pyproject.toml and leaves nothing to pip's choice."""

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WANTED = [
    Requirement(text)
    for text in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"])
]
PINS = [
    Requirement(line)
    for line in (ROOT / "requirements.lock").read_text().splitlines()
    if line and not line.startswith("#")
]


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def applies(requirement: Requirement, extras: set[str], **platform: str) -> bool:
    marker = requirement.marker
    return marker is None or any(
        marker.evaluate({"extra": extra, **platform}) for extra in ("", *extras)
    )


@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_every_pin_is_in_the_range_that_pyproject_allows(wanted: Requirement) -> None:
    pins = [pin for pin in PINS if names([pin]) == names([wanted])]
    assert pins, f"requirements.lock has no {wanted.name}: run scripts/lock."
    for pin in pins:
        [specifier] = pin.specifier
        assert specifier.operator == "=="
        assert specifier.version in wanted.specifier, f"{pin} is not {wanted}: run scripts/lock."


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_linux_alone_pins_the_cpu_build_of_torch(platform: str) -> None:
    torch = [pin for pin in PINS if pin.name == "torch"]
    [pin] = [pin for pin in torch if applies(pin, set(), sys_platform=platform)]
    assert str(pin.specifier).endswith("+cpu") == (platform == "linux")


def test_lock_holds_all_that_the_installed_packages_need_in_turn() -> None:
    locked = names(PINS)
    todo = [("pyproject.toml", wanted) for wanted in WANTED if applies(wanted, set())]
    seen = set()
    while todo:
        user, wanted = todo.pop()
        if wanted.name.startswith(("cuda-", "nvidia-", "triton")):  # torch's CUDA build
            continue
        assert names([wanted]) <= locked, f"requirements.lock lacks {wanted}, for {user}."
        if str(wanted) not in seen:
            seen.add(str(wanted))
            needs = [Requirement(text) for text in metadata.requires(wanted.name) or []]
            todo += [(wanted.name, need) for need in needs if applies(need, wanted.extras)]
