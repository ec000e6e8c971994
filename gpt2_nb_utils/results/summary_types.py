"""What kind of value each entry of a `summary.json` is, so that whoever shows one need not ask.

A run directory may come from anywhere, and anything may stand in it. It deliberately does not judge whether a value is
true (`verify` does), nor miss one that is not there.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.run_directory import RunDirectory

_Count = Annotated[int, Field(ge=0, lt=10**15)] | None
_Number = Annotated[float, Field(gt=-1e15, lt=1e15, allow_inf_nan=False)] | None


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Corpus(_Record):
    source: str | None = None
    path: str | None = None
    sha256: str | None = None
    chars: _Count = None
    tokens: _Count = None
    is_course_input: bool | None = None
    notes: list[str] | None = None


class _Config(_Record):
    out_dir: str | None = None
    resume: str | None = None
    steps: _Count = None
    max_tokens: _Count = None
    batch_size: _Count = None
    seq_len: _Count = None
    grad_accum: _Count = None
    target_loss: _Number = None


class _Resumed(_Record):
    command: str | None = None
    step: _Count = None


class _Summary(_Record):
    command: str | None = None
    status: str | None = None
    n_params: _Count = None
    config: _Config | None = None
    corpus: _Corpus | None = None
    resumed_with: list[_Resumed] | None = None
    step: _Count = None
    epoch: _Number = None
    tokens_seen: _Count = None
    seconds: _Number = None
    wall_seconds: _Number = None
    tok_per_s: _Number = None
    best_batch_loss: _Number = None
    best_batch_step: _Count = None
    train_loss: _Number = None
    train_loss_windows: str | _Count = None
    best_train_loss: _Number = None
    best_train_loss_windows: str | _Count = None
    best_train_loss_step: _Count = None
    target_loss: _Number = None


class _Environment(_Record):
    packages: dict[str, Any] | None = None


def check_summary(content: dict[str, Any], run: RunDirectory) -> None:
    """Raise a UserError where an entry of the summary is of the wrong kind."""
    _check(_Summary, content, run.summary, "restore it, or start the run anew with --overwrite")


def check_environment(content: dict[str, Any], run: RunDirectory) -> None:
    """Raise a UserError where an entry of environment.json is of the wrong kind."""
    _check(_Environment, content, run.environment, "restore it, or remove it to do without")


def _check(kind: type[BaseModel], content: dict[str, Any], path: Any, mend: str) -> None:
    try:
        kind.model_validate(content)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        deep = problem["loc"][0] in ("config", "corpus", "resumed_with")
        place = ".".join(map(str, problem["loc"][: 2 if deep else 1]))
        raise UserError(
            f"{path}: {place} {ascii(problem['input'])[:80]} cannot be right: {mend}"
        ) from None
