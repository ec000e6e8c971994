"""The curves of a run, drawn from its records, and the other pictures that it left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure as Plot
from PIL import Image

from gpt2_nb_utils.figures import results
from gpt2_nb_utils.figures.style import svg
from gpt2_nb_utils.report.drawing import drawing
from gpt2_nb_utils.results.facts import RunFacts
from gpt2_nb_utils.results.measure import lower_bound
from gpt2_nb_utils.results.recall import growth_text
from gpt2_nb_utils.training.records import Row
from gpt2_nb_utils.wording import loss_text

_MAIN = "loss"
_CAPTIONS = {
    _MAIN: "Loss over the steps of training",
    "recall": "Recall: openings of the text continued as the text does",
    "grad_norm": "Gradient norm",
    "learning_rate": "Learning rate",
    "tokens_per_second": "Speed",
    "loss_scale": "Loss scale",
}
_COLUMNS = {"learning_rate": "lr", "tokens_per_second": "tok_per_s"}
"""The column of the metrics that a figure shows, where it has another name."""
_MOST_POINTS = 400
"""Of a curve that tell their values when pointed at."""
_METRICS = {
    "step": ("step", ",.0f"),
    "epoch": ("epoch", ".3f"),
    "batch loss": ("loss", ".4f"),
    "training loss": ("train_loss", ".4f"),
    "learning rate": ("lr", ".2e"),
    "gradient norm": ("grad_norm", ".2f"),
    "tokens/s": ("tok_per_s", ",.0f"),
}
"""Columns of the table of metrics: what each shows of a row, and in which form."""


@dataclass(frozen=True)
class Figure:
    """One picture: its file, its caption and its alternative text."""

    path: Path
    caption: str
    alt: str

    @property
    def is_main(self) -> bool:
        """Whether this is the loss curve."""
        return self.path.stem == _MAIN


def figures(facts: RunFacts) -> list[Figure]:
    """All PNG files of the run's `figures/`, the loss curve first."""
    found = []
    for path in filter(Path.is_file, facts.record.directory.figures.glob("*.png")):
        caption = _CAPTIONS.get(path.stem, path.stem.replace("_", " ").capitalize())
        found.append(Figure(path, caption, _alternative_text(path) or f"Figure: {caption}"))
    return sorted(found, key=lambda figure: (not figure.is_main, figure.path))


def loss_curve(facts: RunFacts) -> list[Markup]:
    """The loss curve for a screen and for a phone, with the values of each point; none without rows."""
    rows = facts.record.rows
    if not rows:
        return []
    bound = lower_bound(facts.record)
    alt = results.loss_figure_text(rows, facts.target, bound)
    drawn = []
    for size in ((9.6, 4.2), (4.8, 5.2)):
        plot = results.loss_figure(rows, facts.target, bound)
        plot.set_size_inches(size)
        if size[0] < 6:
            below = dict(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=9)
            plot.axes[0].legend(**below)
        source = svg(plot, tight=False)  # which lays the figure out, so that places are known
        drawn.append(drawing(source, alt, _values(plot, rows)))
    return drawn


def _values(plot: Plot, rows: list[Row]) -> Markup:
    """What each point of the curve says when pointed at: a strip as high as the axes, a line, a text."""
    axes, scale = plot.axes[0], 72 / plot.dpi
    box, height = axes.bbox, plot.bbox.height
    left, right, top, bottom = (
        round(place * scale, 1) for place in (box.x0, box.x1, height - box.y1, height - box.y0)
    )
    rows = rows[:: -(-len(rows) // _MOST_POINTS)]
    places = [axes.transData.transform((row.step, 1))[0] * scale for row in rows]
    # Below the line of a random guess, where the curve has long fallen away.
    first = (height - axes.transData.transform((0, results.RANDOM_LOSS))[1]) * scale + 4
    ends = [left, *((a + b) / 2 for a, b in zip(places, places[1:])), right]
    parts = []
    for row, place, start, end in zip(rows, places, ends, ends[1:]):
        lines = [f"step {row.step:,}, epoch {row.epoch:.2f}"]
        lines += [f"batch loss {loss_text(row.loss)}"] if row.loss is not None else []
        if row.train_loss is not None:
            lines.append(f"training loss {loss_text(row.train_loss)}")
        lines += [f"learning rate {row.lr:.2e}"] if row.lr is not None else []
        said = Markup("").join(
            Markup('<tspan x="{}" dy="1.3em">{}</tspan>').format(right - 6, line) for line in lines
        )
        parts.append(
            Markup(
                '<g class="point"><rect x="{:.1f}" y="{}" width="{:.1f}" height="{:.1f}"/>'
                '<path d="M{:.1f} {}V{}"/><text y="{:.1f}">{}</text></g>'
            ).format(start, top, end - start, bottom - top, place, top, bottom, first, said)
        )
    return Markup("").join(parts)


def other_curves(facts: RunFacts) -> dict[str, tuple[str, Markup]]:
    """The other curves that the records hold: by name of their file (caption, drawing)."""
    rows, plots = facts.record.rows, {}
    for name in ("learning_rate", "grad_norm", "tokens_per_second", "loss_scale"):
        column = _COLUMNS.get(name, name)
        if any(getattr(row, column) for row in rows):
            clip = facts.record.setting("clip_grad") or 0 if name == "grad_norm" else 0
            plot = results.curve_figure(rows, column, clip)
            plots[name] = plot, results.curve_text(rows, column)
    if recalled := facts.record.recall:
        plots["recall"] = results.recall_figure(recalled), growth_text(recalled)
    found = {}
    for name, (plot, alt) in plots.items():
        plot.set_size_inches(5.6, 3)
        found[name] = _CAPTIONS[name], drawing(svg(plot, tight=False), alt)
    return found


def _alternative_text(path: Path) -> str | None:
    """What `figures.style.png` wrote into the picture."""
    try:
        with Image.open(path) as image:
            return image.info.get("Description")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None  # no picture, or a damaged one


def metrics_table(facts: RunFacts, at_most: int) -> list[list[str]]:
    """The head of a table of metrics and its rows, spread over the run; a dash where none is."""
    table = [list(_METRICS)]
    for row in facts.metric_rows(at_most):
        values = [(getattr(row, name), form) for name, form in _METRICS.values()]
        table.append(["–" if value is None else format(value, form) for value, form in values])
    return table
