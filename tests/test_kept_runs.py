"""The runs that notebook 03 shows before training: what their summaries recorded, and no more."""

from __future__ import annotations

import json
from pathlib import Path

from gpt2_nb_utils.results.runs_table import KEPT, kept_runs

SUMMARY = {
    "preset": "full",
    "device": "cpu",
    "amp": "bf16",
    "epoch": 5.6667,
    "tokens_seen": 191_482,
    "seconds": 1896.2,
    "best_train_loss": 0.0665446,
    "best_train_loss_windows": "all",
    "best_train_loss_step": 330,
    "corpus": {"tokens": 33_792},
    "config": {"max_tokens": 33_792},
}


def keep(folder: Path, name: str, content: str) -> None:
    (folder / name).mkdir()
    (folder / name / "summary.json").write_text(content, encoding="utf-8")


def test_a_kept_run_is_shown_with_what_its_summary_recorded(tmp_path):
    keep(tmp_path, "excerpt", json.dumps(SUMMARY))
    shown = kept_runs(tmp_path).data
    for text in (
        "excerpt",
        "5.67",
        "191,482",
        "31:36",
        "cpu, bf16",
        "0.066545 at step 330 (measured on the whole excerpt of 33,792 tokens)",
    ):
        assert f">{text}</td>" in shown


def test_a_folder_that_is_no_run_and_a_damaged_summary_are_left_out(tmp_path):
    keep(tmp_path, "good", json.dumps(SUMMARY))
    keep(tmp_path, "cut", '{"preset": "full"')
    keep(tmp_path, "wrong", json.dumps({**SUMMARY, "epoch": "x"}))
    keep(tmp_path, "older", json.dumps({**SUMMARY, "epoch": None}))
    (tmp_path / "sweep").mkdir()
    shown = kept_runs(tmp_path).data
    assert ">good</td>" in shown and ">older</td>" in shown
    assert not any(f">{name}</td>" in shown for name in ("cut", "wrong", "sweep"))


def test_without_any_kept_run_it_says_so(tmp_path):
    assert "No runs are kept" in kept_runs(tmp_path).data


def test_the_runs_of_the_repository_are_found():
    shown = kept_runs().data
    assert (
        all(f">{path.parent.name}</td>" in shown for path in KEPT.glob("*/summary.json"))
        and ">sanity</td>" in shown
    )
