"""The events of a run: the one record that training writes. Every other record is rendered from
them.

`logs/events.jsonl` holds one JSON object a line and is only ever appended to. From it come
`train.log`, the two CSV files, `samples.txt` and `summary.json`, so these cannot contradict each
other, and a damaged one is rendered again. A checkpoint carries the events up to its step: what a
resume needs is in that one file.

    event      fields besides `event` and `time`
    start      format, run_id, command, config, environment, corpus, device, processes, amp, torch,
               n_params, sources_sha256
    resume     the same, and step: that of the checkpoint from which the run continues
    step       step, epoch, tokens, loss, lr, grad_norm, elapsed_s, skipped, wall_s: one an update
    measured   step, train_loss, windows, n_targets, recall
    row        step, tok_per_s, loss_scale: this step has a line in train_metrics.csv
    samples    step, samples
    best       best_step, train_loss, windows: what best.pt holds where the events before do not
               say so (null: nothing)
    note       text
    end        status, step, seconds, wall_seconds, error, saved: whether there is a last.pt

A `resume` at step N supersedes what came after N: those steps are done again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.files import read_regular
from gpt2_nb_utils.progress import duration
from gpt2_nb_utils.text import one_line, visible
from gpt2_nb_utils.training.records import RecallRow, RecallStats, Row, Sample

FORMAT = 2
"""Of events and checkpoints. Format 1 had no events: its logs were written one by one."""
Event = dict[str, Any]
COLUMNS = tuple(column.name for column in fields(Row))
RECALL_COLUMNS = ("step", *(column.name for column in fields(RecallStats)))
_SMOOTHING = 0.9


def read_events(path: Path) -> list[Event]:
    """The events of a run, up to the first line that is not one: a power cut may have left its last
    ones in pieces.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    try:
        lines = read_regular(path).split(b"\n")  # a pipe would never end
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): restore it") from None
    return parse_events(lines[:-1])  # what follows the last newline was cut short


def parse_events(lines: Iterable[bytes | str]) -> list[Event]:
    """The events on these lines, up to the first that is none."""
    events: list[Event] = []
    for line in lines:
        try:
            event = json.loads(line)
            if not isinstance(event["event"], str) or not isinstance(event["time"], str):
                break
        except (ValueError, TypeError, KeyError, RecursionError):
            break
        events.append(event)
    return events


def now() -> str:
    """The time of an event: local, with its offset, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def as_line(event: Event) -> str:
    """An event as its line of `events.jsonl`, without the newline. Numbers come back exactly; NaN
    is one of them."""
    return json.dumps(event, ensure_ascii=False)


@dataclass
class State:
    """Where a run stands: counters and best values, the sum of its events.

    Attributes:
        step: optimizer updates done.
        tokens_seen: predictions trained on.
        seconds: time spent on training steps.
        wall_seconds: time spent in all, measurements, samples and checkpoints included.
        loss: that of the last batch; `smoothed_loss` is its moving average.
        train_loss: training loss last measured, on `train_loss_windows` windows (or "all").
        smoothed_loss_when_measured: `smoothed_loss` at that time.
        skipped_in_a_row: updates without finite gradients, up to now.
        sampled_at: the step of the last samples.
    """

    step: int = 0
    tokens_seen: int = 0
    epoch: float = 0.0
    seconds: float = 0.0
    wall_seconds: float = 0.0
    loss: float | None = None
    smoothed_loss: float | None = None
    best_batch_loss: float | None = None
    best_batch_step: int | None = None
    train_loss: float | None = None
    train_loss_windows: str | int | None = None
    train_loss_step: int | None = None
    best_train_loss: float | None = None
    best_train_loss_windows: str | int | None = None
    best_train_loss_step: int | None = None
    smoothed_loss_when_measured: float | None = None
    skipped_in_a_row: int = 0
    sampled_at: int | None = None

    def take(self, event: Event) -> None:
        """Count one event."""
        match event["event"]:
            case "step":
                self._take_step(event)
            case "measured":
                self.train_loss, self.train_loss_windows = event["train_loss"], event["windows"]
                self.train_loss_step = event["step"]
                self.smoothed_loss_when_measured = self.smoothed_loss
                if self._is_best():
                    self.best_train_loss = self.train_loss
                    self.best_train_loss_windows = self.train_loss_windows
                    self.best_train_loss_step = self.train_loss_step
            case "samples":
                self.sampled_at = event["step"]
            case "best":
                self.best_train_loss = event["train_loss"]
                self.best_train_loss_windows = event["windows"]
                self.best_train_loss_step = event["best_step"]
            case "end":
                self.wall_seconds = event["wall_seconds"]

    def _take_step(self, event: Event) -> None:
        self.wall_seconds = event["wall_s"]
        self.step, self.tokens_seen, self.epoch = event["step"], event["tokens"], event["epoch"]
        self.seconds, self.loss = event["elapsed_s"], event["loss"]
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if event["skipped"] else 0
        if not math.isfinite(self.loss):
            return
        before = self.loss if self.smoothed_loss is None else self.smoothed_loss
        self.smoothed_loss = _SMOOTHING * before + (1 - _SMOOTHING) * self.loss
        if self.best_batch_loss is None or self.loss < self.best_batch_loss:
            self.best_batch_loss, self.best_batch_step = self.loss, self.step

    def _is_best(self) -> bool:
        """Whether the training loss just measured is the best so far."""
        # Random weights are no result, so step 0 is never the best.
        if self.train_loss_step == 0 or not math.isfinite(self.train_loss):
            return False
        if self.best_train_loss is None:
            return True
        # A measurement of the whole corpus outranks every estimate, whichever is lower.
        whole = self.train_loss_windows == "all"
        if whole != (self.best_train_loss_windows == "all"):
            return whole
        return self.train_loss < self.best_train_loss

    def reached(self, target_loss: float) -> bool:
        """Whether the training loss, measured over the whole corpus, has been below the target.

        best.pt may be from a step that a killed run had reached, and this one, resumed from before,
        has not reached again.
        """
        return (
            self.best_train_loss is not None
            and self.best_train_loss_windows == "all"
            and self.best_train_loss < target_loss
            and self.best_train_loss_step <= self.step
        )

    def is_at_end(self, steps: int, target_loss: float) -> bool:
        """Whether a run of so many steps, with this target, has nothing left to train."""
        return self.step >= steps or self.reached(target_loss)


class History:
    """What the events of a run come to.

    Attributes:
        starts: the `start` event and each `resume`, in order.
        steps: the `step` events by step.
        measurements: the `measured` events, in order.
        rows: the lines of `train_metrics.csv`; that of step 0 is about the random weights.
        recall: the lines of `recall.csv`.
        end: the last `end` event; None while the run is at work, or was killed.
        state: where the run stands.
    """

    def __init__(self) -> None:
        self.starts: list[Event] = []
        self.steps: dict[int, Event] = {}
        self.measurements: list[Event] = []
        self.rows: list[Row] = []
        self.recall: list[RecallRow] = []
        self.end: Event | None = None
        self.state = State()
        self._samples: list[Sample] = []

    def take(self, event: Event) -> None:
        """Count one event that supersedes none."""
        self.state.take(event)
        match event["event"]:
            case "start" | "resume":
                self.starts.append(event)
                self.end = None
            case "step":
                self.steps[event["step"]] = event
            case "measured":
                self.measurements.append(event)
                if event["recall"] is not None:
                    self.recall.append(RecallRow(event["step"], RecallStats(**event["recall"])))
            case "row":
                self.rows.append(self._row(event))
            case "samples":
                self._samples += [Sample(**sample) for sample in event["samples"]]
            case "end":
                self.end = event

    def _row(self, event: Event) -> Row:
        step, state = event["step"], self.state
        about = self.steps.get(step, {"step": step, "epoch": 0.0, "tokens": 0})
        return Row(
            **{name: value for name, value in about.items() if name in COLUMNS},
            train_loss=state.train_loss if state.train_loss_step == step else None,
            tok_per_s=event["tok_per_s"],
            loss_scale=event["loss_scale"],
        )

    @property
    def samples(self) -> list[Sample]:
        """The generations, in order, without the greedy one of an end that the run went beyond."""
        return [
            sample for sample in self._samples if not sample.final or sample.step >= self.state.step
        ]


def history(events: Iterable[Event]) -> History:
    """What these events come to, without those that later ones supersede.

    Raises:
        KeyError, TypeError, ValueError: an event lacks what `events.py` writes.
    """
    kept: list[Event] = []
    for event in events:
        if event["event"] == "start":
            kept = []
        elif event["event"] == "resume":  # the steps after its checkpoint are done again
            kept = [before for before in kept if before.get("step", 0) <= event["step"]]
        kept.append(event)
    run = History()
    for event in kept:
        run.take(event)
    return run


# Rendering


def rendered(events: list[Event]) -> dict[str, str]:
    """The text of each file that is rendered from the events, by its path in the run directory."""
    run, so_far, log = history(events), History(), ""
    for event in events:  # also those that were superseded later: the log tells what happened
        so_far.take(event)
        log += log_lines(event, so_far)
    first, *resumed = (event["environment"] for event in run.starts)
    files = {
        "config.json": _json(run.starts[-1]["config"]),
        "environment.json": _json({**first, "resumed": resumed} if resumed else first),
        "logs/train.log": log,
        "logs/train_metrics.csv": ",".join(COLUMNS) + "\n" + "".join(map(csv_line, run.rows)),
        "logs/recall.csv": ",".join(RECALL_COLUMNS) + "\n" + "".join(map(csv_line, run.recall)),
        "summary.json": _json(summary(run)),
    }
    if run.samples:
        files["samples/samples.txt"] = samples_text(run.samples)
    return files


def summary(run: History) -> dict[str, Any]:
    """The content of `summary.json`."""
    first, last, state = run.starts[0], run.starts[-1], run.state
    config = last["config"]
    return {
        "preset": config["preset"],
        "command": first["command"],
        "resumed_with": [
            {"step": event["step"], "command": event["command"]} for event in run.starts[1:]
        ],
        "seed": config["seed"],
        **{name: last[name] for name in ("device", "processes", "amp", "torch", "n_params")},
        "config": config,
        "corpus": last["corpus"],
        "status": run.end["status"] if run.end else "running",
        **({"reason": run.end["error"]} if run.end and run.end["error"] else {}),
        "step": state.step,
        "epoch": state.epoch,
        "tokens_seen": state.tokens_seen,
        "seconds": round(state.seconds, 3),
        "wall_seconds": round(state.wall_seconds, 3),
        "tok_per_s": round(state.tokens_seen / state.seconds, 1) if state.seconds else None,
        "loss": _finite(state.loss),
        "best_batch_loss": state.best_batch_loss,
        "best_batch_step": state.best_batch_step,
        "train_loss": _finite(state.train_loss),
        "train_loss_windows": state.train_loss_windows,
        "train_loss_step": state.train_loss_step,
        "best_train_loss": state.best_train_loss,
        "best_train_loss_windows": state.best_train_loss_windows,
        "best_train_loss_step": state.best_train_loss_step,
        "target_loss": config["target_loss"],
        "target_reached": state.reached(config["target_loss"]),
    }


def log_lines(event: Event, run: History) -> str:
    """An event as its lines of `train.log`, each with its time and a newline.

    Args:
        run: what all events up to this one come to.
    """
    texts: list[str] = []
    match event["event"]:
        case "start" | "resume":
            texts = _start_lines(event)
        case "step" if event["skipped"]:
            texts = [
                f"step {event['step']}  skipped: its gradients are not finite, "
                f"loss {event['loss']:g}"
            ]
        case "row" if (row := run.rows[-1]).loss is not None:  # else about the random weights
            speed = "" if row.tok_per_s is None else f"  tok/s {row.tok_per_s:.1f}"
            scale = "" if row.loss_scale is None else f"  loss_scale {row.loss_scale:g}"
            texts = [
                f"step {row.step}  loss {row.loss:.4f}  lr {row.lr:.3e}{speed}  "
                f"grad_norm {row.grad_norm:.3f}{scale}"
            ]
        case "measured":
            n = event["windows"]
            covers = "whole text" if n == "all" else f"estimated on {n} windows"
            texts = [f"step {event['step']}  training loss {event['train_loss']:.6f} ({covers})"]
        case "note":
            texts = [event["text"]]
        case "end" if event["error"]:
            texts = [f"{event['status']}: {event['error']} (at step {event['step']})"]
        case "end":
            texts = [
                f"{event['status']} at step {event['step']}, {duration(event['seconds'])} of "
                f"training, {duration(event['wall_seconds'])} with measurements, samples and "
                f"checkpoints"
            ]
    time = event["time"][:19].replace("T", " ")
    return "".join(f"{time}  {one_line(text)}\n" for text in texts)


def _start_lines(event: Event) -> list[str]:
    config, corpus = RunConfig(**event["config"]), event["corpus"]
    n_windows = -(-(corpus["tokens"] - 1) // config.seq_len)
    epochs = config.steps * config.batch_size * config.grad_accum / n_windows
    title, origin = f"new run in {config.out_dir}", f"random weights (seed {config.seed})"
    if event["event"] == "resume":
        title = f"resumed at step {event['step']} in {config.out_dir}"
        origin = f"the checkpoint of step {event['step']}"
    course = "the course's input.txt" if corpus["is_course_input"] else "not the course's input.txt"
    return [
        title,
        f"device {event['device']}  amp {event['amp']}  torch {event['torch']}",
        "arguments " + "  ".join(f"{name}={value!r}" for name, value in event["config"].items()),
        f"corpus {corpus['path']}: {corpus['chars']:,} characters, "
        f"sha256 {corpus['sha256'][:12]}…, {course}",
        *(f"corpus note: {note}" for note in corpus.get("notes") or []),
        f"model {event['n_params']:,} parameters, from {origin}",
        f"tokens {corpus['tokens']:,}  windows {n_windows:,} of {config.seq_len}",
        f"tokens per step {config.tokens_per_step:,}  steps {config.steps:,}  epochs {epochs:.2f}",
    ]


def csv_line(record: Row | RecallRow) -> str:
    """A line of `train_metrics.csv` or `recall.csv`."""
    return ",".join(record.cells()) + "\n"


def samples_text(samples: Iterable[Sample]) -> str:
    """Samples as a person reads them. No generated line can pass for a header: each begins with a
    bar."""
    blocks = []
    for sample in samples:
        settings = dict(sample.settings)
        of = f" of {settings.pop('prompts')}" if "prompts" in settings else ""
        header = [f"step {sample.step}", f"prompt {sample.prompt_index}{of}"]
        header += [f"{name} {value}" for name, value in settings.items()]
        lines = [f"| {line}" for line in visible(sample.text).split("\n")]
        prompt = visible(json.dumps(sample.prompt, ensure_ascii=False))
        blocks.append(
            "\n".join([f"=== {' · '.join(header)} ===", f"PROMPT: {prompt}", "SAMPLE:", *lines])
        )
    return "".join(f"{block}\n\n" for block in blocks)


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None  # JSON knows no NaN
