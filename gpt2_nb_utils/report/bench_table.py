"""The figures of `bench`, a line each, for a terminal and for a README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.text import markdown_table, markdown_text

_COMMAND = "python -m gpt2_nb_utils bench --against transformers --out_dir"
_PROFILE_HEAD = ("operator", "share of the step", "ms", "calls")

Line = tuple[str, ...]
Figures = dict[str, Any]


def bench_block(folder: Path) -> str:
    """What a README says about speed, as Markdown: the command and the machine, then a table.

    Args:
        folder: where bench.json is; without it, the block says how to make it.

    Raises:
        UserError: it is not what `bench` writes.
    """
    path = folder / "bench.json"
    if not path.exists():
        return f"Nothing measured yet: `{_COMMAND} out/reference/bench` does it."
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        command = "\n".join(" ".join(line.split()) for line in result["command"].splitlines())
        parts = [
            f"{markdown_text(about(result))}.",
            f"```sh\n{command}\n```",
            *(markdown_table(head, rows) for head, rows in _tables(result)),
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path} is not what `bench` writes: remove it, and make it again with `{_COMMAND} {folder}`"
        ) from None
    return "\n\n".join(parts)


def as_text(result: Figures) -> str:
    """The same for a terminal."""
    tables = (_columns(head, rows) for head, rows in _tables(result))
    return "\n\n".join([about(result), result["command"], *tables])


def about(result: Figures) -> str:
    """What was measured, and on what, in a line."""
    model, machine = result["model"], result["machine"]
    packages = [f"{name} {result[name]}" for name in ("torch", "transformers") if name in result]
    reason = result.get("amp_reason")
    return (
        f"GPT-2 with {model['n_params']:,} parameters (n_layer {model['n_layer']}, n_head {model['n_head']}, n_embd "
        f"{model['n_embd']}, block_size {model['block_size']}), {result['amp']}{f' ({reason})' if reason else ''}, "
        f"{result['optimizer']}{', torch.compile' if result['compile'] else ''}; on {machine['device']}, "
        f"{machine['processor']}, {machine['cpu_count']} CPU cores, {machine['memory_gb']} GiB memory; {', '.join(packages)}; "
        f"{result['time'][:10]}"
    )


def lines(result: Figures) -> list[Line]:
    """Each figure that was measured: what it is, ours, the other side's, and ours divided by theirs
    with the rounds' range.

    A second number format has three more columns.
    """
    table: list[Line] = []
    if "train" in result:
        second = {
            label: cells for label, *cells in _training(result.get(_second_format(result), {}))
        }
        table += [(*row, *second.get(row[0], ())) for row in _training(result)]
    if "sample" in result:
        table += _sampling(result)
    if "import_s" in result:
        checkpoint = f"checkpoint of {result['checkpoint_gb']:.2f} GiB"
        for what, name in (
            ("start-up: --help", "help_s"),
            ("start-up: import of the training", "import_s"),
            (f"corpus to {result['corpus_tokens']:,} tokens", "corpus_load_s"),
            ("the same at the next start, from tokens.bin", "corpus_again_s"),
            (f"{checkpoint}: save", "checkpoint_save_s"),
            (f"{checkpoint}: load", "checkpoint_load_s"),
        ):
            table.append(_row(f"{what}, s", result[name]))
    if "run" in result:
        table += _run(result["run"])
    if "processes" in result:
        table += _processes(result["processes"])
    width = len(_head(result))
    return [(*row, *[""] * (width - len(row))) for row in table]


def _tables(result: Figures) -> list[tuple[Line, list[Line]]]:
    tables = [(_head(result), lines(result))]
    if "profile" in result:
        rows = [
            (row["operator"], f"{row['share']:.1%}", _number(row["ms"]), f"{row['calls']:,}")
            for row in result["profile"]
        ]
        tables.append((_PROFILE_HEAD, rows))
    return tables


def _head(result: Figures) -> Line:
    second = _second_format(result)
    head = [""]
    for amp in [f", {result['amp']}", f", {second}"] if second else [""]:
        if "transformers" in result:
            ratio = f"ours ÷ theirs{amp} (lowest to highest round)"
            head += [f"ours{amp}", f"transformers{amp}", ratio]
        else:
            head += [f"measured{amp}", "", ""]
    return tuple(head)


def _second_format(result: Figures) -> str:
    """The number format that was measured beside the first, if any."""
    return next((amp for amp in ("fp32", "bf16") if amp in result), "")


def _row(what: str, ours: float, theirs: float | None = None, ratio: str = "") -> Line:
    return what, _number(ours), _number(theirs), ratio


def _training(result: Figures) -> list[Line]:
    if not result:
        return []
    train, theirs = result["train"], result.get("against", {})
    step = f"training step of {_batch(train)} tokens, tokens/s"
    table = [_row(step, train["tok_per_s"], theirs.get("tok_per_s"), _ratio(theirs))]
    if "against_compiled" in result:
        other = result["against_compiled"]
        label = "the same, theirs through torch.compile"
        table.append(_row(label, train["tok_per_s"], other["tok_per_s"], _ratio(other)))
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
    what = (
        f"sampling in fp32, {sample['new_tokens']} tokens after {sample['prompt_tokens']}, tokens/s"
    )
    gain = f"the cache gains {sample['cache_gain']:.2f} ×"
    return [
        _row(what, result["sample_tok_per_s"], theirs.get("tok_per_s"), _ratio(theirs)),
        _row("the same without the KV cache, tokens/s", sample["recomputed_tok_per_s"], ratio=gain),
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
    return [
        _row(
            f"train with {row['n']} process{'es' * (row['n'] > 1)}, steps of {_batch(processes)} tokens in all, tokens/s",
            row["tok_per_s"],
            ratio=f"{_ratio(row)} of one process" if row["n"] > 1 else "",
        )
        for row in processes["rows"]
    ]


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


def _columns(head: Line, rows: list[Line]) -> str:
    """Rows under their heads, columns side by side; an empty column is left out."""
    columns = [column for column in zip(head, *rows) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in zip(*columns)
    )
