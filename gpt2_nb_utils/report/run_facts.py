"""What a run directory says about its run, in words: the facts and the excerpts that report and README show.

It reads the run directory and takes the verdict from `results.verdict`. It deliberately does not know HTML or
Markdown, needs no more than a summary, and never writes.
"""

from __future__ import annotations

import csv
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2_nb_utils.config import TARGET_LOSS
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.progress import duration
from gpt2_nb_utils.results import verdict
from gpt2_nb_utils.results.audit import Audit, read_audit
from gpt2_nb_utils.results.summary_types import check_environment, check_summary
from gpt2_nb_utils.results.token_losses import TokenLosses, read_token_losses
from gpt2_nb_utils.results.verdict import UNKNOWN, Condition, count, loss_text, measured_on
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.tokenization.corpus import COURSE_SHA256
from gpt2_nb_utils.training.run_log import Row, read_metrics
from gpt2_nb_utils.training.samples_file import Sample, read_samples

MARKS = {"met": "✓", "not met": "✗", "unknown": "?"}
"""The signs of a condition's state; each always stands beside the word."""

STATUS = {
    "running": "still running, or killed without notice",
    "target_reached": "finished: target reached",
    "steps_done": "finished: all steps done",
    "interrupted": "interrupted: can be resumed",
    "failed": "failed before its end",
}
"""The status of a run in words; what stands before the colon or the comma says it in short."""
_SOURCES = {
    "input_file": "given input file",
    "download": "downloaded input file",
    "demo": "demonstration corpus",
}


@dataclass(frozen=True)
class RunFacts:
    """Everything that a page about the run says in words and numbers."""

    run: RunDirectory
    summary: dict[str, Any]
    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[Row]
    samples: list[Sample]
    notes: tuple[str, ...]
    caveat: str | None
    conditions: tuple[Condition, ...]
    audit: Audit | None
    token_losses: TokenLosses | None

    @property
    def reached(self) -> bool:
        """Whether the run meets every condition of the course's target."""
        return verdict.reached(self.conditions)

    @property
    def headline(self) -> str:
        """The verdict in a few words."""
        return verdict.headline(self.conditions)

    @property
    def explanation(self) -> str:
        """The verdict in a sentence or two: the figure, and what keeps it from counting."""
        return verdict.explanation(self.conditions)

    @property
    def status(self) -> str:
        """The status in words, with the step at which the run is."""
        status = self.summary.get("status")
        return f"{STATUS.get(status, status or UNKNOWN)} (step {count(self.summary.get('step'))}{self.of_steps})"

    @property
    def command(self) -> str:
        """The command of the run, exactly as it was given, and below it each that went on with it."""
        resumed = [
            f"{each.get('command')}  # went on at step {count(each.get('step'))}"
            for each in self.summary.get("resumed_with") or []
        ]
        return "\n".join([self.summary.get("command") or UNKNOWN, *resumed])

    @property
    def verify_command(self) -> str:
        """The command that audits the run."""
        return shlex.join(
            [
                "python",
                "-m",
                "gpt2_nb_utils",
                "verify",
                str(self.config.get("out_dir") or "RUN_DIR"),
            ]
        )

    @property
    def best_training_loss(self) -> str:
        """The training loss of best.pt, the checkpoint that is graded, said with how it was measured."""
        best = self.summary.get("best_train_loss")
        if best is None:
            return self.last_training_loss
        step = self.summary.get("best_train_loss_step")
        return f"{loss_text(best)} at step {count(step)} ({self.measured('best_train_loss')})"

    @property
    def last_training_loss(self) -> str:
        """The training loss last measured, said with how."""
        loss = self.summary.get("train_loss")
        return (
            "not measured yet"
            if loss is None
            else f"{loss_text(loss)} ({self.measured('train_loss')})"
        )

    def measured(self, which: str) -> str:
        """How `train_loss` or `best_train_loss` was measured, in words."""
        return measured_on(
            {
                **self.summary,
                "train_loss": self.summary.get(which),
                "train_loss_windows": self.summary.get(f"{which}_windows"),
            }
        )

    @property
    def best_batch_loss(self) -> str:
        best, step = self.summary.get("best_batch_loss"), self.summary.get("best_batch_step")
        return (
            UNKNOWN
            if best is None
            else f"{loss_text(best)} at step {count(step)} (one batch: proves nothing)"
        )

    @property
    def text(self) -> str:
        """Which text the run trained on, without its size."""
        corpus = self.summary.get("corpus") or {}
        kind = _SOURCES.get(corpus.get("source"), corpus.get("source") or UNKNOWN)
        name = str(corpus.get("path") or "").replace("\\", "/").rstrip("/").rpartition("/")[2]
        return f"{kind}{f' {name}' if name else ''}: {self.course}"

    @property
    def course(self) -> str:
        """Whether the text is the course's."""
        corpus = self.summary.get("corpus") or {}
        if corpus.get("is_course_input") or corpus.get("sha256") == COURSE_SHA256:
            return "the course's input.txt"
        return "not the course's file" if corpus.get("sha256") else UNKNOWN

    def table(self) -> list[tuple[str, str]]:
        """The facts as (name, value), in the order in which a grader asks."""
        summary, corpus = self.summary, self.summary.get("corpus") or {}
        max_tokens = self.config.get("max_tokens")
        size = f"{count(corpus.get('chars'))} characters, {count(corpus.get('tokens'))} tokens"
        if max_tokens:
            size += f"; trained on the first {max_tokens:,} tokens only"
        shape = ", ".join(
            f"{name} {self.config[name]}"
            for name in ("n_layer", "n_head", "n_embd", "block_size")
            if name in self.config
        )
        return [
            ("Status", self.status),
            ("Training loss", self.best_training_loss),
            (
                "Target",
                f"below {self.target:g} over the whole corpus"
                + ("" if self.target == TARGET_LOSS else f" (the course asks for {TARGET_LOSS:g})"),
            ),
            ("Best batch loss", self.best_batch_loss),
            ("Corpus", self.text),
            *(
                [("Corpus as read", "; ".join(corpus["notes"]))]
                if corpus.get("notes") and corpus.get("source") != "demo"
                else []
            ),
            ("Corpus size", size),
            ("Corpus sha256", corpus.get("sha256") or UNKNOWN),
            ("Parameters", count(summary.get("n_params")) + (f" ({shape})" if shape else "")),
            ("Epochs", self.epochs),
            ("Tokens seen", count(summary.get("tokens_seen"))),
            ("Time", _time(summary)),
            (
                "Machine",
                f"{summary.get('device') or UNKNOWN}, {summary.get('amp') or UNKNOWN}, "
                f"torch {summary.get('torch') or UNKNOWN}",
            ),
            ("Preset, seed", f"{summary.get('preset') or UNKNOWN}, {summary.get('seed', UNKNOWN)}"),
            *(
                []
                if self.audit is None
                else [
                    (
                        "Audit",
                        f"{MARKS['met' if self.audit.passed else 'not met']} {self.audit.tally}",
                    )
                ]
            ),
        ]

    @property
    def target(self) -> float:
        """The training loss that the run was to get below."""
        return self.config.get("target_loss") or self.summary.get("target_loss") or TARGET_LOSS

    @property
    def epochs(self) -> str:
        """How often the run saw its text."""
        epoch = self.summary.get("epoch")
        return UNKNOWN if epoch is None else f"{epoch:,.3f}".rstrip("0").rstrip(".")

    @property
    def of_steps(self) -> str:
        """The steps that the run was to do, such as ` of 330`; nothing where that is not recorded."""
        steps = self.config.get("steps")
        return f" of {steps:,}" if isinstance(steps, int) else ""

    @property
    def machine(self) -> list[tuple[str, str]]:
        """What the run ran on, as (name, value)."""
        found = self.environment
        packages = [
            f"{name} {version}"
            for name, version in (found.get("packages") or {}).items()
            if version
        ]
        hardware = [str(found["processor"])] if found.get("processor") else []
        hardware += [f"{found['cpu_count']} CPU cores"] if found.get("cpu_count") else []
        hardware += [f"{found['memory_gb']} GB memory"] if found.get("memory_gb") else []
        rows = [
            ("Date", str(found.get("time") or "")),
            ("Python", str(found.get("python") or "")),
            ("System", str(found.get("platform") or "")),
            ("Hardware", ", ".join(hardware)),
            ("Packages", ", ".join(packages)),
        ]
        return [(name, value) for name, value in rows if value]

    @property
    def audited_on(self) -> str:
        """When, on what and with which command the audit was made."""
        made, machine = (
            self.audit.made.replace("T", " ").replace("+00:00", " UTC"),
            self.audit.machine,
        )
        return (
            f"{made}, {machine.get('device') or UNKNOWN}, in {machine.get('amp') or UNKNOWN}: {self.audit.command}"
            + (
                f"; best.pt had sha256 {self.audit.best_sha256[:16]}…"
                if self.audit.best_sha256
                else ""
            )
        )

    def before_and_after(self) -> tuple[list[Sample], list[Sample]]:
        """The samples of the first step and those of the last; the latter empty when there is one step only."""
        if not self.samples:
            return [], []
        first, last = self.samples[0].step, self.samples[-1].step
        before = [sample for sample in self.samples if sample.step == first]
        return before, [
            sample for sample in self.samples if sample.step == last
        ] if last != first else []

    def metric_rows(self, at_most: int = 10) -> list[Row]:
        """Rows of the metrics, spread evenly from the first to the last."""
        n = len(self.metrics)
        if n <= at_most:
            return self.metrics
        return [self.metrics[round(i * (n - 1) / (at_most - 1))] for i in range(at_most)]

    def curve_in_words(self) -> str:
        """What the loss curve shows, for those who cannot see it."""
        rows = [row for row in self.metrics if row.loss is not None]
        if not rows:
            return "Loss curve"
        first, last = rows[0], rows[-1]
        return (
            f"Loss curve: the batch loss goes from {loss_text(first.loss)} at step {count(first.step)} to "
            f"{loss_text(last.loss)} at step {count(last.step)}; last training loss {self.last_training_loss}."
        )


def read_run(run: RunDirectory) -> RunFacts:
    """Read what the run left; pieces that are missing or unreadable become `notes`.

    Raises:
        UserError: there is no readable `summary.json`.
    """
    summary = run.read_summary()
    notes: list[str] = []
    config, environment = summary.get("config") or {}, {}
    if not config and run.config.exists():
        config = _or_note(notes, lambda: run.read_config(), {})
    if run.environment.exists():
        environment = _or_note(notes, lambda: _read_environment(run), {})
    summary = {**summary, "config": config}
    check_summary(summary, run)
    metrics = _or_note(notes, lambda: _read_rows(run.metrics), []) if run.metrics.exists() else []
    samples = _or_note(notes, lambda: read_samples(run.samples), []) if run.samples.exists() else []
    audit = _or_note(notes, lambda: read_audit(run.audit), None) if run.audit.exists() else None
    if audit is not None and not _or_note(
        notes, lambda: _is_of_this_state(audit, summary, run), False
    ):
        notes.append(
            f"The audit in {run.audit.name} is of another state of this run, or of another best.pt, and is not shown: make it again with verify."
        )
        audit = None
    losses = (
        _or_note(notes, lambda: read_token_losses(run.token_losses), None)
        if run.token_losses.exists()
        else None
    )
    if losses is not None and not losses.is_of(summary):
        notes.append(
            f"The losses in {run.token_losses.name} are of an earlier state of this run and are not shown: make them again with verify."
        )
        losses = None
    caveat = verdict.corpus_caveat(summary)
    if caveat:
        notes.insert(0, caveat)
    return RunFacts(
        run,
        summary,
        config,
        environment,
        metrics,
        samples,
        tuple(notes),
        caveat,
        verdict.conditions(summary, config, metrics),
        audit,
        losses,
    )


def _is_of_this_state(audit: Audit, summary: dict[str, Any], run: RunDirectory) -> bool:
    try:
        return audit.is_of(summary, run.best)
    except OSError as error:
        raise UserError(f"{run.best} cannot be read ({error.strerror}): restore it") from None


def _or_note(notes: list[str], read: Any, otherwise: Any) -> Any:
    try:
        return read()
    except UserError as error:
        notes.append(str(error))
        return otherwise


def _read_environment(run: RunDirectory) -> dict[str, Any]:
    try:
        content = json.loads(run.environment.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise UserError(
            f"{run.environment} is not valid JSON: restore it, or remove it to do without"
        ) from None
    check_environment(content, run)
    return content


def _read_rows(path: Path) -> list[Row]:
    try:
        return read_metrics(path)
    except (OSError, ValueError, TypeError, csv.Error):  # not UTF-8, or no metrics at all
        raise UserError(
            f"{path} is not a readable metrics table: restore it, or remove it to do without"
        ) from None


def _time(summary: dict[str, Any]) -> str:
    seconds, wall, speed = (summary.get(name) for name in ("seconds", "wall_seconds", "tok_per_s"))
    parts = [] if seconds is None else [f"{duration(seconds)} of training"]
    parts += (
        [] if wall is None else [f"{duration(wall)} with measurements, samples and checkpoints"]
    )
    parts += [] if speed is None else [f"{speed:,.0f} tokens/s"]
    return ", ".join(parts) or UNKNOWN
