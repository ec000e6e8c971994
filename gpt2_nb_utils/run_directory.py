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
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

import filelock

from gpt2_nb_utils import torchrun
from gpt2_nb_utils.errors import NotWritten, UserError

_MADE_BY_A_RUN = (
    "config.json",
    "environment.json",
    "tokens.bin",
    "logs",
    "samples",
    "checkpoints",
    "figures",
    "notebooks",
    "report",
    "space",
    "verify.json",
    "token_losses.npz",
    "summary.json",
)
"""In the order in which they are thrown away: while the summary is there, the folder is known for a run's."""
_LOCK, _LOCK_OF_RUN = ".lock", ".run.lock"
_LENT = "GPT2_NB_UTILS_LENT"
"""Environment variable with the run directory that a process may claim although the command `run`, which started it, holds it."""
_DYING = 2.0
"""Seconds in which the kernel of a `run` that was killed notices that and ends."""
_CUT_SHORT = tuple(f".{name}." for name in _MADE_BY_A_RUN)
_NOT_CONTENT = {_LOCK, _LOCK_OF_RUN, ".ipynb_checkpoints", ".DS_Store", "desktop.ini", "Thumbs.db"}


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
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None  # not the passing name
        raise


def write_atomically(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Write text (as UTF-8) or bytes beside `path` and rename it."""
    with written_beside(path, mode) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


class Claim:
    """A hold on a run directory, which keeps other processes out of it.

    Args:
        folder: the run directory.

    Raises:
        filelock.Timeout: another process holds it.
    """

    def __init__(self, folder: Path):
        self._folder = str(folder.resolve())
        self._lock = filelock.FileLock(folder / _LOCK, timeout=_DYING)
        self._of_run = filelock.FileLock(folder / _LOCK_OF_RUN, timeout=0)
        self._lock.acquire()
        try:
            if os.environ.get(_LENT) != self._folder:
                self._of_run.acquire()
                self._of_run.release()
        except BaseException:
            self._lock.release()
            raise
        self._file = self._seen()

    def _seen(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._lock.lock_file)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    @property
    def is_lost(self) -> bool:
        """Whether the folder was removed meanwhile, or another one has taken its place."""
        return self._seen() != self._file

    @property
    def is_taken(self) -> bool:
        """Whether it was removed, and another process has claimed the one in its place."""
        return self._seen() not in (self._file, None)

    def lend(self) -> None:
        """Let the processes that this one starts from now on claim the directory, one at a time, and nobody else."""
        self._of_run.acquire()
        os.environ[_LENT] = self._folder
        self._lock.release()

    def release(self) -> None:
        """Let others in."""
        if self._of_run.is_locked:
            os.environ.pop(_LENT, None)
        self._of_run.release()
        self._lock.release()


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
        self.recall = self.path / "logs" / "recall.csv"
        self.samples = self.path / "samples" / "samples.txt"
        self.last = self.path / "checkpoints" / "last.pt"
        self.previous = self.path / "checkpoints" / "previous.pt"
        self.set_aside = self.path / "checkpoints" / "set_aside.pt"
        self.best = self.path / "checkpoints" / "best.pt"
        self.figures = self.path / "figures"
        self.notebooks = self.path / "notebooks"
        self.report = self.path / "report"
        self.space = self.path / "space"
        self.audit = self.path / "verify.json"
        self.token_losses = self.path / "token_losses.npz"

    def __str__(self) -> str:
        return str(self.path)

    @property
    def holds_run(self) -> bool:
        """Whether a run was ever started here."""
        try:
            return any(
                path.exists() for path in (self.summary, self.last, self.previous, self.best)
            )
        except OSError as error:  # a name that is too long, a folder that may not be looked into
            raise UserError(
                f"run directory {self} cannot be read ({error.strerror}): name another folder"
            ) from None

    @property
    def counted_recall(self) -> bool:
        """Whether training counted recall on its way: runs of earlier versions have no file, or one with nothing below its header."""
        return self.recall.is_file() and self.recall.read_bytes().count(b"\n") > 1

    def claim(self, resume: bool = False, overwrite: bool = False) -> Claim:
        """Make this the directory of a run that is about to start or to go on, or refuse.

        Returns:
            What keeps other processes out until it is released, or this process ends in whatever way.

        Raises:
            UserError: it holds a run that is neither resumed nor to be overwritten, another process is at work in it,
                or it is some other folder with files in it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"out_dir {self} is a file: name a folder")
        if self.holds_run and not (resume or overwrite):
            raise UserError(
                f"out_dir {self} already holds a run: go on with it (--resume auto), name another "
                f"folder (--out_dir), or throw it away (--overwrite)"
            )
        if not self.holds_run and self.path.exists() and not self._is_free:
            raise UserError(
                f"out_dir {self} holds files but no run: name a new or empty folder (--out_dir)"
            )
        if overwrite and self.holds_run and not self._is_of_a_run:
            raise UserError(
                f"out_dir {self} holds a {self.summary.name} that no run wrote: name a new or empty folder (--out_dir)"
            )
        if not overwrite:
            self._refuse_links()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            claim = Claim(self.path)
        except filelock.Timeout:
            raise UserError(
                f"out_dir {self}: another process is training there: wait for it, stop it, or name another "
                f"folder (--out_dir)"
            ) from None
        except OSError as error:
            raise UserError(
                f"out_dir {self} cannot be used ({error.strerror}): name a folder you may write to"
            ) from None
        if overwrite and self.holds_run:
            for name in _MADE_BY_A_RUN:
                target = self.path / name
                shutil.rmtree(
                    target
                ) if target.is_dir() and not target.is_symlink() else target.unlink(missing_ok=True)
        for file in (
            self.best,
            self.last,
            self.config,
            self.summary,
            self.environment,
            self.tokens,
            self.metrics,
            self.recall,
            self.samples,
        ):
            for cut_short in file.parent.glob(
                f".{file.name}.*"
            ):  # by a kill in the midst of writing it
                cut_short.unlink(missing_ok=True)
        return claim

    @property
    def _is_of_a_run(self) -> bool:
        """Whether more than a file by the name of `summary.json` says that a run was here."""
        if any(
            path.exists()
            for path in (self.path / _LOCK, self.config, self.last, self.previous, self.best)
        ):
            return True
        try:
            return "config" in self.read_summary()
        except UserError:
            return False

    def _refuse_links(self) -> None:
        """Raise a UserError where a file that is appended to, or written in place, is a link: a run from elsewhere could aim it at any file."""
        for file in (
            self.log,
            self.metrics,
            self.recall,
            self.samples,
            *self.notebooks.glob("*.ipynb"),
        ):
            if file.is_symlink():
                raise UserError(
                    f"{file} is a link, and what a run writes there would go elsewhere: put the file itself in its place, "
                    f"or throw the run away (--overwrite)"
                )

    @property
    def _is_free(self) -> bool:
        """Whether the folder is empty, or holds only what a run leaves that is killed before it has a summary."""
        names = {entry.name for entry in self.path.iterdir()} - _NOT_CONTENT
        if (self.path / _LOCK).exists():
            names = {
                name
                for name in names
                if name not in _MADE_BY_A_RUN and not name.startswith(_CUT_SHORT)
            }
        return not names

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
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content, dict):
                return content
            raise ValueError
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{self} is no run directory ({path.name} is missing): name the out_dir of a run, "
                f"or start one with `python -m gpt2_nb_utils run --out_dir {self}`"
            ) from None
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror}): allow reading it, or name another run"
            ) from None
        except (ValueError, RecursionError):
            raise UserError(
                f"{path} is not a valid JSON object: restore it, or start the run anew with --overwrite"
            ) from None

    def write_json(self, path: Path, content: dict[str, Any]) -> None:
        """Write `content` to one of the JSON files of the run, whole or not at all.

        Raises:
            NotWritten: the disk is full, or the folder cannot be written or is gone.
        """
        try:
            write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise NotWritten(path, error) from error


def environment() -> dict[str, Any]:
    """What the run ran on: machine, Python and the versions of the packages that matter."""
    packages = {}
    for name in (
        "torch",
        "numpy",
        "tiktoken",
        "matplotlib",
        "pydantic",
        "papermill",
        "nbconvert",
        "jupyterlab",
        "transformers",
    ):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
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
        return [
            Path(words[1]).name,
            *words[2:],
        ]  # an installed script such as papermill, with the interpreter before it
    return (
        [Path(words[0]).name if Path(words[0]).is_absolute() else words[0], *words[1:]]
        if words
        else words
    )
