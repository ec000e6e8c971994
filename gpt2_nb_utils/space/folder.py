"""The Space's folder: the exported model, its text and the app, written whole or not at all.

It is built beside its place and renamed, so that no kill leaves half a folder that looks whole. A folder that this command did not
write is never touched, and one that it wrote is replaced only when asked.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock

from gpt2_nb_utils.errors import NotWritten, UserError
from gpt2_nb_utils.files import lock_owner, move
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.space import card, hf_format
from gpt2_nb_utils.space.export import Export, read_export

_APP = Path(__file__).parent / "app"
_MODEL = "model"
FILES = {
    "README.md": "the header from which Hugging Face builds the Space, and what it is",
    "app.py": "the app: loads `model`, answers prompts",
    "requirements.txt": "what the Space installs, each at the version that was tested",
    "corpus.txt": "the text, by which the app tells memory from composition",
    "model/config.json": "sizes of the network, and which run trained it",
    "model/generation_config.json": "default temperature, top-k and length",
    "model/model.safetensors": "the weights: numbers only, nothing that could run",
    "model/tokenizer.json": "GPT-2's vocabulary and merges",
    "model/tokenizer_config.json": "how the tokenizer is to be loaded",
    "model/README.md": "the model card",
}
"""All that a Space's folder holds, and what each file is for."""
_NOT_CONTENT = {".DS_Store", "desktop.ini", "Thumbs.db"}
_GRADIO = re.compile(r"^gradio==([\w.]+)", re.MULTILINE)


@dataclass(frozen=True)
class Space:
    """A Space's folder.

    Attributes:
        folder: where it is.
        dtype: number format of the stored weights.
        n_bytes: of all its files.
        written: False where the same export was there already.
    """

    folder: Path
    dtype: str
    n_bytes: int
    written: bool

    @property
    def model(self) -> Path:
        """The model in the Hugging Face format."""
        return self.folder / _MODEL


def build_space(
    run_dir: str | Path,
    to: str | Path | None = None,
    dtype: str = "float16",
    overwrite: bool = False,
) -> Space:
    """Write the folder of a Space that shows the best model of a run.

    Args:
        run_dir: a run directory with checkpoints/best.pt.
        to: the folder; `space` in the run directory, when None.
        dtype: number format of the stored weights, `float16` or `float32`.
        overwrite: replace another export that is there.

    Raises:
        UserError: there is no such run or no sound best.pt, its text is gone, a folder that is not ours or another export is in
            the way, or there is no room. The folder is as it was then.
    """
    directory = RunDirectory(run_dir)
    named = Path(to) if to is not None else directory.space
    folder = Path(os.path.realpath(named))  # a link leads to the folder that is meant
    try:
        _refuse_what_is_not_ours(folder, named)
        export = read_export(directory, dtype)
        with _work_folder(folder, named) as work:
            new = work / "new"
            _fill(new, export)
            _refuse_what_is_not_ours(folder, named)  # once more: writing took a while
            differing = [name for name in FILES if not _same(new / name, folder / name)]
            if differing and not overwrite and _entries(folder):
                raise UserError(
                    f"{named} holds another export ({differing[0]} is not what would be written "
                    f"now): replace it (--overwrite), or name another folder (--to)"
                )
            if differing:
                _replace(folder, new, work / "before")
    except OSError as error:
        raise NotWritten(named, error, flag="--to") from error
    n_bytes = sum((folder / name).stat().st_size for name in FILES)
    return Space(named, dtype, n_bytes, written=bool(differing))


def how_to_serve(run_dir: Path) -> str:
    """What to type to export a run and start its app on this machine."""
    return f"python -m gpt2_nb_utils space {shlex.quote(run_dir.as_posix())} --serve"


def how_to_publish(folder: Path) -> list[str]:
    """What to type, with a name of one's own, to make a Space of a folder: `hf` comes with transformers."""
    name = "my-name/gpt2-by-heart"
    return [
        "hf auth login",
        f"hf repos create {name} --repo-type space --space-sdk gradio",
        f"hf upload {name} {shlex.quote(folder.as_posix())} . --repo-type space",
    ]


def _refuse_what_is_not_ours(folder: Path, named: Path) -> None:
    around = next(filter(_is_export, folder.parents), None)
    entries = _entries(folder)
    strangers = sorted(
        name for name in entries if name not in (_MODEL, *FILES) or os.path.islink(folder / name)
    )
    if folder.exists() and not folder.is_dir():
        problem = "is a file: name a folder (--to)"
    elif around is not None:
        problem = f"is inside the Space's folder {around}: name a folder outside of it (--to)"
    elif entries and not _is_export(folder):
        problem = (
            "holds files, but no Space that this command wrote: name a new or empty folder (--to)"
        )
    elif strangers:
        problem = f"holds {strangers[0]}, which this command did not write: move it away, or name another folder (--to)"
    else:
        return
    raise UserError(f"{named} {problem}")


def _entries(folder: Path) -> set[str]:
    """The paths of everything that a folder holds; links are not followed."""

    def cannot_list(error: OSError) -> None:
        # A folder that is yet to be made, or a file, about which the caller complains.
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise error

    return {
        Path(root, name).relative_to(folder).as_posix()
        for root, folders, files in os.walk(folder, onerror=cannot_list)
        for name in (*folders, *files)
        if name not in _NOT_CONTENT
    }


def _is_export(folder: Path) -> bool:
    try:
        content = json.loads((folder / _MODEL / hf_format.CONFIG).read_text(encoding="utf-8"))
        return "training_run" in content
    except (OSError, ValueError, TypeError, RecursionError):
        return False


@contextlib.contextmanager
def _work_folder(folder: Path, named: Path) -> Iterator[Path]:
    """An empty folder beside the one that is meant, in which one process at a time works; it is gone afterwards."""
    work = folder.with_name(f".{folder.name}.unfinished")
    work.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(
            f"{named}: another process is writing this folder{lock_owner(error.lock_file)}: wait "
            f"for it, or name another one (--to)"
        ) from None
    try:
        shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
        work.mkdir()
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        with contextlib.suppress(OSError):  # Windows deletes no open file, and this one by itself
            os.unlink(lock.lock_file)
        lock.release()


def _replace(folder: Path, new: Path, before: Path) -> None:
    """Put the new folder in its place; whatever fails, the one before is back there."""
    if folder.exists():
        move(folder, before)
    try:
        move(new, folder)
    except BaseException:
        if before.exists():
            move(before, folder)
        raise


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(one, other, shallow=False)


def _fill(folder: Path, export: Export) -> None:
    model = folder / _MODEL
    model.mkdir(parents=True)
    hf_format.write_hf(model, export.model, export.dtype, export.training_run, export.run.config)
    for name in ("app.py", "requirements.txt"):
        shutil.copyfile(_APP / name, folder / name)
    gradio = _GRADIO.search((folder / "requirements.txt").read_text(encoding="utf-8"))[1]
    for path, text in (
        (model / "README.md", card.model_card(export)),
        (folder / "README.md", card.space_readme(export, gradio)),
        (folder / "corpus.txt", export.text),
    ):
        path.write_text(text, encoding="utf-8", newline="\n")
    for name in FILES:  # a power cut after the renaming must not find them empty
        with open(folder / name, "rb+") as file:
            os.fsync(file.fileno())
