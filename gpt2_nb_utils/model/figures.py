"""The figures of notebook 02: the architecture, weights, masks, attention maps, the choice of a token.

It draws what it is handed. It deliberately decides nothing: which model, which tokens and which layers are shown is
the notebook's business. Figures are readable in grey: no meaning rests on colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config, causal_mask
from gpt2_nb_utils.model.measurements import weight_stds
from gpt2_nb_utils.model.parts import parameter_parts
from gpt2_nb_utils.tokenization.display import visible

BLUE, PALE, WARM = "#33628f", "#d6e6f5", "#ffe0ad"
_LINE_LOOKS = (
    dict(color=BLUE, linestyle="-", marker="o"),
    dict(color="black", linestyle="--", marker="s"),
    dict(color="0.5", linestyle=":", marker="^"),
)


def architecture(config: GPT2Config) -> Figure:
    """The network as a drawing: on the left the whole, on the right one block. Both are read from top to bottom."""
    C, V = config.n_embd, config.vocab_size
    figure = Figure(figsize=(9.5, 8), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 19), ylim=(16, 0))
    axes.axis("off")
    for x, top, bottom in ((4, 0.9, 14.7), (11, 1.7, 14.2)):  # the two residual streams
        axes.plot([x, x], [top, bottom - 0.4], color="0.35", linewidth=5, solid_capstyle="butt")
        axes.plot([x], [bottom - 0.35], marker="v", markersize=13, color="0.35")
    _box(axes, 4, 0.7, 5.4, "token ids (B, T)", "white")
    _box(
        axes,
        4,
        2.5,
        6.4,
        f"token embedding {V:,} × {C}\n+ position embedding {config.block_size:,} × {C}",
        WARM,
        1.5,
    )
    middle = [5.2, 6.5, 9.0] if config.n_layer > 2 else [5.2, 7.5][: config.n_layer]
    for number, y in enumerate(middle):
        last = number == len(middle) - 1
        _box(axes, 4, y, 4.6, f"block {config.n_layer if last else number + 1}", PALE)
    if config.n_layer > 3:
        axes.text(
            3.6, 7.75, f"{config.n_layer} blocks in all", ha="right", va="center", fontsize=11
        )
    _box(axes, 4, 11.0, 4.6, "last LayerNorm", "white")
    _box(
        axes,
        4,
        12.9,
        6.4,
        "head: times the token embedding,\ntransposed (the same weights)",
        WARM,
        1.5,
    )
    _box(axes, 4, 15.3, 5.4, f"logits (B, T, {V:,})", "white")
    axes.fill(
        [6.3, 8.6, 8.6, 6.3], [4.75, 1.7, 14.2, 5.65], color="0.93", zorder=0
    )  # block 1, opened to the right
    axes.text(
        11,
        1.2,
        "inside one block: the residual stream (B, T, C)",
        ha="center",
        va="center",
        fontsize=11,
    )
    branches = (
        (2.6, "LayerNorm 1", f"attention, {config.n_head} heads", "tokens exchange information"),
        (8.7, "LayerNorm 2", f"MLP, {C} → {4 * C:,} → {C}", "each token on its own"),
    )
    for top, norm, work, note in branches:
        axes.plot([11, 15.6, 15.6], [top, top, top + 3.6], color="black", linewidth=1.4)
        axes.annotate(
            "",
            (11.4, top + 4.2),
            (15.6, top + 4.2),
            arrowprops=dict(arrowstyle="-|>", linewidth=1.4, color="black"),
        )
        axes.plot([15.6, 15.6], [top + 3.6, top + 4.2], color="black", linewidth=1.4)
        _box(axes, 15.6, top + 1.1, 4.6, norm, "white")
        _box(axes, 15.6, top + 2.65, 5.6, f"{work}\n({note})", PALE, 1.3)
        axes.text(
            11,
            top + 4.2,
            "+",
            ha="center",
            va="center",
            fontsize=15,
            bbox=dict(boxstyle="circle,pad=0.15", facecolor="white", edgecolor="black"),
        )
    return figure


def parts_figure(config: GPT2Config) -> Figure:
    """The parameters of each part as bars, largest share visible at once."""
    parts = parameter_parts(config)
    unit, name = (
        (1e6, "millions") if sum(count for *_, count in parts) > 1e7 else (1e3, "thousands")
    )
    counts = [count / unit for *_, count in parts]
    figure, axes = _axes(8, 3.4)
    bars = axes.barh([part for part, *_ in parts], counts, color=BLUE, height=0.65)
    axes.bar_label(bars, [f"{count:.2f}" for count in counts], padding=4)
    axes.invert_yaxis()
    axes.set(xlabel=f"parameters ({name})", xlim=(0, 1.15 * max(counts)))
    return figure


def weight_figure(model: GPT2) -> Figure:
    """The measured standard deviation of every weight matrix by layer, and the expected one as a line."""
    figure, axes = _axes(8, 3.8)
    matrices = [
        (name, expected, measured) for name, _, expected, measured in weight_stds(model) if expected
    ]
    kinds = (
        ("wte", "P", "black"),
        ("wpe", "X", "black"),
        ("attn.c_attn", "s", BLUE),
        ("mlp.c_fc", "^", "white"),
        ("attn.c_proj", "o", BLUE),
        ("mlp.c_proj", "D", "white"),
    )
    for number, (kind, marker, fill) in enumerate(kinds):
        measured = [m for name, _, m in matrices if name.endswith(f"{kind}.weight")]
        block = np.arange(len(measured)) + (number > 1)
        axes.plot(
            block + (0.18 if number % 2 else -0.18),
            measured,
            marker,
            label=kind,  # side by side
            color="black" if fill == "black" else BLUE,
            markerfacecolor=fill,
            markersize=7,
        )
    for level in sorted({expected for _, expected, _ in matrices}):
        axes.axhline(level, color="black", linewidth=1, zorder=0)
        axes.annotate(
            f"expected {level:.5f}",
            (1, level),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set(xlabel="block (0: the embeddings)", ylabel="standard deviation", ylim=(0, 0.024))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=6,
        frameon=False,
        columnspacing=1,
        handletextpad=0.2,
    )
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
    figure, axes = _axes(8, 3.6)
    for (name, (xs, ys)), look in zip(series.items(), _LINE_LOOKS):
        axes.plot(
            xs,
            ys,
            label=name,
            markersize=4,
            linewidth=1.8,
            **{**look, **({} if markers else {"marker": ""})},
        )
    for name, level in (levels or {}).items():
        axes.axhline(level, color="black", linewidth=1, linestyle=(0, (1, 2)))
        axes.annotate(
            name,
            (1, level),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log_y else "linear")
    if from_zero:
        axes.set_ylim(bottom=0)
    axes.grid(True, color="0.9")
    if len(series) > 1:
        axes.legend(frameon=False)
    return figure


def before_after(before: Tensor, after: Tensor, xlabel: str, operation: str) -> Figure:
    """Two vectors (2, C) before an operation (left) and after it (right), each side with its own scale."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, pair, when in zip(figure.subplots(1, 2), (before, after), ("before", "after")):
        for vector, name, look, size in zip(pair, ("first", "second"), _LINE_LOOKS, (9, 5)):
            axes.plot(range(len(vector)), vector, label=f"{name} vector", markersize=size, **look)
        axes.set(xlabel=xlabel, ylabel="value")
        axes.set_title(f"{when} {operation}", fontsize=11)
        axes.grid(True, color="0.9")
        axes.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, -0.42))
    return figure


def bars(heights: Sequence[float], xlabel: str, ylabel: str, mark: int) -> Figure:
    """Bars at 0, 1, 2, …, with a dashed line before the bar at `mark`."""
    figure, axes = _axes(8, 2.8)
    axes.bar(range(len(heights)), heights, color=BLUE, width=0.7)
    axes.axvline(mark - 0.5, color="black", linestyle="--", linewidth=1)
    axes.annotate(
        f"changed here: {mark}",
        (mark - 0.5, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-6, -4),
        textcoords="offset points",
        ha="right",
        va="top",
    )
    axes.set(xlabel=xlabel, ylabel=ylabel, xticks=range(len(heights)))
    return figure


def histogram(values: Tensor, xlabel: str, marks: Mapping[str, float]) -> Figure:
    """How often each value occurs, with named vertical lines."""
    figure, axes = _axes(8, 3.0)
    axes.hist(values.numpy(), bins=min(40, max(8, len(values) // 12)), color=PALE, edgecolor=BLUE)
    for (name, place), stroke in zip(marks.items(), ("-", "--")):
        axes.axvline(
            float(place), color="black", linestyle=stroke, label=f"{name} = {float(place):.3f}"
        )
    axes.set(xlabel=xlabel, ylabel="targets")
    axes.legend(frameon=False)
    return figure


def mask_figure(pieces: Sequence[str]) -> Figure:
    """The causal mask over these tokens: which token (row) may look at which (column)."""
    figure, axes = _axes(*[1.5 + 0.27 * len(pieces)] * 2)
    allowed = causal_mask(len(pieces), len(pieces)).numpy()
    _grid(axes, np.where(allowed, 0.55, 0.0), pieces, pieces)
    for row, column in np.argwhere(~allowed):
        axes.text(column, row, "×", ha="center", va="center", color="0.45")
    axes.set(xlabel="token looked at (key)", ylabel="token that looks (query)")
    return figure


def map_grid(
    maps: Sequence[Tensor], layers: Sequence[int], heads: Sequence[int], pieces: Sequence[str]
) -> Figure:
    """Attention maps, a row of pictures per layer and a column per head, with one scale of darkness for all.

    Args:
        maps: one (1, H, T, T) per layer, as `GPT2.attention_maps` returns them.
        layers: indices of the layers to draw.
        heads: indices of the heads to draw.
        pieces: the T tokens as text.
    """
    figure = Figure(figsize=(1.0 + 2.3 * len(heads), 1.0 + 2.3 * len(layers)), layout="constrained")
    grid = figure.subplots(len(layers), len(heads), squeeze=False)
    for row, layer in enumerate(layers):
        for column, head in enumerate(heads):
            axes = grid[row][column]
            image = axes.imshow(maps[layer][0, head].numpy(), cmap="Greys", vmin=0, vmax=0.5)
            axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=10)
            axes.set(xticks=[], yticks=[])
            if column == 0:
                _labels(axes.yaxis, pieces, size=7)
    figure.supxlabel("token looked at (same order as on the left)")
    figure.colorbar(image, ax=grid, label="attention weight (darkest: 0.5 and more)", shrink=0.8)
    return figure


def attention_steps(q: Tensor, k: Tensor, v: Tensor) -> Figure:
    """Causal attention of one head in four pictures with their numbers: scores, mask, softmax, output.

    Args:
        q, k, v: queries, keys and values (T, D), small.
    """
    scores = q @ k.T / math.sqrt(q.size(1))
    masked = scores.masked_fill(~causal_mask(len(q), len(k)), -math.inf)
    weights = masked.softmax(dim=-1)
    steps = (
        ("scores  q kᵀ / √D", scores),
        ("future masked", masked),
        ("softmax of each row", weights),
        ("weights times v", weights @ v),
    )
    figure = Figure(figsize=(9.5, 2.9), layout="constrained")
    ratios = [matrix.size(1) for _, matrix in steps]
    for number, (axes, (title, matrix)) in enumerate(
        zip(figure.subplots(1, 4, width_ratios=ratios), steps)
    ):
        finite = matrix.masked_fill(matrix.isinf(), 0)
        shade = finite.abs() / max(1.0, finite.abs().max().item()) * 0.4
        _grid(
            axes,
            shade.numpy(),
            [f"t={t}" for t in range(len(q))] if number == 0 else [],
            [f"t={t}" for t in range(len(k))]
            if number < 3
            else [f"d={d}" for d in range(v.size(1))],
        )
        for (row, column), value in np.ndenumerate(matrix.numpy()):
            axes.text(
                column,
                row,
                "−∞" if value == -math.inf else f"{value:.2f}",
                ha="center",
                va="center",
            )
        axes.set_title(title, fontsize=11)
        axes.set(xlabel="key" if number < 3 else "channel", ylabel="query" if number == 0 else "")
    return figure


def heads_figure(config: GPT2Config) -> Figure:
    """The way through multi-head attention, from top to bottom: the channels cut into heads, attention in each, joined again."""
    C, H = config.n_embd, config.n_head
    figure = Figure(figsize=(9.5, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 19), ylim=(9.4, 0))
    axes.axis("off")
    _box(axes, 9.5, 0.7, 12, f"a token's vector after LayerNorm 1: C = {C} channels", "white")
    _box(axes, 9.5, 2.2, 16, f"c_attn: queries, keys and values, {C} channels each", WARM)
    shown = [1, 2, 3, H] if H > 4 else list(range(1, H + 1))
    width, arrows = 16 / len(shown), [(9.5, 1.2, 1.7), (9.5, 7.5, 8.1)]
    for number, head in enumerate(shown):
        x = 1.5 + width * (number + 0.5)
        _box(
            axes, x, 4.6, width - 0.7, f"head {head}\nattention with\n{C // H} channels", PALE, 1.9
        )
        arrows += [(x, 2.7, 3.6), (x, 5.6, 6.5)]
        if number and head > shown[number - 1] + 1:
            axes.text(x - width / 2, 4.6, "…", ha="center", va="center", fontsize=15)
    for x, top, bottom in arrows:
        axes.annotate("", (x, bottom), (x, top), arrowprops=dict(arrowstyle="-|>", color="black"))
    _box(axes, 9.5, 7.0, 16, f"the {H} results side by side: {C} channels again", "white")
    _box(axes, 9.5, 8.6, 12, f"c_proj mixes them: {C} → {C}, added to the residual stream", WARM)
    return figure


def choices(ways: Mapping[str, Tensor], candidates: Sequence[str]) -> Figure:
    """The probability of each candidate for the next token, a panel for each way of choosing.

    Args:
        ways: name: probabilities (V,), V small.
        candidates: the V tokens.
    """
    figure = Figure(figsize=(9.5, 2.9), layout="constrained")
    for axes, (name, probabilities) in zip(
        figure.subplots(1, len(ways), sharey=True, squeeze=False)[0], ways.items()
    ):
        bars = axes.bar(range(len(candidates)), probabilities, color=BLUE)
        axes.bar_label(bars, [f"{p:.2f}" if p else "0" for p in probabilities.tolist()], fontsize=9)
        axes.set_title(name, fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(0, 1.05)
        _labels(axes.xaxis, candidates, rotation=45)
    figure.axes[0].set_ylabel("probability")
    return figure


def cache_figure(n_prompt: int, n_new: int) -> Figure:
    """What each generated token makes the model compute, without and with a KV cache."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    steps, places = np.indices((n_new, n_prompt + n_new - 1))
    there = places < n_prompt + steps  # the tokens that the step can see
    for axes, title, computed in zip(
        figure.subplots(1, 2),
        ("without a cache", "with a KV cache"),
        (there, there & ((places >= n_prompt + steps - 1) | (steps == 0))),
    ):
        _grid(
            axes,
            np.where(computed, 0.7, np.where(there, 0.12, 0.0)),
            range(1, n_new + 1),
            range(1, n_prompt + n_new),
        )
        for row, column in np.argwhere(there & ~computed):
            axes.text(column, row, "c", ha="center", va="center", fontsize=9, color="0.2")
        axes.set(xlabel="position in the context", ylabel="new token number")
        axes.set_title(f"{title}: {computed.sum()} positions computed", fontsize=11)
    return figure


def _box(
    axes: Axes, x: float, y: float, width: float, text: str, fill: str, height: float = 0.9
) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0.02,rounding_size=0.15",
            facecolor=fill,
            edgecolor="black",
            zorder=3,
        )
    )
    axes.text(x, y, text, ha="center", va="center", fontsize=11, zorder=4)


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def _grid(
    axes: Axes, shades: np.ndarray, rows: Sequence[object], columns: Sequence[object]
) -> None:
    """Cells with thin borders, white (0) to black (1), and a name for each row and column."""
    axes.imshow(shades, cmap="Greys", vmin=0, vmax=1)
    axes.set_xticks(np.arange(shades.shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(shades.shape[0] + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.6", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    _labels(
        axes.xaxis, columns, rotation=90 if any(len(str(column)) > 3 for column in columns) else 0
    )
    _labels(axes.yaxis, rows)


def _labels(axis, names: Sequence[object], size: float = 9, rotation: float = 0) -> None:
    axis.set_ticks(
        range(len(names)),
        [visible(str(name)) for name in names],
        fontsize=size,
        rotation=rotation,
        parse_math=False,
    )  # a corpus may hold dollar signs
