"""What notebook 05 shows: the files of an export, how far two libraries agree on it, and the app for a moment.

Where a part cannot be had (no checkpoint, a package that is not installed), it says so in a line, and the notebook goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from IPython.display import HTML
from matplotlib.figure import Figure

from gpt2_nb_utils.curves import one_panel
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.results.blocks import beside, box, shown
from gpt2_nb_utils.results.run import RunResults
from gpt2_nb_utils.space.folder import FILES, Space, build_space
from gpt2_nb_utils.space.parity import TOLERANCE, Parity, compare
from gpt2_nb_utils.space.serve import serving
from gpt2_nb_utils.text import visible
from gpt2_nb_utils.tokenization.bpe import decode
from gpt2_nb_utils.tokenization.display import table

_PURPOSES = {
    "README.md": "the header from which Hugging Face builds the Space, and what it is",
    "app.py": "the app: loads `model`, answers prompts",
    "requirements.txt": "what the Space installs, each at the version that was tested",
    "corpus.txt": "the text, by which the app tells memory from composition",
    "model/config.json": "sizes of the network, and which run trained it",
    "model/generation_config.json": "temperature, top-k and length unless told otherwise",
    "model/model.safetensors": "the weights: numbers only, nothing that could run",
    "model/tokenizer.json": "GPT-2's vocabulary and merges",
    "model/tokenizer_config.json": "how the tokenizer is to be loaded",
    "model/README.md": "the model card",
}
NO_APP = "GPT2_NB_UTILS_NO_APP"
"""Environment variable; set to 1 where no port may be opened."""
_Made = TypeVar("_Made")


def exported_or_say(run: RunResults) -> tuple[Space | None, str]:
    """The Space's folder of a run, written anew, and what it is; or nothing and the reason."""
    space, reason = _or_say(
        lambda: build_space(run.directory.path, overwrite=True),
        "Not exported, so the rest of this notebook is not shown",
    )
    if space is None:
        return None, reason
    return (
        space,
        f"{space.folder}: {len(FILES)} files, {space.n_bytes / 1e6:,.1f} MB, weights in {space.dtype}.",
    )


def parity_or_say(space: Space, run: RunResults) -> tuple[Parity | None, str]:
    """What two libraries make of the export, and whether they agree; or nothing and the reason."""
    parity, reason = _or_say(
        lambda: compare(space, run.load_model().model),
        "Not compared, and what follows from it is not shown",
    )
    if parity is None:
        return None, reason
    return (
        parity,
        "Both libraries agree."
        if parity.holds
        else "The two libraries do not agree: one of the rows below says where.",
    )


def app_or_say(space: Space) -> str:
    """Start the app, read its page, stop it: what came of it."""

    def visit() -> str:
        with serving(space.folder) as app:
            with app.open() as answer, app.open("/config") as config:
                return (
                    f"The app answered at {app.url} with status {answer.status} and a page of {len(answer.read()):,} bytes, "
                    f"“{json.load(config)['title']}”. It is stopped again."
                )

    if os.environ.get(NO_APP) == "1":
        return f"The app was not started: {NO_APP}=1 forbids it."
    said, reason = _or_say(visit, "The app was not started")
    return said or reason


def _or_say(make: Callable[[], _Made], otherwise: str) -> tuple[_Made | None, str]:
    try:
        return make(), ""
    except UserError as error:
        return None, f"{otherwise}: {error}."


def files_table(space: Space) -> HTML:
    """The files of the folder, with their sizes and what each is for."""
    return table(
        ("file", "bytes", "what it is for"),
        [(name, (space.folder / name).stat().st_size, _PURPOSES[name]) for name in FILES],
    )


def parity_table(parity: Parity) -> HTML:
    """What was compared, how it came out, and whether that is as it must be."""
    n_positions, n_new = len(parity.apart), len(parity.ours) - parity.n_prompt
    alike = sum(
        one == other
        for one, other in zip(parity.ours[parity.n_prompt :], parity.theirs[parity.n_prompt :])
    )
    still = sum(
        one == other
        for one, other in zip(parity.ours[parity.n_prompt :], parity.own[parity.n_prompt :])
    )
    apart, rounded = parity.apart.max().item(), parity.rounded.max().item()
    rows = [
        (
            "tokenizers: the text",
            f"{parity.n_tokens:,} tokens, {'all alike' if parity.tokens_alike else 'not alike'}",
            _mark(parity.tokens_alike),
        ),
        (
            f"logits at {n_positions} positions, largest difference",
            f"{apart:.1e} (at most {TOLERANCE:.0e})",
            _mark(apart <= TOLERANCE),
        ),
        (f"the likeliest continuation, {n_new} tokens", f"{alike} alike", _mark(alike == n_new)),
        (
            "besides: stored weights against the run's, largest difference of a logit",
            f"{rounded:.1e}",
            "–",
        ),
        ("besides: that continuation by the run's own weights", f"{still} of {n_new} alike", "–"),
    ]
    return table(("ours against transformers", "what came out", ""), rows)


def _mark(holds: bool) -> str:
    return "✓" if holds else "✗"


def continuations_shown(parity: Parity) -> HTML:
    """The same prompt (bold), continued by both libraries."""

    def text(ids: list[int]) -> str:
        return box(
            f"<b>{shown(visible(parity.prompt))}</b>{shown(visible(decode(ids[parity.n_prompt :])))}"
        )

    return HTML(
        beside([("this package", text(parity.ours)), ("transformers", text(parity.theirs))])
    )


def differences_figure(parity: Parity) -> Figure:
    """How large differences of logits are, on a logarithmic axis: between libraries, by rounding, and between the two likeliest tokens."""
    figure, axes = one_panel(8, 3.2)
    looks = dict(zip(_series(parity), ("-", "--", ":")))
    edges = np.linspace(-8, 2, 61)
    for name, values in _series(parity).items():
        heights = np.histogram(np.log10(np.clip(values, 1e-8, 99)), bins=edges)[0] / len(values)
        axes.stairs(
            100 * heights,
            10**edges,
            label=name,
            color="black",
            linestyle=looks[name],
            linewidth=1.6,
        )
    axes.axvline(TOLERANCE, color="0.5", linewidth=1)
    axes.text(TOLERANCE, axes.get_ylim()[1], " 1e-4", va="top", color="0.3")
    axes.set(
        xscale="log",
        xlabel="difference of two logits (those of 1e-8 and less at the left edge)",
        ylabel="share of all (%)",
    )
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, frameon=False)
    return figure


def differences_in_words(parity: Parity) -> str:
    """What that figure shows, for those who cannot see it."""
    medians = ", ".join(
        f"{name}: half of them above {np.median(values):.1e}"
        for name, values in _series(parity).items()
    )
    return f"Differences of logits on a logarithmic axis; {medians}."


def _series(parity: Parity) -> dict[str, np.ndarray]:
    series = {
        "two libraries, one file": parity.apart.numpy().ravel(),
        "rounding the weights": parity.rounded.numpy().ravel(),
        "likeliest token and the next": parity.margins.numpy(),
    }
    return {name: values for name, values in series.items() if values.any()}
