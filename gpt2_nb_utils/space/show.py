"""What notebook 05 shows: the files of an export, how far two libraries agree on it, and the app for a moment.

Where a part cannot be had (no checkpoint, a package that is not installed), a line says so, and the notebook continues.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from torch import Tensor

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.figures.html import HTML, beside, say, shown, table
from gpt2_nb_utils.figures.style import panel
from gpt2_nb_utils.model.gpt2 import GPT2
from gpt2_nb_utils.model.sampling import generate
from gpt2_nb_utils.space.folder import FILES, Space
from gpt2_nb_utils.space.hf_format import needed, read_hf
from gpt2_nb_utils.space.serve import serving
from gpt2_nb_utils.text import visible
from gpt2_nb_utils.tokenization.bpe import decode, encode
from gpt2_nb_utils.wording import MARKS

TOLERANCE = 1e-4
"""Largest difference of two logits that counts as none: both libraries compute in fp32, but add up in another order."""
NO_APP = "GPT2_NB_UTILS_NO_APP"
"""Environment variable; set to 1 where no port may be opened."""
_LONGEST, _MOST_NEW = 256, 48
_Made = TypeVar("_Made")


def attempt(otherwise: str, make: Callable[[], _Made]) -> _Made | None:
    """What `make` returns; or nothing, with a line that says why.

    Args:
        otherwise: how the line begins.
    """
    try:
        return make()
    except UserError as error:
        display(say(f"{otherwise}: {error}."))
        return None


def files_table(space: Space) -> HTML:
    """The files of the folder, with their sizes and what each is for."""
    return table(
        ("file", "bytes", "what it is for"),
        [(name, (space.folder / name).stat().st_size, use) for name, use in FILES.items()],
    )


@dataclass(frozen=True)
class Parity:
    """How far two libraries agree, in fp32, on the first T tokens of a text.

    Attributes:
        apart: |ours − theirs| for each logit, both with the stored weights (T, V).
        rounded: |stored weights − the run's own weights| for each logit, both ours (T, V); all zero for float32.
        margins: by how much the most likely token leads the next one (T,).
        prompt: the text that both continued greedily.
        ours, theirs: the tokens with which they did.
        own: the same with the run's own weights.
        same_tokens: whether both tokenizers split the whole text into the same tokens.
        n_tokens: into how many tokens.
    """

    apart: Tensor
    rounded: Tensor
    margins: Tensor
    prompt: str
    ours: list[int]
    theirs: list[int]
    own: list[int]
    same_tokens: bool
    n_tokens: int

    @property
    def holds(self) -> bool:
        """Whether the libraries agree in everything."""
        return self.same_tokens and self.ours == self.theirs and self.apart.max() <= TOLERANCE


@torch.no_grad()
def compare(space: Space, own: GPT2) -> Parity:
    """Load an exported model with `transformers` and with this package, and let both read and continue its text.

    Args:
        space: the Space's folder.
        own: the model with the weights of its run.

    Raises:
        UserError: `transformers` is not installed, or the folder was changed.
    """
    with warnings.catch_warnings():
        # tqdm's, whose bars are switched off here
        warnings.filterwarnings("ignore", message="IProgress not found")
        transformers = needed("transformers")
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
    source = read_hf(space.model)
    stored = source.load_model()
    other = transformers.AutoModelForCausalLM.from_pretrained(
        source.folder, dtype=torch.float32, local_files_only=True
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.folder, local_files_only=True)

    text = (space.folder / "corpus.txt").read_text(encoding="utf-8")
    all_ids = encode(text)
    ids = torch.from_numpy(all_ids)[: min(source.settings["seq_len"], _LONGEST)]
    logits, exact = stored(ids[None])[0], own(ids[None])[0]  # (T, V) each
    leading = exact.topk(2, dim=-1).values
    prompt = ids[: max(1, len(ids) // 4)]
    # Within the context, where neither library has to slide it.
    n_new = max(1, min(len(ids) - len(prompt), _MOST_NEW))

    def greedy(model: GPT2) -> list[int]:
        return generate(model, [prompt], n_new, temperature=0)[0][len(prompt) :].tolist()

    theirs = other.generate(
        prompt[None],
        attention_mask=torch.ones_like(prompt)[None],
        do_sample=False,
        max_new_tokens=n_new,
    )
    return Parity(
        apart=(logits - other(ids[None]).logits[0]).abs(),
        rounded=(logits - exact).abs(),
        margins=leading[:, 0] - leading[:, 1],
        prompt=decode(prompt),
        ours=greedy(stored),
        theirs=theirs[0, len(prompt) :].tolist(),
        own=greedy(own),
        same_tokens=tokenizer(text)["input_ids"] == all_ids.tolist(),
        n_tokens=len(all_ids),
    )


def parity_table(parity: Parity) -> HTML:
    """What was compared, the result, and whether that is as it must be."""

    def equal_to_ours(others: list[int]) -> str:
        return f"{sum(map(int.__eq__, parity.ours, others))} of {len(others)} the same"

    apart, rounded = parity.apart.max().item(), parity.rounded.max().item()
    same = "all" if parity.same_tokens else "not"
    rows = [
        (
            "tokenizers: the text",
            f"{parity.n_tokens:,} tokens, {same} the same",
            MARKS[parity.same_tokens],
        ),
        (
            f"logits at {len(parity.apart)} positions, largest difference",
            f"{apart:.1e} (at most {TOLERANCE:.0e})",
            MARKS[apart <= TOLERANCE],
        ),
        (
            "tokens of the greedy continuation",
            equal_to_ours(parity.theirs),
            MARKS[parity.ours == parity.theirs],
        ),
        (
            "besides: stored weights against the run's, largest difference of a logit",
            f"{rounded:.1e}",
            MARKS[None],
        ),
        (
            "besides: that continuation by the run's own weights",
            equal_to_ours(parity.own),
            MARKS[None],
        ),
    ]
    return table(("ours against transformers", "result", ""), rows)


def continuations_shown(parity: Parity) -> HTML:
    """The same prompt (bold), continued by both libraries."""

    def text(ids: list[int]) -> str:
        return f"<b>{shown(visible(parity.prompt))}</b>{shown(visible(decode(ids)))}"

    return HTML(
        beside([("this package", text(parity.ours)), ("transformers", text(parity.theirs))])
    )


def differences_figure(parity: Parity) -> Figure:
    """How large differences of logits are: between libraries, by rounding, and between the two most likely tokens."""
    figure, axes = panel(8, 3.2)
    edges = np.linspace(-8, 2, 61)
    for (name, values), style in zip(_series(parity).items(), ("-", "--", ":")):
        heights = np.histogram(np.log10(np.clip(values, 1e-8, 99)), bins=edges)[0] / len(values)
        axes.stairs(
            100 * heights, 10**edges, label=name, color="black", linestyle=style, linewidth=1.6
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


def differences_text(parity: Parity) -> str:
    """What that figure shows, for those who cannot see it."""
    medians = ", ".join(
        f"{name}: half of them above {np.median(values):.1e}"
        for name, values in _series(parity).items()
    )
    return f"Differences of logits on a logarithmic axis; {medians}."


def _series(parity: Parity) -> dict[str, np.ndarray]:
    series = {
        "two libraries, one file": parity.apart,
        "rounding the weights": parity.rounded,
        "most likely token and the next": parity.margins,
    }
    return {name: values.numpy().ravel() for name, values in series.items() if values.any()}


def card(space: Space) -> Markdown:
    """The model card as its readers see it, its headings below those of the notebook."""
    text = (space.model / "README.md").read_text(encoding="utf-8").partition("\n# ")[2]
    return Markdown(re.sub("^#", "###", f"# {visible(text)}", flags=re.MULTILINE))


def app(space: Space) -> HTML | None:
    """Start the app, read its page, stop it: how it answered."""

    def visit() -> str:
        httpx = needed("httpx")
        with serving(space.folder) as app:
            # Not through a proxy that the environment names: it would not know this machine's own address.
            page, config = (
                httpx.get(app.url + path, timeout=30, trust_env=False) for path in ("", "/config")
            )
        return say(
            f"The app answered at {app.url} with status {page.status_code} and a page of {len(page.content):,} bytes, "
            f"“{config.json()['title']}”. It is stopped again."
        )

    if os.environ.get(NO_APP) == "1":
        return say(f"The app was not started: {NO_APP}=1 forbids it.")
    return attempt("The app was not started", visit)
