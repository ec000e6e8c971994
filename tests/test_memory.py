"""What a model knows by heart and what it composes: recall counted and grown, words traced to the text, heads and their habits."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.figures import results as figures
from gpt2_nb_utils.figures.model import map_grid
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config
from gpt2_nb_utils.results import attention, measure, provenance, recall
from gpt2_nb_utils.results.record import read_recall, read_record
from gpt2_nb_utils.tokenization.bpe import encode
from gpt2_nb_utils.tokenization.dataset import IGNORE_INDEX, TokenDataset
from gpt2_nb_utils.training.corpus_loss import read_windows
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.records import RecallRow
from gpt2_nb_utils.training.train import train
from gpt2_nb_utils.training.verbatim import (
    RecallStats,
    counted,
    opening_of,
    openings_among,
    recall_stats,
    tokens_right,
)

CPU = Precision(torch.device("cpu"), "fp32")
HOSTILE = '<script>alert("x")</script> & <b>bold</b>'


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that knows some of its text: lines that differ in a number, and try to be HTML."""
    folder = tmp_path_factory.mktemp("memory")
    text = folder / "text.txt"
    text.write_text(
        "".join(f"{number} {HOSTILE}\nthe cat sat on mat {number}\n\n" for number in range(40)),
        encoding="utf-8",
    )
    train(
        RunConfig.resolve(
            dict(
                preset="tiny",
                input_file=str(text),
                out_dir=str(folder / "run"),
                max_tokens=500,
                n_layer=2,
                n_head=3,
                n_embd=24,
                block_size=32,
                seq_len=32,
                batch_size=4,
                steps=60,
                log_every=10,
                eval_every=20,
                sample_every=0,
                save_every=60,
                lr=1e-2,
                warmup_steps=2,
                device="cpu",
            )
        )
    )
    return read_record(folder / "run")


@pytest.fixture(scope="module")
def measured(run):
    return measure.measure(run, "cpu")


# -- recall, counted without generating ------------------------------------------------------------------------------


def test_what_one_forward_pass_counts_is_what_greedy_generation_gets_right(run, measured):
    generated = recall.recall(measured.trained.model, run.windows, n=100)
    by_window = {one.start // run.windows.seq_len: one.n_right for one in generated}
    assert {
        window.index: window.n_right for window in measured.read if window.n_right is not None
    } == by_window
    assert len(set(by_window.values())) > 3  # neither all of it nor nothing
    assert measured.result.recall.verbatim == sum(one.verbatim for one in generated)


def test_a_window_too_short_for_its_opening_is_not_counted():
    windows = TokenDataset(torch.arange(75) + 5, 32)  # 74 targets: windows of 32, 32 and 10
    model = GPT2(GPT2Config(block_size=32, n_layer=1, n_head=1, n_embd=8, vocab_size=100))
    assert opening_of(windows) == (16, 17)
    readings = read_windows(model, windows, [0, 1, 2], CPU, openings={0, 1, 2})
    assert [reading.n_right is None for reading in readings] == [False, False, True]
    assert [
        reading.n_right is None
        for reading in read_windows(model, windows, [0, 1, 2], CPU, openings={1})
    ] == [True, False, True]
    assert counted([17, 3, None], (16, 17)) == (2, 1, 20)
    assert (
        recall_stats((2, 1, 20), (16, 17)) == RecallStats(2, 16, 17, 1, 10.0)
        and recall_stats((0, 0, 0), (16, 17)) is None
    )


def test_of_many_windows_some_openings_are_counted_spread_over_all():
    assert openings_among([4, 7, 9]) == {4, 7, 9} and openings_among([]) == set()
    some = sorted(openings_among(range(2641)))
    assert len(some) == 256 and some[0] == 0 and {b - a for a, b in zip(some, some[1:])} == {10, 11}


def test_the_likeliest_token_is_told_in_fp32_where_bf16_would_find_two_alike():
    hidden, head = (
        torch.tensor([[[1.0, 1.0]]]),
        torch.tensor([[16.0, 0.0], [16.0, 0.01]]),
    )  # in bf16 both logits are 16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert tokens_right(hidden, head, torch.tensor([[1]]), (1, 1)) == [1]
        assert tokens_right(hidden, head, torch.tensor([[0]]), (1, 1)) == [0]
        assert tokens_right(hidden, head, torch.tensor([[IGNORE_INDEX]]), (1, 1)) == [None]


def test_recall_on_record_is_read_back_and_a_damaged_line_left_out(run, tmp_path):
    assert [row.step for row in run.recall] == [0, 20, 40, 60] and run.recall[
        -1
    ].recalled.openings == 15
    shutil.copytree(run.directory.path, tmp_path / "run")
    (tmp_path / "run" / "logs" / "events.jsonl").unlink()  # as runs of earlier versions have none
    path = tmp_path / "recall.csv"
    path.write_bytes(
        run.directory.recall.read_bytes()
        + b"61,15,16\n62,15,16,17,99,1.0\n63,0,16,17,0,0\n64,15,x,17,9,1.0\n"
    )
    assert read_recall(path) == read_record(tmp_path / "run").recall and len(read_recall(path)) == 4


def test_growth_has_one_point_a_step_the_one_that_measured_most(run, measured):
    some, whole = RecallStats(3, 16, 17, 0, 1.0), RecallStats(15, 16, 17, 2, 4.5)
    rows = recall.history(
        dataclasses.replace(
            run, recall=[RecallRow(0, some), RecallRow(9, some), RecallRow(9, whole)]
        ),
        measured,
    )
    assert rows == [RecallRow(0, some), RecallRow(9, whole)]
    lines = [line.get_ydata() for line in figures.recall_figure(rows).axes[0].lines]
    assert [list(line) for line in lines] == [
        pytest.approx([100 / 17, 450 / 17]),
        pytest.approx([0, 200 / 15]),
    ]
    assert "0 of 3 (0%) at step 0, 2 of 15 (13%) at step 9" in recall.growth_text(rows)


def test_a_run_that_recorded_no_recall_shows_its_random_and_its_best_weights(
    run, measured, tmp_path
):
    shutil.copytree(run.directory.path, tmp_path / "run")
    for name in ("recall.csv", "events.jsonl"):
        (tmp_path / "run" / "logs" / name).unlink()
    old = read_record(tmp_path / "run")
    first, last = recall.history(old, measured)
    assert not any("recall" in line for line in old.missing) and (first.step, last.step) == (
        0,
        measured.trained.step,
    )
    assert (
        first.recalled.right < 1 < last.recalled.right and last.recalled == measured.result.recall
    )
    table = recall.growth_table([first, last], old).data
    assert f"{old.rows[0].train_loss:.4f}" in table and f"{last.recalled.right:.1f} of 17" in table


# -- where words come from -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_longest_stretch_and_the_nearest_passage_are_those_of_an_exhaustive_search(seed):
    generator = torch.Generator().manual_seed(seed)
    tokens, said = (torch.randint(4, (n,), generator=generator) for n in (200, 12))
    one = provenance.held_against(torch.tensor([1]), said, tokens)
    text, ids = tokens.tolist(), said.tolist()
    longest = max(
        n
        for n in range(1, 13)
        for i in range(12 - n + 1)
        for j in range(200 - n + 1)
        if ids[i : i + n] == text[j : j + n]
    )
    begin, end = one.begin, one.begin + one.longest
    assert (
        one.longest == longest == end - begin
        and ids[begin:end] == text[one.place : one.place + longest]
    )
    overlap = [
        sum(min(ids.count(token), text[j : j + 12].count(token)) for token in set(ids))
        for j in range(200 - 12 + 1)
    ]
    assert one.shared == max(overlap) and overlap.index(max(overlap)) == one.nearest


def test_a_recited_passage_is_one_stretch_and_strange_words_are_none():
    tokens = torch.from_numpy(
        encode(
            "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer"
        )
    )
    recited = provenance.held_against(tokens[:2], tokens[3:15], tokens)
    strange = provenance.held_against(
        tokens[:2], torch.from_numpy(encode(" zebra keyboard volcano")), tokens
    )
    assert (recited.longest, recited.place, recited.shared) == (12, 3, 12)
    assert (strange.longest, strange.shared) == (0, 0)


def test_a_passage_does_not_count_as_a_repetition_of_itself():
    tokens = torch.arange(60)
    tokens[50:54] = tokens[27:31]
    windows = TokenDataset(tokens, 20)
    assert provenance.n_tokens(windows) == 10  # one passage of so many begins at token 25
    assert provenance.usual_stretch(windows, n=1) == 4


def test_prompts_are_told_from_the_text_and_nothing_said_becomes_html(run, measured):
    said = provenance.continued(
        measured.trained.model, run.windows, [HOSTILE, "the cat sat", "a telephone"]
    )
    assert [one.known_prompt for one in said] == [True, True, False]
    assert all(len(one.said) == provenance.n_tokens(run.windows) == 16 for one in said)
    fragment = provenance.shown(said, run.windows).data
    assert "<script" not in fragment and "<b>bold" not in fragment and "&lt;script&gt;" in fragment
    assert fragment.count("does not appear in the text") == 1
    usual = provenance.usual_stretch(run.windows)
    assert 1 <= usual <= 16 and f"usually share {usual}:" in provenance.provenance_text(said, usual)


# -- heads -----------------------------------------------------------------------------------------------------------


def pattern(T: int, key: int) -> torch.Tensor:
    """The map (T, T) of a head that looks `key` tokens back, or at the first where there is none."""
    weights = torch.zeros(T, T)
    weights[torch.arange(T), (torch.arange(T) - key).clamp(min=0)] = 1.0
    return weights


def test_habits_are_those_that_the_maps_were_built_with():
    T = 8
    even = torch.ones(T, T).tril() / torch.arange(1, T + 1)[:, None]
    maps = [
        torch.stack([pattern(T, 0), even])[None],
        torch.stack([pattern(T, 1), pattern(T, T)])[None],
    ]  # (1, 2, 8, 8) each
    assert [attention.strongest(maps, habit) for habit in attention.HABITS[:3]] == [
        attention.Head(1, 1),
        attention.Head(0, 0),
        attention.Head(1, 0),
    ]
    shares = attention.habits(maps)
    np.testing.assert_allclose(sum(shares.values()), 1.0, atol=1e-6)
    assert (
        shares["itself"][0, 0]
        == shares["the previous token"][1, 0]
        == shares["the first token"][1, 1]
        == 1.0
    )
    assert shares["itself"][0, 1] == pytest.approx(np.mean([1 / t for t in range(3, T + 1)]))
    assert "layer 2, head 1</td>" in attention.habits_table(maps).data


def test_every_head_has_its_picture_and_the_enlarged_one_its_tokens(run, measured):
    line = run.windows.tokens[:10]
    maps = measured.trained.model.attention_maps(line[None])
    picture = figures.all_heads(maps)
    picture.canvas.draw()
    (axes,) = picture.axes
    mosaic = axes.images[0].get_array()
    assert [len(axis.get_ticklabels()) for axis in (axes.yaxis, axes.xaxis)] == [2, 3]
    for layer, head in np.ndindex(2, 3):
        rows, columns = (slice(1 + 12 * number, 11 + 12 * number) for number in (layer, head))
        np.testing.assert_array_equal(mosaic[rows, columns], maps[layer][0, head].numpy())
    assert mosaic.mask.sum() == mosaic.size - 6 * 100  # between the maps
    pieces = ["$a", "\n", " b", *"cdefghi"]
    figure = map_grid(maps, [1], [2], pieces)
    figure.canvas.draw()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()][:3] == ["$a", "↵", "·b"]
    weights = maps[1][0, 2].numpy()
    assert re.search(
        rf"“i” at “.+” \({weights[9].max():.0%}\)",
        attention.attention_text(maps, attention.Head(1, 2), pieces),
    )
