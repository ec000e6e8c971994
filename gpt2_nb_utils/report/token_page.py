"""The text of a run with every measured token marked by its loss: `report/tokens.html`, and an excerpt of it.

The colours and their limits are those of `figures.token_paint`. Each token is an element of its own only
where it is marked, or where there is room: unmarked ones, which the model expected, stand as text.
"""

from __future__ import annotations

import bisect
import heapq
import html
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from markupsafe import Markup

from gpt2_nb_utils.figures.html import mark_whitespace, shown
from gpt2_nb_utils.figures.token_paint import classes, probability_text, shares, step
from gpt2_nb_utils.results.token_losses import TokenLosses, WindowLosses
from gpt2_nb_utils.tokenization.bpe import token_strings

FILE = "tokens.html"
LETTERS = "zabcde"
"""The class of each colour in the style sheet; z is that of the unmarked."""
_EACH_UP_TO = 20_000
"""Tokens up to which each is an element of its own, unmarked ones too."""
_IN_A_PART = 8_192
"""Tokens below one heading, where the whole text is shown."""
_PARTS = 60
"""Headings, where it is not."""
_HEADING = 300
"""Bytes that a heading takes."""
_CELLS = 64
"""Of the strip of a part, at most: a window each, or some neighbours."""
HEAT = (0.7, 1.0, 1.4, 2.0, 3.0)
"""Where the colours of these strips begin, as multiples of the mean loss of the text."""
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
    """Some windows in a row below one heading.

    Attributes:
        strip: a coloured cell for each window, which leads to it.
    """

    id: str
    title: str
    loss: str
    strip: Markup
    body: Markup


@dataclass(frozen=True)
class TokenPage:
    """What the page shows, and what the first page shows of it.

    Attributes:
        losses: what was measured.
        n_shown: windows that the page shows, spread evenly, where all would be too many.
        classes: of each colour (letter, probabilities, losses, predictions, their share, share of the loss).
        surprises: the least expected tokens, the least expected first.
        parts: the text.
        heat: of each colour of the strips (letter, which mean losses).
        excerpt: (caption, painted text) of the first window that was measured, and of that with the
            highest mean loss.
    """

    losses: TokenLosses
    n_shown: int
    classes: list[tuple[str, str, str, int, str, str]]
    surprises: list[Surprise]
    parts: list[Part]
    heat: list[tuple[str, str]]
    excerpt: list[tuple[str, Markup]]

    @property
    def long(self) -> bool:
        """Whether the text is so long that its parts are folded away, below the map."""
        return self.losses.n_targets > _EACH_UP_TO


def token_page(losses: TokenLosses, largest: int) -> TokenPage:
    """The page of these losses.

    Args:
        largest: bytes that its text may take; windows are left out where it takes more.
    """
    n_shown = n = len(losses.windows)
    while True:
        windows = [losses.windows[(2 * i + 1) * n // (2 * n_shown)] for i in range(n_shown)]
        surprises = _surprises(windows)
        parts = list(_parts(windows, losses, {surprise.place for surprise in surprises}))
        sizes = (len(part.body.encode("utf-8")) + len(part.strip) for part in parts)
        size = sum(sizes) + _HEADING * len(parts)
        if size <= largest or n_shown == 1:
            break
        n_shown = max(1, int(n_shown * 0.97 * largest / size))
    counted = shares(torch.from_numpy(losses.all_losses()).double())
    rows = [
        (letter, *names, *numbers) for letter, names, numbers in zip(LETTERS, classes(), counted)
    ]
    limits = [f"{share * losses.loss:.2f}" for share in HEAT]
    named = [f"below {limits[0]}", *(f"from {limit}" for limit in limits)]
    heat = list(zip(LETTERS, named))
    return TokenPage(losses, n_shown, rows, surprises, parts, heat, _excerpt(losses))


def _excerpt(losses: TokenLosses) -> list[tuple[str, Markup]]:
    first, highest = losses.windows[0], max(losses.windows, key=lambda window: window.mean)
    chosen = {
        "the first window" if first.index == 0 else "a window": first,
        "the one with the highest loss": highest,
    }
    if highest is first:
        chosen.popitem()
    found = []
    for name, window in chosen.items():
        highest_here = window.losses.topk(min(_STOPS, len(window.losses))).indices.tolist()
        stops = [window.start + 1 + offset for offset in highest_here]
        caption = f"Window {window.index + 1:,} of {losses.n_windows:,}, {name}"
        painted = Markup(_painted(window, each=True, stops=stops))
        found.append((f"{caption}: mean loss {window.mean:.3f}", painted))
    return found


def _parts(
    windows: Sequence[WindowLosses], losses: TokenLosses, named: Collection[int]
) -> Iterator[Part]:
    each = sum(len(window.losses) for window in windows) <= _EACH_UP_TO
    whole = len(windows) == losses.n_windows
    per_part = max(1, _IN_A_PART // losses.seq_len if whole else len(windows) // _PARTS)
    for first in range(0, len(windows), per_part):
        group = windows[first : first + per_part]
        start, end = group[0].start + 1, group[-1].start + len(group[-1].losses)
        mean = losses.mean_on([window.index for window in group])
        body = []
        for before, window in zip([None, *group], group):
            follows = before is not None and window.index == before.index + 1
            if before is not None and not follows:
                body.append("\n<i>⋯</i>\n")
            body.append(_painted(window, each, named, continued=follows))
        title = f"Tokens {start:,} to {end:,}"
        strip = Markup("".join(_strip(group, losses)))
        yield Part(f"from-{start}", title, f"{mean:.3f}", strip, Markup("".join(body)))


def _strip(group: Sequence[WindowLosses], losses: TokenLosses) -> Iterator[str]:
    """The cells of a part, which only a pointer reaches: the keyboard has the text below."""
    each = -(-len(group) // _CELLS)
    for first in range(0, len(group), each):
        numbers = [window.index for window in group[first : first + each]]
        mean, place = losses.mean_on(numbers), numbers[0] + 1
        letter = LETTERS[bisect.bisect(HEAT, mean / losses.loss) if losses.loss else 0]
        yield f'<a href=#w{place} class={letter} tabindex=-1 title="{place} · {mean:.2f}"></a>'


def _painted(
    window: WindowLosses,
    each: bool,
    named: Collection[int] = (),
    stops: Collection[int] = (),
    continued: bool = False,
) -> str:
    """The HTML of a window: a sign with its mean loss, the token that is given, unless it was shown just before, and the others.

    Args:
        each: whether unmarked tokens are elements too.
        named: numbers of the tokens that link to their row in the table.
        stops: numbers of other tokens that the keyboard reaches.
        continued: whether the window before is shown just before.
    """
    given, *texts = token_strings(window.tokens)
    sign = f'<b id=w{window.index + 1} data-w="{window.index + 1} · {window.mean:.2f}"></b>'
    parts = [sign if continued else f"{sign}<i>{shown(given)}</i>"]
    for place, text, loss in zip(count(window.start + 1), texts, window.losses.tolist()):
        number = step(loss)
        text = html.escape(text.replace("\n", "↵\n") if number else text, quote=False)
        look = f"class={LETTERS[number]} data-l={loss:.2f}"
        if place in named:
            parts.append(f'<a id="t{place}" href="#r{place}" {look}>{text}</a>')
        elif number or each:
            stop = " tabindex=0" if place in stops else ""
            parts.append(f"<u {look}{stop}>{text}</u>")
        else:
            parts.append(text)
    return "".join(parts)


def _surprises(windows: Sequence[WindowLosses]) -> list[Surprise]:
    every = (
        (loss, offset, window)
        for window in windows
        for offset, loss in enumerate(window.losses.tolist())
    )
    found = []
    for loss, offset, window in heapq.nlargest(_WORST, every, key=lambda each: each[0]):
        *before, token = token_strings(window.tokens[max(0, offset - 7) : offset + 2])
        found.append(
            Surprise(
                window.start + 1 + offset,
                mark_whitespace(token),
                "".join(before).replace("\n", "↵"),
                probability_text(loss),
                f"{loss:.2f}",
            )
        )
    return found
