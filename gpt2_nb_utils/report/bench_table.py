"""The figures of `bench`, a line each, for a terminal and for a page."""

from __future__ import annotations

from typing import Any

from gpt2_nb_utils.space.rendering import fenced
from gpt2_nb_utils.text import markdown_table, markdown_text

Line = tuple[str, ...]
Figures = dict[str, Any]

_FILES = {
    "start-up: --help, s": "help_s",
    "start-up: import of the training, s": "import_s",
    "corpus to {corpus_tokens:,} tokens, s": "corpus_load_s",
    "the same at the next start, from tokens.bin, s": "corpus_again_s",
    "checkpoint of {checkpoint_gb:.2f} GiB: save, s": "checkpoint_save_s",
    "checkpoint of {checkpoint_gb:.2f} GiB: load, s": "checkpoint_load_s",
}
"""What the part `files` measures: its label, and its key in bench.json."""


def as_text(result: Figures) -> str:
    """What was measured, the command, and the tables, for a terminal."""
    return "\n\n".join([about(result), result["command"], *map(_columns, tables(result))])


def as_markdown(result: Figures) -> str:
    """The same for a page."""
    parts = [f"{markdown_text(about(result))}.", fenced(result["command"], "sh")]
    parts += [markdown_table(head, rows) for head, *rows in tables(result)]
    return "\n\n".join(parts) + "\n"


def about(result: Figures) -> str:
    """What was measured, and on what, in a line."""
    model, machine, reason = result["model"], result["machine"], result.get("amp_reason")
    amp = f"{result['amp']} ({reason})" if reason else result["amp"]
    optimizer = result["optimizer"] + ", torch.compile" * result["compile"]
    packages = [f"{name} {result[name]}" for name in ("torch", "transformers") if name in result]
    return (
        f"GPT-2 with {model['n_params']:,} parameters (n_layer {model['n_layer']}, n_head "
        f"{model['n_head']}, n_embd {model['n_embd']}, block_size {model['block_size']}), {amp}, "
        f"{optimizer}; on {machine['device']}, {machine['processor']}, {machine['cpu_count']} CPU "
        f"cores, {machine['memory_gb']} GiB memory; {', '.join(packages)}; {result['time'][:10]}"
    )


def tables(result: Figures) -> list[list[Line]]:
    """The figures, and where a training step was looked into its operators; the head comes first."""
    found = [[_head(result), *lines(result)]]
    if "profile" in result:
        rows = [
            (row["operator"], f"{row['share']:.1%}", _number(row["ms"]), f"{row['calls']:,}")
            for row in result["profile"]
        ]
        found.append([("operator", "share of the step", "ms", "calls"), *rows])
    return found


def lines(result: Figures) -> list[Line]:
    """Each figure that was measured: what it is, ours, the other side's, and ours divided by theirs
    with the rounds' range.

    A second number format has three more columns.
    """
    table: list[Line] = []
    if "train" in result:
        second = {label: cells for label, *cells in _training(_second_format(result)[1])}
        table += [(*row, *second.get(row[0], ())) for row in _training(result)]
    if "sample" in result:
        table += _sampling(result)
    if "import_s" in result:
        table += [_row(label.format(**result), result[name]) for label, name in _FILES.items()]
    if "run" in result:
        table += _run(result["run"])
    if "processes" in result:
        table += _processes(result["processes"])
    width = len(_head(result))
    return [(*row, *[""] * (width - len(row))) for row in table]


def _head(result: Figures) -> Line:
    second, _ = _second_format(result)
    head = [""]
    for amp in [f", {result['amp']}", f", {second}"] if second else [""]:
        if "transformers" in result:
            ratio = f"ours ÷ theirs{amp} (lowest to highest round)"
            head += [f"ours{amp}", f"transformers{amp}", ratio]
        else:
            head += [f"measured{amp}", "", ""]
    return tuple(head)


def _second_format(result: Figures) -> tuple[str, Figures]:
    """The number format that was measured beside the first, if any, and its figures."""
    return next(((amp, result[amp]) for amp in ("fp32", "bf16") if amp in result), ("", {}))


def _row(what: str, ours: float, theirs: float | None = None, ratio: str = "") -> Line:
    return what, _number(ours), _number(theirs), ratio


def _training(result: Figures) -> list[Line]:
    if not result:
        return []
    train, theirs = result["train"], result.get("against", {})
    ours = train["tok_per_s"]
    step = f"training step of {_batch(train)} tokens, tokens/s"
    table = [_row(step, ours, theirs.get("tok_per_s"), _ratio(theirs))]
    if compiled := result.get("against_compiled"):
        label = "the same, theirs through torch.compile"
        table.append(_row(label, ours, compiled["tok_per_s"], _ratio(compiled)))
    shares = [f"{side['share_of_matmul']:.0%}" if side else "" for side in (result, theirs)]
    return [
        *table,
        _row("its matrix products alone, GFLOP/s", result["matmul_gflops"]),
        ("share of that rate that the step reaches", *shares, ""),
        _row("peak memory, GiB", result["peak_memory_gb"], theirs.get("peak_memory_gb")),
    ]


def _sampling(result: Figures) -> list[Line]:
    sample = result["sample"]
    theirs = sample.get("against", {})
    tokens = f"{sample['new_tokens']} tokens after {sample['prompt_tokens']}"
    return [
        _row(
            f"sampling in fp32, {tokens}, tokens/s",
            result["sample_tok_per_s"],
            theirs.get("tok_per_s"),
            _ratio(theirs),
        ),
        _row(
            "the same without the KV cache, tokens/s",
            sample["recomputed_tok_per_s"],
            ratio=f"the cache gains {sample['cache_gain']:.2f} ×",
        ),
    ]


def _run(run: Figures) -> list[Line]:
    bare = f"bare steps of {run['batch_size']} × {run['seq_len']} tokens, tokens/s"
    table = [_row(bare, run["bare_tok_per_s"])]
    for name, what, base in (
        ("train", f"train, {run['steps']} steps, by the wall clock, tokens/s", "the bare steps"),
        ("papermill", "the same through papermill, tokens/s", "train"),
    ):
        speeds = run[name]
        rest = f"all the rest takes {1 - speeds['wall_tok_per_s'] / speeds['tok_per_s']:.1%}"
        table += [
            _row(what, speeds["wall_tok_per_s"], ratio=_cost(run[f"{name}_cost"], base)),
            _row("its steps alone, by its own clock, tokens/s", speeds["tok_per_s"], ratio=rest),
            _row("its start-up before the first step, and its end, s", speeds["start_up_s"]),
        ]
    return table


def _cost(cost: float, base: str) -> str:
    """A negative cost is the machine's: it was faster during the one than during the other."""
    if cost < 0:
        return f"{-cost:.1%} more than {base} in their own turn"
    return f"loses {cost:.1%} against {base}"


def _processes(processes: Figures) -> list[Line]:
    table = []
    for row in processes["rows"]:
        several = row["n"] > 1
        what = f"train with {row['n']} process{'es' * several}, steps of {_batch(processes)} tokens"
        ratio = f"{_ratio(row)} of one process" if several else ""
        table.append(_row(f"{what} in all, tokens/s", row["tok_per_s"], ratio=ratio))
    return table


def _batch(of: Figures) -> str:
    accumulated = f" × {of['grad_accum']}" if of["grad_accum"] > 1 else ""
    return f"{of['batch_size']} × {of['seq_len']}{accumulated}"


def _ratio(side: Figures) -> str:
    if not side:
        return ""
    lowest, highest = side["ratio_min"], side["ratio_max"]
    spread = f"{lowest:.2f} to {highest:.2f}" if lowest < highest else "one round"
    return f"{side['ratio_median']:.2f} ({spread})"


def _number(value: float | None) -> str:
    """Three significant digits, or all before the point."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _columns(table: list[Line]) -> str:
    """Columns side by side, the head above; an empty column is left out."""
    padded = []
    for head, *cells in zip(*table):
        if any(cells):
            width = max(map(len, (head, *cells)))
            pad = str.rjust if padded else str.ljust
            padded.append([pad(cell, width) for cell in (head, *cells)])
    return "\n".join("  ".join(row).rstrip() for row in zip(*padded))
