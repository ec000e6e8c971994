"""What pip installs: requirements.txt and pyproject.toml ask for the same packages."""

import tomllib

from conftest import PROJECT
from packaging.requirements import Requirement


def by_name(lines: list[str]) -> dict[str, str]:
    requirements = [Requirement(line) for line in lines]
    return {each.name: str(each.specifier) for each in requirements}


def test_requirements_and_extras_ask_for_the_same():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert set(extras) == {"space", "test"}
    declared = by_name([*project["dependencies"], *extras["space"], *extras["test"]])
    assert declared.pop(project["name"]) == ""  # the tests need what the Space needs
    lines = (PROJECT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    words = [line.partition("#")[0].strip() for line in lines]
    assert words.count("-e .") == 1
    installed = by_name([word for word in words if word and word != "-e ."])
    # The version with which the reference run was made, within what the package works with.
    pinned, accepted = installed.pop("torch"), declared.pop("torch")
    assert pinned.removeprefix("==") in Requirement(f"torch{accepted}").specifier
    assert installed == declared
