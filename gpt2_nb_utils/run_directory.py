"""The folder in which the notebooks, the commands and the grader meet: its paths and its summary.

It knows names and files. It deliberately does not know how a run is trained or shown.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import shutil
import sys
import tempfile
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO, Iterator

import filelock

from gpt2_nb_utils import torchrun
from gpt2_nb_utils.errors import UserError

_MADE_BY_A_RUN = ("config.json", "summary.json", "environment.json", "tokens.bin", "logs", "samples", "checkpoints",
                  "figures", "notebooks", "report", "verify.json", "token_losses.npz")
_LOCK = ".lock"
_NOT_CONTENT = {_LOCK, ".ipynb_checkpoints", ".DS_Store", "desktop.ini", "Thumbs.db"}


@contextlib.contextmanager
def written_beside(path: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """A file beside `path` to write into, which takes that name at the end, or goes where anything failed.

    No reader ever meets half a file, and a kill at any moment leaves the previous one whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(beside, mode)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Write text (as UTF-8) or bytes beside `path` and rename it."""
    with written_beside(path, mode) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


class RunDirectory:
    """The paths of one run and its `summary.json`.

    Args:
        path: the run directory; it need not exist yet.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.summary = self.path / "summary.json"
        self.environment = self.path / "environment.json"
        self.tokens = self.path / "tokens.bin"
        self.log = self.path / "logs" / "train.log"
        self.metrics = self.path / "logs" / "train_metrics.csv"
        self.samples = self.path / "samples" / "samples.txt"
        self.last = self.path / "checkpoints" / "last.pt"
        self.best = self.path / "checkpoints" / "best.pt"
        self.figures = self.path / "figures"
        self.notebooks = self.path / "notebooks"
        self.report = self.path / "report"
        self.audit = self.path / "verify.json"
        self.token_losses = self.path / "token_losses.npz"

    def __str__(self) -> str:
        return str(self.path)

    @property
    def holds_run(self) -> bool:
        """Whether a run was ever started here."""
        return self.summary.exists() or self.last.exists() or self.best.exists()

    def claim(self, resume: bool = False, overwrite: bool = False) -> filelock.BaseFileLock:
        """Make this the directory of a run that is about to start or to go on, or refuse.

        Returns:
            A lock that keeps other processes out until it is released, or this process ends in whatever way.

        Raises:
            UserError: it holds a run that is neither resumed nor to be overwritten, another process is at work in it,
                or it is some other folder with files in it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"out_dir {self} is a file: name a folder")
        if self.holds_run and not (resume or overwrite):
            raise UserError(f"out_dir {self} already holds a run: go on with it (--resume auto), name another "
                            f"folder (--out_dir), or throw it away (--overwrite)")
        if not self.holds_run and self.path.exists() and any(entry.name not in _NOT_CONTENT for entry in self.path.iterdir()):
            raise UserError(f"out_dir {self} holds files but no run: name a new or empty folder (--out_dir)")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.path / _LOCK, timeout=0)
            lock.acquire()
        except filelock.Timeout:
            raise UserError(f"out_dir {self}: another process is training there: wait for it, stop it, or name another "
                            f"folder (--out_dir)") from None
        except OSError as error:
            raise UserError(f"out_dir {self} cannot be used ({error.strerror}): name a folder you may write to") from None
        if overwrite and self.holds_run:
            for name in _MADE_BY_A_RUN:
                target = self.path / name
                shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        for checkpoint in (self.best, self.last):
            for cut_short in checkpoint.parent.glob(f".{checkpoint.name}.*"):  # by a kill in the midst of writing it
                cut_short.unlink(missing_ok=True)
        return lock

    def read_summary(self) -> dict[str, Any]:
        """The content of `summary.json`.

        Raises:
            UserError: there is none, or it is not JSON.
        """
        return self.read_json(self.summary)

    def read_config(self) -> dict[str, Any]:
        """The content of `config.json`: the complete settings of the run."""
        return self.read_json(self.config)

    def read_json(self, path: Path) -> dict[str, Any]:
        """The content of one of the JSON files of the run."""
        if not path.exists():
            raise UserError(f"{self} is no run directory ({path.name} is missing): name the out_dir of a run, "
                            f"or start one with `python -m gpt2_nb_utils run --out_dir {self}`")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content, dict):
                return content
            raise ValueError
        except ValueError:
            raise UserError(f"{path} is not a valid JSON object: restore it, or start the run anew with --overwrite") from None

    def write_json(self, path: Path, content: dict[str, Any]) -> None:
        """Write `content` to one of the JSON files of the run, whole or not at all."""
        write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def environment() -> dict[str, Any]:
    """What the run ran on: machine, Python and the versions of the packages that matter."""
    packages = {}
    for name in ("torch", "numpy", "tiktoken", "matplotlib", "pydantic", "papermill", "nbconvert", "jupyterlab", "transformers"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release().partition('-')[0]} {platform.machine()}",
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "memory_gb": _memory_gb(),
        "packages": packages,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None  # Windows has no sysconf


def command_line() -> str:
    """The command that started this process, as it was given, but for where this machine keeps its programs.

    Inside a Jupyter kernel it is the command that runs the notebook, papermill or `run`. A Jupyter server's own command
    line is not recorded: it may hold a password. In one of several processes it is torchrun's.
    """
    words = sys.orig_argv
    if torchrun.world_size() > 1:
        words = _words_of_parent() or words
    elif any("ipykernel_launcher" in word for word in words):
        words = _words_of_parent()
        if not any("papermill" in word or "gpt2_nb_utils" in word for word in words):
            return "(notebook run by hand in Jupyter)"
    return shlex.join(_without_folders(words))


def _words_of_parent() -> list[str]:
    try:
        import psutil

        return psutil.Process(os.getppid()).cmdline()
    except Exception:  # the parent may be gone or belong to somebody else
        return []


def _without_folders(words: list[str]) -> list[str]:
    """The program without its folder: that tells a reader nothing, and may hold the name of a user."""
    if len(words) > 1 and Path(words[1]).is_absolute():
        return [Path(words[1]).name, *words[2:]]  # an installed script such as papermill, with the interpreter before it
    return [Path(words[0]).name if Path(words[0]).is_absolute() else words[0], *words[1:]] if words else words
