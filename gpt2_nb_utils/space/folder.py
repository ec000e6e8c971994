"""The Space's folder: the exported model, its text and the app, written whole or not at all.

It is built beside its place and renamed, so no kill leaves half a folder that looks whole. A folder that this command did not
write is never touched, and one that it wrote is replaced only when asked.
"""

from __future__ import annotations

import contextlib
import filecmp
import glob
import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock

from gpt2_nb_utils.errors import NotWritten, UserError
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.space import card, hf_format
from gpt2_nb_utils.space.export import Export, read_export

_APP = Path(__file__).parent / "app"
_MODEL = "model"
_OF_MODEL = (
    hf_format.CONFIG,
    hf_format.GENERATION,
    hf_format.WEIGHTS,
    hf_format.TOKENIZER,
    hf_format.TOKENIZER_CONFIG,
    "README.md",
)
FILES = (
    "README.md",
    "app.py",
    "requirements.txt",
    "corpus.txt",
    *(f"{_MODEL}/{name}" for name in _OF_MODEL),
)
"""All that a Space's folder holds."""
_NOT_CONTENT = {".DS_Store", "desktop.ini", "Thumbs.db"}
_GRADIO = re.compile(r"^gradio==([\w.]+)", re.MULTILINE)


@dataclass(frozen=True)
class Space:
    """A Space's folder.

    Attributes:
        folder: where it is.
        dtype: number format of the stored weights.
        n_bytes: of all its files.
        written: False where it stood there already, byte for byte.
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
    if os.path.isfile(directory.path):
        raise UserError(
            f"{directory} is a file: name the run directory, as `run` or notebook 03 leaves it"
        )
    named = Path(to) if to is not None else directory.space
    try:
        try:
            folder = named.resolve()  # a link leads to the folder that is meant
        except RuntimeError:  # what it says of a loop before Python 3.13
            raise UserError(
                f"{named} is a link that leads to itself: name a folder (--to)"
            ) from None
        _refuse_what_is_not_ours(folder, named)
        export = read_export(directory, dtype)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder, named):
            written = _put(export, folder, named, overwrite)
    except OSError as error:
        raise NotWritten(named, error, flag="--to") from error
    return Space(named, dtype, sum((folder / name).stat().st_size for name in FILES), written)


def how_to_serve(run_dir: Path) -> str:
    """What to type to export a run and start its app on this machine."""
    return f"python -m gpt2_nb_utils space {_quoted(run_dir)} --serve"


def how_to_publish(folder: Path) -> list[str]:
    """What to type, with a name of one's own, to make a Space of a folder: `hf` comes with transformers."""
    name = "my-name/gpt2-by-heart"
    return [
        "hf auth login",
        f"hf repos create {name} --repo-type space --space-sdk gradio",
        f"hf upload {name} {_quoted(folder)} . --repo-type space",
    ]


def _quoted(path: Path) -> str:
    """A path as one word of a terminal's line."""
    if (
        os.name == "nt"
    ):  # neither PowerShell nor cmd knows the quotes of a POSIX shell, and both know these
        return f'"{path}"' if re.search(r"[^\w:\\/.-]", str(path)) else str(path)
    return shlex.quote(str(path))


def _refuse_what_is_not_ours(folder: Path, named: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{named} is a file: name a folder (--to)")
    around = next(filter(_is_export, folder.parents), None)
    if around is not None:
        raise UserError(
            f"{named} is inside the Space's folder {around}, which holds its own files only: name a folder outside of it (--to)"
        )
    entries = _entries(folder)
    if entries and not _is_export(folder):
        raise UserError(
            f"{named} holds files, but no Space that this command wrote: name a new or empty folder (--to)"
        )
    strangers = sorted(entries - set(FILES))
    if strangers:
        raise UserError(
            f"{named} holds {strangers[0]}, which this command did not write: move it away, or name another folder (--to)"
        )


def _entries(folder: Path) -> set[str]:
    """The paths of all that a folder holds: files, empty folders, and links, which are not followed."""

    def cannot_list(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # a folder that is yet to be made
            raise error

    found = set()
    for root, folders, files in os.walk(folder, onerror=cannot_list):
        for name in (*folders, *files):
            path = Path(root, name)
            inside = path.relative_to(folder).as_posix()
            if path.is_symlink():
                found.add(f"{inside} (a link)")
            elif name in files:
                found |= {inside} if name not in _NOT_CONTENT else set()
            elif not any(path.iterdir()):
                found.add(f"{inside} (an empty folder)")
    return found


def _is_export(folder: Path) -> bool:
    try:
        content = json.loads((folder / _MODEL / hf_format.CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and isinstance(content.get("training_run"), dict)


@contextlib.contextmanager
def _alone(folder: Path, named: Path) -> Iterator[None]:
    """Keep other processes from writing the same folder, and throw away what one left that was killed at it."""
    lock = filelock.FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        with tempfile.TemporaryFile(
            dir=folder.parent
        ):  # it also gives up where no file can be made, and this says why
            pass
        raise UserError(
            f"{named}: another process is writing this folder: wait for it, or name another one (--to)"
        ) from None
    try:
        for unfinished in folder.parent.glob(glob.escape(_unfinished(folder)) + "*"):
            shutil.rmtree(unfinished)
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


def _unfinished(folder: Path) -> str:
    return f".{folder.name}.unfinished-"


def _put(export: Export, folder: Path, named: Path, overwrite: bool) -> bool:
    """Bring the export to its place; False where it stands there already."""
    beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=_unfinished(folder)))
    try:
        _fill(beside, export)
        _refuse_what_is_not_ours(folder, named)  # once more: writing took a while
        if _entries(folder):
            differing = [name for name in FILES if not _same(beside / name, folder / name)]
            if not differing:
                return False
            if not overwrite:
                raise UserError(
                    f"{named} holds another export ({differing[0]} is not what would be written now): replace it "
                    f"(--overwrite), or name another folder (--to)"
                )
        _take_its_place(beside, folder)
        return True
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _take_its_place(beside: Path, folder: Path) -> None:
    before = beside.with_name(f"{beside.name}-before")
    if folder.exists():
        os.replace(folder, before)
    try:
        os.replace(beside, folder)
    except BaseException:
        if before.exists():
            os.replace(before, folder)
        raise
    shutil.rmtree(before, ignore_errors=True)


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(one, other, shallow=False)


def _fill(folder: Path, export: Export) -> None:
    model, about = folder / _MODEL, export.about
    model.mkdir()
    sampling = {
        name: getattr(about.config, name) for name in ("temperature", "top_k", "max_new_tokens")
    }
    hf_format.write_hf(model, export.model, about.dtype, about.training_run, sampling)
    for name in ("app.py", "requirements.txt"):
        shutil.copyfile(_APP / name, folder / name)
    gradio = _GRADIO.search((folder / "requirements.txt").read_text(encoding="utf-8"))[1]
    for path, text in (
        (model / "README.md", card.model_card(about)),
        (folder / "README.md", card.space_readme(about, gradio)),
        (folder / "corpus.txt", export.text),
    ):
        path.write_text(text, encoding="utf-8", newline="\n")
    os.chmod(folder, 0o755)
    for name in FILES:  # a power cut after the renaming must not find them empty
        with open(folder / name, "rb+") as file:
            os.fsync(file.fileno())
