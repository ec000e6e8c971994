"""The text of a run with every measured token on a background that tells its loss: `report/tokens.html`, and a taste of it.

It knows how much text a page may hold. The colours and their limits are those of `results.token_paint`. Each token is an
element of its own only where it is marked, or where there is room: unmarked ones, which the model expected, stand as text.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from markupsafe import Markup

from gpt2_nb_utils.results.blocks import shown
from gpt2_nb_utils.results.token_losses import TokenLosses, WindowLosses
from gpt2_nb_utils.results.token_paint import classes, probability_text, shares, step
from gpt2_nb_utils.tokenization.bpe import token_strings
from gpt2_nb_utils.tokenization.display import visible

FILE = "tokens.html"
LETTERS = "zabcde"
"""The class of each colour in the style sheet; z stands for the unmarked."""
_EACH_UP_TO = 20_000
"""Tokens up to which each is an element of its own, unmarked ones too."""
_IN_A_PART = 8_192
"""Tokens below one heading, where the whole text is shown."""
_PARTS = 60
"""Headings, where it is not."""
_HEADING = 300
"""Bytes that a heading and the link to it take."""
_WORST = 40
"""Tokens that the table of the least expected ones names."""
_STOPS = 5
"""Tokens of a window on the first page, the least expected ones, at which the keyboard stops."""


@dataclass(frozen=True)
class Surprise:
    """One of the least expected tokens, for a row of the table: all as text."""

    place: int
    token: str
    before: str
    probability: str
    loss: str


@dataclass(frozen=True)
class Part:
    """Some windows in a row below one heading."""

    id: str
    title: str
    loss: str
    body: Markup

    @property
    def lines(self) -> int:
        """Lines of its text, by which a browser knows its height before it lays it out."""
        return self.body.count("\n") + 1


@dataclass(frozen=True)
class TokenPage:
    """What the page shows.

    Attributes:
        losses: what was measured.
        n_shown: windows that the page shows, spread evenly, where all would be too many.
        classes: of each colour (letter, probabilities, losses, predictions, their share, share of the loss).
        surprises: the least expected tokens, the least expected first.
        parts: the text.
    """

    losses: TokenLosses
    n_shown: int
    classes: list[tuple[str, str, str, int, str, str]]
    surprises: list[Surprise]
    parts: list[Part]


def token_page(losses: TokenLosses, largest: int) -> TokenPage:
    """The page of these losses.

    Args:
        largest: characters that its text may take; windows are left out where it takes more.
    """
    n_shown = len(losses.windows)
    while True:
        windows = [
            losses.windows[(2 * i + 1) * len(losses.windows) // (2 * n_shown)]
            for i in range(n_shown)
        ]
        surprises = _surprises(windows)
        parts = list(_parts(windows, losses, {surprise.place for surprise in surprises}))
        size = sum(len(part.body.encode("utf-8")) + _HEADING for part in parts)
        if size <= largest or n_shown == 1:
            break
        n_shown = max(1, int(n_shown * 0.97 * largest / size))
    counted = shares(torch.from_numpy(losses.all_losses()).double())
    rows = [
        (letter, *names, *numbers) for letter, names, numbers in zip(LETTERS, classes(), counted)
    ]
    return TokenPage(losses, n_shown, rows, surprises, parts)


def taste(losses: TokenLosses) -> list[tuple[str, Markup]]:
    """Two windows for the first page: the first that was measured, and the one with the highest mean loss.

    Returns:
        (caption, the painted text) of each.
    """
    chosen = dict.fromkeys(
        (0, max(range(len(losses.windows)), key=lambda number: losses.windows[number].mean))
    )
    names = {0: "the first window" if losses.windows[0].index == 0 else "a window"}
    return [
        (
            f"Window {window.index + 1:,} of {losses.n_windows:,}, {names.get(number, 'the one with the highest loss')}: "
            f"mean loss {window.mean:.3f}",
            Markup(_painted(window, each=True, stops=_least_expected(window))),
        )
        for number in chosen
        for window in [losses.windows[number]]
    ]


def _least_expected(window: WindowLosses) -> set[int]:
    return {
        window.start + 1 + offset
        for offset in np.argsort(-window.losses, kind="stable")[:_STOPS].tolist()
    }


def _parts(windows: Sequence[WindowLosses], losses: TokenLosses, named: Set[int]) -> Iterator[Part]:
    each = sum(len(window.losses) for window in windows) <= _EACH_UP_TO
    per_part = max(
        1,
        _IN_A_PART // losses.seq_len
        if len(windows) == losses.n_windows
        else len(windows) // _PARTS,
    )
    for first in range(0, len(windows), per_part):
        group = windows[first : first + per_part]
        start, end = group[0].start + 1, group[-1].start + len(group[-1].losses)
        mean = float(np.concatenate([window.losses for window in group]).mean(dtype=np.float64))
        bodies = [_painted(group[0], each, named)]
        for before, window in pairwise(group):
            apart = window.index != before.index + 1
            bodies += [
                "\n<i>⋯</i>\n" if apart else "",
                _painted(window, each, named, continued=not apart),
            ]
        yield Part(
            f"from-{start}", f"Tokens {start:,} to {end:,}", f"{mean:.3f}", Markup("".join(bodies))
        )


def _painted(
    window: WindowLosses,
    each: bool,
    named: Set[int] = frozenset(),
    stops: Set[int] = frozenset(),
    continued: bool = False,
) -> str:
    """The HTML of a window: a sign with its mean loss, the token that is given, unless it was shown just before, and the others.

    Args:
        each: whether unmarked tokens are elements too.
        named: numbers of the tokens that link to their row in the table.
        stops: numbers of other tokens that the keyboard reaches.
        continued: the window before stands just before.
    """
    texts = token_strings(window.tokens)
    sign = f'<b data-w="{window.index + 1} · {window.mean:.2f}"></b>'
    parts = [sign if continued else f"{sign}<i>{shown(texts[0])}</i>"]
    for place, text, loss in zip(
        range(window.start + 1, window.start + len(texts)), texts[1:], window.losses.tolist()
    ):
        number = step(loss)
        if place in named:
            parts.append(
                f'<a id="t{place}" href="#r{place}" class={LETTERS[number]} data-l={loss:.2f}>{_text(text)}</a>'
            )
        elif number or each:
            stop = " tabindex=0" if place in stops else ""
            parts.append(
                f"<u class={LETTERS[number]} data-l={loss:.2f}{stop}>{_text(text) if number else _plain(text)}</u>"
            )
        else:
            parts.append(_plain(text))
    return "".join(parts)


def _text(text: str) -> str:
    return html.escape(text.replace("\n", "↵\n"), quote=False)


def _plain(text: str) -> str:
    return html.escape(text, quote=False)


def _surprises(windows: Sequence[WindowLosses]) -> list[Surprise]:
    values = np.concatenate([window.losses for window in windows])
    which = np.repeat(np.arange(len(windows)), [len(window.losses) for window in windows])
    within = np.concatenate([np.arange(len(window.losses)) for window in windows])
    found = []
    for at in np.argsort(-values, kind="stable")[:_WORST].tolist():
        window, offset = windows[which[at]], int(within[at])
        before = "".join(token_strings(window.tokens[max(0, offset - 7) : offset + 1]))
        loss = float(values[at])
        found.append(
            Surprise(
                window.start + 1 + offset,
                visible(token_strings(window.tokens[offset + 1 : offset + 2])[0]),
                before.replace("\n", "↵"),
                probability_text(loss),
                f"{loss:.2f}",
            )
        )
    return found
