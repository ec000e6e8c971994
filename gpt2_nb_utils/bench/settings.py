"""What `bench` measures, its flags, and its default settings. The command line is built from it: it
imports nothing heavy."""

from __future__ import annotations

import argparse
from typing import Any

from gpt2_nb_utils.config import RunConfig, add_flags

PARTS = {
    "train": "the training step, the matrix products inside it, its memory; in bf16 too where the device has units for it",
    "sample": "sampling with the KV cache, and without it",
    "files": "start-up, corpus and checkpoints",
    "run": "`train`, and papermill with notebook 03, against the bare steps",
    "processes": "several processes against one, under torchrun",
}
USUAL = ("train", "sample", "files")
"""The parts that are measured unless somebody names others: those that take a few minutes with
GPT-2 124M on a CPU."""

ROUNDS = {"train": 7, "sample": 3, "files": 3, "run": 1, "processes": 3}

AGAINST = ("transformers",)
"""Whose GPT-2 ours can be compared with."""

_COURSE = {
    "steps": 200,
    "batch_size": 4,
    "seq_len": 128,
    "grad_accum": 1,
    "lr": 3e-4,
    "log_every": 10,
    "save_every": 100,
    "sample_every": 100,
    "eval_every": 100,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "train": {"batch_size": 4, "seq_len": 256},
    "sample": {"max_new_tokens": 500},
    "files": {},
    "run": _COURSE,
    "processes": {"batch_size": 4, "seq_len": 256, "steps": 20},
}
"""Settings of each part, of GPT-2 124M. Those of `run` are the course's own command, with a
measurement of the training loss wherever it samples and saves."""

FLAGS = (
    "preset",
    "input_file",
    "seed",
    "block_size",
    "n_layer",
    "n_head",
    "n_embd",
    "batch_size",
    "seq_len",
    "grad_accum",
    "optimizer",
    "clip_grad",
    "steps",
    "log_every",
    "eval_every",
    "save_every",
    "sample_every",
    "prompt",
    "max_new_tokens",
    "device",
    "amp",
    "compile",
)
"""The settings of a run that also mean something here."""

_HELP_DEFAULTS = {
    "preset": "auto, here GPT-2 124M with the values below",
    "block_size": 1024,
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
    "optimizer": "adamw",
    "grad_accum": 1,
    "max_new_tokens": "of the part sample 500",
    "batch_size": 4,
    "seq_len": "256; of the part run 128",
    "steps": "of the part run 200, of processes 20",
    **{name: f"of the part run {_COURSE[name]}" for name in _COURSE if name.endswith("_every")},
}


def config_for(part: str, given: dict[str, Any]) -> RunConfig:
    """The complete settings with which a part is measured.

    Args:
        given: settings given by hand. A preset among them takes the place of this module's
            defaults.

    Raises:
        UserError: a value out of range.
    """
    if given.get("preset", "auto") == "auto":
        given = {**_DEFAULTS[part], **given, "preset": "sanity"}
    return RunConfig.resolve(given)


def add_bench_flags(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the flags of `bench`."""
    parts = "; ".join(f"{name}: {what}" for name, what in PARTS.items())
    section = parser.add_argument_group("bench", "What is measured")
    section.add_argument(
        "--only",
        nargs="+",
        choices=list(PARTS),
        metavar="PART",
        default=list(USUAL),
        help=f"measure these parts ({parts}; default: {' '.join(USUAL)})",
    )
    section.add_argument(
        "--against",
        choices=AGAINST,
        metavar="NAME",
        help=f"compare with the GPT-2 of {' or '.join(AGAINST)}, in turn with ours, each in its own process",
    )
    section.add_argument(
        "--rounds",
        type=_count,
        metavar="INT",
        help="turns of each side, whose median counts (default: "
        + ", ".join(f"{part} {rounds}" for part, rounds in ROUNDS.items())
        + ")",
    )
    section.add_argument(
        "--profile",
        action="store_true",
        help="show which operators the time of a training step goes to",
    )
    section.add_argument(
        "--nproc_per_node",
        type=_count,
        default=2,
        metavar="INT",
        help="processes that the part processes compares with one (default: %(default)s)",
    )
    section.add_argument(
        "--json", action="store_true", help="print JSON, and nothing else, on the standard output"
    )
    section.add_argument(
        "--out_dir",
        metavar="DIR",
        help="also write bench.json there, or add to it the parts that it lacks (default: nowhere)",
    )
    section.add_argument(
        "--overwrite",
        action="store_true",
        help="measure parts again that the bench.json in out_dir has already",
    )
    add_flags(parser, FLAGS, _HELP_DEFAULTS)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a count: take 1 or more")
    return int(text)
