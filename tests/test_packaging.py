"""What pip installs, and the files that a repository has: they agree with each other."""

import json
import os
import re
import subprocess
import tomllib

import pytest
import yaml
from conftest import PROJECT
from packaging.requirements import Requirement

from gpt2_nb_utils import __version__
from gpt2_nb_utils.training.events import FORMAT
from gpt2_nb_utils.training.precision import _WHEELS


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


def read(name: str) -> str:
    return (PROJECT / name).read_text(encoding="utf-8")


def test_the_line_for_cuda_installs_the_pinned_torch():
    (pinned,) = re.findall(r"^torch==(\S+)", read("requirements.txt"), re.MULTILINE)
    (line,) = re.findall(r"^pip install torch.*$", read("README.md"), re.MULTILINE)
    assert line == f"pip install torch=={pinned} --index-url {_WHEELS}"


def test_licence_citation_and_changelog_agree():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    citation = yaml.safe_load(read("CITATION.cff"))
    assert project["license"] == citation["license"] == "MIT"
    assert read("LICENSE").startswith("MIT License\n")
    assert citation["version"] == __version__ and citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    formats = re.findall(r"^## Format (\d+) \(version (\d+)", read("CHANGELOG.md"), re.MULTILINE)
    assert formats == [(str(n), str(n)) for n in range(FORMAT, 0, -1)]
    assert __version__.startswith(f"{FORMAT}.")


def test_the_workflow_runs_what_is_there_and_says_that_it_is_untried():
    text = read(".github/workflows/ci.yml")
    assert "not tried" in text.splitlines()[0]
    jobs = yaml.safe_load(text)["jobs"]
    commands = {name: [step.get("run") for step in job["steps"]] for name, job in jobs.items()}
    assert ".ci/run" in commands["all"] and os.access(PROJECT / ".ci" / "run", os.X_OK)
    assert "python -m pytest" in commands["quick"]
    systems = " ".join(jobs["quick"]["strategy"]["matrix"]["os"])
    assert "windows" in systems and "macos" in systems
    container = json.loads(read(".devcontainer/devcontainer.json"))
    assert "-r requirements.txt" in container["postCreateCommand"]


@pytest.mark.skipif(os.name == "nt", reason="Colab's cells run in bash")
def test_the_cell_for_colab_clones_once_installs_and_continues(tmp_path):
    cell = re.search(r"^!test -d gpt2 .*\n^!cd gpt2 .*$", read("README.md"), re.MULTILINE)[0]
    fork = tmp_path / "fork"
    subprocess.run(["git", "init", "-q", str(fork)], check=True)
    as_somebody = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    (fork / "pyproject.toml").touch()
    for words in (["add", "."], [*as_somebody, "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", str(fork), *words], check=True)
    (tmp_path / "bin").mkdir()
    for program in ("pip", "python"):  # what they would do is tested elsewhere
        path = tmp_path / "bin" / program
        path.write_text(f'#!/bin/sh\necho {program} "$PWD" "$@"\n')
        path.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    lines = cell.replace("https://github.com/YOUR-NAME/YOUR-FORK", str(fork)).splitlines()
    for _ in range(2):
        said = [
            subprocess.run(
                ["bash", "-c", line[1:]],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for line in lines
        ]
        place = tmp_path / "gpt2"
        assert said == [
            "",
            f"pip {place} install -q -e .\npython {place} -m gpt2_nb_utils run --resume auto\n",
        ]
