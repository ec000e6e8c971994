"""The figures of notebook 02: architecture, weights, masks, attention, the choice of a token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from torch import Tensor

from gpt2_nb_utils.figures.html import mark_whitespace
from gpt2_nb_utils.figures.style import (
    BLUE,
    PALE,
    WARM,
    arrow,
    box,
    canvas,
    label_ends,
    panel,
    write,
)

if TYPE_CHECKING:
    from gpt2_nb_utils.model.gpt2 import GPT2Config

_STROKES = (("-", "o"), ("--", "s"), (":", "^"))
"""Line and marker of the first, second and third series of a figure."""
DARKEST = 0.5
"""The attention weight from which a map is black: rarely does a head put more on a single token."""


def architecture(config: GPT2Config) -> Figure:
    """The network as a drawing, read from top to bottom: left the whole, right one block."""
    C, V, n_layer = config.n_embd, config.vocab_size, config.n_layer
    figure, axes = canvas(9.5, 8, 19, 16)
    for x, top, bottom in ((4, 0.9, 14.7), (11, 1.7, 14.2)):  # the two residual streams
        axes.plot([x, x], [top, bottom - 0.4], color="0.35", linewidth=5, solid_capstyle="butt")
        axes.plot([x], [bottom - 0.35], marker="v", markersize=13, color="0.35")
    embeddings = f"token embedding {V:,} × {C}\n+ position embedding {config.block_size:,} × {C}"
    head = "head: times the token embedding,\ntransposed (the same weights)"
    box(axes, 4, 0.7, 5.4, "token ids (B, T)", "white")
    box(axes, 4, 2.5, 6.4, embeddings, WARM, 1.5)
    for y, number in zip([5.2, 6.5, 9.0] if n_layer > 2 else [5.2, 7.5], [1, 2, n_layer]):
        if number <= n_layer:
            box(axes, 4, y, 4.6, f"block {number}", PALE)
    if n_layer > 3:
        write(axes, 3.6, 7.75, f"{n_layer} blocks in all", ha="right")
    box(axes, 4, 11.0, 4.6, "last LayerNorm", "white")
    box(axes, 4, 12.9, 6.4, head, WARM, 1.5)
    box(axes, 4, 15.3, 5.4, f"logits (B, T, {V:,})", "white")
    axes.fill(
        [6.3, 8.6, 8.6, 6.3], [4.75, 1.7, 14.2, 5.65], color="0.93", zorder=0
    )  # opens block 1
    write(axes, 11, 1.2, "inside one block: the residual stream (B, T, C)")
    attention = f"attention, {config.n_head} heads\n(tokens exchange information)"
    mlp = f"MLP, {C} → {4 * C:,} → {C}\n(each token on its own)"
    for y, number, branch in ((2.6, 1, attention), (8.7, 2, mlp)):
        arrow(axes, (11, y), (15.6, y), (15.6, y + 4.2), (11.4, y + 4.2))
        box(axes, 15.6, y + 1.1, 4.6, f"LayerNorm {number}", "white")
        box(axes, 15.6, y + 2.65, 5.6, branch, PALE, 1.3)
        circle = dict(boxstyle="circle,pad=0.15", facecolor="white", edgecolor="black")
        write(axes, 11, y + 4.2, "+", fontsize=15, bbox=circle)
    return figure


def heads_figure(config: GPT2Config) -> Figure:
    """Multi-head attention from top to bottom: channels cut into heads, attention, joined again."""
    C, H = config.n_embd, config.n_head
    figure, axes = canvas(9.5, 4.6, 19, 9.4)
    box(axes, 9.5, 0.7, 12, f"a token's vector after LayerNorm 1: C = {C} channels", "white")
    box(axes, 9.5, 2.2, 16, f"c_attn: queries, keys and values, {C} channels each", WARM)
    box(axes, 9.5, 7.0, 16, f"the {H} results side by side: {C} channels again", "white")
    box(axes, 9.5, 8.6, 12, f"c_proj mixes them: {C} → {C}, added to the residual stream", WARM)
    arrow(axes, (9.5, 1.2), (9.5, 1.7))
    arrow(axes, (9.5, 7.5), (9.5, 8.1))
    shown = [1, 2, 3, H] if H > 4 else range(1, H + 1)
    width = 16 / len(shown)
    for number, head in enumerate(shown):
        x = 1.5 + width * (number + 0.5)
        text = f"head {head}\nattention with\n{C // H} channels"
        box(axes, x, 4.6, width - 0.7, text, PALE, 1.9)
        arrow(axes, (x, 2.7), (x, 3.6))
        arrow(axes, (x, 5.6), (x, 6.5))
        if head > number + 1:
            write(axes, x - width / 2, 4.6, "…", fontsize=15)
    return figure


def parts_figure(parts: Sequence[tuple[str, str, int]]) -> Figure:
    """The parameters of each part as bars.

    Args:
        parts: rows (part, arithmetic, parameters), as `parameter_parts` returns them.
    """
    names, _, counts = zip(*parts)
    unit, name = (1e6, "millions") if sum(counts) > 1e7 else (1e3, "thousands")
    figure, axes = panel(8, 3.4, xlabel=f"parameters ({name})", xmargin=0.12)
    shown = axes.barh(names, np.divide(counts, unit), color=BLUE, height=0.65)
    axes.bar_label(shown, fmt="{:.2f}", padding=4)
    axes.invert_yaxis()
    return figure


def weight_figure(stds: Sequence[tuple[str, int, float, float]]) -> Figure:
    """The measured standard deviation of every weight matrix by layer, the expected one as a line.

    Args:
        stds: rows (name, count, expected, measured), as `weight_stds` returns them.
    """
    figure, axes = panel(8, 3.8, xlabel="block (0: the embeddings)", ylim=(0, 0.024))
    axes.set_ylabel("standard deviation")
    kinds = ("wte", "wpe", "attn.c_attn", "mlp.c_fc", "attn.c_proj", "mlp.c_proj")
    for number, (kind, marker) in enumerate(zip(kinds, "PXs^oD")):
        fill = "white" if kind.startswith("mlp") else BLUE
        measured = [std for name, _, _, std in stds if name.endswith(f"{kind}.weight")]
        blocks = np.arange(len(measured)) + (number > 1) + (0.18 if number % 2 else -0.18)
        look = dict(color="black", markerfacecolor=fill, markersize=7)
        axes.plot(blocks, measured, marker, label=kind, **look)
    expected = {f"expected {std:.5f}": std for _, _, std, _ in stds if std}
    _levels(axes, expected, linestyle="-", zorder=0)
    axes.locator_params(axis="x", integer=True)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=6)
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
        axes.plot(xs, ys, stroke, label=name, marker=marker if markers else "")
    if from_zero:
        axes.set_ylim(bottom=0)
    if levels:
        _levels(axes, levels, linestyle=(0, (1, 2)))
    if len(series) > 1:
        axes.legend()
    return figure


def _levels(axes: Axes, levels: Mapping[str, float], **look: Any) -> None:
    for level in levels.values():
        axes.axhline(level, **look)
    label_ends(axes, [(name, level, "black") for name, level in levels.items()])


def before_after(before: Tensor, after: Tensor, xlabel: str, operation: str) -> Figure:
    """Two vectors (2, C) before an operation (left) and after it, each side with its own scale."""
    figure = Figure(figsize=(9, 3.4))
    sides = {f"before {operation}": before, f"after {operation}": after}
    for axes, (title, pair) in zip(figure.subplots(1, 2), sides.items()):
        axes.set(xlabel=xlabel, ylabel="value", title=title)
        axes.plot(pair[0], "o-", label="first vector", markersize=9)
        axes.plot(pair[1], "s--", label="second vector")
        axes.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, -0.42))
    return figure


def bars(heights: Sequence[float], xlabel: str, ylabel: str, mark: int) -> Figure:
    """Bars at 0, 1, 2, …, with a dashed line before the bar at `mark`."""
    places = range(len(heights))
    figure, axes = panel(8, 2.8, xlabel=xlabel, ylabel=ylabel, xticks=places)
    axes.bar(places, heights, color=BLUE, width=0.7)
    axes.axvline(mark - 0.5, linestyle="--")
    axes.text(mark - 0.6, 0.95 * max(heights), f"changed here: {mark}", ha="right", va="top")
    return figure


def histogram(values: Tensor, xlabel: str, marks: Mapping[str, float]) -> Figure:
    """How often each value occurs, with named vertical lines."""
    figure, axes = panel(8, 3.0, xlabel=xlabel, ylabel="targets")
    axes.hist(values.numpy(), bins=min(40, max(8, len(values) // 12)), color=PALE, edgecolor=BLUE)
    for (name, place), (stroke, _) in zip(marks.items(), _STROKES):
        axes.axvline(place, linestyle=stroke, label=f"{name} = {float(place):.3f}")
    axes.legend()
    return figure


def mask_figure(pieces: Sequence[str]) -> Figure:
    """The causal mask over these tokens: which token (row) may look at which (column)."""
    side = 1.5 + 0.27 * len(pieces)
    figure, axes = panel(
        side, side, xlabel="token looked at (key)", ylabel="token that looks (query)"
    )
    allowed = np.tri(len(pieces))
    _cells(axes, 0.55 * allowed, np.where(allowed, "", "×"), pieces, pieces)
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
    times, channels = [f"t={t}" for t in range(T)], [f"d={d}" for d in range(D)]
    steps = (
        ("scores  q kᵀ / √D", scores, times, "key"),
        ("future masked", masked, times, "key"),
        ("softmax of each row", weights, times, "key"),
        ("weights times v", weights @ v.numpy(), channels, "channel"),
    )
    figure = Figure(figsize=(9.5, 2.9))
    panels = figure.subplots(1, 4, sharey=True, width_ratios=[T, T, T, D])
    for axes, (title, matrix, columns, xlabel) in zip(panels, steps):
        sizes = np.nan_to_num(abs(matrix), posinf=0)
        texts = np.char.replace(np.char.mod("%.2f", matrix), "-inf", "−∞")
        _cells(axes, 0.4 * sizes / max(1.0, sizes.max()), texts, times, columns)
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
        _cells(axes, shades, texts, range(1, n_new + 1), range(1, n_prompt + n_new))
        title = f"{case}: {computed.sum()} positions computed"
        axes.set(xlabel="position in the context", ylabel="new token number", title=title)
    return figure


def map_grid(
    maps: Sequence[Tensor], layers: Sequence[int], heads: Sequence[int], pieces: Sequence[str]
) -> Figure:
    """Attention maps, a row per layer and a column per head, with one scale of darkness for all.

    Args:
        maps: one (1, H, T, T) per layer, as `GPT2.attention_maps` returns them.
        layers: indices of the layers to draw.
        heads: indices of the heads to draw.
        pieces: the T tokens as text.
    """
    figure = Figure(figsize=(1.0 + 2.3 * len(heads), 1.0 + 2.3 * len(layers)))
    grid = figure.subplots(len(layers), len(heads), squeeze=False)
    for (row, column), axes in np.ndenumerate(grid):
        layer, head = layers[row], heads[column]
        attention_map(axes, maps[layer][0, head], f"layer {layer + 1}, head {head + 1}")
        name_ticks(axes.yaxis, [] if column else pieces, fontsize=7)
    figure.supxlabel("token looked at (same order as on the left)")
    attention_scale(figure)
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
        axes.bar_label(heights, [f"{p:.2f}" if p else "0" for p in probabilities], fontsize=9)
        axes.set(title=name, ylim=(0, 1.05))
        name_ticks(axes.xaxis, candidates, rotation=45)
    panels[0].set_ylabel("probability")
    return figure


def attention_map(axes: Axes, weights: Tensor, title: str) -> None:
    """Draw the attention weights (T, T) of one head, without names at the ticks."""
    axes.imshow(weights.float().cpu().numpy(), vmin=0, vmax=DARKEST)
    axes.grid(False)
    axes.set(title=title, xticks=[], yticks=[])


def attention_scale(figure: Figure) -> None:
    """Draw beside the maps of a figure what their darkness means."""
    label = f"attention weight (darkest: {DARKEST:g} and more)"
    figure.colorbar(figure.axes[0].images[0], ax=figure.axes, label=label, shrink=0.8)


def name_ticks(axis: Axis, names: Sequence[object], rotation: float = 0, fontsize: int = 9) -> None:
    """Name the ticks 0, 1, 2, … of an axis by tokens or numbers."""
    texts = [mark_whitespace(str(name)) for name in names]
    # A corpus may hold dollar signs, which would start a formula.
    look = dict(parse_math=False, rotation=rotation, fontsize=fontsize)
    axis.set_ticks(range(len(texts)), texts, **look)


def _cells(
    axes: Axes,
    shades: np.ndarray,
    texts: np.ndarray,
    rows: Sequence[object],
    columns: Sequence[object],
) -> None:
    """Draw cells, white (0) to black (1), each with its text; name rows and columns."""
    n_rows, n_columns = shades.shape
    x, y = np.arange(n_columns + 1) - 0.5, np.arange(n_rows + 1) - 0.5  # the borders
    axes.pcolormesh(x, y, shades, cmap="Greys", vmin=0, vmax=1, edgecolors="0.6", linewidth=0.6)
    axes.set(aspect="equal", ylim=(n_rows - 0.5, -0.5))
    axes.grid(False)
    axes.tick_params(length=0)
    is_long = any(len(str(column)) > 3 for column in columns)
    name_ticks(axes.xaxis, columns, rotation=90 if is_long else 0)
    name_ticks(axes.yaxis, rows)
    for (row, column), text in np.ndenumerate(texts):
        write(axes, column, row, text, fontsize=9)
