"""Before the first step: find the checkpoint to continue from, resolve the settings, read the text,
claim the directory.

Everything is checked before anything is written, so that a run that cannot work leaves the folder
as it was. What a resume needs is in the checkpoint: its settings, its events and its state; every
other file is rendered again from these.
"""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import NotWritten, UserError
from gpt2_nb_utils.files import Claim, identity, move
from gpt2_nb_utils.machine import command_line, environment, sources_sha256
from gpt2_nb_utils.model.gpt2 import GPT2Config
from gpt2_nb_utils.model.parts import parameter_count
from gpt2_nb_utils.progress import print_line
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
from gpt2_nb_utils.training.out_of_memory import refuse_what_cannot_fit, text_fits
from gpt2_nb_utils.training.precision import Precision, check_device, unused_gpu

KEPT = (
    "preset", "max_tokens", "seed", "block_size", "n_layer", "n_head", "n_embd", "batch_size",
    "seq_len", "grad_accum", "randomize_batches", "optimizer", "amp",
)  # fmt: skip
"""Settings that a resumed run cannot change: its weights, its optimizer or its place in the data
depend on them."""

_OF_BEST = ("run_id", "model_config", "config", "corpus_sha256", "state", "model")
"""What best.pt holds of a checkpoint."""


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
        checkpoint: what it continues from, or None; drop it once restored, for it is as large as
            the whole run.
        claim: keeps other processes out of the directory; None in those that rank 0 writes for.
        best_is_lost: best.pt is damaged or gone, but the checkpoint holds the same weights.
        superseded: the events on file hold what no checkpoint here speaks of: they are set aside.
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
    best_is_lost: bool = False
    superseded: bool = False

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
        seen: its `identity` when it was read.
        note: why last.pt was passed over, where this is the one before it.
    """

    path: Path
    content: dict[str, Any]
    events: list[Event]
    seen: tuple[int, ...] | None
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

    With the path of a checkpoint and no `out_dir`, the run continues in the directory that the
    checkpoint lies in.

    Args:
        dist: the processes that will train it together; all check, and the first one claims.

    Raises:
        UserError: the corpus, the checkpoint, the device or the directory is not fit; nothing was
            written then.
    """
    given = config
    directory, point, on_file, config = _found(given)
    dist.check_batch_size(config.batch_size)
    precision, warnings = _computable(config, dist)
    with text_fits():
        corpus = load_corpus(config.input_file)
        _refuse_what_cannot_fit(config, precision, dist, corpus.chars)
        cached = read_tokens(directory.tokens, corpus)
        ids = encode(corpus.text) if cached is None else cached
    if config.max_tokens >= len(ids):  # an excerpt of everything is no excerpt
        config = config.model_copy(update={"max_tokens": 0})
    if point is not None:
        _refuse_what_does_not_fit(point, given, config, corpus, directory, on_file)
    if config.overwrite and corpus.source == "input_file":
        if Path(corpus.path).resolve().is_relative_to(directory.path.resolve()):
            raise UserError(
                f"input_file {corpus.path} lies in out_dir {directory}, which --overwrite throws "
                f"away: move the text elsewhere"
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
    if on_file and directory.is_held_around:  # `run` and the notebook in it are one command
        command = history(on_file).starts[-1]["command"]
    else:
        command = command_line(given.given)
    notes = list(filter(None, warnings))
    run.events = _events(run, on_file, point, command, len(ids), dist.world_size, notes)
    dist.check_equal(seen=(corpus.sha256, point and point.step))  # all have read: now one writes
    if dist.is_main:
        run.claim = _claimed(run, given, point)
        try:
            for note in notes:
                print_line(note)
            if cached is None or given.overwrite:
                write_tokens(directory.tokens, ids)
        except BaseException:  # such as Ctrl-C in a notebook, whose kernel lives on
            run.claim.release()
            raise
    return run


def resumed_config(config: RunConfig) -> RunConfig:
    """The settings with which a run will train, without opening it: those of the run that it
    continues, where there is one.

    Raises:
        UserError: the run could not be opened, as far as that can be told in a moment.
    """
    *_, on_file, resolved = _found(config, reads_last=False)
    precision, _ = _computable(resolved, SINGLE)
    _refuse_what_cannot_fit(resolved, precision, SINGLE)
    if config.resume == "auto" and on_file:
        started = history(on_file).starts[-1]
        kept, asked = {**started["config"], "amp": started.get("amp")}, config.given
        if not kept.get("max_tokens"):
            asked.pop("max_tokens", None)  # which may be more than the text has: 0 as well
        _refuse_other_settings(asked, kept, resolved.out_dir)
    return resolved


def _found(
    given: RunConfig, reads_last: bool = True
) -> tuple[RunDirectory, ResumePoint | None, list[Event], RunConfig]:
    """The run directory, the checkpoint to continue from, the events on file, and the settings.

    Args:
        reads_last: whether `auto` reads last.pt, which is large; the events on file have the
            settings as well.
    """
    if given.overwrite and given.resume not in ("", "auto"):
        raise UserError(
            f"--resume {given.resume} continues a run and --overwrite throws one away: leave out "
            f"one of the two"
        )
    directory = _directory_of(given)
    auto = given.resume == "auto"
    point = _resume_point(given, directory) if reads_last or not auto else None
    on_file = _events_of(given, directory)
    if auto and not (directory.last.exists() or directory.previous.exists()):
        _refuse_if_checkpoints_are_gone(directory, on_file)
    directory.check(_continues_in(directory, given, point), given.overwrite)
    return directory, point, on_file, _resolved(given, directory, point, on_file)


def _computable(config: RunConfig, dist: DistContext) -> tuple[Precision, list[str | None]]:
    """Where and in which format the run computes, and warnings about it; raises a UserError where
    that is not possible on this machine."""
    precision = Precision.of(config, dist)
    warnings = [check_device(precision, config.compile)]
    if config.device == "auto":
        warnings.append(unused_gpu())
    return precision, warnings


def _refuse_what_cannot_fit(
    config: RunConfig, precision: Precision, dist: DistContext, chars: int = 0
) -> None:
    refuse_what_cannot_fit(
        config,
        parameter_count(GPT2Config.of(config)),
        precision.device,
        dist.world_size,
        dist.local_world_size,
        chars=chars,
    )


def _directory_of(config: RunConfig) -> RunDirectory:
    """The run directory. A checkpoint that is named alone continues where it lies."""
    checkpoint = Path(config.resume)
    if not (config.resume in ("", "auto") or config.overwrite or "out_dir" in config.given):
        own = RunDirectory(checkpoint.parent.parent)
        if checkpoint.parent == own.last.parent and own.holds_run:
            return own
    return RunDirectory(config.out_dir)


def _resume_point(config: RunConfig, directory: RunDirectory) -> ResumePoint | None:
    """The checkpoint that the run continues from; None where it starts from random weights."""
    if not config.resume or config.overwrite:
        return None
    if config.resume != "auto":
        return _read(Path(config.resume))
    here = [path for path in (directory.last, directory.previous) if path.exists()]
    if not here:
        return None
    reasons = [] if directory.last in here else [f"{directory.last} is missing"]
    for path in here:
        try:
            point = _read(path)
        except Unreadable as error:
            reasons.append(error.reason)
        else:
            if reasons:
                note = (
                    f"{reasons[0]}: continuing from the checkpoint before it, of step {point.step}"
                )
                point = replace(point, note=note)
            return point
    if directory.previous not in here:
        reasons.append(f"{directory.previous.name} is missing")
    whole = "; best.pt is whole, for `sample` and `verify`, but holds weights only"
    raise UserError(
        f"{' and '.join(reasons)}, so there is nothing to continue from: put back a copy, name "
        f"another --out_dir, or throw the run away (--overwrite)"
        f"{whole if is_whole(directory.best) else ''}"
    )


def _read(path: Path) -> ResumePoint:
    seen = identity(path)  # before reading: what comes between is noticed
    content = read_checkpoint(path)
    if not {"optimizer", "scaler", "random_states", "state"} <= content.keys():
        raise UserError(
            f"{path} holds weights only (best.pt is for grading), not the optimizer and the place "
            f"in the data: name a last.pt"
        )
    if content["format"] < FORMAT:
        raise UserError(
            f"{path} was written by version 1 of this program (format {content['format']}): "
            f"continue the run with that version, or start a new one in another --out_dir; "
            f"`verify`, `report` and `sample` read it as it is"
        )
    try:
        events = parse_events(content["events"])
        past = history(events)
        random_state = content["random_states"]["cpu"]
        # The state is the sum of the events: no forged value can differ from them.
        if (
            as_line(content["state"]) == as_line(asdict(past.state))
            and events[0]["run_id"] == content["run_id"]
            and random_state.dtype == torch.uint8
            and random_state.shape == torch.get_rng_state().shape
            and isinstance(content["corpus_sha256"], str)
            and past.starts[-1]["amp"]
            and content["config"].keys() >= {*KEPT}
            and content["model_config"].keys()
        ):
            return ResumePoint(path, content, events, seen)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError):
        pass
    raise _foreign(path)


def _refuse_if_checkpoints_are_gone(directory: RunDirectory, on_file: list[Event]) -> None:
    """A run that has saved its steps must not begin again from random weights unasked."""
    past = history(on_file)
    saved = [start["step"] for start in past.starts[1:]]  # what was resumed had been saved
    if past.end is not None and past.end["saved"]:
        saved.append(past.end["step"])
    if any(saved):
        raise UserError(
            f"{directory.last} is missing, so the run of {max(saved)} steps cannot continue: "
            f"restore it, name another --out_dir, or throw the run away (--overwrite)"
        )


def _events_of(config: RunConfig, directory: RunDirectory) -> list[Event]:
    """The events on file; none where they are damaged, for a checkpoint carries them as well."""
    if config.overwrite or not directory.events.exists():
        return []
    events = read_events(directory.events)
    try:
        history(events)
    except (KeyError, TypeError, ValueError, AttributeError):
        return []
    return events


def _resolved(
    given: RunConfig, directory: RunDirectory, point: ResumePoint | None, on_file: list[Event]
) -> RunConfig:
    saved = point and point.content["config"]
    if given.resume == "auto" and on_file:
        # What was asked for last, which may be younger than the checkpoint.
        starts = history(on_file).starts
        if point is None or starts[0].get("run_id") == point.content["run_id"]:
            saved = starts[-1]["config"]
    if saved is None:
        return given
    return RunConfig.resolve({**given.given, "out_dir": str(directory)}, saved=saved)


def _refuse_what_does_not_fit(
    point: ResumePoint,
    given: RunConfig,
    config: RunConfig,
    corpus: Corpus,
    directory: RunDirectory,
    on_file: list[Event],
) -> None:
    """Raise a UserError where a checkpoint cannot be continued with these settings, on this
    text."""
    path, content = point.path, point.content
    theirs, ours = content["model_config"], GPT2Config.of(config).to_dict()
    asked = given.given
    if "max_tokens" in asked:
        asked["max_tokens"] = config.max_tokens
    _refuse_other_settings(asked, {**content["config"], "amp": point.amp}, config.out_dir)
    if content["corpus_sha256"] != corpus.sha256:
        raise UserError(
            f"the checkpoint was trained on another text (sha256 {content['corpus_sha256'][:12]}…) "
            f"than {corpus.path} ({corpus.sha256[:12]}…): name that text (--input_file) or start a "
            f"new run (--out_dir)"
        )
    if theirs != ours:
        held, wanted = (
            ", ".join(
                f"{name} {sizes.get(name)!r}" for name in ours if theirs.get(name) != ours[name]
            )
            for sizes in (theirs, ours)
        )
        raise UserError(
            f"{path} holds a model of another architecture ({held}) than the run in "
            f"{config.out_dir} ({wanted}): put back the checkpoint of that run, or start a new one "
            f"in another --out_dir"
        )
    model_from(content)  # raises where the weights are not those of that architecture
    if not fits(content["optimizer"], config):
        raise _foreign(path)
    if config.steps < point.step:
        raise UserError(
            f"steps {config.steps} is below step {point.step}, which the run has reached: raise "
            f"steps"
        )
    of_another = on_file and on_file[0].get("run_id") != content["run_id"]
    if of_another and _continues_in(directory, given, point):  # elsewhere the claim refuses
        raise UserError(
            f"{path} belongs to another run than {directory.events}: put back the checkpoint of "
            f"this run, or continue that one in a folder of its own (--resume {path} --out_dir NEW)"
        )


def _refuse_other_settings(asked: dict[str, Any], kept: dict[str, Any], out_dir: str) -> None:
    """Raise a UserError where settings were given that a resumed run cannot change.

    Args:
        kept: those of the run, with `amp` the format in which it computed, not the word `auto`:
            where that means another one here, the run says so and continues.
    """
    for name in KEPT:
        value, before = asked.get(name), kept.get(name)
        if None not in (value, before) and value != before and (name, value) != ("amp", "auto"):
            raise UserError(
                f"{name} {value} differs from {before}, with which the run in {out_dir} "
                f"was started: leave it out to continue that run, or start a new one in another "
                f"--out_dir"
            )


def _continues_in(directory: RunDirectory, given: RunConfig, point: ResumePoint | None) -> bool:
    """Whether a run continues in the directory that its checkpoint lies in."""
    if given.resume == "auto":
        return True
    return point is not None and point.path.resolve().parent == directory.last.parent.resolve()


def _foreign(path: Path) -> UserError:
    return UserError(
        f"{path} lacks what this program writes into a checkpoint: name one that it wrote"
    )


def _events(
    run: Run,
    on_file: list[Event],
    point: ResumePoint | None,
    command: str,
    n_all: int,
    n_processes: int,
    notes: list[str],
) -> list[Event]:
    """The events so far, those on file where they are whole, with what this process adds before its
    first step: the notes, which grow here, among it."""
    opening = _opening(run, point, command, n_all, n_processes)
    if point is None:
        if on_file:  # also of a command that was killed before it saved
            opening["command"] = on_file[0]["command"]
            done = history(on_file).state.step
            run.superseded = done >= run.config.save_every
            if run.superseded:
                notes.append(
                    f"no checkpoint is left of the {done:,} steps on record: the run begins again "
                    f"from random weights"
                )
        return [opening, *_notes(notes)]
    notes += [point.note] if point.note else []
    events = on_file
    if on_file[: len(point.events)] != point.events:
        events = point.events
        run.superseded = on_file != point.events[: len(on_file)]
        if run.directory.holds_run:
            notes.append(
                f"{run.directory.events.name} was not whole: all records up to step {point.step} "
                f"are rendered again from the checkpoint"
            )
    if point.amp != run.precision.amp:
        notes.append(f"amp was {point.amp} and is {run.precision.amp} from step {point.step} on")
    at = max(n for n, event in enumerate(events) if event["event"] in ("start", "resume"))
    if {event["event"] for event in events[at:]} <= {"resume", "best", "note"} and all(
        events[at].get(name) == opening[name] for name in ("step", "command")
    ):
        events = events[:at]  # begun again before anything was done, as by `run` and its notebook
    events = [*events, opening]
    best, reason = _best_on_disk(run, events)
    best_step = history(events).state.best_train_loss_step
    if best["best_step"] is None and best_step == point.step:
        run.best_is_lost = True
        notes.append(f"{reason}: written again from {point.path.name}, which has the same weights")
    elif best["best_step"] != best_step:
        events.append({"event": "best", "time": now(), **best})
        if reason:
            notes.append(f"{reason}: the next best model that is measured takes its place")
    return events + _notes(notes)


def _notes(texts: list[str]) -> list[Event]:
    return [{"event": "note", "time": now(), "text": text} for text in texts]


def _best_on_disk(run: Run, events: list[Event]) -> tuple[dict[str, Any], str]:
    """What best.pt holds, where its measurement is among the events of this run, or why not: it may
    be younger than last.pt, if a kill came between the two."""
    path = run.directory.best
    try:
        content = read_checkpoint(path)
        state = content["state"]
        best = {
            "best_step": int(state["best_train_loss_step"]),
            "train_loss": float(state["best_train_loss"]),
            "windows": state["best_train_loss_windows"],
        }
        # A copy of this run that was resumed by itself has the same identity.
        on_record = any(
            [*best.values()] == [event["step"], event["train_loss"], event["windows"]]
            for event in events
            if event["event"] == "measured"
        )
        if content.get("run_id") == run.run_id and on_record:
            return best, ""
        reason = f"{path} belongs to another run"
    except UserError as error:
        reason = getattr(error, "reason", f"{path} is missing")
    except (KeyError, TypeError, ValueError):
        reason = f"{path} holds no state of a run"
    return {"best_step": None, "train_loss": None, "windows": None}, reason


def _claimed(run: Run, given: RunConfig, point: ResumePoint | None) -> Claim:
    """Take hold of the directory, with last.pt the checkpoint to continue from."""
    directory = run.directory
    own = _continues_in(directory, given, point)
    claim = directory.claim(own, given.overwrite)
    try:
        moved = directory.last.exists() if point is None else identity(point.path) != point.seen
        if own and moved:
            raise UserError(
                f"another process has just trained in {directory}: check its progress, and start "
                f"again"
            )
        directory.last.parent.mkdir(exist_ok=True)
        if run.superseded:
            _set_aside(directory.events)
        if history(run.events).state.best_train_loss_step is None:
            _set_aside(directory.best)  # damaged, of another run, or from before its first last.pt
        elif run.best_is_lost:
            _set_aside(directory.best)
            save_checkpoint(directory.best, {name: point.content[name] for name in _OF_BEST})
        if point is not None and point.path.resolve() != directory.last.resolve():
            # Written before anything is moved: the run may continue from the file set aside itself.
            beside = directory.last.with_name(f".{directory.last.name}.resumed")
            save_checkpoint(beside, point.content)
            _set_aside(directory.last)
            move(beside, directory.last)
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
        move(path, aside)
        print_line(f"{path.name} is kept as {aside}")


def _opening(
    run: Run, point: ResumePoint | None, command: str, n_all: int, n_processes: int
) -> Event:
    """The `start` or `resume` event of this process."""
    config, corpus, precision = run.config, run.corpus, run.precision
    shared = f", {n_processes} processes" if n_processes > 1 else ""
    return {
        "event": "resume" if point else "start",
        "time": now(),
        "format": FORMAT,
        "run_id": run.run_id,
        **({"step": point.step} if point else {}),
        "command": command,
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
