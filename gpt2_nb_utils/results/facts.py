"""What a run directory says about its run, in words, for notebook 04, the report and the README."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from gpt2_nb_utils.config import TARGET_LOSS, RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.results import verdict
from gpt2_nb_utils.results.audit import Audit, Check, Replay
from gpt2_nb_utils.results.record import Record, read_record
from gpt2_nb_utils.results.token_losses import TokenLosses, read_token_losses
from gpt2_nb_utils.results.verdict import Condition
from gpt2_nb_utils.results.verify import ANY_VERSION, audit_of, quick_checks
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.tokenization.corpus import COURSE_SHA256
from gpt2_nb_utils.training.records import CorpusFacts, Row, Sample, Summary, TrainingLoss
from gpt2_nb_utils.wording import (
    MARKS,
    NOT_RECORDED,
    count,
    duration,
    loss_text,
    plural,
    status_text,
)

_SOURCES = {
    "input_file": "given input file",
    "download": "downloaded input file",
    "demo": "demonstration corpus",
}
_Part = TypeVar("_Part")


@dataclass(frozen=True)
class RunFacts:
    """What a page says about a run, in words and numbers.

    Attributes:
        record: what its directory holds.
        damaged: what of it cannot be shown, a line each.
        audit: what `verify` found; None where that is about another state of the run, or was not
            made with exactly the present checks.
        weights_are_here: best.pt lies beside it, and is the file that was audited.
        record_checks: what was checked just now: the records, and, where an audit says that the run
            is proved, best.pt.
        token_losses: the loss of every token that was measured; None likewise.
    """

    record: Record
    damaged: tuple[str, ...] = ()
    audit: Audit | None = None
    token_losses: TokenLosses | None = None
    weights_are_here: bool = False
    record_checks: tuple[Check, ...] = ()

    @property
    def summary(self) -> Summary:
        """The content of summary.json."""
        return self.record.summary

    @property
    def caveat(self) -> str | None:
        """What must be said beside every result; None where the run is the course's."""
        return verdict.corpus_caveat(self.record)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know first."""
        return (*filter(None, [self.caveat]), *self.record.notes, *self.damaged)

    @cached_property
    def conditions(self) -> tuple[Condition, ...]:
        """The conditions of the course's target."""
        return (*verdict.conditions(self.record), self._records_hold())

    def _records_hold(self) -> Condition:
        asks, checks = "its records are consistent", self.record_checks
        failed = [check for check in checks if check.ok is False]
        unmade = [check for check in checks[:ANY_VERSION] if check.ok is None]
        for check in failed + unmade:
            return Condition(asks, check.ok, f"{check.asks}: {check.found}")
        holding = sum(check.ok is True for check in checks)
        return Condition(asks, True, f"{plural(holding, 'check')} of the records hold")

    @property
    def proof(self) -> tuple[str, str]:
        """How the run was proved, in two or three words, and what belongs to it.

        A page calls proved only what it has seen: best.pt must be here, and hold what can be
        checked of it in seconds; else it says what is on record.
        """
        audit = self.audit
        if audit is None:
            return "not found", "no verify.json of this state; the command for it is at the end"
        replayed = audit.replay and (
            f"its first {audit.replay.steps:,} steps, trained again, "
            f"{'gave' if audit.replay.check.ok else 'did not give'} the recorded losses"
        )
        if not audit.checks:
            return "replay recorded", replayed
        if not self.weights_are_here:
            besides = "the weights are not here to check"
            return "recorded", f"{besides}; {replayed}" if replayed else besides
        if self.unconfirmed:
            return f"{MARKS[False]} not proved", self.unconfirmed
        return f"{MARKS[audit.passed]} {'proved' if audit.passed else 'not proved'}", audit.tally

    @property
    def unconfirmed(self) -> str:
        """What of an audit that passed does not hold of the files that are here; else empty."""
        doubts = [check.asks for check in self.record_checks if check.ok is not True]
        confirmed = not doubts or not self.audit.passed or not self.weights_are_here
        return "" if confirmed else f"not confirmed for this page: {'; '.join(doubts)}"

    @property
    def reached(self) -> bool:
        """Whether the run meets every condition of the course's target."""
        return verdict.reached(self.conditions)

    @property
    def smoke_test_passed(self) -> bool:
        """Whether the run is a smoke test that meets all that it was meant to."""
        return verdict.smoke_test_passed(self.conditions)

    @property
    def mark(self) -> str:
        """The sign of the verdict."""
        return verdict.mark(self.conditions)

    @property
    def title(self) -> str:
        """What the run made, on one line, for the top of a page."""
        size = self.summary.n_params
        model = "GPT-2" if size is None else f"GPT-2 {size / 1e6:.3g}M"
        begun = {condition.asks: condition.holds for condition in self.conditions}
        trained = "trained from scratch" if begun["from random weights"] else "trained"
        corpus = self.summary.corpus
        text = "tiny Shakespeare" if self.on_course_file else _file_name(corpus) or "one text"
        text = "Python's documentation" if corpus.source == "demo" else text
        part = "the beginning of " if self.record.setting("max_tokens") else ""
        return f"{model}, {trained} on {part}{text}"

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
        """The status in words, with the step at which the run is and why it ended there."""
        run = self.summary
        why = f"; {run.reason}" if run.reason else ""
        return f"{status_text(run.status)} (step {count(run.step)}{self.of_steps}{why})"

    @property
    def of_steps(self) -> str:
        """The steps that the run was to do, such as ` of 330`; empty where they are not recorded."""
        steps = self.record.setting("steps")
        return "" if steps is None else f" of {steps:,}"

    @property
    def command(self) -> str:
        """The command of the run, and below it each that resumed it."""
        resumed = [
            f"{each.command}  # resumed at step {count(each.step)}"
            for each in self.summary.resumed_with
        ]
        return "\n".join([self.summary.command or NOT_RECORDED, *resumed])

    @property
    def reproduction(self) -> str:
        """One command that makes the run again, however it was started and resumed: its preset, and
        the settings that differ from what this version takes for it."""
        config, name = self.record.config, self.record.directory.path.resolve().name
        if "preset" not in config.model_fields_set:
            return NOT_RECORDED
        usual = RunConfig.resolve({"preset": config.preset})
        words = ["python", "-m", "gpt2_nb_utils", "run", "--preset", usual.preset]
        for setting in RunConfig.model_fields.keys() - {"preset", "out_dir", "resume", "overwrite"}:
            value = getattr(config, setting)  # the default of one that the version did not have yet
            if value != getattr(usual, setting):
                words.append(f"--{setting}={value}")
        return shlex.join([*words[:6], *sorted(words[6:]), "--out_dir", f"out/{name}"])

    @property
    def verify_command(self) -> str:
        """The command that audits the run where it is now."""
        run_dir = self.record.directory.path.as_posix()
        return shlex.join(["python", "-m", "gpt2_nb_utils", "verify", run_dir])

    @property
    def best_training_loss(self) -> str:
        """The training loss of best.pt, the checkpoint that is graded, and how it was measured."""
        run = self.summary
        at_step = f" at step {count(run.best_train_loss_step)}" if run.best_measured else ""
        return self._loss(run.graded, at_step)

    @property
    def last_training_loss(self) -> str:
        """The training loss last measured, and how."""
        return self._loss(self.summary.last_measured)

    def _loss(self, loss: TrainingLoss | None, at_step: str = "") -> str:
        if loss is None:
            return "not measured yet"
        return f"{loss_text(loss.loss)}{at_step} ({verdict.measured_on(self.record, loss)})"

    @property
    def best_batch_loss(self) -> str:
        """The lowest loss of a batch."""
        best, step = self.summary.best_batch_loss, count(self.summary.best_batch_step)
        if best is None:
            return NOT_RECORDED
        return f"{loss_text(best)} at step {step} (one batch: proves nothing)"

    @property
    def text(self) -> str:
        """Which text the run trained on, without its size."""
        corpus = self.summary.corpus
        kind = _SOURCES.get(corpus.source or "", corpus.source or NOT_RECORDED)
        name = _file_name(corpus)
        return f"{kind}{f' {name}' if name else ''}: {self.course}"

    @property
    def course(self) -> str:
        """Whether the text is the course's."""
        corpus = self.summary.corpus
        if self.on_course_file:
            return "the course's input.txt"
        return "not the course's file" if corpus.sha256 else NOT_RECORDED

    @property
    def on_course_file(self) -> bool:
        """Whether the text is the course's."""
        corpus = self.summary.corpus
        return bool(corpus.is_course_input) or corpus.sha256 == COURSE_SHA256

    @property
    def target(self) -> float:
        """The training loss that the run was to get below."""
        return self.record.setting("target_loss") or self.summary.target_loss or TARGET_LOSS

    @property
    def epochs(self) -> str:
        """How often the run saw its text."""
        epoch = self.summary.epoch
        return NOT_RECORDED if epoch is None else f"{epoch:,.3f}".rstrip("0").rstrip(".")

    @property
    def tokens_per_step(self) -> int | None:
        """Tokens that one optimizer update sees; None where that is not recorded."""
        sizes = {"batch_size", "seq_len", "grad_accum"}
        config = self.record.config
        return config.tokens_per_step if sizes <= config.model_fields_set else None

    @property
    def time(self) -> str:
        """How long the run took, and how fast it was."""
        run = self.summary
        parts = {
            "of training": run.seconds,
            "with measurements, samples and checkpoints": run.wall_seconds,
        }
        said = [f"{duration(time)} {of}" for of, time in parts.items() if time is not None]
        said += [] if run.tok_per_s is None else [f"{run.tok_per_s:,.0f} tokens/s"]
        return ", ".join(said) or NOT_RECORDED

    def table(self) -> list[tuple[str, str]]:
        """The facts as (name, value), in the order in which a grader asks."""
        run, corpus = self.summary, self.summary.corpus
        course = "" if self.target == TARGET_LOSS else f" (the course asks for {TARGET_LOSS:g})"
        excerpt = self.record.setting("max_tokens")
        shape = ", ".join(
            f"{name} {self.record.setting(name)}"
            for name in ("n_layer", "n_head", "n_embd", "block_size")
            if self.record.setting(name) is not None
        )
        device, amp, torch, preset = (
            value or NOT_RECORDED for value in (run.device, run.amp, run.torch, run.preset)
        )
        rows = {
            "Status": self.status,
            "Training loss": self.best_training_loss,
            "Last training loss": self.last_training_loss,
            "Target": f"below {self.target:g} over the whole corpus{course}",
            "Best batch loss": self.best_batch_loss,
            "Corpus": self.text,
            "Corpus as read": "; ".join(corpus.notes) if corpus.source != "demo" else "",
            "Corpus size": f"{count(corpus.chars)} characters, {count(corpus.tokens)} tokens"
            + (f"; trained on the first {excerpt:,} tokens only" if excerpt else ""),
            "Corpus sha256": corpus.sha256 or NOT_RECORDED,
            "Parameters": count(run.n_params) + (f" ({shape})" if shape else ""),
            "Epochs": self.epochs,
            "Tokens seen": count(run.tokens_seen),
            "Tokens a step": count(self.tokens_per_step),
            "Time": self.time,
            "Machine": f"{device}, {amp}, torch {torch}",
            "Preset, seed": f"{preset}, {self.seed}",
        }
        if self.audit is not None:
            rows["Audit"] = ": ".join(self.proof)
        return [(name, value) for name, value in rows.items() if value]

    @property
    def seed(self) -> str:
        """The seed of the run."""
        return NOT_RECORDED if self.summary.seed is None else str(self.summary.seed)

    @property
    def machine(self) -> list[tuple[str, str]]:
        """What the run ran on, as (name, value)."""
        found = self.record.environment
        packages = (found.get("packages") or {}).items()
        units = {"processor": "", "cpu_count": " CPU cores", "memory_gb": " GB memory"}
        rows = {
            "Date": found.get("time"),
            "Python": found.get("python"),
            "System": found.get("platform"),
            "Hardware": ", ".join(
                f"{found[name]}{unit}" for name, unit in units.items() if found.get(name)
            ),
            "Packages": ", ".join(f"{name} {version}" for name, version in packages if version),
        }
        return [(name, str(value)) for name, value in rows.items() if value]

    def made(self, audit: Audit | Replay) -> str:
        """When, on what and by which program an audit or a replay was made."""
        made = audit.made.replace("T", " ").replace("+00:00", " UTC")
        device, amp = (audit.machine.get(name) or NOT_RECORDED for name in ("device", "amp"))
        sources = f", package sources {audit.sources_sha256[:16]}…" if audit.sources_sha256 else ""
        return f"{made}, {device}, in {amp}{sources}"

    @property
    def audited_on(self) -> str:
        """When, on what and with which command the audit was made."""
        best = self.audit.best_sha256
        file = f"; best.pt had sha256 {best[:16]}…" if best else ""
        return f"{self.made(self.audit)}: {self.audit.command}{file}"

    def before_and_after(self) -> list[list[Sample]]:
        """The samples of the first step, and those of the last where there is another."""
        samples = self.record.samples
        steps = dict.fromkeys(sample.step for sample in (*samples[:1], *samples[-1:]))
        return [[sample for sample in samples if sample.step == step] for step in steps]

    def metric_rows(self, at_most: int = 10) -> list[Row]:
        """Rows of the metrics, spread evenly from the first to the last."""
        rows, last = self.record.rows, len(self.record.rows) - 1
        n = min(len(rows), at_most)
        return [rows[round(i * last / max(1, n - 1))] for i in range(n)]


def _file_name(corpus: CorpusFacts) -> str:
    return (corpus.path or "").replace("\\", "/").rstrip("/").rpartition("/")[2]


def read_facts(directory: RunDirectory) -> RunFacts:
    """Read what the run left; pieces that are damaged, or about another state of it, become notes.

    Raises:
        UserError: there is no readable `summary.json`.
    """
    record = read_record(directory.path)
    damaged = list(record.damaged)

    def part(path: Path, read: Callable[[Record], _Part]) -> _Part | None:
        try:
            return read(record) if path.exists() else None
        except UserError as error:
            damaged.append(str(error))
            return None

    audit = part(directory.audit, audit_of)
    losses = part(directory.token_losses, _token_losses_of)
    weights_are_here = directory.best.is_file()  # the one that was audited, where there is an audit
    claimed = audit is not None and audit.passed
    checks = quick_checks(record, weights=weights_are_here and claimed)
    return RunFacts(record, tuple(damaged), audit, losses, weights_are_here, checks)


def _token_losses_of(record: Record) -> TokenLosses:
    losses = read_token_losses(record.directory.token_losses)
    if losses.is_of(record.summary):
        return losses
    raise UserError(
        f"The losses in {record.directory.token_losses.name} are of an earlier state of this run "
        f"and are not shown: make them again with verify."
    )
