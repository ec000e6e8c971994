"""The page of token losses shows each measured token with its own loss, says how much it shows, and what it is of."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup

sys.path.insert(0, str(Path(__file__).parent))
from run_fixture import HOSTILE, add_token_losses, make_run, summary  # noqa: E402

from gpt2_nb_utils.errors import UserError  # noqa: E402
from gpt2_nb_utils.report import report, token_page  # noqa: E402
from gpt2_nb_utils.report.report import build_report  # noqa: E402
from gpt2_nb_utils.results.record import read_record  # noqa: E402
from gpt2_nb_utils.results.token_losses import keep, read_token_losses  # noqa: E402
from gpt2_nb_utils.tokenization.bpe import decode, encode  # noqa: E402
from gpt2_nb_utils.tokenization.dataset import TokenDataset


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def page(run, name="tokens.html"):
    build_report(run)
    return BeautifulSoup((run.report / name).read_text(encoding="utf-8"), "html.parser")


def words(soup):
    return " ".join(soup.get_text(" ").split())


def figures(soup):
    return [float(tag["data-l"]) for tag in soup.select(".part .painted [data-l]")]


def test_every_token_stands_in_its_place_with_its_own_loss(run):
    windows, losses = add_token_losses(run)
    soup = page(run)
    told = torch.cat(list(losses.values())).tolist()
    assert figures(soup) == pytest.approx(told, abs=0.01)
    text = "".join(tag.get_text() for tag in soup.select(".part .painted"))
    assert text.replace("↵\n", "\n") == decode(windows.tokens.numpy())
    assert f"All {len(told):,} predictions" in words(
        soup
    ) and f"{sum(told) / len(told):.6f} nats" in words(soup)


@pytest.mark.parametrize(
    "loss, letter",
    [
        (0.0, "z"),
        (0.10, "z"),
        (0.11, "a"),
        (0.69, "a"),
        (0.70, "b"),
        (2.30, "b"),
        (2.31, "c"),
        (4.61, "d"),
        (6.90, "d"),
        (6.91, "e"),
        (12.0, "e"),
    ],
)
def test_the_mark_of_a_token_follows_from_its_probability(run, loss, letter):
    keep(
        run,
        read_record(run.path).summary,
        TokenDataset(torch.arange(3), 2),
        {0: torch.tensor([loss, 99.0])},
    )
    marked = page(run).select_one(".part [data-l]")
    assert letter in marked["class"]
    assert {"z": 0.9, "a": 0.5, "b": 0.1, "c": 0.01, "d": 0.001, "e": 0}[letter] <= math.exp(
        -float(marked["data-l"])
    ) + 1e-9


def test_the_least_expected_tokens_are_listed_and_lead_to_their_place_and_back(run):
    _, losses = add_token_losses(run)
    soup = page(run)
    rows = soup.select(".surprises tbody tr")
    highest = sorted(torch.cat(list(losses.values())).tolist(), reverse=True)[: len(rows)]
    assert [float(row.td.get_text()) for row in rows] == pytest.approx(highest, abs=0.01) and len(
        rows
    ) == 40
    for row in rows:
        there = soup.find(id=row.a["href"].removeprefix("#"))
        assert there["href"] == f"#{row['id']}" and float(there["data-l"]) == pytest.approx(
            float(row.td.get_text()), abs=0.01
        )


def test_the_marks_are_counted_over_all_measured_predictions(run):
    _, losses = add_token_losses(run)
    values = torch.cat(list(losses.values())).double()
    rows = [
        [words(cell) for cell in row.select("td, th")]
        for row in page(run).select(".classes tbody tr")
    ]
    limits = [0, *(-math.log(p) for p in (0.9, 0.5, 0.1, 0.01, 0.001)), math.inf]
    members = [values[(values > low) & (values <= high)] for low, high in zip(limits, limits[1:])]
    assert [row[3] for row in rows] == [f"{len(each):,}" for each in members]
    assert [row[5] for row in rows] == [
        f"{float(each.sum() / values.sum()):.1%}" for each in members
    ]


def test_a_text_that_was_measured_in_part_is_shown_in_part_and_said_to_be(run):
    windows, _ = add_token_losses(run, measured=[1, 4])
    soup = page(run)
    assert f"32 predictions in 2 of {len(windows)} windows" in words(soup)
    assert [words(tag).partition(":")[0] for tag in soup.select(".part h3")] == [
        "Tokens 17 to 32",
        "Tokens 65 to 80",
    ]
    assert "32 predictions of the text" in words(page(run, "index.html").find(id="tokens").parent)


def test_unmarked_tokens_of_a_long_text_stand_as_text_and_the_marked_keep_their_losses(
    run, monkeypatch
):
    monkeypatch.setattr(token_page, "_EACH_UP_TO", 100)
    windows, losses = add_token_losses(run)
    soup = page(run)
    assert figures(soup) == pytest.approx(
        [loss for loss in torch.cat(list(losses.values())).tolist() if loss > 0.106], abs=0.01
    )
    assert "".join(tag.get_text() for tag in soup.select(".part .painted")).replace(
        "↵\n", "\n"
    ) == decode(windows.tokens.numpy())


def test_a_text_that_would_grow_too_large_loses_windows_evenly_and_says_so(run, monkeypatch):
    monkeypatch.setattr(report, "LARGEST_PAGE", report._REST_OF_TOKEN_PAGE + 6_000)
    windows, _ = add_token_losses(run)
    soup = page(run)
    n = len(soup.select(".part .painted b"))
    assert 2 < n < len(
        windows
    ) and f"{n} of {len(windows)} measured windows are shown, spread evenly" in words(soup)
    assert len("".join(str(tag) for tag in soup.select(".part .painted")).encode()) < 7_000


def test_text_of_the_corpus_is_text_on_both_pages(run):
    add_token_losses(run)
    for name in ("tokens.html", "index.html"):
        soup = page(run, name)
        assert not soup.find("script") and "<script>" in "".join(
            tag.get_text() for tag in soup.select("div.painted")
        )


def test_unmarked_text_of_the_corpus_is_text_too(run, monkeypatch):
    monkeypatch.setattr(token_page, "_EACH_UP_TO", 0)
    windows = TokenDataset(
        torch.from_numpy(encode("word " * 60 + HOSTILE)), 512
    )  # the table names the first 40 tokens
    keep(run, read_record(run.path).summary, windows, {0: torch.zeros(windows.n_targets)})
    soup = page(run)
    assert not soup.find("script") and HOSTILE in soup.select_one(".part .painted").get_text()


def test_nothing_in_the_file_is_executed(run, tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    add_token_losses(run)
    np.savez(
        run.token_losses,
        **{**dict(np.load(run.token_losses)), "losses": np.array([Trap()], dtype=object)},
    )
    with pytest.raises(UserError):
        read_token_losses(run.token_losses)
    assert not (tmp_path / "sprung").exists()


def test_losses_of_an_earlier_state_are_not_shown_and_said_to_be(run):
    add_token_losses(run)
    build_report(run)
    run.write_json(run.summary, summary(step=31))
    index = page(run, "index.html")
    assert "token_losses.npz are of an earlier state" in words(index.select_one(".notices"))
    assert not (
        run.report / "tokens.html"
    ).exists() and "no token_losses.npz of this state" in words(index.find(id="tokens").parent)


@pytest.mark.parametrize("damage", ["cut", "other arrays", "token", "lengths"])
def test_a_damaged_file_is_named_in_one_line_and_the_report_built_without_it(run, damage):
    add_token_losses(run)
    if damage == "cut":
        run.token_losses.write_bytes(run.token_losses.read_bytes()[:300])
    else:
        arrays = dict(np.load(run.token_losses))
        arrays.update(
            {
                "token": {"tokens": arrays["tokens"] * 0 + 60_000},
                "lengths": {"lengths": arrays["lengths"] + 1},
            }.get(damage, {})
        )
        np.savez(run.token_losses, **({"x": np.zeros(1)} if damage == "other arrays" else arrays))
    with pytest.raises(
        UserError, match=r"token_losses.npz is not a readable file of token losses: make it again"
    ) as error:
        read_token_losses(run.token_losses)
    assert "\n" not in str(error.value)
    assert "token_losses.npz is not a readable" in words(
        page(run, "index.html").select_one(".notices")
    )


def test_losses_that_show_more_of_the_same_weights_are_not_replaced_by_fewer(run):
    add_token_losses(run)
    add_token_losses(run, measured=[2])
    assert read_token_losses(run.token_losses).whole
    run.write_json(run.summary, summary(step=31))
    add_token_losses(run, measured=[2])
    assert [window.index for window in read_token_losses(run.token_losses).windows] == [2]


def test_weights_without_a_finite_loss_leave_no_file(run):
    keep(
        run,
        read_record(run.path).summary,
        TokenDataset(torch.arange(3), 2),
        {0: torch.tensor([1.0, math.nan])},
    )
    assert not run.token_losses.exists()
