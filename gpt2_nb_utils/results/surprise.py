"""The token that surprised the model most, and what it held likelier at that place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from IPython.display import HTML
from torch import Tensor

from gpt2_nb_utils.results.measure import Measured
from gpt2_nb_utils.tokenization.bpe import token_strings
from gpt2_nb_utils.tokenization.display import code, coloured_tokens, table


@dataclass(frozen=True)
class Surprise:
    """A place of the text, and what the model expected there.

    Attributes:
        seen: the tokens of its window before that place (t,): all that the model knew.
        token: the one that stands there.
        probability: what the model gave it.
        rank: 1 for the likeliest token, and so on.
        likeliest: the tokens that it held likeliest, (id, probability), in order.
    """

    seen: Tensor
    token: int
    probability: float
    rank: int
    likeliest: tuple[tuple[int, float], ...]


@torch.no_grad()
def least_expected(measured: Measured, n: int = 5) -> Surprise:
    """The measured token with the highest loss.

    Args:
        n: how many of the likeliest tokens are told.
    """
    losses, index = max(
        zip(measured.losses, measured.indices), key=lambda window: window[0].max().item()
    )
    place = int(losses.argmax())
    x, y = measured.windows.window(index)
    model = measured.trained.model
    seen, token = x[: place + 1], int(y[place])
    probabilities = model(seen[None].to(model.device))[0, -1].double().softmax(dim=0).cpu()  # (V,)
    top = probabilities.topk(n)
    return Surprise(
        seen,
        token,
        probabilities[token].item(),
        1 + int((probabilities > probabilities[token]).sum()),
        tuple(zip(top.indices.tolist(), top.values.tolist())),
    )


def in_words(surprise: Surprise) -> str:
    """What stands there, in a sentence."""
    return (
        f"The least expected token got a probability of {surprise.probability:.2g}, and {surprise.rank - 1:,} tokens were held "
        f"likelier."
    )


def shown(surprise: Surprise, context: int = 12) -> HTML:
    """The last tokens that the model saw, what it held likeliest after them, and what came.

    Args:
        context: tokens shown before the place.
    """
    rows = [
        (rank, code(token_strings([token])[0]), f"{probability:.2%}")
        for rank, (token, probability) in enumerate(surprise.likeliest, start=1)
    ]
    came = (
        surprise.rank,
        HTML(f"<b>{coloured_tokens([surprise.token]).data}</b>"),
        f"{surprise.probability:.2g}",
    )
    seen = coloured_tokens(surprise.seen[-context:].tolist(), show_ids=False).data
    caption = "After these tokens: the likeliest, and last the one that came"
    return HTML(seen + table(("rank", "token", "probability"), [*rows, came], caption).data)
