"""Whether the records of a run contradict each other: summary, config, environment, metrics, log, and what stands beside the weights.

A value is compared wherever it is written twice. It deliberately measures nothing: records that were all changed in step
agree, and `audit_weights` tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from gpt2_nb_utils.model.gpt2 import GPT2Config
from gpt2_nb_utils.model.parts import parameter_count
from gpt2_nb_utils.progress import duration
from gpt2_nb_utils.results.audit import CannotCheck, asks, problems_or
from gpt2_nb_utils.results.audit_records import ENDED, same, whole
from gpt2_nb_utils.results.evidence import Evidence
from gpt2_nb_utils.results.train_log import Section, surviving
from gpt2_nb_utils.text import one_line
from gpt2_nb_utils.training.resume import KEPT
from gpt2_nb_utils.training.schedule import learning_rate_factor

Pair = tuple[str, str, Any, str, Any]
"""What, where, the value there, where else, the value there."""
_OF_THE_SCHEDULE = ("lr", "lr_schedule", "warmup_steps", "min_lr_ratio", "decay_share", "steps")


@asks(
    "summary, config, metrics and text agree",
    "the same settings, text, steps, losses, times and machine in all of them and in the log",
)
def records_agree(evidence: Evidence) -> tuple[bool, str]:
    summary, config = evidence.summary, evidence.config
    pairs = [
        ("the settings", "summary.json", summary.get("config"), "config.json", config),
        *(
            (name, "summary.json", summary.get(name), "config.json", config.get(name))
            for name in ("seed", "preset", "target_loss")
        ),
        (
            "target_reached",
            "summary.json",
            summary.get("target_reached"),
            "its own loss",
            _reached(summary),
        ),
        *_with_the_rows(evidence),
        *_with_the_log(evidence),
        *_with_the_schedule(evidence),
        *_with_the_text(evidence),
    ]
    return _all_equal(pairs)


@asks(
    "best.pt says what the records say",
    "the same settings, sizes, text, step, tokens and losses beside the weights",
)
def best_agrees(evidence: Evidence) -> tuple[bool, str]:
    summary, config, best = evidence.summary, evidence.config, evidence.best
    state, sizes = best["state"], best["model_config"]
    pairs = [
        (name, "config.json", config.get(name), "best.pt", best["config"].get(name))
        for name in KEPT
    ]
    pairs += [
        (name, "config.json", config.get(name), "the sizes in best.pt", sizes.get(name))
        for name in ("block_size", "n_layer", "n_head", "n_embd")
    ]
    pairs += [
        (
            "n_params",
            "summary.json",
            summary.get("n_params"),
            "the sizes in best.pt",
            parameter_count(GPT2Config(**sizes)),
        ),
        (
            "sha256 of the text",
            "summary.json",
            evidence.recorded_corpus.get("sha256"),
            "best.pt",
            best["corpus_sha256"],
        ),
        (
            "windows_drawn",
            "best.pt",
            state["windows_drawn"],
            "its steps",
            state["step"] * evidence.settings.batch_size * evidence.settings.grad_accum,
        ),
        (
            "training loss",
            "best.pt",
            state["train_loss"],
            "the metrics and the log",
            _logged(evidence, state["step"], state["train_loss"]),
        ),
    ]
    pairs += [
        (f"best_{name}", "best.pt", state[f"best_{name}"], "its last measurement", state[name])
        for name in ("train_loss", "train_loss_windows", "train_loss_step")
    ]
    pairs += [
        ("step", "best.pt", state["step"], "its best training loss", state["best_train_loss_step"]),
        *_with_its_step(evidence),
    ]
    if summary.get("status") in ENDED:  # a run at work may be a step ahead of its summary
        pairs += [
            (name, "summary.json", summary.get(name), "best.pt", state[name])
            for name in ("best_train_loss", "best_train_loss_windows", "best_train_loss_step")
        ]
    return _all_equal(pairs)


def _all_equal(pairs: list[Pair]) -> tuple[bool, str]:
    problems = [
        f"{name}: {_brief(one)} in {here}, {_brief(other)} in {there}"
        for name, here, one, there, other in pairs
        if not _equal(one, other)
    ]
    return problems_or(problems, f"{len(pairs)} values, each the same in two places")


def _logged(evidence: Evidence, step: int, loss: float | None) -> float | None:
    """What metrics and log say of the training loss at a step: `loss` itself, or else what they say instead."""
    said = [row.train_loss for row in evidence.rows if row.step == step]
    # A run that was killed right after saving best.pt has done the step again, or has not come back to it.
    said += [section.measured[step][0] for section in evidence.sections if step in section.measured]
    return loss if any(same(one, loss, 1e-6) for one in said) else said[0] if said else None


def _with_the_rows(evidence: Evidence) -> list[Pair]:
    """What the summary says of its steps, beside their rows."""
    summary, rows = evidence.summary, {row.step: row for row in evidence.rows}
    best = summary.get("best_train_loss")
    pairs = [
        (
            "best training loss",
            "summary.json",
            best,
            "the metrics and the log",
            _logged(evidence, summary.get("best_train_loss_step"), best),
        )
    ]
    if (row := rows.get(summary["step"])) is not None:
        pairs += [
            ("last batch loss", "summary.json", summary.get("loss"), "the metrics", row.loss),
            (
                "seconds",
                "summary.json",
                summary.get("seconds"),
                "the metrics",
                _as(summary.get("seconds"), row.elapsed_s, 1e-3),
            ),
        ]
    ended, every_step = (
        summary.get("status") in ENDED,
        all(whole(section.setting("log_every")) == 1 for section in evidence.sections),
    )
    if (
        row := rows.get(summary.get("train_loss_step"))
    ) is not None or ended:  # each measurement has a row
        pairs += [
            (
                "last training loss",
                "summary.json",
                summary.get("train_loss"),
                "the metrics",
                row and row.train_loss,
            )
        ]
    if (row := rows.get(summary.get("best_batch_step"))) is not None or ended and every_step:
        pairs += [
            (
                "best batch loss",
                "summary.json",
                summary.get("best_batch_loss"),
                "the metrics",
                row and row.loss,
            )
        ]
    lowest = min(
        (row.loss for row in rows.values() if row.loss is not None and row.step <= summary["step"]),
        default=None,
    )
    if (
        lowest is not None
        and lowest < summary["best_batch_loss"]
        and not same(lowest, summary["best_batch_loss"])
    ):
        pairs += [
            ("best batch loss", "summary.json", summary["best_batch_loss"], "the metrics", lowest)
        ]
    return pairs


def _with_the_log(evidence: Evidence) -> list[Pair]:
    """What summary, config and environment say, beside what the log says."""
    summary, sections = evidence.summary, evidence.sections
    pairs: list[Pair] = []
    for section in sections:
        if section.n_params is not None:
            pairs += [
                ("n_params", "summary.json", summary.get("n_params"), "the log", section.n_params)
            ]
        if section.sha256:
            recorded = str(evidence.recorded_corpus.get("sha256"))[: len(section.sha256)]
            pairs += [("sha256 of the text", "summary.json", recorded, "the log", section.sha256)]
    measured = surviving(sections)[1].get(summary.get("train_loss_step"))
    if measured is not None:
        pairs += [
            (
                "windows of the last training loss",
                "summary.json",
                summary.get("train_loss_windows"),
                "the log",
                measured[1],
            )
        ]
    if (
        summary.get("status") in ENDED
    ):  # otherwise a process may have been killed before its first line
        pairs += _with_the_last_process(evidence, sections[-1])
    return pairs


def _with_the_last_process(evidence: Evidence, section: Section) -> list[Pair]:
    """What the process that came to the end of the run wrote, beside its part of the log."""
    summary, environment = evidence.summary, evidence.run.environment
    pairs = list(_settings(evidence.config, "config.json", section))
    if section.machine is not None:
        pairs += [
            (name, "summary.json", summary.get(name), "the log", said)
            for name, said in zip(("device", "amp", "torch"), section.machine)
        ]
    if section.end is not None:
        pairs += [
            (name, "summary.json", _lasting(summary.get(name), said), "the log", said)
            for name, said in (
                ("seconds", section.end.training),
                ("wall_seconds", section.end.wall),
            )
        ]
    if environment:
        now = [environment, *(environment.get("resumed") or [])][-1]
        release = [
            str(version).partition("+")[0]
            for version in (now["packages"].get("torch"), summary.get("torch"))
        ]
        pairs += [("torch", "environment.json", release[0], "summary.json", release[1])]
    return pairs


def _settings(config: dict[str, Any], where: str, section: Section) -> Iterable[Pair]:
    """Settings beside those that a section of the log began with; a value with blanks in it cannot be read back from there."""
    return (
        (name, where, one_line(repr(value)), "the log", section.setting(name))
        for name, value in config.items()
        if section.setting(name) is not None
    )


def _lasting(seconds: float, said: str) -> str:
    """These seconds in the log's words: `said`, if that is what they were before they were rounded for the summary."""
    return next(
        (said for beside in (0.0, -0.001, 0.001) if duration(seconds + beside) == said),
        duration(seconds),
    )


def _with_the_schedule(evidence: Evidence) -> Iterator[Pair]:
    """The learning rates of the metrics, beside those that the settings of their process plan."""
    settings = evidence.settings
    trained_by = {
        step: number for number, section in enumerate(evidence.sections) for step in section.steps
    }  # a step done again: the last
    configs = [
        settings.model_copy(
            update={
                name: type(getattr(settings, name))(said.strip("'"))
                for name in _OF_THE_SCHEDULE
                if (said := section.setting(name)) is not None
            }
        )
        for section in evidence.sections
    ]
    for row in evidence.rows:
        if row.lr is not None and row.step in trained_by:
            config = configs[trained_by[row.step]]
            yield (
                f"learning rate of step {row.step}",
                "the metrics",
                row.lr,
                "the schedule",
                config.lr * learning_rate_factor(row.step - 1, config),
            )


def _with_its_step(evidence: Evidence) -> list[Pair]:
    """What best.pt says of its step beside the row of that step, and its settings beside the log."""
    best, sections = evidence.best, evidence.sections
    state = best["state"]
    step, pairs = state["step"], []
    row = next((row for row in evidence.rows if row.step == step), None)
    if row is not None:
        pairs += [("tokens_seen", "best.pt", state["tokens_seen"], "the metrics", row.tokens)]
        if (
            sum(step in section.measured for section in sections) < 2
        ):  # else the row may be of a process that did the step again
            pairs += [
                ("batch loss", "best.pt", state["loss"], "the metrics", row.loss),
                ("seconds", "best.pt", state["seconds"], "the metrics", row.elapsed_s),
            ]
    saved_by = [
        list(_settings(best["config"], "best.pt", section))
        for section in sections
        if step in section.measured
    ]
    # That other process may have had other settings.
    return pairs + min(
        saved_by,
        key=lambda settings: sum(one != other for _, _, one, _, other in settings),
        default=[],
    )


def _with_the_text(evidence: Evidence) -> list[Pair]:
    """What the summary says of the text beside the text itself, where it is on this machine."""
    try:
        text, seen = evidence.corpus, len(evidence.windows.tokens)
    except CannotCheck:
        return []
    corpus = evidence.recorded_corpus
    counts = text.is_course_input and seen == len(evidence.tokens)
    return [
        (f"{name} of the text", "summary.json", corpus.get(name), "the text", value)
        for name, value in (
            ("sha256", text.sha256),
            ("chars", text.chars),
            ("tokens", seen),
            ("is_course_input", counts),
        )
    ]


def _reached(summary: dict[str, Any]) -> bool:
    return (
        summary.get("best_train_loss_windows") == "all"
        and summary["best_train_loss"] is not None
        and summary["best_train_loss"] < summary["target_loss"]
    )


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, (int, float)) and not isinstance(other, bool):
        return same(one, other)
    return type(one) is type(other) and one == other


def _as(one: float | None, other: float | None, within: float) -> float | None:
    """`one` where the two are the same, else `other`: for pairs of which one is rounded."""
    return one if same(one, other, within) else other


def _brief(value: Any) -> str:
    text = f"{value:.7g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
