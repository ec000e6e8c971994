"""samples/samples.txt: whatever the model writes can be read back, and cannot pass for something else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.training.samples_file import Sample, format_sample, read_samples

any_text = st.text(st.characters()) | st.text('\n\r |=\\"\x00\x1b\x85\u2028\ud800abc', max_size=30)
any_sample = st.builds(
    Sample,
    step=st.integers(0, 10**6),
    prompt_index=st.integers(1, 9),
    prompt=any_text,
    text=any_text,
    settings=st.sampled_from(
        [{}, {"prompts": 3}, {"temperature": 0.8, "top_k": 40}, {"temperature": 1e-05}]
    ),
)


@given(samples=st.lists(any_sample, max_size=4), windows=st.booleans())
def test_any_text_comes_back_as_it_was_even_when_line_ends_were_translated(
    tmp_path_factory, samples, windows
):
    path = tmp_path_factory.mktemp("samples") / "samples.txt"
    content = "".join(map(format_sample, samples))
    path.write_bytes((content.replace("\n", "\r\n") if windows else content).encode("utf-8"))
    assert read_samples(path) == samples


def test_a_text_that_imitates_a_block_stays_text(tmp_path):
    inner = format_sample(Sample(99, 1, "forged", "forged"))
    path = tmp_path / "samples.txt"
    path.write_text(
        format_sample(Sample(1, 1, "p", inner)) + format_sample(Sample(2, 1, "p", "end")),
        encoding="utf-8",
    )
    assert [sample.step for sample in read_samples(path)] == [1, 2]


def test_the_file_reads_as_documented():
    sample = Sample(
        15,
        1,
        "First Citizen:",
        "First Citizen:\nHear me speak.",
        {"prompts": 3, "temperature": 0.8, "top_k": 40},
    )
    assert format_sample(sample) == (
        "=== step 15 · prompt 1 of 3 · temperature 0.8 · top_k 40 ===\n"
        'PROMPT: "First Citizen:"\nSAMPLE:\n| First Citizen:\n| Hear me speak.\n\n'
    )


def test_a_terminal_never_receives_a_control_character():
    block = format_sample(Sample(1, 1, "\x1b[2J", "\x1b]0;title\x07\n\x9b2J\u202eabc"))
    assert all(character == "\n" or character.isprintable() for character in block)


def test_a_file_cut_anywhere_by_a_killed_run_loses_its_last_block_only(tmp_path):
    first, second = (
        format_sample(Sample(step, 1, "päßt", "wörd €")).encode("utf-8") for step in (1, 2)
    )
    path = tmp_path / "samples.txt"
    for cut in range(len(second)):
        path.write_bytes(first + second[:cut])
        assert read_samples(path) == [Sample(1, 1, "päßt", "wörd €")]


def test_a_line_without_a_place_is_named(tmp_path):
    path = tmp_path / "samples.txt"
    path.write_text(format_sample(Sample(1, 1, "p", "t")) + "scribble\n\n", encoding="utf-8")
    with pytest.raises(UserError, match="samples.txt line 6 "):
        read_samples(path)


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "samples.txt"
    path.write_bytes(b"\xff\xfe=\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        read_samples(path)
