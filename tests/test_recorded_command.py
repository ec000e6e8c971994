"""The command that a run is recorded with: its own, or what does the same; never that of another program."""

import subprocess
import sys

import pytest
from conftest import PROJECT
from run_command import TRAINING, clone
from test_events import run

from gpt2_nb_utils.run_directory import RunDirectory

SECRET = "4f1d0c9b7a"


def test_another_program_is_not_recorded(settings):
    given = settings(steps=1, sample_every=0)
    assert run(given).read_summary()["command"] == "not recorded"  # pytest's
    code = f"""if True:
        from gpt2_nb_utils.config import RunConfig
        from gpt2_nb_utils.training.train import train
        train(RunConfig.resolve({given | {"overwrite": True}!r}))"""
    words = ["gpt2_nb_utils", f"--IdentityProvider.token={SECRET}", "papermill"]
    subprocess.run([sys.executable, "-c", code, *words], cwd=PROJECT, check=True)
    assert RunDirectory(given["out_dir"]).read_summary()["command"] == "not recorded"


@pytest.mark.slow
def test_a_notebook_is_recorded_by_its_settings_whoever_started_its_kernel(
    settings, tmp_path, monkeypatch
):
    """The program around the kernel is papermill's Python API, with a Jupyter server's arguments."""
    project = clone(tmp_path / "gpt2_nb_utils papermill", TRAINING)
    monkeypatch.setenv("PYTHONPATH", str(project))
    given = settings(steps=1, sample_every=0)
    code = f"""if True:
        import papermill
        papermill.execute_notebook("03_training.ipynb", {str(tmp_path / "out.ipynb")!r}, {given!r},
            progress_bar=False)"""
    words = [f"--ServerApp.root_dir={project}", f"--IdentityProvider.token={SECRET}"]
    words += ["-m", "gpt2_nb_utils", "run"]
    subprocess.run([sys.executable, "-c", code, *words], cwd=project / "notebooks", check=True)
    directory = RunDirectory(given["out_dir"])
    recorded = directory.read_summary()["command"]
    assert recorded.startswith("papermill notebooks/03_training.ipynb OUTPUT.ipynb ")
    assert recorded.endswith("  # run in a Jupyter kernel")
    for name, value in given.items():
        flag = "-r" if isinstance(value, str) else "-p"
        assert f"{flag} {name} {value} " in recorded
    for path in directory.path.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path
