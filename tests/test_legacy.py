"""Runs recorded before there were events: their samples.txt is read back as far as it goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_nb_utils.results.legacy import read_samples
from gpt2_nb_utils.training.events import samples_text
from gpt2_nb_utils.training.records import Sample

OLD = """=== step 15 · prompt 1 of 3 · temperature 0.8 · top_k 40 · corpus "demonstration" ===
PROMPT: "First \\u001bCitizen:"
SAMPLE:
| First
|
|= "a\\u0085b | \\ud800"
| | === step 1 ===

"""
PLAIN = st.text(st.sampled_from("abc ·|={}\n=é"), max_size=30)


def test_the_form_of_old_files_is_read_exactly(tmp_path):
    path = tmp_path / "samples.txt"
    path.write_bytes(OLD.encode().replace(b"\n", b"\r\n"))
    (sample,) = read_samples(path)
    assert (sample.step, sample.prompt_index, sample.prompt) == (15, 1, "First \x1bCitizen:")
    assert sample.text == "First\n\na\x85b | \ud800\n| === step 1 ==="
    assert sample.settings == {
        "prompts": 3,
        "temperature": 0.8,
        "top_k": 40,
        "corpus": "demonstration",
    }


@given(st.lists(st.builds(Sample, st.integers(0, 99), st.integers(1, 9), PLAIN, PLAIN), max_size=4))
def test_plain_text_in_the_file_of_today_comes_back(tmp_path_factory, samples):
    path = tmp_path_factory.mktemp("samples") / "samples.txt"
    path.write_text(samples_text(samples), encoding="utf-8")
    assert read_samples(path) == samples


def test_a_file_cut_anywhere_loses_its_last_block_only(tmp_path):
    first, second = (samples_text([Sample(step, 1, "päßt", "wörd €")]).encode() for step in (1, 2))
    path = tmp_path / "samples.txt"
    for cut in range(len(second)):
        path.write_bytes(first + second[:cut])
        assert read_samples(path) == [Sample(1, 1, "päßt", "wörd €")]


@pytest.mark.parametrize(
    "stray", ["scribble", "=== step 1 · prompt 1 ===", OLD.replace("SAMPLE", "SAID")]
)
def test_what_is_no_sample_is_refused(tmp_path, stray):
    path = tmp_path / "samples.txt"
    path.write_text(f"{OLD}{stray}\n\n", encoding="utf-8")
    with pytest.raises(ValueError):
        read_samples(path)
