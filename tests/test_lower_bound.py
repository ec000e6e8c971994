"""The training loss that no training can beat: checked by hand, against dictionaries, and on the course's file."""

import hashlib
import math
import random
import re
from collections import Counter, defaultdict

import pytest
import torch
from conftest import COURSE_INPUT
from hypothesis import given
from hypothesis import strategies as st

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.figures import results as figures
from gpt2_nb_utils.results import measure, overview
from gpt2_nb_utils.results.record import Record
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.tokenization import TokenDataset, encode, load_corpus
from gpt2_nb_utils.tokenization.corpus import COURSE_SHA256
from gpt2_nb_utils.tokenization.lower_bound import loss_lower_bound
from gpt2_nb_utils.training.records import CorpusFacts, Row, Summary

needs_course_file = pytest.mark.skipif(
    not COURSE_INPUT.exists()
    or hashlib.sha256(COURSE_INPUT.read_bytes()).hexdigest() != COURSE_SHA256,
    reason="data/input.txt is not there or is not the course's file",
)


def _bound(tokens, seq_len):
    return loss_lower_bound(TokenDataset(torch.tensor(tokens), seq_len))


def _by_dictionary(tokens, seq_len):
    """The same by the definition: one counter of next tokens for each prefix that occurs."""
    following = defaultdict(Counter)
    for place in range(len(tokens) - 1):
        start = place - place % seq_len
        following[tuple(tokens[start : place + 1])][tokens[place + 1]] += 1
    total = sum(
        -n * math.log(n / sum(counts.values()))
        for counts in following.values()
        for n in counts.values()
    )
    return total / (len(tokens) - 1)


# --- the lower bound -------------------------------------------------------------------------------------------------------


def test_windows_that_differ_from_their_first_token_on_leave_nothing_open():
    assert _bound([1, 7, 2, 7, 3, 7, 4], seq_len=2) == 0


def test_a_constant_text_leaves_nothing_open():
    assert _bound([5] * 100, seq_len=8) == 0


def test_one_window_as_long_as_the_text_leaves_nothing_open():
    assert _bound([1, 1, 2, 1, 1, 3, 1, 1, 4], seq_len=1024) == 0


def test_windows_are_told_apart_by_all_of_their_tokens_and_only_until_they_part():
    # 1 2 3 | 1 2 4 | 1 5 3 | 1, with targets 2 3 1, 2 4 1 and 5 3 1. After 1: 2 2 5. After 1 2: 3 4. Then all differ.
    open_after_1 = 2 * math.log(3 / 2) + math.log(3)
    open_after_1_2 = 2 * math.log(2)
    assert _bound([1, 2, 3, 1, 2, 4, 1, 5, 3, 1], seq_len=3) == pytest.approx(
        (open_after_1 + open_after_1_2) / 9
    )


def test_a_last_window_that_has_ended_no_longer_counts_among_those_like_it():
    # 1 2 3 | 1 2 4 | 1 2: the last window predicts 2 and ends, so 3 and 4 have shares of ½, not ⅓.
    assert _bound([1, 2, 3, 1, 2, 4, 1, 2], seq_len=3) == pytest.approx(2 * math.log(2) / 7)


def test_windows_of_one_token_have_the_entropy_of_token_pairs():
    # After 1 come 1 2 1 2, after 2 comes 1 once: the lower bound is that of four guesses among two.
    assert _bound([1, 1, 2, 1, 1, 2], seq_len=1) == pytest.approx(4 * math.log(2) / 5)


@given(st.lists(st.integers(0, 2), min_size=2, max_size=60), st.integers(1, 9))
def test_the_lower_bound_is_that_of_a_dictionary_of_prefixes(tokens, seq_len):
    assert _bound(tokens, seq_len) == pytest.approx(_by_dictionary(tokens, seq_len), abs=1e-12)


@given(st.lists(st.sampled_from([3, 50_000, 50_256]), min_size=2, max_size=60), st.integers(1, 9))
def test_token_ids_are_names_only(tokens, seq_len):
    small = [(3, 50_000, 50_256).index(token) for token in tokens]
    assert _bound(tokens, seq_len) == pytest.approx(_bound(small, seq_len), abs=1e-12)


def test_no_table_of_probabilities_by_prefix_beats_the_lower_bound():
    # Any model is such a table; this one leans away from the shares a little at a time, to either side.
    tokens = torch.randint(3, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    following = defaultdict(Counter)
    for place in range(len(tokens) - 1):
        following[tuple(tokens[place - place % 4 : place + 1])][tokens[place + 1]] += 1
    losses = []
    for lean in (0.5, 0.9, 1.0, 1.1, 2.0):
        total = 0.0
        for counts in following.values():
            weights = {token: n**lean for token, n in counts.items()}
            total -= sum(
                n * math.log(weights[token] / sum(weights.values())) for token, n in counts.items()
            )
        losses.append(total / (len(tokens) - 1))
    lower_bound = _bound(tokens, seq_len=4)
    assert losses[2] == pytest.approx(lower_bound) and all(
        loss > lower_bound + 1e-5 for loss in losses[:2] + losses[3:]
    )


@pytest.fixture(scope="module")
def course_tokens():
    return torch.from_numpy(encode(load_corpus(str(COURSE_INPUT)).text))


@needs_course_file
@pytest.mark.parametrize(
    "seq_len, lower_bound", [(128, 0.0173), (256, 0.0070), (512, 0.0028), (1024, 0.0011)]
)
def test_the_bound_of_the_course_file_is_far_below_the_target_and_falls_with_the_length(
    course_tokens, seq_len, lower_bound
):
    assert round(loss_lower_bound(TokenDataset(course_tokens, seq_len)), 4) == lower_bound


@needs_course_file
def test_windows_of_32_tokens_of_the_course_file_cannot_reach_the_target(course_tokens):
    assert loss_lower_bound(TokenDataset(course_tokens, 32)) > 0.099999


@needs_course_file
@pytest.mark.parametrize("seq_len", [1, 128])
def test_the_bound_of_the_course_file_is_that_of_a_dictionary_of_prefixes(course_tokens, seq_len):
    tokens = course_tokens[:40_000]
    lower_bound = loss_lower_bound(TokenDataset(tokens, seq_len))
    assert (
        lower_bound == pytest.approx(_by_dictionary(tokens.tolist(), seq_len)) and lower_bound > 0
    )


# --- the lower bound in notebook 04 ----------------------------------------------------------------------------------------


def _rows(last):
    """Losses from that of random weights down to `last`."""
    return [
        Row(step, step / 10, step, loss=loss, train_loss=loss)
        for step, loss in enumerate(10.8 * (last / 10.8) ** (share / 20) for share in range(21))
    ]


def _labels(figure):
    return " ".join(text.get_text() for text in figure.axes[0].get_legend().get_texts())


def _levels(figure):
    """Heights of the horizontal lines across the whole axis."""
    return [
        line.get_ydata()[0] for line in figure.axes[0].lines if list(line.get_xdata()) == [0, 1]
    ]


@pytest.mark.parametrize(
    "last, lower_bound", [(0.09, 0.0173), (0.09, 0.00105), (0.5, 0.2), (7.0, 3.4)]
)
def test_the_loss_figure_has_the_lower_bound_as_a_line_within_its_axis_and_names_it(
    last, lower_bound
):
    figure = figures.loss_figure(_rows(last), lower_bound=lower_bound)
    bottom, top = figure.axes[0].get_ylim()
    assert lower_bound in _levels(figure) and f"lower bound {lower_bound:g}" in _labels(figure)
    assert bottom < lower_bound < top and bottom < 0.099999


@pytest.mark.parametrize(
    "last, lower_bound, why",
    [
        (7.0, 0.0173, "on a linear axis it would lie on the line of the target"),
        (0.09, 0.0, "a logarithmic axis has no 0"),
        (0.09, 1e-7, "the curves would shrink to a strip"),
        (0.09, None, "the text is missing"),
    ],
)
def test_a_lower_bound_that_the_axis_cannot_show_leaves_the_figure_as_it_was(
    last, lower_bound, why
):
    figure, without = (
        figures.loss_figure(_rows(last), lower_bound=lower_bound),
        figures.loss_figure(_rows(last)),
    )
    assert _levels(figure) == _levels(without) and "lower bound" not in _labels(figure), why
    assert figure.axes[0].get_ylim() == without.axes[0].get_ylim()


@pytest.mark.parametrize("last", [7.0, 0.09])
def test_the_words_for_the_loss_figure_name_the_lower_bound_also_where_it_is_not_drawn(last):
    assert "lower bound that no training can beat 0.017284" in figures.loss_figure_text(
        _rows(last), lower_bound=0.0172837
    )
    assert "lower bound" not in figures.loss_figure_text(_rows(last))


@pytest.fixture
def run_on(tmp_path):
    """What `read_record` gives for a run on 3,000 words that follow no rule. Call it with the settings that matter."""
    text = "".join(random.Random(0).choices([" the", " cat", " sat"], k=3000))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")

    def make(name="text.txt", **settings):
        recorded = {
            "path": str(tmp_path / name),
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
        }
        config = RunConfig.resolve({"input_file": recorded["path"], "device": "cpu", **settings})
        return Record(
            RunDirectory(tmp_path / "run"), Summary(corpus=CorpusFacts(**recorded)), config
        )

    return make


def _cells(html):
    return [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<td.*?</td>", html.data)]


def test_the_table_of_lower_bounds_is_computed_from_the_tokens_of_the_run_and_marks_its_own_length(
    run_on,
):
    run = run_on(preset="sanity", seq_len=256)
    shown = overview.lower_bounds(run)
    lengths, bounds, shares = (_cells(shown)[column::3] for column in range(3))
    assert lengths == ["128", "256 (this run)", "512", "1,024"]
    expected = [
        loss_lower_bound(TokenDataset(run.windows.tokens, length))
        for length in (128, 256, 512, 1024)
    ]
    assert [float(lower_bound) for lower_bound in bounds] == pytest.approx(
        expected, abs=1e-6
    ) and expected[0] > expected[1] > 0
    assert shares == [f"{lower_bound / 0.099999:.1%}" for lower_bound in expected]
    assert re.findall(r"<b>(.*?)</b>", shown.data) == [lengths[1], bounds[1], shares[1]]
    assert measure.lower_bound(run) == expected[1]


def test_the_table_of_lower_bounds_has_no_length_beyond_an_excerpt_and_always_the_one_of_the_run(
    run_on,
):
    lengths = _cells(overview.lower_bounds(run_on(preset="tiny", max_tokens=300, seq_len=64)))[::3]
    assert lengths == ["64 (this run)", "128", "256"]


def test_windows_too_short_for_the_target_are_said_to_be(run_on):
    shown = overview.lower_bounds(run_on(preset="tiny", seq_len=4)).data
    assert "Windows of 4 tokens cannot reach the target of 0.099999" in shown
    assert "cannot reach" not in overview.lower_bounds(run_on(preset="tiny", seq_len=64)).data


def test_a_missing_text_has_no_lower_bound_and_does_not_stop_the_notebook(run_on):
    run = run_on("gone.txt", preset="tiny")
    assert measure.lower_bound(run) is None
    assert (
        "The lower bound is not shown" in overview.lower_bounds(run).data
        and "gone.txt does not exist" in overview.lower_bounds(run).data
    )
