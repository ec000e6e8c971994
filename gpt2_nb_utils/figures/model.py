"""The figures of notebook 02: architecture, weights, masks, attention, the choice of a token."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from torch import Tensor

from gpt2_nb_utils.figures.html import mark_whitespace
from gpt2_nb_utils.figures.style import (
    BLUE,
    PALE,
    WARM,
    diagram,
    legend_beside,
    panel,
)

if TYPE_CHECKING:
    from gpt2_nb_utils.model.gpt2 import GPT2Config

_STROKES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))
"""Line and marker of the first, second, third and fourth series of a figure."""
DARKEST = 0.5
"""The attention weight from which a map is black: rarely does a head put more on a single token."""


def architecture(config: GPT2Config) -> Figure:
    """The network as a drawing, read from top to bottom: left the whole, right one block."""
    C, V, n_layer = config.n_embd, config.vocab_size, config.n_layer
    blocks = [f"block {number}" for number in range(1, n_layer + 1)]
    if n_layer > 3:
        blocks[2:-1] = [f"… {n_layer} blocks in all …"]
    whole = [
        ("token ids (B, T)", "white"),
        (f"token embedding {V:,} × {C}\n+ position embedding {config.block_size:,} × {C}", WARM),
        *((block, PALE) for block in blocks),
        ("last LayerNorm", "white"),
        ("head: times the token embedding,\ntransposed (the same weights)", WARM),
        (f"logits (B, T, {V:,})", "white"),
    ]
    left, stream, branch, height = 2.0, 5.5, 7.7, 0.8 * len(whole)
    boxes = [(left, 0.4 + 0.8 * row, *step) for row, step in enumerate(whole)]
    attention = (
        f"LayerNorm 1, then\nattention, {config.n_head} heads\n(tokens exchange information)"
    )
    mlp = f"LayerNorm 2, then\nMLP, {C} → {4 * C:,} → {C}\n(each token on its own)"
    inside = [
        (stream, 0.1, "inside one block: the residual stream (B, T, C)", "white"),
        (branch, 0.3, attention, PALE),
        (stream, 0.5, "+", "white"),
        (branch, 0.7, mlp, PALE),
        (stream, 0.9, "+", "white"),
    ]
    boxes += [(x, share * height, text, fill) for x, share, text, fill in inside]
    first = len(whole)
    arrows = [(number, number + 1) for number in range(first, first + 4)]
    figure, axes = diagram(9.5, height, boxes, arrows)
    for x, top in ((left, 0.4), (stream, 0.1 * height)):  # the residual streams
        axes.plot([x, x], [top, height - 0.4], color="0.35", linewidth=5, zorder=0)
    return figure


def heads_figure(config: GPT2Config) -> Figure:
    """Multi-head attention from top to bottom: channels cut into heads, attention, joined again."""
    C, H, middle = config.n_embd, config.n_head, 4.75
    boxes = [
        (middle, 0.3, f"a token's vector after LayerNorm 1: C = {C} channels", "white"),
        (middle, 1.1, f"c_attn: queries, keys and values, {C} channels each", WARM),
        (middle, 3.5, f"the {H} results side by side: {C} channels again", "white"),
        (middle, 4.3, f"c_proj mixes them: {C} → {C}, added to the residual stream", WARM),
    ]
    heads = [1, 2, 3, "…", H] if H > 4 else range(1, H + 1)
    for number, head in enumerate(heads):
        x = 2 * middle * (number + 0.5) / len(heads)
        boxes.append((x, 2.3, f"head {head}\nattention with\n{C // H} channels", PALE))
    arrows = [(0, 1), (2, 3)]
    for head in range(4, len(boxes)):
        arrows += [(1, head), (head, 2)]
    return diagram(2 * middle, 4.6, boxes, arrows)[0]


def parts_figure(parts: Sequence[tuple[str, str, int]]) -> Figure:
    """The parameters of each part as bars.

    Args:
        parts: rows (part, arithmetic, parameters), as `parameter_parts` returns them.
    """
    names, _, counts = zip(*parts)
    figure, axes = panel(8, 3.4, xlabel="parameters", xmargin=0.15, xticks=[])
    axes.bar_label(axes.barh(names, counts, color=BLUE, height=0.65), fmt="{:,.0f}", padding=4)
    axes.invert_yaxis()
    return figure


def weight_figure(stds: Sequence[tuple[str, int, float, float]]) -> Figure:
    """The measured standard deviation of every weight matrix by its kind, the expected as lines.

    Args:
        stds: rows (name, count, expected, measured), as `weight_stds` returns them.
    """
    figure, axes = panel(8, 3.8, ylabel="standard deviation", ylim=(0, 0.024))
    axes.set_xlabel("weight matrix (a circle for each block)")
    weights = [row for row in stds if row[2]]  # biases begin at 0, LayerNorms at 1
    kinds = [re.sub(r"transformer\.(h\.\d+\.)?|\.weight", "", name) for name, *_ in weights]
    measured = [std for *_, std in weights]
    axes.plot(kinds, measured, "o", color=BLUE, markerfacecolor="none", markersize=8)
    for std in sorted({std for _, _, std, _ in weights}, reverse=True):
        axes.axhline(std, linestyle=":", label=f"expected {std:.5f}")
    legend_beside(axes)
    return figure


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
    log_y: bool = False,
    levels: Mapping[str, float] | None = None,
    markers: bool = True,
    from_zero: bool = False,
) -> Figure:
    """Lines that differ in stroke and marker, and horizontal levels with their names.

    Args:
        series: name: (x values, y values).
        levels: name: y value of a horizontal line.
        markers: False draws the strokes only.
        from_zero: the y axis begins at 0.
    """
    figure, axes = panel(8, 3.6, xlabel=xlabel, ylabel=ylabel, yscale="log" if log_y else "linear")
    for (name, (xs, ys)), (stroke, marker) in zip(series.items(), _STROKES):
        axes.plot(xs, ys, linestyle=stroke, label=name, marker=marker if markers else "")
    if from_zero:
        axes.set_ylim(bottom=0)
    for name, level in (levels or {}).items():
        axes.axhline(level, linestyle=":", label=name)
    if len(series) > 1 or levels:
        legend_beside(axes)
    return figure


def bars(heights: Sequence[float], xlabel: str, ylabel: str, mark: int) -> Figure:
    """Bars at 0, 1, 2, …, with a dashed line before the bar at `mark`."""
    places = range(len(heights))
    figure, axes = panel(8, 2.8, xlabel=xlabel, ylabel=ylabel, xticks=places)
    axes.bar(places, heights, color=BLUE, width=0.7)
    axes.axvline(mark - 0.5, linestyle="--", label=f"changed here: {mark}")
    axes.legend()
    return figure


def histogram(
    series: Mapping[str, Tensor],
    xlabel: str,
    ylabel: str,
    marks: Mapping[str, float],
    log_x: bool = False,
) -> Figure:
    """How often each value occurs, with named vertical lines.

    Args:
        series: name: values (n,), above 0 where `log_x`.
    """
    figure, axes = panel(8, 3, xlabel=xlabel, ylabel=ylabel, xscale="log" if log_x else "linear")
    every = torch.cat(list(series.values()))
    spaced = np.geomspace if log_x else np.linspace
    bins = spaced(every.min(), every.max(), 60)
    for (name, values), fill in zip(series.items(), (PALE, "none")):
        axes.hist(values, bins, histtype="stepfilled", label=name, facecolor=fill, edgecolor=BLUE)
    for (name, place), stroke in zip(marks.items(), ("--", "-.", ":")):
        axes.axvline(place, linestyle=stroke, label=f"{name}: {place:.4g}")
    axes.legend()
    return figure


def mask_figure(pieces: Sequence[str]) -> Figure:
    """The causal mask over these tokens: which token (row) may look at which (column)."""
    side = 1.5 + 0.27 * len(pieces)
    figure, axes = panel(side, side, xlabel="key token", ylabel="query token")
    allowed = np.tri(len(pieces))
    cells(axes, 0.55 * allowed, np.where(allowed, "", "×"), pieces, pieces)
    return figure


def attention_steps(q: Tensor, k: Tensor, v: Tensor) -> Figure:
    """Causal attention of one head in four steps with numbers: scores, mask, softmax, output.

    Args:
        q, k, v: queries, keys and values (T, D), small.
    """
    T, D = q.shape
    scores = (q @ k.T).numpy() / D**0.5  # (T, T)
    masked = np.where(np.tri(T), scores, -np.inf)
    weights = np.exp(masked) / np.exp(masked).sum(axis=1, keepdims=True)
    steps = (
        ("scores  q kᵀ / √D", scores, "key"),
        ("future masked", masked, "key"),
        ("softmax of each row", weights, "key"),
        ("weights times v", weights @ v.numpy(), "channel"),
    )
    figure = Figure(figsize=(9.5, 2.9))
    panels = figure.subplots(1, 4, sharey=True, width_ratios=[T, T, T, D])
    for axes, (title, matrix, xlabel) in zip(panels, steps):
        texts = np.char.replace(np.char.mod("%.2f", matrix), "-inf", "−∞")
        cells(axes, np.clip(matrix / 8, 0, 0.5), texts, range(T), range(matrix.shape[1]))
        axes.set(title=title, xlabel=xlabel)
    panels[0].set_ylabel("query")
    return figure


def cache_figure(n_prompt: int, n_new: int) -> Figure:
    """What each generated token makes the model compute, without and with a KV cache."""
    figure = Figure(figsize=(9, 3.4))
    steps, places = np.indices((n_new, n_prompt + n_new - 1))
    there = places < n_prompt + steps  # the tokens that the step can see
    new = there & ((places >= n_prompt + steps - 1) | (steps == 0))
    cases = {"without a cache": there, "with a KV cache": new}
    for axes, (case, computed) in zip(figure.subplots(1, 2), cases.items()):
        shades, texts = 0.12 * there + 0.58 * computed, np.where(there & ~computed, "c", "")
        cells(axes, shades, texts, range(1, n_new + 1), range(1, n_prompt + n_new))
        title = f"{case}: {computed.sum()} positions computed"
        axes.set(xlabel="position in the context", ylabel="new token number", title=title)
    return figure


def map_grid(
    maps: Sequence[Tensor],
    layers: Sequence[int],
    heads: Sequence[int],
    pieces: Sequence[str],
    inches: float = 2.6,
) -> Figure:
    """Attention maps, a row per layer and a column per head, with one scale of darkness for all.

    Args:
        maps: one (1, H, T, T) per layer, as `GPT2.attention_maps` returns them.
        layers: indices of the layers to draw.
        heads: indices of the heads to draw.
        pieces: the T tokens as text.
        inches: side of each map.
    """
    figure = Figure(figsize=(1.5 + inches * len(heads), 1 + inches * len(layers)))
    grid = figure.subplots(len(layers), len(heads), squeeze=False, sharex=True, sharey=True)
    for (row, column), axes in np.ndenumerate(grid):
        layer, head = layers[row], heads[column]
        weights = maps[layer][0, head].float().cpu().numpy()  # (T, T)
        image = axes.imshow(weights, vmin=0, vmax=DARKEST)
        axes.set_title(f"layer {layer + 1}, head {head + 1}")
        axes.grid(False)
        name_ticks(axes.xaxis, pieces, rotation=90)
        name_ticks(axes.yaxis, pieces)
    figure.supxlabel("key token")
    figure.supylabel("query token")
    label = f"attention weight (darkest: {DARKEST:g} and more)"
    figure.colorbar(image, ax=grid, label=label, shrink=0.8)
    return figure


def choices(ways: Mapping[str, Tensor], candidates: Sequence[str]) -> Figure:
    """The probability of each candidate for the next token, a panel for each way of choosing.

    Args:
        ways: name: probabilities (V,), V small.
        candidates: the V tokens.
    """
    figure = Figure(figsize=(9.5, 2.9))
    panels = figure.subplots(1, len(ways), sharey=True, squeeze=False)[0]
    for axes, (name, probabilities) in zip(panels, ways.items()):
        heights = axes.bar(range(len(candidates)), probabilities, color=BLUE)
        axes.bar_label(heights, fmt=lambda p: f"{p:.2f}" if p else "0", fontsize=9)
        axes.set(title=name, ylim=(0, 1.05))
        name_ticks(axes.xaxis, candidates, rotation=45)
    panels[0].set_ylabel("probability")
    return figure


def name_ticks(axis: Axis, names: Sequence[object], rotation: float = 0) -> None:
    """Name the ticks 0, 1, 2, … of an axis by tokens or numbers."""
    texts = [mark_whitespace(str(name)) for name in names]
    # A corpus may hold dollar signs, which would start a formula.
    axis.set_ticks(range(len(texts)), texts, parse_math=False, rotation=rotation, fontsize=8)


def cells(
    axes: Axes,
    shades: np.ndarray,
    texts: np.ndarray,
    rows: Sequence[object],
    columns: Sequence[object],
) -> None:
    """Draw cells, white (0) to black (1), each with its text; name rows and columns."""
    places = range(len(columns)), range(len(rows))
    axes.pcolormesh(*places, shades, vmin=0, vmax=1, edgecolors="0.6", linewidth=0.6)
    axes.set(aspect="equal", ylim=(len(rows) - 0.5, -0.5))  # rows from above
    axes.grid(False)
    axes.tick_params(length=0)
    is_long = any(len(str(column)) > 3 for column in columns)
    name_ticks(axes.xaxis, columns, rotation=90 if is_long else 0)
    name_ticks(axes.yaxis, rows)
    for (row, column), text in np.ndenumerate(texts):
        axes.text(column, row, text, ha="center", va="center", fontsize=9)
