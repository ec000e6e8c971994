"""The report says what the run shows, whatever is missing, and no text of a corpus or a model runs in it."""

import base64
import io
import re
import shlex
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

sys.path.insert(0, str(Path(__file__).parent))
from run_fixture import (  # noqa: E402
    HOSTILE,
    add_audit,
    add_notebook,
    add_token_losses,
    executed,
    html_output,
    make_run,
    reached,
    summary,
)

from gpt2_nb_utils.__main__ import main
from gpt2_nb_utils.errors import UserError  # noqa: E402
from gpt2_nb_utils.figures.style import display_data, panel, png  # noqa: E402
from gpt2_nb_utils.report.report import LARGEST_PAGE, build_report  # noqa: E402
from gpt2_nb_utils.results import audit_outputs, audit_weights
from gpt2_nb_utils.results.record import read_record
from gpt2_nb_utils.results.verify import CHECKS
from gpt2_nb_utils.run_directory import RunDirectory  # noqa: E402
from gpt2_nb_utils.training.events import samples_text
from gpt2_nb_utils.training.records import Sample
from gpt2_nb_utils.wording import duration, loss_text


def page(path):
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def words(soup):
    return " ".join(soup.get_text(" ").split())


def verdict(folder, content):
    return words(page(build_report(make_run(folder, content))).select_one(".verdict"))


def notebook_page(tmp_path, *cells, **metadata):
    run = make_run(tmp_path / "run")
    add_notebook(run, "01_tokenization.ipynb", list(cells), **metadata)
    build_report(run)
    return page(run.report / "01_tokenization.html")


# The verdict


def test_a_whole_measurement_by_the_course_model_on_the_course_file_counts(tmp_path):
    said = verdict(tmp_path / "run", reached())
    assert said.startswith("✓ Course target reached") and "not met" not in said
    assert "0.091200 (measured on the whole corpus)" in said


@pytest.mark.parametrize(
    "changes, missing",
    [
        (dict(best_train_loss_windows=16), "the loss is only estimated on 16 windows"),
        (
            dict(corpus={"source": "demo", "sha256": "0"}),
            "it was trained on the demonstration corpus",
        ),
        (
            dict(corpus={"source": "input_file", "sha256": "0"}),
            "its corpus is not the course's input.txt",
        ),
        (
            dict(
                config={**summary()["config"], "max_tokens": 2048},
                corpus={**summary()["corpus"], "is_course_input": False},
            ),
            "it saw an excerpt of 2,048 tokens",
        ),
        (
            dict(n_params=123_999_999),
            "123,999,999 parameters are on record, its sizes give 124,439,808",
        ),
        (
            dict(config={**summary()["config"], "resume": "gpt2.pt"}),
            "it was resumed from a named checkpoint",
        ),
        (dict(status="interrupted"), "it was interrupted at step 30"),
        (
            dict(best_train_loss=0.0999994),
            "the training loss is 0.09999940 (measured on the whole corpus), not below",
        ),
    ],
)
def test_a_run_that_lacks_one_condition_is_told_which(tmp_path, changes, missing):
    said = verdict(tmp_path / "run", reached(**changes))
    assert "Course target not reached" in said and missing.lower() in said.lower()
    # With one entry changed, the records may no longer hold together either.
    others = re.sub("(not met|unknown): its records are consistent", "", said)
    assert others.count("not met:") + others.count("unknown:") == 1


def test_a_log_that_starts_far_below_a_random_guess_does_not_count_as_from_scratch(tmp_path):
    run = make_run(tmp_path / "run", reached())
    lines = run.metrics.read_text(encoding="utf-8").splitlines()
    del lines[1]  # the training loss of step 0
    lines[1] = lines[1].replace(lines[1].split(",")[3], "4.000000")
    run.metrics.write_text("\n".join(lines), encoding="utf-8")
    assert "batch loss of 4.0000 at step 1 (random guess: 10.825)" in words(page(build_report(run)))


@pytest.mark.parametrize(
    "status", ["running", "target_reached", "steps_done", "interrupted", "failed", None, "new"]
)
def test_every_status_makes_a_page_and_an_unfinished_run_is_said_to_be_one(tmp_path, status):
    text = words(page(build_report(make_run(tmp_path / "run", summary(status=status)))))
    assert ("The run is not finished" in text) == (status not in ("target_reached", "steps_done"))


@pytest.mark.parametrize(
    "content, asks, figure, besides",
    [
        (
            reached(),
            "Training loss",
            "0.091200",
            "measured on the whole corpus; target: below 0.099999",
        ),
        (reached(), "Corpus", "the course's input.txt", "338,025 tokens, sha256 86c4e6aa…"),
        (reached(), "Parameters", "124,439,808", "12 layers, 12 heads, 768 wide"),
        (reached(epoch=6.0), "Epochs", "6", "15,360 tokens seen"),
        (
            reached(seconds=7900, wall_seconds=8542),
            "Time",
            "2 h 12 min",
            "of training, 2 h 22 min in all, 130 tokens/s",
        ),
        (reached(seconds=7199.6), "Time", "2 h 0 min", None),
        (reached(), "Time", "1 min 58 s", None),
        (reached(), "Machine", "cuda", None),
        (reached(), "Run", "finished", "step 30 of 30, seed 1337"),
        (reached(), "Audit", "not found", None),
        (summary(status="running"), "Run", "still running", None),
        (
            summary(train_loss=None, best_train_loss=None),
            "Training loss",
            "not measured yet",
            "target: below 0.099999",
        ),
        (
            summary(corpus={"source": "demo", "sha256": "0" * 64, "tokens": 5}),
            "Corpus",
            "demonstration corpus",
            "5 tokens, sha256 00000000…",
        ),
        (
            summary(config={"max_tokens": 2048}),
            "Corpus",
            "the course's input.txt",
            "its first 2,048 tokens, sha256 86c4e6aa…",
        ),
        ({"status": None}, "Time", "not recorded", None),
    ],
)
def test_the_first_screen_answers_what_a_grader_asks_first(
    tmp_path, content, asks, figure, besides
):
    index = page(build_report(make_run(tmp_path / "run", content)))
    answer = next(div for div in index.select(".verdict .answers > div") if words(div.dt) == asks)
    assert words(answer.select_one(".figure")) == figure
    if besides is not None:
        assert words(answer.select_one(".besides")) == besides


def test_the_first_page_goes_from_the_verdict_to_the_proof_and_ends_with_all_numbers(tmp_path):
    index = page(build_report(add_audit(make_run(tmp_path / "run"))))
    order = ["curve", "tokens", "samples", "recall", "audit", "reproduce", "notebooks", "facts"]
    assert [tag["id"] for tag in index.select("main h2") if tag["id"] in order] == order
    assert [link["href"].removeprefix("#") for link in index.select(".on-page a")] == order


# What was recorded, and what is not here


RECALL = (
    "step,openings,given,continued,verbatim,right\n0,16,32,32,0,0\n15,16,32,32,4,11.5\n"
    "15,256,32,32,64,12\n30,256,32,32,256,32\n"
)


def test_recall_on_the_first_page_comes_from_the_records_whatever_the_notebooks_hold(tmp_path):
    run = make_run(tmp_path / "run")
    run.recall.write_text(RECALL, encoding="utf-8")
    add_notebook(
        run, "04_results.ipynb", [executed("recall()", html_output("<p>none of them</p>"))]
    )
    section = page(build_report(run)).find(id="recall").parent
    assert "0 of 16 (0%) at step 0, 256 of 256 (100%) at step 30" in words(section)
    rows = [words(row) for row in section.select("tbody tr")]
    assert len(rows) == 3 and "64 (25%)" in rows[1] and "256 (100%)" in rows[2]
    assert "none of them" not in words(section)


def test_a_run_without_counts_of_recall_says_where_they_were_looked_for(tmp_path):
    section = page(build_report(make_run(tmp_path / "run"))).find(id="recall").parent
    assert "Neither logs/events.jsonl nor logs/recall.csv holds a count" in words(section)


def without_outputs(notebook):
    """As nbstripout leaves it."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata.pop("papermill", None)


def with_other_ids(notebook):
    """As jupytext leaves it."""
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"


def of_an_old_format(notebook):
    """As version 4.0 of the format has it: without ids."""
    notebook.nbformat_minor = 0
    for cell in notebook.cells:
        del cell["id"]


@pytest.mark.parametrize("change", [without_outputs, with_other_ids, of_an_old_format])
def test_a_run_whose_notebooks_went_through_another_tool_shows_the_same_answers(
    finished, tmp_path, change
):
    directory = RunDirectory(tmp_path / "copy")
    shutil.copytree(finished[0].path, directory.path)
    whole = page(build_report(directory))
    for path in directory.notebooks.glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        change(notebook)
        path.write_text(nbformat.writes(notebook, version=nbformat.NO_CONVERT), encoding="utf-8")
    changed = page(build_report(directory))
    for id in ("recall", "samples", "curve", "facts"):
        assert words(changed.find(id=id).parent) == words(whole.find(id=id).parent), id
    assert re.search(
        r"[\d,]+ of [\d,]+ \(\d+%\) at step 4", words(changed.find(id="recall").parent)
    )
    listed = words(changed.find(id="notebooks").parent)
    assert ("not executed, or stripped of them" in listed) == (change is without_outputs)


# Which command is shown


def test_a_run_that_was_moved_is_audited_where_it_is(tmp_path):
    config = {**summary()["config"], "out_dir": "out/run"}
    run = make_run(tmp_path / "before", summary(config=config))
    moved = run.path.rename(tmp_path / "a run")
    said = words(page(build_report(RunDirectory(moved))).select(".command")[-1])
    verify = f"python -m gpt2_nb_utils verify {shlex.quote(moved.as_posix())}"
    assert said == f"{verify} {verify} --replay 20"


# The audit


def with_weights(run):
    """An empty best.pt, which is what the audit of the fixture was made of."""
    run.best.parent.mkdir(exist_ok=True)
    run.best.write_bytes(b"")
    return run


def test_the_checks_of_an_audit_are_a_table_with_a_word_for_each_sign(tmp_path):
    run = with_weights(add_audit(make_run(tmp_path / "run"), ok=False))
    index = page(build_report(run))
    section = index.find("h2", id="audit").parent
    table = section.table
    found = "0.0912 over all 338,024 predictions"
    assert [words(row) for row in table.select("tbody tr")] == [
        f"✗ fails {check.asks} {found} (expected: as asked)"
        if check is audit_weights.course_text
        else f"– not checked {check.asks} {found} (expected: as asked)"
        if check is audit_outputs.samples
        else f"✓ holds {check.asks} {found}"
        for check in CHECKS
    ]
    assert all(mark["aria-hidden"] == "true" for mark in section.select(".mark"))
    tally = "1 of 18 checks fail, 1 of 18 were not possible"
    assert f"Not proved: {tally} (fails: {audit_weights.course_text.asks})." in words(section)
    assert f"Audit ✗ not proved: {tally}" in words(index.select_one("#facts + dl"))
    assert (
        words(table.caption)
        == "Audit, made 2026-01-02 03:04:05 UTC, cpu, in fp32: python -m gpt2_nb_utils verify out/x; best.pt had sha256 e3b0c44298fc1c14…"
    )


def test_an_audit_whose_weights_are_not_here_is_called_recorded(tmp_path):
    index = page(build_report(add_audit(make_run(tmp_path / "run"))))
    said = words(index.find("h2", id="audit").parent)
    assert "Recorded; the weights are not here to check." in said and "roved:" not in said


def test_an_audit_of_an_earlier_state_is_not_shown_and_said_to_be_one(tmp_path):
    run = add_audit(make_run(tmp_path / "run"))
    run.write_json(run.summary, summary(step=31))
    index = page(build_report(run))
    assert "Audit, made" not in words(index)
    assert "verify.json is of another state" in words(index.select_one(".notices"))


def test_an_audit_of_another_best_pt_is_not_shown_and_said_to_be_one(tmp_path):
    run = add_audit(make_run(tmp_path / "run"))
    run.best.parent.mkdir(exist_ok=True)
    for content, shown in ((b"", True), (b"others", False)):
        run.best.write_bytes(content)
        index = page(build_report(run))
        assert ("Audit, made" in words(index)) == shown
        assert ("or of another best.pt, and is not shown" in words(index)) != shown


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"checks": [{"asks": "loss", "ok": "yes", "found": "", "expected": ""}]}'],
)
def test_a_damaged_audit_is_named_and_the_report_built_without_it(tmp_path, content):
    run = make_run(tmp_path / "run")
    run.audit.write_text(content, encoding="utf-8")
    index = page(build_report(run))
    assert "Audit, made" not in words(index)
    assert "verify.json is not a readable audit" in words(index.select_one(".notices"))


def test_a_text_that_was_read_otherwise_than_it_stands_is_said_to_be(tmp_path):
    corpus = {
        **summary()["corpus"],
        "notes": ["changed 40,000 carriage returns to line feeds"],
    }
    index = page(build_report(make_run(tmp_path / "run", summary(corpus=corpus))))
    assert "Corpus as read changed 40,000 carriage returns to line feeds" in " ".join(
        words(index).split()
    )


def test_a_folder_that_cannot_be_written_is_one_line_without_a_flag_that_report_lacks(
    tmp_path, capsys
):
    run = make_run(tmp_path / "run")
    run.report.write_bytes(b"")  # a file in the place of the folder
    assert main(["report", str(run.path)]) == 2
    error = capsys.readouterr().err
    assert "cannot be written" in error and "RUN_DIR" in error and "--out_dir" not in error


def test_a_command_in_a_note_is_shown_as_code(tmp_path):
    run = make_run(tmp_path / "run")
    run.token_losses.write_bytes(b"<b>")
    notices = page(build_report(run)).select_one(".notices")
    assert "gpt2_nb_utils verify" in notices.code.get_text() and "`" not in words(notices)


# What may be missing


def test_a_run_that_has_just_started_has_a_report(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.write_json(run.summary, {name: None for name in summary()} | {"status": "running"})
    text = words(page(build_report(run)))
    assert "the training loss has not been measured yet" in text.lower() and "not recorded" in text
    for looked_for in (
        "notebooks/",
        "logs/events.jsonl",
        "samples/samples.txt",
        "This run has logged no loss yet",
    ):
        assert looked_for in text


def test_unreadable_pieces_are_named_and_the_rest_is_shown(tmp_path):
    run = make_run(tmp_path / "run")
    run.metrics.write_bytes(b"step,loss\n1,\xff\n")
    run.samples.write_text("scribble\n\n", encoding="utf-8")
    run.environment.write_text("{", encoding="utf-8")
    run.notebooks.mkdir()
    (run.notebooks / "02_model.ipynb").write_text('{"cells": [', encoding="utf-8")
    text = words(page(build_report(run)).select_one(".notices"))
    for name in ("train_metrics.csv", "samples.txt", "environment.json", "02_model.ipynb"):
        assert name in text


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        build_report(RunDirectory(tmp_path))
    assert not (tmp_path / "report").exists()


def test_a_notebook_that_failed_is_exported_and_named_with_its_cell(tmp_path):
    error = new_output(
        "error",
        ename="ValueError",
        evalue="too <b>short",
        traceback=["\x1b[31mValueError\x1b[0m: too <b>short"],
    )
    notice = new_markdown_cell(
        "An Exception was encountered", metadata={"tags": ["papermill-error-cell-tag"]}
    )
    run = make_run(tmp_path / "run")
    add_notebook(
        run,
        "03_training.ipynb",
        [
            notice,
            new_markdown_cell("# Training"),
            executed("1"),
            executed("f()", error),
            new_code_cell("after"),
        ],
    )
    index = page(build_report(run))
    assert "3 Training stopped at cell 3 of 4: ValueError: too <b>short" in words(
        index.select_one(".notices")
    )
    training = page(run.report / "03_training.html")
    assert "An Exception was encountered" not in words(training)
    target = training.select_one(".execution a")["href"].removeprefix("#")
    assert "too <b>short" in words(training.find(id=target).select_one(".error"))


def test_pages_of_notebooks_that_are_gone_are_removed(tmp_path):
    run = make_run(tmp_path / "run")
    add_notebook(run, "01_tokenization.ipynb", [new_markdown_cell("# T")])
    old = add_notebook(run, "02_model.ipynb", [new_markdown_cell("# M")])
    build_report(run)
    old.unlink()
    build_report(run)
    assert sorted(path.name for path in run.report.iterdir()) == [
        "01_tokenization.html",
        "index.html",
    ]


# Self-contained and safe


def everything(tmp_path):
    """The pages of a run whose every text is hostile."""
    run = make_run(
        tmp_path / "run",
        summary(
            command=HOSTILE,
            device=HOSTILE,
            status=HOSTILE,
            corpus={
                "source": HOSTILE,
                "path": HOSTILE,
                "sha256": HOSTILE,
                "chars": 1,
                "tokens": 1,
                "is_course_input": False,
            },
        ),
    )
    run.write_json(run.environment, {"processor": HOSTILE, "packages": {HOSTILE: HOSTILE}})
    add_audit(run, HOSTILE)
    add_notebook(
        run,
        "01_tokenization.ipynb",
        [
            new_markdown_cell(f"# Title\n\n`{HOSTILE}`"),
            executed(
                repr(HOSTILE),
                new_output("stream", name="stdout", text=HOSTILE),
                new_output("stream", name="stderr", text=HOSTILE),
                new_output("execute_result", data={"text/plain": HOSTILE}, execution_count=1),
                new_output("display_data", data={"application/javascript": "alert(1)"}),
                new_output("display_data", data={"image/svg+xml": "<svg><script/></svg>"}),
                new_output("error", ename=HOSTILE, evalue=HOSTILE, traceback=[HOSTILE]),
                html_output(
                    "<script>alert(1)</script><img src='https://example.org/x.png' alt='far'>"
                    "<b onclick='x()'>bold</b><iframe src='https://example.org'></iframe>"
                    "<link rel='stylesheet' href='https://example.org/a.css'>"
                    "<style>@import 'https://example.org/b.css';</style>"
                    "<i style='background:url(//example.org/c)'>i</i></div></main>"
                    "<a href='javascript:alert(1)'>click</a>"
                ),
            ),
        ],
    )
    build_report(run)
    return [run.report / "index.html", run.report / "01_tokenization.html"]


def test_nothing_runs_and_nothing_is_fetched(tmp_path):
    for path in everything(tmp_path):
        soup = page(path)
        assert not soup.find(["script", "iframe", "object", "embed", "base", "form"])
        assert soup.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"] == (
            "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        )
        for tag in soup.find_all(True):
            assert not [name for name in tag.attrs if name.startswith("on")], tag
            assert tag.get("src", "data:image/").startswith("data:image/"), tag
            assert not (tag.name == "link" and not tag["href"].startswith("data:")), tag
            assert "javascript:" not in tag.get("href", "") and "example.org" not in tag.get(
                "style", ""
            ), tag
        assert not re.search(
            r"@import|url\((?!data:)", "".join(style.get_text() for style in soup.find_all("style"))
        )


def test_hostile_text_is_shown_as_text_in_every_place(tmp_path):
    index, notebook = everything(tmp_path)
    assert words(page(index)).count("<script>document.title = 'broken'</script>") >= 11
    assert words(page(notebook)).count("<script>document.title = 'broken'</script>") >= 6


def test_html_of_our_notebooks_comes_through_and_stray_tags_do_not_break_the_page(tmp_path):
    soup = page(everything(tmp_path)[1])
    assert soup.select_one(".output.html b").get_text() == "bold"
    assert "[image not part of the report: far]" in words(soup)
    assert soup.find("nav", attrs={"aria-label": "Previous and next page"}).find_parent("main")


def test_the_progress_that_a_notebook_shows_stays_in_its_page(tmp_path):
    bar = '<progress max="100" value="100.0" aria-label="training 4/4">100 %</progress>'
    assert (
        notebook_page(tmp_path, executed("train()", html_output(bar))).find("progress")["value"]
        == "100.0"
    )


# Text, formulas, pictures


def test_formulas_become_mathml_and_dollars_in_code_and_prose_stay(tmp_path):
    soup = notebook_page(
        tmp_path,
        new_markdown_cell(
            "# T\n\nHere $\\frac{1}{2}$, `$HOME`, `$$x$$`, $5 or $6, $7/$8.\n\n"
            "$$\n\\sum_i x_i\n$$\n\n```sh\necho $$ $a $b\n```\n"
        ),
    )
    assert [tag.get("display") for tag in soup.find_all("math")] == ["inline", "block"]
    assert soup.find("mfrac") and soup.find(re.compile("munder|msub"))
    text = words(soup.select_one(".notebook"))
    assert (
        "$HOME" in text
        and "$$x$$" in text
        and "$5 or $6, $7/$8." in text
        and "echo $$ $a $b" in text
    )


@pytest.mark.parametrize(
    "latex", [r"\nosuchcommand{x}", r"\frac{a", r"\left( x", "a_b_c", r"x < y \unknown"]
)
def test_a_formula_that_cannot_be_converted_shows_its_source(tmp_path, latex):
    code = notebook_page(tmp_path, new_markdown_cell(f"# T\n\nSee ${latex}$.")).select_one(
        "code.latex"
    )
    assert code is not None and code.get_text() == latex


def test_a_page_has_one_title_and_headings_in_order(tmp_path):
    soup = notebook_page(
        tmp_path,
        new_markdown_cell("# One *title*\n\n### Deep\n\n# Second title"),
        executed("x", html_output("<h6>deepest</h6>")),
        new_markdown_cell("## Deep"),
    )
    headings = [(tag.name, tag.get_text()) for tag in soup.find_all(re.compile("^h[1-6]$"))]
    assert headings == [
        ("h1", "One title"),
        ("h2", "Deep"),
        ("h2", "Second title"),
        ("h3", "deepest"),
        ("h2", "Deep"),
    ]
    ids = [tag["id"] for tag in soup.find_all(id=True)]
    assert len(ids) == len(set(ids))
    assert soup.html["lang"] == "en" and soup.title.get_text() == "One title"


def test_a_table_corner_without_words_is_no_heading(tmp_path):
    table = html_output("<table><tr><th scope='col'></th><th>n</th></tr></table>")
    soup = notebook_page(tmp_path, executed("x", table))
    assert [tag.name for tag in soup.select(".notebook tr > *")] == ["td", "th"]


def test_links_between_notebooks_lead_to_pages_and_links_to_files_end(tmp_path):
    soup = notebook_page(
        tmp_path,
        new_markdown_cell(
            "# T\n\n[again](./01_tokenization.ipynb) [file](../README.md) [web](https://x.org)"
        ),
    )
    links = {tag.get_text(): tag.get("href") for tag in soup.select(".notebook a")}
    assert links == {"again": "01_tokenization.html", "file": None, "web": "https://x.org"}


def test_carriage_returns_show_what_a_terminal_shows_in_the_end(tmp_path):
    stream = new_output("stream", name="stdout", text="10 %\r50 %\r100 %\nnext\r\n")
    soup = notebook_page(tmp_path, executed("x", stream))
    assert soup.select_one("pre.stream").get_text() == "100 %\nnext\n"


def test_a_picture_keeps_its_alternative_text_in_its_page_and_in_the_index(tmp_path):
    run = make_run(tmp_path / "run")
    picture = png(Figure(), alt='Loss "falls" & rests. →')
    (run.figures / "own.png").write_bytes(picture)
    shown = new_output(
        "display_data",
        data={"image/png": base64.b64encode(picture).decode()},
        metadata={"image/png": {"alt": 'Loss "falls" & rests. →'}},
    )
    add_notebook(run, "04_results.ipynb", [executed("show()", shown)])
    index = page(build_report(run))
    assert page(run.report / "04_results.html").find("img")["alt"] == 'Loss "falls" & rests. →'
    assert [tag["alt"] for tag in index.find_all("img")] == [
        'Loss "falls" & rests. →',
    ]


def test_the_curves_are_drawn_from_the_metrics_and_described(tmp_path):
    index = page(build_report(make_run(tmp_path / "run")))
    alt = index.select_one(".curve svg")["aria-label"]
    drawn = {tag.get_text() for tag in index.select(".gallery figcaption")}
    assert {"Gradient norm", "Learning rate", "Speed"} <= drawn
    for svg in index.select("svg"):
        assert not re.search(r"(fill|stroke)=.#", str(svg))  # its colours are those of the page
    assert re.search(r"from 11\.\d+ at step 1 to 6\.\d+ at step 30", alt)


def test_each_point_of_the_curve_tells_its_values(tmp_path):
    run = make_run(tmp_path / "run")
    points = page(build_report(run)).select_one(".curve").select(".point")
    rows = read_record(run.path).rows
    assert len(points) == len(rows) > 20
    for point, row in zip(points, rows):
        assert f"step {row.step:,}" in words(point)
        assert row.loss is None or f"batch loss {loss_text(row.loss)}" in words(point)
        assert row.train_loss is None or f"training loss {loss_text(row.train_loss)}" in words(
            point
        )
        assert row.lr is None or f"learning rate {row.lr:.2e}" in words(point)


def test_a_figure_of_a_notebook_is_part_of_its_page(tmp_path):
    figure, axes = panel(4, 3, xlabel="from <b>to</b> y")
    axes.plot([1, 2], [3, 4])
    data, metadata = display_data(figure, 'It "rises" & rests.')
    soup = notebook_page(
        tmp_path, executed("show()", new_output("display_data", data, metadata=metadata))
    )
    svg = soup.select_one(".output svg")
    assert svg["aria-label"] == 'It "rises" & rests.' and not soup.find("img")
    assert "<b>to</b> y" in words(svg) and not svg.find("b")
    ids = {tag["id"] for tag in svg.find_all(id=True)}
    assert {tag["href"].removeprefix("#") for tag in svg.find_all("use")} <= ids


def test_a_passed_smoke_test_is_amber_and_names_what_reaches_the_target(tmp_path):
    measured = dict(best_train_loss=6.313332, train_loss=6.313332)  # as in its metrics
    index = page(build_report(make_run(tmp_path / "run", summary(**measured))))
    box = index.select_one(".verdict")
    assert "smoke" in box["class"] and words(box).startswith("✓ Smoke test passed")
    command = "python -m gpt2_nb_utils run --preset full --out_dir out/full"
    seconds = 614 * 24 * 128 / 129.7  # the steps of the preset, at the speed of the run
    assert f"in about {duration(seconds)} at the speed of this run: {command}" in words(box)
    assert box.select(".unmeant") and not box.select(".unmet")


@pytest.mark.parametrize(
    "changes",
    [dict(status="failed"), dict(best_train_loss=None, train_loss=None), dict(preset="full")],
)
def test_a_run_that_failed_its_smoke_test_did_not_pass_it(tmp_path, changes):
    measured = dict(best_train_loss=6.313332, train_loss=6.313332)
    said = verdict(tmp_path / "run", summary(**{**measured, **changes}))
    assert said.startswith("✗ Course target not reached")


@pytest.mark.parametrize(
    "changes, title",
    [
        ({}, "GPT-2 124M, trained from scratch on tiny Shakespeare"),
        (dict(n_params=None), "GPT-2, trained from scratch on tiny Shakespeare"),
        (
            dict(corpus={"source": "demo", "sha256": "0", "path": "pydoc_data.topics"}),
            "GPT-2 124M, trained from scratch on Python's documentation",
        ),
        (
            dict(config={**summary()["config"], "max_tokens": 9, "resume": "other/last.pt"}),
            "GPT-2 124M, trained on the beginning of tiny Shakespeare",
        ),
    ],
)
def test_the_title_says_what_was_trained_on_what(tmp_path, changes, title):
    index = page(build_report(make_run(tmp_path / "run", summary(**changes))))
    assert words(index.h1) == title and index.title.get_text().startswith(title)


def test_the_samples_of_every_step_are_there_to_choose(tmp_path):
    run = make_run(tmp_path / "run")
    steps = range(0, 31, 5)
    samples = [Sample(step, 1, "All:", f"All: {step}", {"temperature": 1}) for step in steps]
    run.samples.write_text("".join(map(samples_text, [samples])), encoding="utf-8")
    index = page(build_report(run))
    shown = [words(tag) for tag in index.select(".sample blockquote")]
    assert shown == [f"All: {step}" for step in steps]
    chosen = index.select(".picker input[checked]")
    assert [tag["id"] for tag in chosen] == ["step-1-0"] and len(index.select(".picker input")) == 6


def test_the_greedy_continuation_stands_beside_the_text(tmp_path):
    run = make_run(tmp_path / "run")
    text = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak."
    add_token_losses(run, text)
    greedy = Sample(30, 1, "First Citizen:", "First Citizen:\nBefore you go", {"temperature": 0})
    run.samples.write_text(samples_text([greedy]), encoding="utf-8")
    own, truth = page(build_report(run)).select(".sample")[:2]
    assert own.mark.get_text() == "\nBefore " and "you go" in words(own)
    assert words(truth.pre) == "First Citizen: Before we pro"


def test_samples_are_those_of_the_first_and_of_the_last_step(tmp_path):
    index = page(build_report(make_run(tmp_path / "run")))
    assert [words(tag) for tag in index.select(".sample figcaption")] == [
        "Step 0 · temperature 0.8 · top_k 40",
        "Step 30 · temperature 0.8 · top_k 40",
    ] * 2


def test_a_page_that_would_grow_too_large_gets_smaller_pictures(tmp_path):
    import numpy as np
    from PIL import Image

    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (900, 1500, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format="PNG")
    run = make_run(tmp_path / "run")
    (run.figures / "noise.png").write_bytes(buffer.getvalue())
    shown = new_output(
        "display_data", data={"image/png": base64.b64encode(buffer.getvalue()).decode()}
    )
    text = html_output("<p>" + "word " * 700_000 + "</p>")
    add_notebook(run, "01_tokenization.ipynb", [executed("x", shown, text)])
    build_report(run)
    for path in run.report.iterdir():
        assert path.stat().st_size < LARGEST_PAGE
        assert all(
            Image.open(io.BytesIO(base64.b64decode(tag["src"].partition(",")[2]))).width > 0
            for tag in page(path).find_all("img")
        )
    assert "left out to keep this page small" in words(page(run.report / "01_tokenization.html"))
