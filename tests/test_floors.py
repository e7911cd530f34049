"""The lowest versions of the dependencies: stated once more for the job that runs them."""

import importlib
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import codecplus

if sys.version_info < (3, 11):
    pytest.skip("tomllib came with Python 3.11", allow_module_level=True)
import tomllib

ROOT = Path(__file__).parents[1]
# What pyproject.toml names for development alone.
DEVELOPMENT = "dev"
# Extras that the job with the lowest versions does not install, nor `all`: `mos` predicts listening scores.
NOT_FOR_ALL = (DEVELOPMENT, "docs", "bench", "mos")
UNPINNED = {"torch", "codecplus"}  # the Makefile chooses torch


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def floors(texts: list[str]) -> dict[str, Version]:
    lowest = {}
    for text in texts:
        requirement = Requirement(text)
        if normal(requirement.name) in UNPINNED:
            continue
        (bound,) = requirement.specifier
        assert bound.operator in (">=", "=="), text
        lowest[normal(requirement.name)] = Version(bound.version)
    return lowest


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned() -> dict[str, Version]:
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    return floors([line for line in lines if line and not line.startswith("#")])


def test_the_job_with_the_lowest_versions_runs_the_floors():
    project = pyproject()
    extras = project["optional-dependencies"]
    users = list(project["dependencies"])
    for extra, names in extras.items():
        if extra not in NOT_FOR_ALL:
            users += names
    stated = floors(users)
    assert {name: pinned().get(name) for name in stated} == stated
    everything = {**floors(extras[DEVELOPMENT]), **stated}
    assert {name: everything.get(name) for name in pinned()} == pinned()


def test_the_extra_for_all_leaves_no_extra_of_users_out():
    extras = pyproject()["optional-dependencies"]
    (everything,) = extras["all"]
    named = Requirement(everything).extras
    assert named == set(extras) - {"all", *NOT_FOR_ALL}


def test_one_dependency_has_one_floor():
    project = pyproject()
    seen: dict[str, Version] = {}
    for texts in [project["dependencies"], *project["optional-dependencies"].values()]:
        for name, floor in floors(texts).items():
            assert seen.setdefault(name, floor) == floor, name


def test_what_is_installed_is_not_below_the_floors():
    for name, floor in floors(pyproject()["dependencies"]).items():
        assert Version(version(name)) >= floor, name


@pytest.mark.parametrize(
    "part", ["cli", "eval", "export", "hub", "recordings", "streaming", "tokenizing", "training"]
)
def test_every_part_can_be_imported(part):
    for path in sorted((Path(codecplus.__file__).parent / part).rglob("*.py")):
        if "modules" in path.parts:  # for `evaluate`, which is slow to import
            continue
        name = ".".join(path.relative_to(Path(codecplus.__file__).parents[1]).with_suffix("").parts)
        importlib.import_module(name.removesuffix(".__init__"))
