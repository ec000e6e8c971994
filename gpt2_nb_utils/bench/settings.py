"""What `bench` measures, its flags, and its default settings. The command line is built from it: it
imports nothing heavy."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from os.path import expanduser
from typing import Any

from gpt2_nb_utils.config import PRESETS, RunConfig, add_flags, counted


@dataclass(frozen=True)
class Part:
    """One of the things that are measured.

    Attributes:
        what: for the help.
        rounds: turns of each side.
        settings: those in which it differs from the preset `sanity`.
    """

    what: str
    rounds: int
    settings: dict[str, Any] = field(default_factory=dict)


PARTS = {
    "train": Part(
        "the training step, the matrix products inside it, its memory; in bf16 too where the "
        "device has units for it",
        7,
        {"seq_len": 256},
    ),
    "sample": Part("sampling with the KV cache, and without it", 3, {"max_new_tokens": 500}),
    "files": Part("start-up, corpus and checkpoints", 3),
    "run": Part(
        "`train`, and papermill with notebook 03, against the bare steps",
        1,
        # The course's own command, with a measurement of the training loss wherever it samples
        # and saves.
        {
            "steps": 200,
            "lr": 3e-4,
            "log_every": 10,
            "save_every": 100,
            "sample_every": 100,
            "eval_every": 100,
        },
    ),
    "processes": Part(
        "several processes against one, under torchrun", 3, {"seq_len": 256, "steps": 20}
    ),
}
USUAL = ["train", "sample", "files"]
"""The parts that are measured unless somebody names others: those that take a few minutes with
GPT-2 124M on a CPU."""

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


def config_for(part: str, given: dict[str, Any]) -> RunConfig:
    """The complete settings with which a part is measured.

    Args:
        given: settings given by hand. A preset among them takes the place of this module's
            defaults.

    Raises:
        UserError: a value out of range.
    """
    if given.get("preset", "auto") == "auto":
        given = {**PARTS[part].settings, **given, "preset": "sanity"}
    return RunConfig.resolve(given)


def add_bench_flags(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the flags of `bench`."""
    parts = "; ".join(f"{name}: {part.what}" for name, part in PARTS.items())
    rounds = ", ".join(f"{name} {part.rounds}" for name, part in PARTS.items())
    section = parser.add_argument_group("bench", "What is measured")
    section.add_argument(
        "--only",
        nargs="+",
        choices=PARTS,
        metavar="PART",
        default=USUAL,
        help=f"measure these parts ({parts}; default: {' '.join(USUAL)})",
    )
    section.add_argument(
        "--against",
        choices=("transformers",),
        metavar="NAME",
        help="compare with the GPT-2 of transformers, in turn with ours, each in its own process",
    )
    section.add_argument(
        "--rounds",
        type=counted("a count: take 1 or more"),
        metavar="INT",
        help=f"turns of each side, whose median counts (default: {rounds})",
    )
    section.add_argument(
        "--profile",
        action="store_true",
        help="show which operators the time of a training step goes to",
    )
    section.add_argument(
        "--nproc_per_node",
        type=counted("a count: take 1 or more"),
        default=2,
        metavar="INT",
        help="processes that the part processes compares with one (default: %(default)s)",
    )
    section.add_argument(
        "--json", action="store_true", help="print JSON, and nothing else, on the standard output"
    )
    section.add_argument(
        "--out_dir",
        dest="folder",  # not the setting of a run
        type=expanduser,
        metavar="DIR",
        help="also write bench.json there, or add to it the parts that it lacks (default: nowhere)",
    )
    section.add_argument(
        "--overwrite",
        dest="again",
        action="store_true",
        help="measure parts again that the bench.json in out_dir has already",
    )
    usual = {**PRESETS["sanity"], "preset": "auto, here GPT-2 124M with the values below"}
    defaults = {name: {**usual, **part.settings} for name, part in PARTS.items()}
    add_flags(parser, FLAGS, defaults)
