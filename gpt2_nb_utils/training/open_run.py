"""Before the first step: find the checkpoint to continue from, resolve the settings, read the text, claim the directory.

Everything is checked before anything is written, so that a run that cannot work leaves the folder as it was. What a resume
needs is in the checkpoint: its settings, its events and its state; every other file is rendered again from these.
"""

from __future__ import annotations

import os
import secrets
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import NotWritten, UserError
from gpt2_nb_utils.files import Claim
from gpt2_nb_utils.machine import command_line, environment, sources_sha256
from gpt2_nb_utils.model.gpt2 import GPT2Config
from gpt2_nb_utils.model.parts import parameter_count
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.tokenization.bpe import decode, encode
from gpt2_nb_utils.tokenization.corpus import Corpus, load_corpus
from gpt2_nb_utils.tokenization.dataset import TokenDataset
from gpt2_nb_utils.tokenization.token_cache import read_tokens, write_tokens
from gpt2_nb_utils.training.checkpoints import (
    Unreadable,
    is_whole,
    model_from,
    read_checkpoint,
    save_checkpoint,
)
from gpt2_nb_utils.training.distributed import SINGLE, DistContext
from gpt2_nb_utils.training.events import (
    FORMAT,
    Event,
    as_line,
    history,
    now,
    parse_events,
    read_events,
)
from gpt2_nb_utils.training.optimizer import fits
from gpt2_nb_utils.training.out_of_memory import refuse_what_cannot_fit
from gpt2_nb_utils.training.precision import Precision, check_device

KEPT = (
    "preset", "max_tokens", "seed", "block_size", "n_layer", "n_head", "n_embd", "batch_size",
    "seq_len", "grad_accum", "randomize_batches", "optimizer", "amp",
)  # fmt: skip
"""Settings that a resumed run cannot change: its weights, its optimizer or its place in the data depend on them."""


@dataclass
class Run:
    """A run that is ready to train.

    Attributes:
        config: complete settings (those of the resumed run, where one is resumed).
        directory: its run directory.
        corpus: the text.
        windows: its tokens, in windows of `seq_len`.
        precision: device and number format.
        run_id: drawn when it started from random weights; its events and checkpoints carry it.
        events: what happened so far, with the `start` or `resume` of this process last.
        checkpoint: what it continues from, or None; drop it once restored, for it is as large as the whole run.
        claim: keeps other processes out of the directory; None in those that rank 0 writes for.
    """

    config: RunConfig
    directory: RunDirectory
    corpus: Corpus
    windows: TokenDataset
    precision: Precision
    run_id: str
    events: list[Event]
    checkpoint: dict[str, Any] | None
    claim: Claim | None = None

    @property
    def training_text(self) -> str:
        """The text that the model sees: the corpus, or the excerpt of it."""
        return decode(self.windows.tokens.numpy()) if self.config.max_tokens else self.corpus.text

    @property
    def model_config(self) -> GPT2Config:
        """Sizes of the network."""
        return GPT2Config.of(self.config)


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint from which a run continues.

    Attributes:
        path: its file.
        content: what is in it.
        events: those that it carries, parsed.
        seen: which file it was when it was read (device, inode, size, time).
        note: why last.pt was passed over, where this is the one before it.
    """

    path: Path
    content: dict[str, Any]
    events: list[Event]
    seen: tuple[int, ...]
    note: str = ""

    @property
    def step(self) -> int:
        """Updates that its weights have had."""
        return self.content["state"]["step"]

    @property
    def amp(self) -> str:
        """The number format in which they were computed."""
        return history(self.events).starts[-1]["amp"]


def open_run(config: RunConfig, dist: DistContext = SINGLE) -> Run:
    """Check everything that can be checked, then claim the run directory.

    With the path of a checkpoint and no `out_dir`, the run continues in the directory that the checkpoint lies in.

    Args:
        dist: the processes that will train it together; all check, and the first one claims.

    Raises:
        UserError: the corpus, the checkpoint, the device or the directory is not fit; nothing was written then.
    """
    if config.overwrite and config.resume not in ("", "auto"):
        raise UserError(
            f"--resume {config.resume} continues a run and --overwrite throws one away: leave out one of the two"
        )
    directory, point = _find(config)
    on_file = [] if config.overwrite else _events_of(directory)
    if config.resume == "auto" and point is None:
        _refuse_if_checkpoints_are_gone(directory, on_file)
    given = config
    config = _resolved(given, directory, point, on_file)
    dist.check_batch_size(config.batch_size)
    precision = Precision.of(config, dist)
    warning = check_device(precision, config.compile)
    if warning and dist.is_main:
        print(warning, file=sys.stderr)
    refuse_what_cannot_fit(
        config,
        parameter_count(GPT2Config.of(config)),
        precision.device,
        dist.world_size,
        dist.local_world_size,
    )
    corpus = load_corpus(config.input_file)
    cached = read_tokens(directory.tokens, corpus)
    ids = encode(corpus.text) if cached is None else cached
    if config.max_tokens >= len(ids):  # an excerpt of everything is no excerpt
        config = config.model_copy(update={"max_tokens": 0})
    if point is not None:
        _refuse_what_does_not_fit(point, given, config, corpus, directory, on_file)
    if config.overwrite and corpus.source == "input_file" and _lies_in(corpus.path, directory):
        raise UserError(
            f"input_file {corpus.path} lies in out_dir {directory}, which --overwrite throws away: move the text elsewhere"
        )
    # From here on the checkpoint is this directory's own.
    config = config.model_copy(update={"resume": "auto" if point else ""})
    run = Run(
        config,
        directory,
        corpus,
        TokenDataset(torch.from_numpy(ids[: config.max_tokens or None]), config.seq_len),
        precision,
        point.content["run_id"] if point else secrets.token_hex(8),
        [],
        point and point.content,
    )
    run.events = _events(run, on_file, point, len(ids), dist.world_size)
    dist.check_equal(seen=(corpus.sha256, point and point.step))  # all have read: now one writes
    if dist.is_main:
        kinds = [event["event"] for event in run.events]
        for event in run.events[-1 - kinds[::-1].index("resume" if point else "start") :]:
            if event["event"] == "note":
                print(event["text"], file=sys.stderr)
        run.claim = _claimed(run, given, point)
        if cached is None or given.overwrite:
            write_tokens(directory.tokens, ids)
    return run


def _find(config: RunConfig) -> tuple[RunDirectory, ResumePoint | None]:
    """The directory of a run and the checkpoint that it continues from; None for a run that starts from random weights."""
    directory = RunDirectory(config.out_dir)
    if not config.resume or config.overwrite:
        return directory, None
    if config.resume != "auto":
        point = _read(Path(config.resume))
        folder = Path(config.resume).parent
        own = RunDirectory(folder.parent)
        if folder.name == "checkpoints" and own.holds_run and "out_dir" not in config.given:
            directory = own
        return directory, point
    reasons: list[str] = []
    for path in (directory.last, directory.previous):
        if not path.exists():
            reasons.append(f"{path.name if reasons else path} is missing")
            continue
        try:
            point = _read(path)
        except Unreadable as error:
            reasons.append(error.reason)
            continue
        if reasons:
            note = f"{reasons[0]}: continuing from the checkpoint before it, of step {point.step}"
            point = replace(point, note=note)
        return directory, point
    if not directory.last.exists() and not directory.previous.exists():
        return directory, None
    whole = (
        "; best.pt is whole, for `sample` and `verify`, but holds weights only"
        if is_whole(directory.best)
        else ""
    )
    raise UserError(
        f"{' and '.join(reasons)}, so there is nothing to continue from: put back a copy, name another --out_dir, "
        f"or throw the run away (--overwrite){whole}"
    )


def _read(path: Path) -> ResumePoint:
    seen = _seen(path)  # before reading: what comes between is noticed
    content = read_checkpoint(path)
    if not {"optimizer", "scaler", "random_states", "state"} <= content.keys():
        raise UserError(
            f"{path} holds weights only (best.pt is for grading), not the optimizer and the place in the data: name "
            f"a last.pt"
        )
    if content["format"] < FORMAT:
        raise UserError(
            f"{path} was written by version 1 of this program (format {content['format']}): continue the run with that "
            f"version, or start a new one in another --out_dir; `verify`, `report` and `sample` read it as it is"
        )
    try:
        events = parse_events(content["events"])
        told = history(events)
        random_state = content["random_states"]["cpu"]
        # The state is the sum of the events: no forged value can differ from them.
        if not (
            as_line(content["state"]) == as_line(told.state.to_dict())
            and events[0]["run_id"] == content["run_id"]
            and random_state.dtype == torch.uint8
            and random_state.shape == torch.get_rng_state().shape
            and isinstance(content["corpus_sha256"], str)
            and told.starts[-1]["amp"]
        ):
            raise ValueError
    except (KeyError, TypeError, AttributeError, ValueError, IndexError):
        raise _foreign(path) from None
    return ResumePoint(path, content, events, seen)


def _seen(path: Path) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _refuse_if_checkpoints_are_gone(directory: RunDirectory, on_file: list[Event]) -> None:
    """A run that has saved its steps must not begin again from random weights unasked; one that has not, may."""
    told = history(on_file)
    saved = [start["step"] for start in told.starts[1:]]  # what was resumed had been saved
    if told.end is not None and told.end["saved"]:
        saved.append(told.end["step"])
    if any(saved):
        raise UserError(
            f"{directory.last} is missing, so the run of {max(saved)} steps cannot continue: restore it, name "
            f"another --out_dir, or throw the run away (--overwrite)"
        )


def _events_of(directory: RunDirectory) -> list[Event]:
    """The events on file; none where they are damaged, for a checkpoint carries them as well."""
    events = read_events(directory.events) if directory.events.exists() else []
    try:
        history(events)
    except (KeyError, TypeError, ValueError, AttributeError):
        return []
    return events


def resumed_config(config: RunConfig) -> RunConfig:
    """The settings with which a run will train, without opening it: those of the run that it continues, where there is one."""
    directory = RunDirectory(config.out_dir)
    if config.resume in ("", "auto"):
        on_file = [] if config.overwrite else _events_of(directory)
        return _resolved(config, directory, None, on_file)
    return _resolved(config, *_find(config), [])


def _resolved(
    given: RunConfig, directory: RunDirectory, point: ResumePoint | None, on_file: list[Event]
) -> RunConfig:
    saved = None
    if given.resume in ("", "auto") or point is None:
        # What was asked for last, which may be younger than the checkpoint.
        here = history(on_file).starts if given.resume else []
        if here and (point is None or here[0].get("run_id") == point.content.get("run_id")):
            saved = here[-1]["config"]
    if saved is None and point is not None:
        saved = point.content["config"]
    if saved is None:
        return given
    if not isinstance(saved, dict):
        raise _foreign(point.path)
    return RunConfig.resolve({**given.given, "out_dir": str(directory)}, saved=saved)


def _refuse_what_does_not_fit(
    point: ResumePoint,
    given: RunConfig,
    config: RunConfig,
    corpus: Corpus,
    directory: RunDirectory,
    on_file: list[Event],
) -> None:
    """Raise a UserError where a checkpoint cannot be continued with these settings, on this text."""
    path, content = point.path, point.content
    try:
        theirs, ours = dict(content["model_config"]), GPT2Config.of(config).to_dict()
        fitting = fits(content["optimizer"], config)
        kept = {**content["config"], "amp": point.amp}
    except (KeyError, TypeError, AttributeError, ValueError):
        raise _foreign(path) from None
    # The format in which it computed, not the word `auto`: where that means another one here, the run says so and continues.
    asked = {**given.given, "max_tokens": config.max_tokens, "amp": given.given.get("amp", "auto")}
    for name in KEPT:
        chosen = name in given.given and (name != "amp" or asked["amp"] != "auto")
        if chosen and asked[name] != kept[name]:
            raise UserError(
                f"{name} {asked[name]} differs from {kept[name]}, with which the run in {config.out_dir} was started: "
                f"leave it out to continue that run, or start a new one in another --out_dir"
            )
    if content["corpus_sha256"] != corpus.sha256:
        raise UserError(
            f"the checkpoint was trained on another text (sha256 {content['corpus_sha256'][:12]}…) than "
            f"{corpus.path} ({corpus.sha256[:12]}…): name that text (--input_file) or start a new run (--out_dir)"
        )
    if theirs != ours:
        differing = [name for name in ours if theirs.get(name) != ours[name]]
        raise UserError(
            f"{path} holds a model of another architecture ({_listed(theirs, differing)}) than the run in "
            f"{config.out_dir} ({_listed(ours, differing)}): put back the checkpoint of that run, or start a new one "
            f"in another --out_dir"
        )
    model_from(content)  # raises where the weights are not those of that architecture
    if not fitting:
        raise _foreign(path)
    if config.steps < point.step:
        raise UserError(
            f"steps {config.steps} is below step {point.step}, which the run has reached: raise steps"
        )
    of_another = on_file and on_file[0].get("run_id") != content["run_id"]
    if of_another and _continues_in(directory, given, point):  # elsewhere the claim refuses
        raise UserError(
            f"{path} belongs to another run than {directory.events}: put back the checkpoint of this run, "
            f"or continue that one in a folder of its own (--resume {path} --out_dir NEW)"
        )


def _continues_in(directory: RunDirectory, given: RunConfig, point: ResumePoint | None) -> bool:
    """Whether a run continues in the directory that its checkpoint lies in."""
    if given.resume == "auto":
        return True
    return point is not None and point.path.resolve().parent == directory.last.parent.resolve()


def _listed(sizes: dict[str, Any], names: list[str]) -> str:
    return ", ".join(f"{name} {sizes.get(name)!r}" for name in names)


def _foreign(path: Path) -> UserError:
    return UserError(
        f"{path} lacks what this program writes into a checkpoint: name one that it wrote"
    )


def _lies_in(path: str, directory: RunDirectory) -> bool:
    return Path(path).resolve().is_relative_to(directory.path.resolve())


def _events(
    run: Run, on_file: list[Event], point: ResumePoint | None, n_all: int, n_processes: int
) -> list[Event]:
    """The events so far, those on file where they are whole, and what this process adds before its first step."""
    opening = _opening(run, point, n_all, n_processes)
    if point is None:
        if on_file:  # of the command `run` around this process, or of one that was killed before it saved anything
            opening["command"] = on_file[0]["command"]
        return [opening]
    notes = [point.note] if point.note else []
    events = on_file
    if on_file[: len(point.events)] != point.events:
        events = point.events
        if run.directory.holds_run:
            notes.append(
                f"{run.directory.events.name} was not whole: all records up to step {point.step} are rendered again "
                f"from the checkpoint"
            )
    if point.amp != run.precision.amp:
        notes.append(f"amp was {point.amp} and is {run.precision.amp} from step {point.step} on")
    at = max(n for n, event in enumerate(events) if event["event"] in ("start", "resume"))
    if {event["event"] for event in events[at:]} <= {"resume", "best", "note"} and all(
        events[at].get(name) == opening[name] for name in ("step", "command")
    ):
        events = events[:at]  # `run` and the notebook in it are one command
    events = [*events, opening]
    best, reason = _best_on_disk(run)
    if best["best_step"] != history(events).state.best_train_loss_step:
        events.append({"event": "best", "time": now(), **best})
        notes += [reason] if reason else []
    return events + [{"event": "note", "time": now(), "text": text} for text in notes]


def _best_on_disk(run: Run) -> tuple[dict[str, Any], str]:
    """What best.pt holds, where it is of this run, or why not: it may be younger than last.pt, if a kill came between the two."""
    path, reason = run.directory.best, ""
    try:
        content = read_checkpoint(path)
        state = content["state"]
        if content.get("run_id") == run.run_id:
            return {
                "best_step": int(state["best_train_loss_step"]),
                "train_loss": float(state["best_train_loss"]),
                "windows": state["best_train_loss_windows"],
            }, ""
        reason = f"{path} belongs to another run"
    except UserError as error:
        reason = getattr(error, "reason", f"{path} is missing")
    except (KeyError, TypeError, ValueError):
        reason = f"{path} holds no state of a run"
    lost = {"best_step": None, "train_loss": None, "windows": None}
    return lost, f"{reason}: the next best model that is measured takes its place"


def _claimed(run: Run, given: RunConfig, point: ResumePoint | None) -> Claim:
    """Take hold of the directory, with last.pt the checkpoint to continue from."""
    directory = run.directory
    own = _continues_in(directory, given, point)
    claim = directory.claim(own, given.overwrite)
    try:
        moved = directory.last.exists() if point is None else _seen(point.path) != point.seen
        if own and moved:
            raise UserError(
                f"another process has just trained in {directory}: see how far it came, and start again"
            )
        directory.last.parent.mkdir(exist_ok=True)
        if history(run.events).state.best_train_loss_step is None:
            _set_aside(directory.best)  # damaged, of another run, or from before its first last.pt
        if point is not None and point.path.resolve() != directory.last.resolve():
            # Written before anything is moved: it may be the file set aside itself that the run continues from.
            beside = directory.last.with_name(f".{directory.last.name}.resumed")
            content = {name: part for name, part in point.content.items() if name != "format"}
            save_checkpoint(beside, content)
            _set_aside(directory.last)
            os.replace(beside, directory.last)
    except BaseException as error:
        claim.release()
        if isinstance(error, OSError):
            raise NotWritten(error.filename or directory, error) from error
        raise
    return claim


def _set_aside(path: Path) -> None:
    """Give a file another name, so that nothing is lost and nothing takes it for what it is not."""
    if path.exists():
        aside = path.with_name(f"set_aside_{path.name}")
        number = 1
        while aside.exists():
            number += 1
            aside = path.with_name(f"set_aside_{number}_{path.name}")
        os.replace(path, aside)
        print(f"{path.name} is kept as {aside}", file=sys.stderr)


def _opening(run: Run, point: ResumePoint | None, n_all: int, n_processes: int) -> Event:
    """The `start` or `resume` event of this process."""
    config, corpus, precision = run.config, run.corpus, run.precision
    shared = f", {n_processes} processes" if n_processes > 1 else ""
    return {
        "event": "resume" if point else "start",
        "time": now(),
        "format": FORMAT,
        "run_id": run.run_id,
        **({"step": point.step} if point else {}),
        "command": command_line(),
        "config": config.model_dump(),
        "environment": {**environment(), "processes": n_processes},
        "corpus": {
            "source": corpus.source,
            "path": corpus.path,
            "sha256": corpus.sha256,
            "chars": corpus.chars,
            "tokens": len(run.windows.tokens),
            "is_course_input": corpus.is_course_input and len(run.windows.tokens) == n_all,
            **({"notes": list(corpus.notes)} if corpus.notes else {}),
        },
        "device": precision.device_name + shared,
        "processes": n_processes,
        "amp": precision.amp,
        "torch": torch.__version__,
        "n_params": parameter_count(run.model_config),
        "sources_sha256": sources_sha256(),
    }
