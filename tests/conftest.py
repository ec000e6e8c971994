"""What all tests share: a text to train on, and settings that finish in seconds."""

import os
from pathlib import Path

import pytest

os.environ["GPT2_NB_UTILS_NO_DOWNLOAD"] = "1"  # also for the kernels and commands that tests start

PROJECT = Path(__file__).parents[1]
COURSE_INPUT = PROJECT / "data" / "input.txt"


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """A real text: the start of the course's file where it is there, of the demonstration corpus elsewhere."""
    from gpt2_nb_utils.tokenization.corpus import load_corpus

    text = load_corpus(str(COURSE_INPUT) if COURSE_INPUT.exists() else "").text[:20_000]
    path = tmp_path_factory.mktemp("corpus") / "input.txt"
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


@pytest.fixture
def settings(text_file, tmp_path):
    """Settings of a run of seconds: a very small model on 512 tokens. Call it with what should differ."""
    def make(**more) -> dict:
        return {"preset": "tiny", "input_file": str(text_file), "out_dir": str(tmp_path / "run"), "device": "cpu", "n_embd": 8,
                "max_tokens": 512, "batch_size": 4, "steps": 6, "log_every": 1, "eval_every": 3, "save_every": 3,
                "sample_every": 3, "max_new_tokens": 8, "lr_schedule": "constant", "warmup_steps": 0, **more}

    return make
