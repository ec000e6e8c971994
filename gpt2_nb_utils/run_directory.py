"""The folder in which the notebooks, the commands and the grader meet: its paths and its summary.

It knows names and files, not how a run is trained or shown.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from gpt2_nb_utils.errors import RUN_AROUND, NotWritten, UserError
from gpt2_nb_utils.files import LOCK, LOCK_OF_RUN, Claim, lock_owner, read_regular, write_atomically

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
"""In the order in which they are thrown away: while the summary is there, the folder is known for a
run's."""
_WRITTEN_BESIDE = ("*.pt", "*.json", "*.jsonl", "*.csv", "*.bin", "train.log", "samples.txt")
_CUT_SHORT = tuple(f".{name}." for name in _MADE_BY_A_RUN)
_NOT_CONTENT = {LOCK, LOCK_OF_RUN, ".ipynb_checkpoints", ".DS_Store", "desktop.ini", "Thumbs.db"}


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
        self.events = self.path / "logs" / "events.jsonl"
        self.log = self.path / "logs" / "train.log"
        self.metrics = self.path / "logs" / "train_metrics.csv"
        self.recall = self.path / "logs" / "recall.csv"
        self.samples = self.path / "samples" / "samples.txt"
        self.last = self.path / "checkpoints" / "last.pt"
        self.previous = self.path / "checkpoints" / "previous.pt"
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
                path.exists()
                for path in (self.events, self.summary, self.last, self.previous, self.best)
            )
        except OSError as error:  # a name that is too long, a folder that may not be looked into
            raise UserError(
                f"run directory {self} cannot be read ({error.strerror}): name another folder"
            ) from None

    def check(self, resume: bool = False, overwrite: bool = False) -> None:
        """Refuse what cannot become, or stay, the directory of a run.

        Raises:
            UserError: it holds a run that is neither resumed nor to be overwritten, or it is some
                other folder with files in it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"out_dir {self} is a file: name a folder")
        if not self.holds_run:
            if self.path.exists() and not self._is_free:
                raise UserError(
                    f"out_dir {self} holds files but no run: name a new or empty folder (--out_dir)"
                )
        elif not (resume or overwrite):
            raise UserError(
                f"out_dir {self} already holds a run: continue it (--resume auto), name another "
                f"folder (--out_dir), or throw it away (--overwrite)"
            )
        elif overwrite and not self._is_of_a_run:
            raise UserError(
                f"out_dir {self} holds a {self.summary.name} that no run wrote: name a new or "
                f"empty folder (--out_dir)"
            )

    def claim(self, resume: bool = False, overwrite: bool = False) -> Claim:
        """Make this the directory of a run that is about to start or to continue, or refuse.

        Returns:
            What keeps other processes out until it is released, or this process ends in whatever
            way.

        Raises:
            UserError: as for `check`, or another process is at work in it.
        """
        self.check(resume, overwrite)
        if not overwrite:
            self._refuse_links()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not self.is_held_around:
                # Refused while a `run` is at work, at a notebook that does not train, say.
                Claim(self.path, LOCK_OF_RUN, patience=0).release()
            claim = Claim(self.path)
        except filelock.Timeout as error:
            raise UserError(
                f"out_dir {self}: another process is training there{lock_owner(error.lock_file)}: "
                f"wait for it, stop it, or name another folder (--out_dir)"
            ) from None
        except OSError as error:
            raise UserError(
                f"out_dir {self} cannot be used ({error.strerror}): name a folder you may write to"
            ) from None
        if overwrite and self.holds_run:
            for name in _MADE_BY_A_RUN:
                target = self.path / name
                if target.is_dir() and not target.is_symlink():
                    shutil.rmtree(target)
                    if target == self.notebooks:  # papermill may be about to write there
                        target.mkdir()
                else:
                    target.unlink(missing_ok=True)
        for folder in (self.path, self.log.parent, self.samples.parent, self.best.parent):
            for name in _WRITTEN_BESIDE:
                for cut_short in folder.glob(f".{name}.*"):  # by a kill while it was written
                    cut_short.unlink(missing_ok=True)
        return claim

    @contextlib.contextmanager
    def held_by_run(self) -> Iterator[None]:
        """A context in which only this process and those that it starts may claim the directory,
        one at a time."""
        claim = Claim(self.path, LOCK_OF_RUN, patience=0)
        os.environ[RUN_AROUND] = str(self.path.resolve())
        try:
            yield
        finally:
            del os.environ[RUN_AROUND]
            claim.release()

    @property
    def is_held_around(self) -> bool:
        """Whether this process belongs to a `run` that holds the directory."""
        return os.environ.get(RUN_AROUND) == str(self.path.resolve())

    @property
    def _is_of_a_run(self) -> bool:
        """Whether more than a file by the name of `summary.json` says that a run was here."""
        files = self.path / LOCK, self.config, self.events, self.last, self.previous
        if any(path.exists() for path in files):
            return True
        with contextlib.suppress(UserError):
            return "config" in self.read_summary()
        return False

    def _refuse_links(self) -> None:
        """Raise a UserError where a file that is appended to, or written in place, is a link: a run
        from elsewhere could aim it at any file."""
        for file in (
            self.events,
            self.log,
            self.metrics,
            self.recall,
            self.samples,
            *self.notebooks.glob("*.ipynb"),
        ):
            if file.is_symlink():
                raise UserError(
                    f"{file} is a link, and what a run writes there would go elsewhere: put the "
                    f"file itself in its place, or throw the run away (--overwrite)"
                )

    @property
    def _is_free(self) -> bool:
        """Whether the folder is empty, or holds only notebooks that papermill executes, and what a
        run leaves that is killed before it has a summary."""
        names = {entry.name for entry in self.path.iterdir() if not _is_of_a_tool(entry)}
        if (self.path / LOCK).exists():
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

    def read_json(self, path: Path) -> dict[str, Any]:
        """The content of one of the JSON files of the run."""
        try:
            content = json.loads(read_regular(path).decode("utf-8"))
            if isinstance(content, dict):
                return content
            raise ValueError
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{self} holds no run ({path.name} is missing): run notebook 03 with this out_dir "
                f"first, or name the out_dir of a run"
            ) from None
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror}): allow reading it, or name another run"
            ) from None
        except (ValueError, RecursionError):
            raise UserError(
                f"{path} is not a valid JSON object: restore it, or start again with --overwrite"
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


def _is_of_a_tool(path: Path) -> bool:
    """Whether JupyterLab or a desktop left it, or papermill writes it: an executed notebook, there
    or where `report` looks for it."""
    with contextlib.suppress(OSError):
        if path.name == "notebooks":
            return all(map(_is_of_a_tool, path.iterdir()))
        if path.suffix == ".ipynb" and b'"papermill": {' in read_regular(path):
            return True
    return path.name in _NOT_CONTENT
