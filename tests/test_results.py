"""Room 04: what is said about a run is what its directory holds and what its model does."""

import dataclasses
import html
import json
import math
import re
import shlex
import shutil

import numpy as np
import pytest
import torch

from gpt2_nb_utils.__main__ import build_parser
from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.figures import html as snippets
from gpt2_nb_utils.figures import results as figures
from gpt2_nb_utils.figures import token_paint
from gpt2_nb_utils.figures.style import moving_average
from gpt2_nb_utils.results import (
    measure,
    overview,
    passages,
    recall,
)
from gpt2_nb_utils.results.facts import read_facts
from gpt2_nb_utils.results.record import Record, read_record
from gpt2_nb_utils.results.runs_table import KEPT
from gpt2_nb_utils.results.token_losses import keep, read_token_losses
from gpt2_nb_utils.results.verdict import conditions, explanation, headline, reached
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.tokenization.bpe import decode, encode, token_strings
from gpt2_nb_utils.tokenization.corpus import COURSE_SHA256
from gpt2_nb_utils.tokenization.dataset import TokenDataset
from gpt2_nb_utils.training.records import CorpusFacts, Row, Sample, Summary
from gpt2_nb_utils.training.train import train

HOSTILE = '<script>alert("x")</script> & <b>bold</b>'


@pytest.fixture(scope="module")
def trained_directory(tmp_path_factory):
    """A run directory of a tiny model, trained on a text that tries to be HTML."""
    folder = tmp_path_factory.mktemp("results")
    text = folder / "text.txt"
    lines = (f"{number} {HOSTILE}\nthe cat sat on the mat, päßt\n\n" for number in range(30))
    text.write_text("".join(lines), encoding="utf-8")
    train(
        RunConfig.resolve(
            dict(
                preset="tiny",
                input_file=str(text),
                out_dir=str(folder / "run"),
                max_tokens=500,
                n_layer=1,
                n_head=2,
                n_embd=16,
                block_size=32,
                seq_len=32,
                batch_size=4,
                steps=20,
                log_every=1,
                eval_every=10,
                sample_every=10,
                save_every=20,
                max_new_tokens=8,
                lr=1e-2,
                warmup_steps=2,
                device="cpu",
            )
        )
    )
    return folder / "run"


@pytest.fixture()
def directory(trained_directory, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(trained_directory, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture()
def old(directory):
    """A copy as a version before events would have left it."""
    (directory / "logs" / "events.jsonl").unlink()
    return directory


@pytest.fixture(scope="module")
def run(trained_directory):
    return read_record(trained_directory)


@pytest.fixture(scope="module")
def measured(run):
    return measure.measure(run, "cpu")


# -- reading a run directory -----------------------------------------------------------------------------------------


def test_a_folder_without_a_run_is_one_line_that_sends_to_notebook_03(tmp_path):
    with pytest.raises(UserError, match=r"holds no run.*run notebook 03"):
        read_record(tmp_path / "nothing")


def test_windows_are_those_of_the_training(run):
    tokens = encode(run.corpus.text)[:500]
    assert run.windows.tokens.tolist() == tokens.tolist() and run.windows.seq_len == 32
    assert run.missing == () and run.rows[-1].step == 20


@pytest.mark.parametrize(
    "part", ["logs/train_metrics.csv", "samples/samples.txt", "environment.json"]
)
def test_a_missing_part_of_an_old_run_is_named_with_its_mend(old, part):
    (old / part).unlink()
    (line,) = read_record(old).missing
    assert part in line and "missing" in line and "run notebook 03 again" in line


@pytest.mark.parametrize(
    "part", ["logs/train_metrics.csv", "samples/samples.txt", "environment.json"]
)
def test_a_damaged_part_of_an_old_run_is_named_and_the_rest_is_read(old, part):
    (old / part).write_bytes(b"\xff\xfe\x00{")
    run = read_record(old)
    assert len(run.missing) == len(run.damaged) == 1 and part in run.missing[0]
    assert run.summary.step == 20


def test_an_old_run_without_events_reads_as_one_with_them(run, old):
    before, now = read_record(old), run
    assert before.missing == () and before.events == [] and now.events[0]["event"] == "start"
    assert before.samples == now.samples and len(now.samples) > 6
    assert len(before.rows) == len(now.rows) and len(before.recall) == len(now.recall) == 3
    for one, other in zip([*before.rows, *before.recall], [*now.rows, *now.recall]):
        assert one.cells() == other.cells()


def test_where_there_are_events_nothing_rendered_from_them_is_needed(run, directory):
    for path in (*(directory / "logs").glob("*.csv"), directory / "samples" / "samples.txt"):
        path.unlink()
    read = read_record(directory)
    assert read.missing == ()
    assert (read.rows, read.recall, read.samples) == (run.rows, run.recall, run.samples)


@pytest.mark.parametrize(
    "spoilt", ['"loss": "x"', '"loss": [1]', '"lr": {}'], ids=["text", "list", "object"]
)
def test_events_that_no_run_writes_are_named_and_the_tables_are_read(directory, spoilt):
    path = directory / "logs" / "events.jsonl"
    name = spoilt.partition(":")[0]
    path.write_text(re.sub(f"{name}: [^,}}]+", spoilt, path.read_text("utf-8")), "utf-8")
    read = read_record(directory)
    assert len(read.damaged) == 1 and "events.jsonl" in read.damaged[0]
    assert len(read.rows) > 20 and read.events == []


@pytest.mark.parametrize("left", [b"", b"\0" * 100, b'{"step": 2'])
def test_a_summary_that_a_power_cut_damaged_is_taken_from_the_events(run, directory, left):
    (directory / "summary.json").write_bytes(left)
    read = read_record(directory)
    assert read.summary == run.summary
    (line,) = read.damaged
    assert "summary.json is damaged" in line and "--resume auto" in line
    (directory / "logs" / "events.jsonl").unlink()
    with pytest.raises(UserError, match="summary.json is not a valid JSON object"):
        read_record(directory)


def test_without_checkpoints_the_curves_remain_and_the_model_is_asked_for_by_name(directory):
    shutil.rmtree(directory / "checkpoints")
    run = read_record(directory)
    assert len(run.rows) > 20
    assert "checkpoints/best.pt" in run.missing[-1] and "run notebook 03" in run.missing[-1]
    with pytest.raises(UserError, match="no checkpoint"):
        run.load_model()


def test_best_pt_is_preferred_and_last_pt_takes_its_place(directory):
    assert read_record(directory).load_model().file == "best.pt"
    (directory / "checkpoints" / "best.pt").unlink()
    trained = read_record(directory).load_model()
    assert trained.file == "last.pt" and trained.step == 20
    assert (
        trained.recorded.loss == json.loads((directory / "summary.json").read_text())["train_loss"]
    )


def test_another_text_in_the_old_place_is_refused(directory, tmp_path):
    summary = json.loads((directory / "summary.json").read_text())
    other = tmp_path / "other.txt"
    other.write_text("an altogether different text", encoding="utf-8")
    summary["corpus"]["path"] = str(other)
    (directory / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(
        UserError, match=r"other.txt is not the text .* was trained on.*put that text back"
    ):
        read_record(directory).windows


def test_a_missing_text_is_told_and_no_other_text_is_looked_for(directory, tmp_path):
    summary = json.loads((directory / "summary.json").read_text())
    summary["corpus"]["path"] = str(tmp_path / "gone.txt")
    (directory / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(
        UserError, match=r"cannot be read again: input_file .*gone.txt does not exist"
    ):
        read_record(directory).corpus


# -- the loss, measured anew -----------------------------------------------------------------------------------------


def test_the_measured_loss_is_the_one_on_record(run, measured):
    assert measured.result.whole and measured.result.n_targets == 499
    assert measured.result.loss == pytest.approx(run.summary.best_train_loss, abs=1e-6)
    assert "they agree" in measured.comparison


def test_per_token_losses_are_the_cross_entropies_of_a_float64_formula(run, measured):
    model = run.load_model().model.double()
    total = 0.0
    for window in measured.read:
        x, y = run.windows.window(window.index)
        with torch.no_grad():
            logits = model(x[None])[0].numpy()
        peak = logits.max(axis=1, keepdims=True)
        log_probabilities = logits - peak - np.log(np.exp(logits - peak).sum(axis=1, keepdims=True))
        expected = -log_probabilities[np.arange(len(y)), y.numpy()]
        np.testing.assert_allclose(window.losses.numpy(), expected, atol=2e-4)
        total += expected.sum()
    assert measured.result.loss == pytest.approx(total / 499, abs=1e-5)


def _with_losses(measured, *losses):
    """What was measured, with other losses of as many windows."""
    read = tuple(dataclasses.replace(one, losses=each) for one, each in zip(measured.read, losses))
    return dataclasses.replace(measured, read=read)


def test_another_model_than_that_of_the_log_is_noticed(measured):
    worse = _with_losses(measured, *(window.losses + 0.1 for window in measured.read))
    assert "not the model described in the log" in worse.comparison


def test_figures_on_different_windows_are_not_compared(measured):
    some = dataclasses.replace(measured, read=measured.read[:2])
    assert "need not agree" in some.comparison and "they agree" not in some.comparison


@pytest.mark.parametrize(
    "lost, words", [("checkpoints", "has no checkpoint"), ("text", "text.txt does not exist")]
)
def test_what_cannot_be_measured_is_said_and_does_not_stop_the_notebook(directory, lost, words):
    if lost == "checkpoints":
        shutil.rmtree(directory / "checkpoints")
    else:
        summary = json.loads((directory / "summary.json").read_text())
        summary["corpus"]["path"] = str(directory / "text.txt")
        (directory / "summary.json").write_text(json.dumps(summary))
    measured, told = measure.measure_or_say(read_record(directory), "cpu")
    assert measured is None and words in told
    with pytest.raises(UserError, match="device cuda:99"):
        measure.measure_or_say(read_record(directory), "cuda:99")


def test_the_losses_that_notebook_04_measures_are_kept_for_the_report(directory):
    run = read_record(directory)
    measured, _ = measure.measure_or_say(run, "cpu")
    kept = read_token_losses(run.directory.token_losses)
    assert [window.index for window in kept.windows] == measured.indices and kept.is_of(run.summary)
    for window, fresh in zip(kept.windows, measured.read, strict=True):
        np.testing.assert_allclose(window.losses, fresh.losses, rtol=1e-3, atol=1e-5)
        x, y = run.windows.window(window.index)
        assert window.tokens.tolist() == fresh.tokens.tolist() == [*x.tolist(), int(y[-1])]


def test_where_every_loss_was_kept_notebook_04_shows_it_beside_the_windows_that_it_can_read(
    directory,
):
    run = read_record(directory)
    everything, _ = measure.measure_or_say(run, "cpu")
    some, told = measure.measure_or_say(run, "cpu", seconds=0)
    assert everything.result.whole and not some.result.whole
    assert (
        some.training_loss == pytest.approx(everything.result.loss, rel=1e-3)
        and some.extent == "every prediction"
    )
    assert f"all of them with these weights: {some.training_loss:.6f}" in told
    keep(
        run.directory,
        run.summary,
        run.windows,
        {window.index: window.losses + 1 for window in everything.read},
    )
    some, told = measure.measure_or_say(run, "cpu", seconds=0)  # those of other weights
    assert (
        some.training_loss == some.result.loss
        and some.extent == f"1 windows of {len(run.windows)}"
        and "need not agree" in told
    )


def test_all_windows_where_affordable_else_those_of_the_run_else_fewer():
    windows = TokenDataset(torch.arange(1001), seq_len=10)  # 100 windows
    assert measure.windows_to_measure(windows, 1000, 16) == list(range(100))
    assert measure.windows_to_measure(windows, 999, 16) == windows.evenly_spread(16)
    assert measure.windows_to_measure(windows, 999, "all") == windows.evenly_spread(99)
    assert measure.windows_to_measure(windows, 120, 16) == windows.evenly_spread(12)
    assert len(measure.windows_to_measure(windows, 0, 16)) == 1


def test_the_124m_model_measures_the_windows_of_the_sanity_preset_on_a_cpu():
    assert 16 * 128 <= measure.affordable_tokens(124_439_808, seconds=8.0) < 30 * 128
    assert measure.affordable_tokens(124_439_808, 8.0, "cuda") > 338_025


def test_the_entropy_of_frequencies_is_that_of_a_counted_table():
    # Targets 1 1 2 3: frequencies ½, ¼, ¼.
    assert measure.unigram_entropy(TokenDataset(torch.tensor([9, 1, 1, 2, 3]), 2)) == pytest.approx(
        1.5 * math.log(2)
    )


# -- figures ---------------------------------------------------------------------------------------------------------


def _rows(n):
    return [
        Row(
            step=step,
            epoch=step / 10,
            tokens=step,
            loss=10.8 * 0.97**step + 0.05,
            lr=1e-4,
            tok_per_s=100.0,
            grad_norm=1.0 + step % 3,
            loss_scale=65536.0,
            train_loss=10.8 * 0.97**step if step % 10 == 0 else None,
        )
        for step in range(n)
    ]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [Row(0, 0.0, 0, train_loss=10.9)],
        _rows(2),
        _rows(400),
        [Row(1, 0.1, 5, loss=math.nan, grad_norm=math.inf, lr=0.0)],
    ],
)
def test_every_figure_can_be_drawn_from_any_rows(rows, tmp_path):
    for number, figure in enumerate(
        [
            figures.loss_figure(rows),
            figures.curve_figure(rows, "lr"),
            figures.curve_figure(rows, "tok_per_s"),
            figures.curve_figure(rows, "grad_norm", 1.0),
            figures.curve_figure(rows, "loss_scale"),
        ]
    ):
        figure.savefig(tmp_path / f"{number}.png")
        axes = figure.axes[0]
        assert axes.get_xlabel() and axes.get_ylabel()


def test_the_loss_figure_draws_what_was_logged_and_names_target_and_random_guess():
    rows = _rows(400)
    axes = figures.loss_figure(rows).axes[0]
    drawn = [line.get_xydata().tolist() for line in axes.lines]
    assert [[row.step, row.loss] for row in rows] in drawn
    assert [[row.step, row.train_loss] for row in rows if row.train_loss] in drawn
    labels = " ".join(text.get_text() for text in axes.get_legend().get_texts())
    for name in (
        "target 0.099999",
        "50,257 = 10.825",
        "batch loss",
        "moving average",
        "training loss",
    ):
        assert name in labels
    assert (
        axes.get_yscale() == "log"
        and figures.loss_figure(rows[:5]).axes[0].get_yscale() == "linear"
    )


def test_the_legend_of_the_loss_figure_covers_no_curve():
    rows = [Row(step, step / 10, step, loss=10.8, train_loss=10.81) for step in range(40)]
    figure = figures.loss_figure(rows)
    figure.canvas.draw()
    legend, axes = figure.axes[0].get_legend(), figure.axes[0]
    assert len(legend.get_texts()) == 5
    assert legend.get_window_extent().x0 > axes.get_window_extent().x1


def test_the_moving_average_is_that_of_a_naive_loop():
    values = [float(value) for value in np.random.default_rng(0).normal(size=50)]
    naive = [np.mean(values[max(0, i - 6) : i + 1]) for i in range(50)]
    assert moving_average(values, 7) == pytest.approx(naive)


def test_words_for_a_curve_give_its_ends_and_its_extremes():
    rows = [
        Row(1, 0, 1, loss=5.0),
        Row(2, 0, 2, loss=9.0),
        Row(3, 0, 3, loss=2.0),
        Row(4, 0, 4, loss=3.0),
    ]
    assert figures.curve_text(rows, "loss") == (
        "Batch loss from 5.0000 at step 1 to 3.0000 at step 4; "
        "highest 9.0000 at step 2, lowest 2.0000 at step 3."
    )
    assert figures.curve_text([], "lr") == "No learning rate was logged."


# -- painted text, passages, recall ----------------------------------------------------------------------------------


def _text_of(fragment):
    return html.unescape(re.sub(r"<[^>]*>", "", fragment))


def test_no_text_of_corpus_or_model_becomes_html_anywhere(run, measured):
    worst, best = passages.worst_and_best(measured)
    recalls = recall.recall(measured.trained.model, run.windows, n=3, prefix=12, length=12)
    shown = [
        token_paint.painted_windows(measured),
        passages.passages_shown(worst + best, run.windows),
        recall.side_by_side(recalls),
        overview.samples_shown(
            [Sample(1, 1, HOSTILE, HOSTILE + "</div><script>"), Sample(2, 1, "p", HOSTILE)]
        ),
        overview.notes([HOSTILE]),
        snippets.say(HOSTILE),
        overview.facts(_with_path(run, HOSTILE)),
    ]
    for fragment in shown:
        assert "<script" not in fragment.data and "<b>bold" not in fragment.data
        tags = set(re.findall(r"<\s*/?\s*([a-zA-Z]+)", fragment.data))
        assert tags <= {"div", "span", "b", "p", "table", "thead", "tbody", "tr", "td", "th", "br"}
        for quoted in re.findall(r'title="([^"]*)"', fragment.data):
            assert "<" not in quoted and ">" not in quoted
    assert any("<script>" in _text_of(fragment.data) for fragment in shown[:1])


def _with_path(run, path):
    corpus = run.summary.corpus.model_copy(update={"path": path})
    return dataclasses.replace(run, summary=run.summary.model_copy(update={"corpus": corpus}))


def test_painted_text_is_the_text_with_blanks_and_line_ends(run):
    ids = encode("To be,  or\n\nnot  to be\n")
    fragment = token_paint.painted(ids, [1.0] * len(ids)).data
    assert _text_of(fragment).replace("↵\n", "\n") == "To be,  or\n\nnot  to be\n"
    assert "white-space:pre-wrap" in fragment


def test_a_token_tells_its_loss_and_its_probability():
    fragment = token_paint.painted(encode(" king"), [math.log(4)]).data
    assert 'title="·king   loss 1.386 nats, probability 25.0%"' in fragment


def _tint(loss):
    return token_paint.STEPS[token_paint.step(loss)][1]


def test_colours_get_darker_with_the_loss_and_the_text_on_them_stays_readable():
    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return sum(
            w * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
            for w, c in zip((0.2126, 0.7152, 0.0722), channels)
        )

    tints = [_tint(loss) for loss in (0.0, 0.3, 1.0, 3.0, 5.0, 12.0)]
    lights = [luminance(tint) for tint in tints]
    assert all(lighter > 1.1 * darker for lighter, darker in zip(lights, lights[1:]))
    assert (lights[-1] + 0.05) / (luminance("#1a1a1a") + 0.05) > 4.5
    assert _tint(-math.log(0.9)) == tints[0] and _tint(-math.log(0.899)) == tints[1]


def test_painted_windows_give_each_token_the_loss_of_its_own_prediction(run, measured):
    fragment = token_paint.painted_windows(measured, at_most_tokens=32).data
    middle = measured.read[len(measured.read) // 2]
    index = middle.index
    told = re.findall(r'title="([^"]*)   loss ([\d.]+) nats, [^"]*">([^<]*)<', fragment)
    truth = run.windows.tokens[index * 32 + 1 : index * 32 + 33]
    expectations = middle.losses.tolist()
    for (title, loss, text), token, expected in zip(
        told, truth.tolist(), expectations, strict=True
    ):
        piece = token_strings([token])[0]
        assert html.unescape(text).replace("↵\n", "\n") == piece
        assert html.unescape(title) == piece.replace(" ", "·").replace("\n", "↵")
        assert float(loss) == pytest.approx(expected, abs=6e-4)
    assert f"window {index:,} of {len(measured.windows)}" in fragment


def test_the_counted_colours_cover_all_predictions_and_all_of_the_loss(measured):
    fragment = token_paint.classes_table(measured).data
    cells = [
        [_text_of(cell) for cell in re.findall(r"<td.*?</td>", row)]
        for row in re.findall(r"<tr.*?</tr>", fragment)[1:]
    ]
    assert sum(int(cell[2].replace(",", "")) for cell in cells) == 499
    assert sum(float(cell[4].rstrip("%")) for cell in cells) == pytest.approx(100, abs=0.3)


def test_worst_and_best_passages_are_those_of_an_exhaustive_search(measured):
    worst, best = passages.worst_and_best(measured, n=3, length=8)
    means = {}
    for window in measured.read:
        for offset in range(len(window.losses) - 7):
            means[window.index * 32 + 1 + offset] = float(
                np.mean(window.losses[offset : offset + 8].numpy().astype(np.float64))
            )
    assert worst[0].loss == pytest.approx(max(means.values())) and best[0].loss == pytest.approx(
        min(means.values())
    )
    for passage in worst + best:
        assert passage.loss == pytest.approx(means[passage.start]) and len(passage.losses) == 8
    for chosen in (worst, best):
        starts = sorted(passage.start for passage in chosen)
        assert len(starts) == 3 and all(b - a >= 8 for a, b in zip(starts, starts[1:]))
    fragment = passages.passages_shown(worst[:1], measured.windows, context=0).data
    start = worst[0].start
    assert (
        _text_of(fragment)
        .replace("↵\n", "\n")
        .endswith(decode(measured.windows.tokens[start : start + 8]))
    )


def test_neighbours_of_the_worst_passage_do_not_fill_the_list(measured):
    peak = torch.tensor(
        [5.0 - abs(place - 16) / 10 for place in range(32)]
    )  # the best starts all lie around one place
    hand_made = _with_losses(measured, peak, peak / 2)
    worst, best = passages.worst_and_best(hand_made, n=3, length=8)
    starts = [passage.start for passage in worst]
    assert starts[0] in (13, 14) and len(starts) == 3
    assert all(abs(a - b) >= 8 for a in starts for b in starts if a != b)
    assert best[0].start == 33 and best[0].loss == pytest.approx(float(peak[:8].mean() / 2))


def test_the_least_expected_token_is_the_one_with_the_highest_loss_beside_what_was_held_likelier(
    run, measured
):
    found = passages.least_expected(measured, n=3)
    highest = max(window.losses.max().item() for window in measured.read)
    assert -math.log(found.probability) == pytest.approx(highest, abs=1e-4)
    with torch.no_grad():
        logits = measured.trained.model(found.seen[None])[0, -1]
    assert [token for token, _ in found.likeliest] == logits.argsort(descending=True)[:3].tolist()
    assert [p for _, p in found.likeliest] == pytest.approx(
        logits.softmax(0).sort(descending=True).values[:3].tolist(), rel=1e-4
    )
    assert found.rank == 1 + int((logits > logits[found.token]).sum()) > 3
    said = _text_of(passages.least_expected_shown(found).data)
    assert f"{found.rank:,}" in said and f"{found.likeliest[0][1]:.2%}" in said
    assert f"{found.rank - 1:,} tokens were more likely" in passages.least_expected_text(found)


def test_a_token_that_would_be_html_is_shown_as_text(measured):
    (less,) = encode("<b")[:1].tolist()
    hostile = passages.LeastExpected(
        torch.tensor(encode(HOSTILE).tolist()), less, 0.1, 2, ((less, 0.5),)
    )
    assert (
        "<script" not in passages.least_expected_shown(hostile, context=50).data
        and "&lt;" in passages.least_expected_shown(hostile).data
    )


def test_recall_is_that_of_a_loop_that_takes_the_likeliest_token(run, measured):
    model = measured.trained.model
    recalls = recall.recall(model, run.windows, n=4, prefix=10, length=12)
    assert len(recalls) == 4
    for one in recalls:
        assert one.start % 32 == 0  # at the position at which training showed it
        assert one.prefix.tolist() == run.windows.tokens[one.start : one.start + 10].tolist()
        text, right, derailed = one.prefix.tolist(), 0, False
        for place in range(12):
            with torch.no_grad():
                text.append(int(model(torch.tensor([text]))[0, -1].argmax()))
            derailed = derailed or text[-1] != int(run.windows.tokens[one.start + 10 + place])
            right += not derailed
        assert (
            one.generated.tolist() == text[10:]
            and one.n_right == right
            and one.verbatim == (right == 12)
        )


def test_recall_stays_within_a_window_and_a_short_corpus(run, measured):
    for n_tokens, seq_len in ((3, 32), (20, 32), (500, 32), (500, 1), (64, 32), (65, 32)):
        windows = TokenDataset(run.windows.tokens[:n_tokens], seq_len)
        for one in recall.recall(measured.trained.model, windows, n=5):
            assert 1 <= len(one.prefix) and 1 <= len(one.truth) == len(one.generated)
            assert len(one.prefix) + len(one.truth) <= seq_len + 1
            assert one.start + len(one.prefix) + len(one.truth) <= n_tokens


def test_the_first_error_ends_the_count_and_is_marked():
    ids = torch.tensor(encode(" the cat sat on the mat"))
    wrong = ids.clone()
    wrong[2] = encode(" dog")[0]
    one = recall.Recall(0, ids[:1], ids, wrong)
    whole = recall.Recall(0, ids[:1], ids, ids)
    assert one.n_right == 2 and not one.verbatim and whole.verbatim
    assert "1 of 2 openings verbatim" in recall.recall_text([one, whole])
    assert "(50%)" in recall.recall_text([one, whole])
    fragment = recall.side_by_side([one]).data
    assert re.search(r"cat</span><b>✗</b><span[^>]*underline[^>]*> dog</span> on", fragment)
    assert (
        "✗</b>" not in recall.side_by_side([whole]).data
        and "✓" in recall.side_by_side([whole]).data
    )


# -- words -----------------------------------------------------------------------------------------------------------


def test_what_was_learned_follows_from_the_loss():
    said = [
        overview.what_it_learned(loss, frequencies=6.3, target=0.1)
        for loss in (10.8, 8.0, 5.0, 2.0, 0.3, 0.09)
    ]
    for words, sentence in zip(
        (
            "nothing yet",
            "only a little",
            "far from knowing",
            "has not memorised it",
            "the target is 0.1, over the whole text",
            "has memorised these tokens",
        ),
        said,
        strict=True,
    ):
        assert words in sentence


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(corpus=CorpusFacts(source="demo")), "demonstration corpus"),
        (dict(status="failed"), "ended in an error at step 20 of 20"),
        (dict(status="interrupted"), "was interrupted"),
        (dict(step=0), "Not one step"),
        (
            dict(epoch=0.0454, best_train_loss=7.0),
            "saw 4.5% of the text once. It has learned only a little",
        ),
    ],
)
def test_what_limits_the_meaning_of_a_run_is_said_first(run, change, words):
    summary = run.summary.model_copy(update=change)
    assert words in " ".join(overview.caveats(dataclasses.replace(run, summary=summary)))


def test_an_excerpt_is_named_and_a_complete_run_has_no_caveat(run):
    (excerpt,) = overview.caveats(run)
    assert "excerpt only: the first 500 tokens" in excerpt
    config = RunConfig.resolve({"max_tokens": 0}, saved=run.config.model_dump())

    def on(is_course_input):
        corpus = CorpusFacts(source="input_file", is_course_input=is_course_input)
        summary = run.summary.model_copy(update={"corpus": corpus})
        return dataclasses.replace(run, config=config, summary=summary)

    assert overview.caveats(on(True)) == []
    assert "another text" in overview.caveats(on(False))[0]


def test_samples_of_the_first_and_the_last_step_stand_beside_each_other():
    samples = [
        Sample(step, prompt, f"p{prompt}", f"p{prompt} at {step}")
        for step in (5, 10, 15)
        for prompt in (1, 2)
    ]
    text = _text_of(overview.samples_shown(samples).data)
    for step in (5, 15):
        assert f"p1 at {step}" in text and f"p2 at {step}" in text
    assert "at 10" not in text and "no samples" in overview.samples_shown([]).data
    assert "(40 line breaks)" in overview.samples_shown([Sample(1, 1, "p", "p" + 40 * "\n")]).data


# -- the verdict -----------------------------------------------------------------------------------------------------

MET = dict(
    summary=dict(
        status="target_reached",
        step=900,
        n_params=124_439_808,
        train_loss=0.0991,
        train_loss_windows="all",
        best_train_loss=0.0991,
        best_train_loss_windows="all",
        corpus=dict(source="input_file", sha256=COURSE_SHA256, is_course_input=True),
    ),
    config=dict(
        max_tokens=0,
        resume="",
        out_dir="out/run",
        block_size=1024,
        n_layer=12,
        n_head=12,
        n_embd=768,
    ),
    rows=[Row(0, 0.0, 0, train_loss=10.98), Row(1, 0.1, 512, loss=10.97)],
)


def _record(summary, config, rows):
    settings = RunConfig.resolve({}, saved=config)
    return Record(RunDirectory("run"), Summary.model_validate(summary), settings, rows=rows)


def _judge(summary=(), config=(), rows=None):
    config = {**MET["config"], **dict(config)}
    content = {**MET["summary"], **dict(summary), "config": config}
    judged = conditions(_record(content, config, MET["rows"] if rows is None else rows))
    return judged, {condition.asks: condition.state for condition in judged if not condition.holds}


def test_a_run_that_meets_all_conditions_reaches_the_target():
    judged, missing = _judge()
    assert missing == {} and reached(judged) and headline(judged) == "Course target reached"
    assert "0.099100 (measured on the whole corpus), below the target" in explanation(judged)
    assert "✓ Course target reached" in overview.verdict_table(judged).data


EXCERPT = dict(corpus=dict(source="input_file", sha256=COURSE_SHA256, is_course_input=False))
DEMO = dict(corpus=dict(source="demo", sha256="0" * 64, is_course_input=False))


@pytest.mark.parametrize(
    "change, asks, state, words",
    [
        (
            dict(summary=dict(best_train_loss=0.099999)),
            "training loss below 0.099999",
            "not met",
            "not below the target",
        ),
        (
            dict(summary=dict(best_train_loss=None, train_loss=0.1)),
            "training loss below 0.099999",
            "not met",
            "0.100000",
        ),
        (
            dict(summary=dict(best_train_loss_windows=16)),
            "measured on every prediction of its text",
            "not met",
            "only estimated on 16 windows",
        ),
        (dict(summary=DEMO), "on the course's input.txt", "not met", "demonstration corpus"),
        (
            dict(summary=EXCERPT, config=dict(max_tokens=2048)),
            "on all of its tokens",
            "not met",
            "excerpt of 2,048 tokens",
        ),
        (
            dict(summary=dict(n_params=123_999_999)),
            "at least 124,000,000 parameters",
            "not met",
            "123,999,999 parameters",
        ),
        (
            dict(summary=dict(n_params=None)),
            "at least 124,000,000 parameters",
            "unknown",
            "not recorded",
        ),
        (
            dict(rows=[Row(0, 0, 0, train_loss=3.3)]),
            "from random weights",
            "not met",
            "training loss of 3.3000 at step 0",
        ),
        (
            dict(rows=[Row(1, 0, 9, loss=3.3)]),
            "from random weights",
            "not met",
            "batch loss of 3.3000 at step 1",
        ),
        (dict(rows=[]), "from random weights", "unknown", "no log"),
        (dict(rows=[Row(10, 0, 9, loss=9.9)]), "from random weights", "unknown", "no log"),
        (
            dict(config=dict(resume="elsewhere/checkpoints/last.pt")),
            "from random weights",
            "unknown",
            "named checkpoint",
        ),
        (
            dict(summary=dict(status="failed")),
            "the run came to its end",
            "not met",
            "it failed at step 900",
        ),
        (
            dict(summary=dict(status="running")),
            "the run came to its end",
            "unknown",
            "still running",
        ),
    ],
)
def test_each_single_missing_condition_keeps_the_target_from_counting_and_is_named(
    change, asks, state, words
):
    judged, missing = _judge(**change)
    assert missing == {asks: state} and not reached(judged)
    assert words in explanation(judged) and headline(judged) == "Course target not reached"
    shown = _text_of(overview.verdict_table(judged).data).replace("\u00a0", " ")
    assert {"not met": "✗ not met", "unknown": "? unknown"}[state] in shown and words in shown


def test_a_run_resumed_from_its_own_checkpoint_still_starts_from_random_weights():
    assert _judge(config=dict(resume="auto"))[1] == {}
    assert _judge(config=dict(resume="out/run/checkpoints/last.pt"))[1] == {}


def test_a_lucky_batch_is_no_training_loss():
    judged, missing = _judge(summary=dict(best_train_loss=0.5, loss=0.01, best_batch_loss=0.01))
    assert "training loss below 0.099999" in missing


def test_a_summary_with_nothing_in_it_is_judged_unknown_and_never_reached():
    judged = conditions(_record({}, {}, []))
    assert {condition.state for condition in judged} == {"unknown"} and not reached(judged)
    assert "has not been measured yet" in explanation(judged)


def test_the_real_run_is_judged_by_what_it_recorded(run):
    states = {condition.asks: condition.state for condition in conditions(run)}
    assert states == {
        "training loss below 0.099999": "not met",
        "measured on every prediction of its text": "met",
        "on the course's input.txt": "not met",
        "on all of its tokens": "not met",
        "at least 124,000,000 parameters": "not met",
        "from random weights": "met",
        "the run came to its end": "met",
    }


@pytest.mark.parametrize("name", [path.parent.name for path in KEPT.glob("*/summary.json")])
def test_one_command_makes_a_kept_run_again(name):
    facts = read_facts(RunDirectory(KEPT / name))
    *words, flag, out_dir = shlex.split(facts.reproduction)
    assert words[:4] == ["python", "-m", "gpt2_nb_utils", "run"]
    assert (flag, out_dir) == ("--out_dir", f"out/{name}")
    given = vars(build_parser().parse_args(words[3:]))
    made = RunConfig.resolve({k: v for k, v in given.items() if k in RunConfig.model_fields})
    where = {"out_dir", "resume", "overwrite"}
    assert made.model_dump(exclude=where) == facts.record.config.model_dump(exclude=where)
