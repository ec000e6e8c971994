"""The figures of `bench`, a line each, for a terminal and for a README.

It knows what bench.json holds. It deliberately measures nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpt2_nb_utils import markdown
from gpt2_nb_utils.errors import UserError

_COMMAND = "python -m gpt2_nb_utils bench --against transformers --out_dir"

Line = tuple[str, str, str, str]


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
        parts = [
            f"{markdown.text(about(result))}.",
            "```sh\n"
            + "\n".join(" ".join(line.split()) for line in result["command"].splitlines())
            + "\n```",
            markdown.table(_head(result), lines(result)),
        ]
        if "profile" in result:
            parts.append(markdown.table(_PROFILE_HEAD, _profile(result)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path} is not what `bench` writes: remove it, and make it again with `{_COMMAND} {folder}`"
        ) from None
    return "\n\n".join(parts)


def as_text(result: dict[str, Any]) -> str:
    """The same for a terminal."""
    parts = [about(result), result["command"], _columns(_head(result), lines(result))]
    if "profile" in result:
        parts.append(_columns(_PROFILE_HEAD, _profile(result)))
    return "\n\n".join(parts)


def about(result: dict[str, Any]) -> str:
    """What was measured on what, in a line."""
    model, machine = result["model"], result["machine"]
    packages = [f"{name} {result[name]}" for name in ("torch", "transformers") if name in result]
    return (
        f"GPT-2 with {model['n_params']:,} parameters (n_layer {model['n_layer']}, n_head {model['n_head']}, n_embd "
        f"{model['n_embd']}, block_size {model['block_size']}), {result['amp']}, {result['optimizer']}"
        f"{', torch.compile' if result['compile'] else ''}; on {machine['device']}, "
        f"{machine['processor']}, {machine['cpu_count']} CPU cores, {machine['memory_gb']} GiB memory; {', '.join(packages)}; "
        f"{result['time'][:10]}"
    )


def lines(result: dict[str, Any]) -> list[Line]:
    """Each figure that was measured: what it is, ours, the other side's, and ours divided by theirs with the rounds' range."""
    table: list[Line] = []
    if "train" in result:
        table += _training(result)
    if "sample" in result:
        table += _sampling(result)
    if "import_s" in result:
        table += [
            ("start-up: --help, s", _number(result["help_s"]), "", ""),
            ("start-up: import of the training, s", _number(result["import_s"]), "", ""),
            (
                f"corpus to {result['corpus_tokens']:,} tokens, s",
                _number(result["corpus_load_s"]),
                "",
                "",
            ),
            (
                "the same at the next start, from tokens.bin, s",
                _number(result["corpus_again_s"]),
                "",
                "",
            ),
            (
                f"checkpoint of {result['checkpoint_gb']:.2f} GiB: save, s",
                _number(result["checkpoint_save_s"]),
                "",
                "",
            ),
            (
                f"checkpoint of {result['checkpoint_gb']:.2f} GiB: load, s",
                _number(result["checkpoint_load_s"]),
                "",
                "",
            ),
        ]
    if "run" in result:
        table += _run(result["run"])
    if "processes" in result:
        table += _processes(result["processes"])
    return table


def _training(result: dict[str, Any]) -> list[Line]:
    train, theirs = result["train"], result.get("against", {})
    table = [
        (
            f"training step of {_batch(train)} tokens, tokens/s",
            _number(train["tok_per_s"]),
            _number(theirs.get("tok_per_s")),
            _ratio(theirs),
        )
    ]
    if "against_compiled" in result:
        compiled = result["against_compiled"]
        table.append(
            (
                "the same, theirs through torch.compile",
                _number(train["tok_per_s"]),
                _number(compiled["tok_per_s"]),
                _ratio(compiled),
            )
        )
    return [
        *table,
        ("its matrix products alone, GFLOP/s", _number(result["matmul_gflops"]), "", ""),
        (
            "share of that rate that the step reaches",
            f"{result['share_of_matmul']:.0%}",
            f"{theirs['share_of_matmul']:.0%}" if theirs else "",
            "",
        ),
        (
            "peak memory, GiB",
            _number(result["peak_memory_gb"]),
            _number(theirs.get("peak_memory_gb")),
            "",
        ),
    ]


def _sampling(result: dict[str, Any]) -> list[Line]:
    sample = result["sample"]
    theirs = sample.get("against", {})
    return [
        (
            f"sampling in fp32, {sample['new_tokens']} tokens after {sample['prompt_tokens']}, tokens/s",
            _number(result["sample_tok_per_s"]),
            _number(theirs.get("tok_per_s")),
            _ratio(theirs),
        ),
        (
            "the same without the KV cache, tokens/s",
            _number(sample["recomputed_tok_per_s"]),
            "",
            f"the cache gains {sample['cache_gain']:.2f} ×",
        ),
    ]


def _run(run: dict[str, Any]) -> list[Line]:
    table = [
        (
            f"bare steps of {run['batch_size']} × {run['seq_len']} tokens, tokens/s",
            _number(run["bare_tok_per_s"]),
            "",
            "",
        )
    ]
    for name, what, base in (
        ("train", f"train, {run['steps']} steps, by the wall clock, tokens/s", "the bare steps"),
        ("papermill", "the same through papermill, tokens/s", "train"),
    ):
        table.append(
            (what, _number(run[name]["wall_tok_per_s"]), "", _lost(run[f"{name}_cost"], base))
        )
        table.append(
            (
                "its steps alone, by its own clock, tokens/s",
                _number(run[name]["tok_per_s"]),
                "",
                f"all the rest takes {1 - run[name]['wall_tok_per_s'] / run[name]['tok_per_s']:.1%}",
            )
        )
        table.append(
            (
                "its start-up before the first step, and its end, s",
                _number(run[name]["start_up_s"]),
                "",
                "",
            )
        )
    return table


def _lost(cost: float, base: str) -> str:
    """A negative cost is the machine's: it was faster while the one ran than while the other did."""
    return (
        f"loses {cost:.1%} against {base}"
        if cost >= 0
        else f"{-cost:.1%} more than {base} in their own turn"
    )


def _processes(processes: dict[str, Any]) -> list[Line]:
    return [
        (
            f"train with {row['n']} process{'es' * (row['n'] > 1)}, steps of {_batch(processes)} tokens in all, tokens/s",
            _number(row["tok_per_s"]),
            "",
            f"{_ratio(row)} of one process" if row["n"] > 1 else "",
        )
        for row in processes["rows"]
    ]


def _batch(of: dict[str, Any]) -> str:
    return f"{of['batch_size']} × {of['seq_len']}" + (
        f" × {of['grad_accum']}" if of["grad_accum"] > 1 else ""
    )


_PROFILE_HEAD = ("operator", "share of the step", "ms", "calls")


def _profile(result: dict[str, Any]) -> list[Line]:
    return [
        (row["operator"], f"{row['share']:.1%}", _number(row["ms"]), f"{row['calls']:,}")
        for row in result["profile"]
    ]


def _head(result: dict[str, Any]) -> Line:
    if "transformers" not in result:
        return "", "measured", "", ""
    return "", "ours", "transformers", "ours ÷ theirs (lowest to highest round)"


def _ratio(side: dict[str, Any]) -> str:
    if not side:
        return ""
    spread = (
        f"{side['ratio_min']:.2f} to {side['ratio_max']:.2f}"
        if side["ratio_min"] < side["ratio_max"]
        else "one round"
    )
    return f"{side['ratio_median']:.2f} ({spread})"


def _number(value: float | None) -> str:
    """Three digits that count, or all before the point."""
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
