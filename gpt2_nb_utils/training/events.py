"""The events of a run: the one record that training writes. Every other record is rendered from them.

`logs/events.jsonl` holds one JSON object a line and is only ever appended to. From it come `train.log`, the two CSV files,
`samples.txt` and `summary.json`, so these cannot contradict each other, and a damaged one is rendered again. A checkpoint
carries the events up to its step: what a resume needs is in that one file.

    event      fields besides `event` and `time`
    start      format, run_id, command, config, environment, corpus, device, processes, amp, torch, n_params, sources_sha256
    resume     the same, and step: that of the checkpoint from which the run continues
    step       step, epoch, tokens, loss, lr, grad_norm, elapsed_s, wall_s, skipped: one for each update
    measured   step, train_loss, windows, n_targets, recall
    row        step, tok_per_s, loss_scale: this step has a line in train_metrics.csv
    samples    step, samples
    best       best_step, train_loss, windows: what best.pt holds where the events before do not say so (null: nothing)
    note       text
    end        status, step, seconds, wall_seconds, error, saved: whether there is a last.pt to continue from

A `resume` at step N supersedes what came after N: those steps are done again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.files import read_regular
from gpt2_nb_utils.progress import duration
from gpt2_nb_utils.text import one_line, visible
from gpt2_nb_utils.training.records import Recalled, RecallRow, Row, Sample, TrainingLoss

FORMAT = 2
"""Of events and checkpoints. Format 1 had no events: its logs were written one by one."""
Event = dict[str, Any]
COLUMNS = tuple(column.name for column in fields(Row))
RECALL_COLUMNS = ("step", *(column.name for column in fields(Recalled)))
_SMOOTHING = 0.9


def read_events(path: Path) -> list[Event]:
    """The events of a run, up to the first line that is not one: a power cut may have left its last ones in pieces.

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
    """An event as its line of `events.jsonl`, without the newline. Numbers come back exactly; NaN is one of them."""
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

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, for a checkpoint."""
        return asdict(self)

    def take(self, event: Event) -> None:
        """Count one event."""
        match event["event"]:
            case "step":
                self._take_step(event)
            case "measured":
                self._take_measurement(
                    TrainingLoss(event["train_loss"], event["windows"]), event["step"]
                )
            case "samples":
                self.sampled_at = event["step"]
            case "best":
                self._set_best(event["train_loss"], event["windows"], event["best_step"])
            case "end":
                self.wall_seconds = event["wall_seconds"]

    def _set_best(self, loss: float | None, windows: str | int | None, step: int | None) -> None:
        self.best_train_loss, self.best_train_loss_windows = loss, windows
        self.best_train_loss_step = step

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

    def _take_measurement(self, measured: TrainingLoss, step: int) -> None:
        self.train_loss, self.train_loss_windows = measured.loss, measured.windows
        self.train_loss_step, self.smoothed_loss_when_measured = step, self.smoothed_loss
        if self.is_improved_by(measured, step):
            self._set_best(measured.loss, measured.windows, step)

    def is_improved_by(self, measured: TrainingLoss, step: int) -> bool:
        """Whether this is the best training loss so far.

        A measurement of the whole corpus outranks every estimate, whichever is lower. Random weights are no result, so
        step 0 is never the best.
        """
        if step == 0 or not math.isfinite(measured.loss):
            return False
        best_is_whole = self.best_train_loss_windows == "all"
        if self.best_train_loss is None or measured.whole != best_is_whole:
            return self.best_train_loss is None or measured.whole
        return measured.loss < self.best_train_loss

    def reached(self, target_loss: float) -> bool:
        """Whether the training loss, measured over the whole corpus, has been below the target.

        best.pt may be from a step that a killed run had reached, and this one, resumed from before, has not reached again.
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
        end: the last `end` event; None while the run is at work, or was killed.
        state: where the run stands.
    """

    def __init__(self) -> None:
        self.starts: list[Event] = []
        self.steps: dict[int, Event] = {}
        self.measurements: list[Event] = []
        self.rows: list[Row] = []
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
            case "row":
                self.rows.append(self._row(event))
            case "samples":
                self._samples += [Sample(**sample) for sample in event["samples"]]
            case "end":
                self.end = event

    def _row(self, event: Event) -> Row:
        step, state = event["step"], self.state
        about = self.steps.get(step, {})
        return Row(
            **{name: about.get(name) for name in COLUMNS if name in about},
            **({} if about else {"step": step, "epoch": 0.0, "tokens": 0}),
            train_loss=state.train_loss if state.train_loss_step == step else None,
            tok_per_s=event["tok_per_s"],
            loss_scale=event["loss_scale"],
        )

    @property
    def recall(self) -> list[RecallRow]:
        """The lines of `recall.csv`."""
        return [
            RecallRow(event["step"], Recalled(**event["recall"]))
            for event in self.measurements
            if event["recall"] is not None
        ]

    @property
    def samples(self) -> list[Sample]:
        """The generations, in order, without the greedy one of an end that the run went beyond."""
        return [
            sample for sample in self._samples if not sample.final or sample.step >= self.state.step
        ]


def surviving(events: Iterable[Event]) -> list[Event]:
    """The events that count: a start leaves out what came before it, a resume what came after its step."""
    kept: list[Event] = []
    for event in events:
        if event["event"] == "start":
            kept = []
        elif event["event"] == "resume":
            kept = [before for before in kept if before.get("step", 0) <= event["step"]]
        kept.append(event)
    return kept


def history(events: Iterable[Event]) -> History:
    """What these events come to; superseded ones are left out.

    Raises:
        KeyError, TypeError, ValueError: an event lacks what `events.py` writes.
    """
    told = History()
    for event in surviving(events):
        told.take(event)
    return told


# Rendering


def rendered(events: list[Event]) -> dict[str, str]:
    """The text of each file that is rendered from the events, by its path in the run directory."""
    told = history(events)
    start = told.starts[-1]
    files = {
        "config.json": _json(start["config"]),
        "environment.json": _json(_environment(told)),
        "logs/train.log": "".join(map(LogLines(), events)),
        "logs/train_metrics.csv": _csv(COLUMNS, map(metrics_line, told.rows)),
        "logs/recall.csv": _csv(RECALL_COLUMNS, map(recall_line, told.measurements)),
        "summary.json": _json(summary(told)),
    }
    if told.samples:
        files["samples/samples.txt"] = samples_text(told.samples)
    return files


def summary(told: History) -> dict[str, Any]:
    """The content of `summary.json`."""
    first, last, state = told.starts[0], told.starts[-1], told.state
    config = last["config"]
    return {
        "preset": config["preset"],
        "command": first["command"],
        "resumed_with": [
            {"step": event["step"], "command": event["command"]} for event in told.starts[1:]
        ],
        "seed": config["seed"],
        **{name: last[name] for name in ("device", "processes", "amp", "torch", "n_params")},
        "config": config,
        "corpus": last["corpus"],
        "status": told.end["status"] if told.end else "running",
        **({"reason": told.end["error"]} if told.end and told.end["error"] else {}),
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


class LogLines:
    """Called with each event in turn: its lines of `train.log`, each with its time and a newline."""

    def __init__(self) -> None:
        self._step: Event | None = None

    def __call__(self, event: Event) -> str:
        kind = event["event"]
        if kind == "step":
            self._step = event
        about = (self._step,) if kind == "row" else ()
        stamp = event["time"][:19].replace("T", " ")
        return "".join(f"{stamp}  {one_line(text)}\n" for text in _LOGGED[kind](event, *about))


def metrics_line(row: Row) -> str:
    """A row as its line of `train_metrics.csv`."""
    return ",".join(_cell(getattr(row, name)) for name in COLUMNS) + "\n"


def recall_line(event: Event) -> str:
    """The line of `recall.csv` about a measurement; empty where recall was not counted."""
    if event["recall"] is None:
        return ""
    return ",".join(map(_cell, (event["step"], *event["recall"].values()))) + "\n"


def samples_text(samples: Iterable[Sample]) -> str:
    """Samples as a person reads them. No generated line can pass for a header: each begins with a bar."""
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


def _csv(columns: tuple[str, ...], lines: Iterable[str]) -> str:
    return ",".join(columns) + "\n" + "".join(lines)


def _cell(value: float | int | None) -> str:
    """A number short enough to read, exact enough to plot and compare."""
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.7g}"


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None  # JSON knows no NaN


def _environment(told: History) -> dict[str, Any]:
    """What the run was started on, and below it what each resume continued on."""
    first, *resumed = (event["environment"] for event in told.starts)
    return {**first, "resumed": resumed} if resumed else first


def _start_lines(event: Event) -> list[str]:
    config, corpus = RunConfig(**event["config"]), event["corpus"]
    n_windows = -(-(corpus["tokens"] - 1) // config.seq_len)
    epochs = config.steps * config.batch_size * config.grad_accum / n_windows
    resumed = event["event"] == "resume"
    origin = (
        f"the checkpoint of step {event['step']}"
        if resumed
        else f"random weights (seed {config.seed})"
    )
    course = "the course's input.txt" if corpus["is_course_input"] else "not the course's input.txt"
    return [
        f"resumed at step {event['step']} in {config.out_dir}"
        if resumed
        else f"new run in {config.out_dir}",
        f"device {event['device']}  amp {event['amp']}  torch {event['torch']}",
        "arguments " + "  ".join(f"{name}={value!r}" for name, value in event["config"].items()),
        f"corpus {corpus['path']}: {corpus['chars']:,} characters, sha256 {corpus['sha256'][:12]}…, {course}",
        *(f"corpus note: {note}" for note in corpus.get("notes") or []),
        f"model {event['n_params']:,} parameters, from {origin}",
        f"tokens {corpus['tokens']:,}  windows {n_windows:,} of {config.seq_len}",
        f"tokens per step {config.tokens_per_step:,}  steps {config.steps:,}  epochs {epochs:.2f}",
    ]


def _step_lines(event: Event) -> list[str]:
    return (
        [f"step {event['step']}  skipped: its gradients are not finite, loss {event['loss']:g}"]
        if event["skipped"]
        else []
    )


def _row_lines(event: Event, step: Event | None) -> list[str]:
    if step is None:
        return []  # the random weights
    speed = "" if event["tok_per_s"] is None else f"  tok/s {event['tok_per_s']:.1f}"
    scale = "" if event["loss_scale"] is None else f"  loss_scale {event['loss_scale']:g}"
    return [
        f"step {step['step']}  loss {step['loss']:.4f}  lr {step['lr']:.3e}{speed}  "
        f"grad_norm {step['grad_norm']:.3f}{scale}"
    ]


def _measured_lines(event: Event) -> list[str]:
    covers = (
        "whole text" if event["windows"] == "all" else f"estimated on {event['windows']} windows"
    )
    return [f"step {event['step']}  training loss {event['train_loss']:.6f} ({covers})"]


def _end_lines(event: Event) -> list[str]:
    if event["error"]:
        return [f"{event['status']}: {event['error']} (at step {event['step']})"]
    return [
        f"{event['status']} at step {event['step']}, {duration(event['seconds'])} of training, "
        f"{duration(event['wall_seconds'])} with measurements, samples and checkpoints"
    ]


_LOGGED = {
    "start": _start_lines,
    "resume": _start_lines,
    "step": _step_lines,
    "measured": _measured_lines,
    "samples": lambda event: [],
    "row": _row_lines,
    "best": lambda event: [],
    "note": lambda event: [event["text"]],
    "end": _end_lines,
}
