"""The audit: an honest run fails only where it is small, and each forgery fails at the line that it
forged."""

import contextlib
import csv
import dataclasses
import errno
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers

from gpt2_nb_utils.__main__ import main
from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import NotWritten, UserError
from gpt2_nb_utils.files import read_regular
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config
from gpt2_nb_utils.report.report import build_report
from gpt2_nb_utils.results import audit_outputs as outputs
from gpt2_nb_utils.results import audit_records as records
from gpt2_nb_utils.results import audit_weights as weights
from gpt2_nb_utils.results import replay
from gpt2_nb_utils.results import verify as audit_command
from gpt2_nb_utils.results.audit import file_sha256, read_audit
from gpt2_nb_utils.results.facts import read_facts
from gpt2_nb_utils.results.record import read_record
from gpt2_nb_utils.results.token_losses import keep, read_token_losses
from gpt2_nb_utils.results.verdict import counted_parameters
from gpt2_nb_utils.results.verify import quick_checks, verify
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.tokenization import corpus
from gpt2_nb_utils.tokenization.bpe import encode
from gpt2_nb_utils.tokenization.corpus import COURSE_SHA256
from gpt2_nb_utils.tokenization.dataset import TokenDataset
from gpt2_nb_utils.training import train as loop
from gpt2_nb_utils.training.events import history, read_events, rendered
from gpt2_nb_utils.training.train import train

SMALL = {weights.parameters, weights.course_text}
"""What a small run on a text of its own fails by right."""
NEED_THE_NETWORK = {
    weights.below_target,
    weights.recorded_loss,
    weights.from_seed,
    outputs.samples,
    outputs.recall,
}
NEED_BEST = NEED_THE_NETWORK | {
    weights.loads,
    weights.architecture,
    weights.parameters,
    records.best_belongs,
}
NEED_TEXT = {
    weights.course_text,
    weights.whole_text,
    weights.below_target,
    weights.recorded_loss,
    weights.first_losses,
    weights.from_seed,
    outputs.samples,
    outputs.recall,
    records.arithmetic,
}
TINY = {
    "preset": "tiny",
    "max_tokens": 0,
    "n_layer": 1,
    "n_embd": 16,
    "block_size": 64,
    "seq_len": 32,
    "batch_size": 4,
    "grad_accum": 2,
    "lr": 2e-2,
    "lr_schedule": "constant",
    "warmup_steps": 0,
    "log_every": 1,
    "eval_every": 10,
    "eval_windows": 4,
    "save_every": 10,
    "sample_every": 20,
    "num_prompts": 2,
    "max_new_tokens": 12,
    "device": "cpu",
}


def train_small(out_dir, text, **more):
    train(RunConfig.resolve({**TINY, "input_file": str(text), "out_dir": str(out_dir), **more}))
    return RunDirectory(out_dir)


@pytest.fixture(scope="module")
def text(tmp_path_factory, text_file):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(text_file.read_text(encoding="utf-8")[:1100], encoding="utf-8", newline="\n")
    return path


@pytest.fixture(scope="module")
def reached(tmp_path_factory, text):
    """A run that was stopped after 20 steps, resumed, and trained down to the target."""
    run = train_small(tmp_path_factory.mktemp("reached") / "run", text, steps=20)
    train(RunConfig.resolve({"out_dir": str(run.path), "resume": "auto", "steps": 600}))
    assert run.read_summary()["status"] == "target_reached"
    return run


@pytest.fixture(scope="module")
def other(tmp_path_factory, text):
    """A run on the same text from another seed, trained down to the target as well."""
    run = train_small(tmp_path_factory.mktemp("other") / "run", text, steps=600, seed=7)
    assert run.read_summary()["status"] == "target_reached"
    return run


@pytest.fixture
def run(reached, tmp_path):
    """A copy of the run, to be forged."""
    return copy_of(reached, tmp_path / "run")


def copy_of(run, path):
    shutil.copytree(run.path, path, ignore=shutil.ignore_patterns("last.pt", ".lock"))
    return RunDirectory(path)


def asked(checks):
    return {check.asks for check in checks}


def audited(run, **given):
    """(what failed, what could not be checked)."""
    audit = verify(str(run.path), {"device": "cpu", **given})
    return tuple(
        {check.asks for check in audit.checks if check.ok is state} for state in (False, None)
    )


def found(run, check):
    return next(each.found for each in read_audit(run.audit).checks if each.asks == check.asks)


def fails(*also):
    """An audit in which the small run's own checks fail, these as well, and all others hold."""
    return asked({*SMALL, *also}), set()


def edit_json(path, **changes):
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def edit_rows(path, edit):
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = list(rows[0])
    rows = edit(rows) or rows
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, names, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def edit_text(path, *replacements):
    content = path.read_text(encoding="utf-8")
    for old, new in replacements:
        assert old in content, old
        content = content.replace(old, new)
    path.write_text(content, encoding="utf-8")


def edit_samples(run, edit):
    """Edit the samples, in the events and in samples.txt."""
    samples = edit(history(read_events(run.events)).samples)

    def edit_them(events):
        first = next(each for each in events if each["event"] == "samples")
        kept = [each for each in events if each["event"] != "samples" or each is first]
        first["samples"] = [dataclasses.asdict(sample) for sample in samples]
        kept.remove(first)
        return [*kept[:-1], first, kept[-1]]

    edit_events(run, edit_them)


def edit_events(run, edit):
    """Edit the events, and render every record of them again."""
    events = read_events(run.events)
    events = edit(events) or events
    run.events.write_text("".join(json.dumps(each) + "\n" for each in events), encoding="utf-8")
    run.samples.unlink(missing_ok=True)  # which there is not without samples
    for name, text in rendered(events).items():
        (run.path / name).write_text(text, encoding="utf-8", newline="")


def event_set(kind, place, **values):
    """An edit: these values in one of the events of a kind."""
    return lambda events: [e for e in events if e["event"] == kind][place].update(values)


def without_event(kind, place):
    def edit(events):
        gone = [e for e in events if e["event"] == kind][place]
        return [each for each in events if each is not gone]

    return edit


def end_otherwise(samples):
    return [dataclasses.replace(one, text=one.text + "!") for one in samples]


def edit_best(run, edit):
    content = torch.load(run.best, weights_only=True)
    torch.save(edit(content) or content, run.best)


def run_on_another_machine(run):
    """Let the records say that another processor computed."""

    def edit(events):
        for event in events:
            event.get("environment", {}).update(processor="another")

    edit_events(run, edit)
    machines = json.loads(run.environment.read_text(encoding="utf-8"))
    resumed = [{**each, "processor": "another"} for each in machines.get("resumed", [])]
    edit_json(run.environment, processor="another", **({"resumed": resumed} if resumed else {}))


def seeds_weights(run):
    """The random weights with which the run began."""
    return GPT2(
        GPT2Config(**torch.load(run.best, weights_only=True)["model_config"]), seed=1337
    ).state_dict()


# -- honest runs -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_honest_small_run_fails_only_for_its_size_and_its_text(run):
    assert audited(run) == fails()


def test_quoted_settings_may_hold_blanks_and_what_looks_like_a_setting(tmp_path, text):
    prompt = 'ROMEO:  my  love  lr=5  seed=9  \'tis "so"  '
    assert audited(
        train_small(tmp_path / "run", text, steps=4, eval_every=2, sample_every=2, prompt=prompt)
    ) == (asked({*SMALL, weights.below_target}), set())


def test_a_run_that_drew_no_samples_where_its_best_model_was_written_claims_none(tmp_path, text):
    run = train_small(tmp_path / "run", text, steps=4, eval_every=2, sample_every=2)
    train(
        RunConfig.resolve(
            {"out_dir": str(run.path), "resume": "auto", "steps": 7, "sample_every": 0}
        )
    )
    assert audited(run) == (asked({*SMALL, weights.below_target}), set())
    assert "none were due at step 7, at which best.pt was written" in found(run, outputs.samples)


@pytest.fixture
def good(run, monkeypatch):
    """The same run, where its size and its text are what is asked."""
    summary = run.read_summary()
    monkeypatch.setattr(weights, "COURSE_MIN_PARAMS", summary["n_params"])
    monkeypatch.setattr(corpus, "COURSE_SHA256", summary["corpus"]["sha256"])
    edit_events(
        run,
        lambda events: [e["corpus"].update(is_course_input=True) for e in events if "corpus" in e][
            :0
        ],
    )
    return run


@pytest.fixture
def earlier(run):
    """The same run as an earlier version left it: without events, and without an identity."""
    run.events.unlink()
    edit_best(run, lambda best: best.pop("run_id") and None)
    return run


NEED_EVENTS = {records.schedule, records.chain, records.records}


def test_a_run_of_which_everything_holds_passes(good, capsys):
    assert main(["verify", str(good.path), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "Proved: training loss 0.0" in out and "✗" not in out and "–" not in out
    assert json.loads(good.audit.read_text(encoding="utf-8"))["passed"] is True
    assert read_audit(good.audit).passed


def test_one_check_that_cannot_be_made_is_enough_not_to_pass(good, capsys):
    edit_samples(good, end_otherwise)
    run_on_another_machine(good)
    assert main(["verify", str(good.path), "--device", "cpu"]) == 1
    assert (
        "Not proved: 1 of 18 were not possible." in capsys.readouterr().out
        and not read_audit(good.audit).passed
    )
    assert main(["verify", str(good.path), "--device", "cpu", "--sample", "3"]) == 1


def test_the_audit_keeps_what_it_found_beside_the_run(run):
    shown = verify(str(run.path), {"device": "cpu"})
    kept = read_audit(run.audit)
    assert kept == dataclasses.replace(shown, machine=kept.machine) and not kept.passed
    recorded = read_record(run.path).summary
    assert (
        kept.training_loss == pytest.approx(recorded.best_train_loss, rel=1e-5)
        and kept.training_loss < 0.099999
    )
    assert kept.n_predictions == recorded.corpus.tokens - 1
    assert (
        kept.machine["amp"] == "fp32"
        and kept.is_of(recorded, run)
        and not kept.is_of(recorded.model_copy(update={"step": 1}), run)
    )
    edit_best(run, lambda best: best.update(corpus_sha256="0" * 64))
    assert not kept.is_of(recorded, run)


def test_the_audit_keeps_the_loss_of_every_prediction_for_the_report_and_a_quick_look_keeps_none(
    run, capsys
):
    assert (
        main(["verify", str(run.path), "--sample", "3", "--device", "cpu"]) == 1
        and not run.token_losses.exists()
    )
    audit = verify(str(run.path), {"device": "cpu"})
    losses = read_token_losses(run.token_losses)
    assert (
        losses.whole
        and losses.n_targets == audit.n_predictions
        and losses.is_of(read_record(run.path).summary)
    )
    assert losses.loss == pytest.approx(audit.training_loss, abs=1e-9)
    assert losses.all_losses().mean() == pytest.approx(audit.training_loss, rel=1e-3)


def test_a_run_in_bf16_is_audited_in_fp32(tmp_path, text):
    run = train_small(tmp_path / "run", text, steps=4, eval_every=2, sample_every=2, amp="bf16")
    assert audited(run) == fails(weights.below_target)


@pytest.mark.slow
def test_a_killed_run_that_went_on_has_an_unbroken_chain(tmp_path, text):
    run = RunDirectory(tmp_path / "run")
    given = {
        **TINY,
        "input_file": text,
        "out_dir": run.path,
        "steps": 100_000,
        "eval_every": 25,
        "save_every": 20,
        "log_every": 3,
        "sample_every": 5,
    }
    words = [f"--{name}={value}" for name, value in given.items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt2_nb_utils", "train", *words], stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 900
        while (
            not run.last.exists()
            or max((row.step for row in history(read_events(run.events)).rows), default=0) < 30
        ):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    reached, saved = (
        history(read_events(run.events)).rows[-1].step,
        torch.load(run.last, weights_only=True)["state"]["step"],
    )
    train(
        RunConfig.resolve(
            {"out_dir": str(run.path), "resume": "auto", "steps": reached + 5, "target_loss": 1e-9}
        )
    )
    assert audited(run) == fails(weights.below_target)
    assert found(run, records.chain).endswith(f"resumed at step {saved}")


def test_transformers_finds_the_same_training_loss(run, text):
    """The second opinion: another library's network and a plain mean over plain windows."""
    best = torch.load(run.best, weights_only=True)
    sizes = best["model_config"]
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=sizes["vocab_size"],
            n_positions=sizes["block_size"],
            n_embd=sizes["n_embd"],
            n_layer=sizes["n_layer"],
            n_head=sizes["n_head"],
        )
    ).eval()
    missing = model.load_state_dict(best["model"], strict=False)
    assert missing.missing_keys == ["lm_head.weight"] and not missing.unexpected_keys
    model.tie_weights()
    tokens = torch.from_numpy(encode(text.read_text(encoding="utf-8"))).long()
    total, seq_len = 0.0, best["config"]["seq_len"]
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, seq_len):
            x, y = tokens[start : start + seq_len], tokens[start + 1 : start + seq_len + 1]
            total += F.cross_entropy(model(x[None, : len(y)]).logits[0], y, reduction="sum").item()
    theirs = total / (len(tokens) - 1)
    ours = verify(str(run.path), {"device": "cpu"}).training_loss
    assert theirs == pytest.approx(ours, abs=1e-4) and theirs < 0.099999


# -- forged records --------------------------------------------------------------------------------------------------


def row_set(place, **values):
    return lambda rows: rows[place].update(values)


@pytest.mark.parametrize(
    "edit",
    [
        row_set(12, loss="7.5"),
        row_set(12, tok_per_s="123456"),
        row_set(-1, train_loss="0.01"),
        lambda rows: rows[:12] + rows[13:],
        lambda rows: rows[:12] + rows[11:],
        lambda rows: rows[:-1],
    ],
)
def test_edited_metrics_are_not_what_the_events_render(run, edit):
    edit_rows(run.metrics, edit)
    assert audited(run) == fails(records.records)
    assert "logs/train_metrics.csv is another text" in found(run, records.records)


@pytest.mark.parametrize(
    "changes",
    [
        dict(best_train_loss=0.05),
        dict(best_train_loss="0.05"),
        dict(n_params=124_439_808),
        dict(seconds=1.0),
        dict(device="cuda: NVIDIA H100"),
        dict(status="steps_done"),
        dict(target_reached=False),
        dict(resumed_with=[]),
        dict(step="x"),
        dict(corpus="x"),
    ],
)
def test_an_edited_summary_is_not_what_the_events_render(run, changes):
    edit_json(run.summary, **changes)
    assert audited(run) == fails(records.records)


@pytest.mark.parametrize("name", ["config", "no_config", "environment", "recall", "samples"])
def test_other_edited_records_are_not_what_the_events_render(run, name):
    edits = {
        "config": lambda: edit_json(run.config, lr=1e-3),
        "no_config": run.config.unlink,
        "environment": lambda: edit_json(run.environment, resumed=[{"packages": {"torch": "1.0"}}]),
        "recall": lambda: edit_rows(run.recall, lambda rows: rows[4:]),
        "samples": lambda: edit_text(run.samples, ("First", "Last")),
    }
    edits[name]()
    assert audited(run) == fails(records.records)


@pytest.mark.parametrize(
    "edit, also",
    [
        (event_set("step", 11, loss=0.01), [records.random_start]),
        (event_set("step", 11, lr=0.01), [records.schedule]),
        (event_set("step", 11, tokens=5000), [records.arithmetic]),
        (event_set("step", 11, epoch=3.9), [records.arithmetic]),
        (event_set("step", 11, elapsed_s=0.0), [records.arithmetic]),
        (event_set("step", 11, step=12.5), [records.arithmetic, records.chain]),
        (without_event("step", 11), [records.arithmetic, records.chain]),
        (event_set("step", 0, loss=4.0), [records.random_start, weights.first_losses]),
        (event_set("measured", 0, train_loss=4.0), [records.random_start, weights.first_losses]),
        (event_set("measured", -1, train_loss=0.05), [weights.recorded_loss, records.best_belongs]),
        (event_set("step", -1, loss=0.01), [records.best_belongs]),
        (event_set("start", 0, run_id="another"), [records.chain, records.best_belongs]),
        (event_set("resume", 0, run_id="another"), [records.chain]),
        (event_set("resume", 0, step=25), [records.chain]),
        (event_set("end", -1, step=7), [records.ended]),
        (event_set("end", -1, status="steps_done"), [records.ended]),
        (lambda events: [*events[:5], events[0], *events[5:]], None),
        (lambda events: events[1:], None),
    ],
)
def test_events_edited_with_all_that_they_render_fail_where_they_were_edited(run, edit, also):
    with contextlib.suppress(KeyError, IndexError):  # what cannot be rendered
        edit_events(run, edit)
    failed, unknown = audited(run)
    if also is None:
        assert records.chain.asks in failed
    else:
        assert failed == asked({*SMALL, *also}) and not unknown


def test_an_event_of_the_wrong_kind_fails_the_checks_that_need_it(run):
    with contextlib.suppress(TypeError):
        edit_events(run, event_set("step", 11, loss="x"))
    failed, unknown = audited(run)
    assert failed > asked(SMALL) and not unknown


def test_records_edited_together_still_fail_against_the_weights(run):
    """Events, all that they render, and best.pt say 0.05; the weights do not."""
    edit_events(run, event_set("measured", -1, train_loss=0.05))
    edit_best(run, lambda best: best["state"].update(train_loss=0.05, best_train_loss=0.05))
    assert audited(run) == fails(weights.recorded_loss)


def test_a_stopped_run_that_claims_to_have_come_to_its_end_fails(tmp_path, text):
    run = train_small(tmp_path / "run", text, steps=6, eval_every=2, sample_every=2)
    edit_events(
        run,
        lambda events: [e for e in events if (e.get("step") or 0) <= 4 or e["event"] == "end"],
    )
    failed, _ = audited(run)
    assert {records.ended.asks, records.best_belongs.asks} <= failed


def test_a_run_of_an_earlier_version_is_checked_as_far_as_its_files_go(earlier):
    assert audited(earlier) == (asked(SMALL), asked(NEED_EVENTS))
    assert "recorded by an earlier version" in found(earlier, records.chain)
    earlier.recall.unlink()
    assert audited(earlier) == (asked(SMALL), asked({*NEED_EVENTS, outputs.recall}))


@pytest.mark.parametrize(
    "edit, also",
    [
        (row_set(12, tokens="5000"), [records.arithmetic]),
        (row_set(12, epoch="3.9"), [records.arithmetic]),
        (row_set(12, elapsed_s="0"), [records.arithmetic]),
        (lambda rows: rows[:12] + rows[13:], [records.arithmetic]),
        (lambda rows: rows[:-1], [records.arithmetic]),
        (row_set(-1, train_loss="0.01"), [records.best_belongs]),
        (row_set(2, loss="0.84"), [records.random_start]),
    ],
)
def test_edited_metrics_of_an_earlier_version_fail_where_they_were_edited(earlier, edit, also):
    edit_rows(earlier.metrics, edit)
    failed, unknown = audited(earlier)
    assert failed >= asked({*SMALL, *also}) and unknown <= asked(NEED_EVENTS)


@pytest.mark.parametrize(
    "changes, also",
    [
        (
            dict(best_train_loss=0.05),
            [weights.recorded_loss, records.best_belongs, records.arithmetic],
        ),
        (dict(best_train_loss="0.05"), [weights.recorded_loss, records.best_belongs]),
        (dict(step=10**6), [records.arithmetic]),
        (dict(tokens_seen="x"), [records.arithmetic]),
        (dict(target_reached=False), [records.ended]),
        (dict(status="steps_done"), [records.ended]),
    ],
)
def test_an_edited_summary_of_an_earlier_version_fails(earlier, changes, also):
    edit_json(earlier.summary, **changes)
    failed, unknown = audited(earlier)
    assert failed >= asked({*SMALL, *also}) and unknown <= asked(NEED_EVENTS)


def test_a_page_does_not_believe_an_edited_summary_of_an_earlier_version(earlier):
    edit_json(earlier.summary, best_train_loss=0.0123, train_loss=0.0123)
    shutil.rmtree(earlier.best.parent)
    failed = {each.asks: each.shows for each in read_facts(earlier).conditions if not each.holds}
    assert "0.0123 in the summary" in failed["its records are consistent"]


def test_a_training_loss_far_below_that_of_the_batch_fails(run):
    edit_events(run, event_set("measured", 1, train_loss=0.05))
    assert records.random_start.asks in audited(run)[0]


def test_a_run_whose_events_were_removed_is_not_one_of_an_earlier_version(run):
    run.events.unlink()
    failed, _ = audited(run)
    assert records.best_belongs.asks in failed


def test_losses_of_tokens_that_were_forged_are_measured_and_written_anew(run):
    tokens = torch.arange(1000)
    forged = TokenDataset(tokens, 8)
    keep(
        run,
        read_record(run.path).summary,
        forged,
        {index: torch.zeros(len(forged.window(index)[0])) for index in range(len(forged))},
    )
    audit = verify(str(run.path), {"device": "cpu"})
    assert read_token_losses(run.token_losses).loss == pytest.approx(audit.training_loss, abs=1e-9)


# -- forged recall ---------------------------------------------------------------------------------------------------


def recall_set(place, **values):
    def edit(events):
        measured = [each for each in events if each["event"] == "measured"]
        measured[place]["recall"].update(values)

    return edit


@pytest.mark.parametrize(
    "edit, said",
    [
        (
            recall_set(-1, verbatim=0, right=1.0),
            "openings verbatim, 1 of 17 tokens right on record",
        ),  # possible, but not what best.pt does
        (recall_set(-1, openings=3), "of 3 openings verbatim"),
        (recall_set(-1, given=31), "on record"),
        (recall_set(-1, right=math.nan), "nan of 17 tokens"),
        (event_set("measured", -1, recall=None), "a recorded value cannot be right"),
    ],
)
def test_forged_recall_fails_where_it_was_forged(run, edit, said):
    edit_events(run, edit)
    assert audited(run) == fails(outputs.recall)
    assert said in found(run, outputs.recall)


def test_recall_of_best_pt_is_counted_again(run):
    assert audited(run) == fails()
    assert re.search(
        r"(.*) on record, \1 counted again",
        found(run, outputs.recall),
    )


@pytest.mark.slow
def test_a_run_resumed_from_the_weights_of_another_does_not_count_as_from_scratch(tmp_path, other):
    run = RunDirectory(tmp_path / "run")
    more = {"steps": other.read_summary()["step"] + 10, "target_loss": 1e-9, "sample_every": 1}
    train(RunConfig.resolve({"resume": str(other.last), "out_dir": str(run.path), **more}))
    edit_events(run, lambda events: [e for e in events if e["event"] != "start"])
    failed, _ = audited(run)
    assert records.chain.asks in failed  # which does not begin with random weights


def test_a_forged_sample_fails(run):
    edit_samples(run, lambda samples: [*samples[:-1], *end_otherwise(samples[-1:])])
    assert audited(run) == fails(outputs.samples)


def test_the_greedy_sample_is_written_again_and_a_forged_one_fails(run):
    final = history(read_events(run.events)).samples[-1]
    assert (
        final.final
        and audited(run) == fails()
        and "one of them greedy" in found(run, outputs.samples)
    )
    edit_samples(run, lambda samples: [*samples[:-1], *end_otherwise(samples[-1:])])
    assert audited(run) == fails(outputs.samples)


def test_a_run_that_ended_without_a_greedy_sample_is_audited_by_those_it_has(run):
    edit_samples(run, lambda samples: samples[:-1])
    assert audited(run) == fails() and "greedy" not in found(run, outputs.samples)


def test_a_sample_that_names_another_temperature_fails(run):
    edit_samples(
        run,
        lambda samples: [
            *samples[:-2],
            dataclasses.replace(samples[-2], settings={**samples[-2].settings, "temperature": 0.1}),
            samples[-1],
        ],
    )
    assert audited(run) == fails(outputs.samples)


def test_a_sample_that_nobody_drew_fails(run):
    edit_samples(run, lambda samples: [*samples, dataclasses.replace(samples[-2], prompt_index=9)])
    assert audited(run) == fails(outputs.samples)


def test_a_sample_that_is_there_twice_fails(run):
    edit_samples(run, lambda samples: [*samples, samples[-2]])
    assert audited(run) == fails(outputs.samples)


def test_samples_that_were_due_and_are_gone_are_not_checked(run):
    edit_samples(run, lambda samples: [])
    assert audited(run) == (asked(SMALL), {outputs.samples.asks})


def test_a_sample_that_differs_from_that_of_another_machine_is_no_proof_either_way(run):
    edit_samples(run, end_otherwise)
    run_on_another_machine(run)
    assert audited(run) == (asked(SMALL), {outputs.samples.asks})


# -- forged weights --------------------------------------------------------------------------------------------------


def test_other_weights_that_reach_the_target_as_well_did_not_grow_from_the_seed(run, other):
    foreign = torch.load(other.best, weights_only=True)
    edit_best(run, lambda best: {**best, "model": foreign["model"]})
    failed, unknown = audited(run)
    assert (
        failed - {outputs.recall.asks}
        == asked({*SMALL, weights.recorded_loss, weights.from_seed, outputs.samples})
        and not unknown
    )


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_a_pinch_of_the_seeds_weights_does_not_make_other_weights_its_own(run, other, share):
    foreign = torch.load(other.best, weights_only=True)["model"]
    first = seeds_weights(run)
    edit_best(
        run,
        lambda best: {
            **best,
            "model": {name: foreign[name] + share * first[name] for name in foreign},
        },
    )
    failed, _ = audited(run)
    assert weights.from_seed.asks in failed


@pytest.mark.parametrize("positions", [False, True])
def test_other_weights_into_which_rows_of_the_seed_were_put_are_not_its_own(
    run, other, text, positions
):
    """The rows that training hardly moves, moved to where the others are so that the loss stays."""
    foreign = torch.load(other.best, weights_only=True)["model"]
    first = seeds_weights(run)
    unseen = torch.ones(50257, dtype=torch.bool)
    unseen[torch.from_numpy(encode(text.read_text(encoding="utf-8")))] = False
    tokens, places = foreign["transformer.wte.weight"], foreign["transformer.wpe.weight"]
    seed = first["transformer.wte.weight"][unseen]
    tokens[unseen] = tokens[unseen].mean(0) + seed - seed.mean(0)
    if positions:
        places[32:] = first["transformer.wpe.weight"][32:]
    edit_best(run, lambda best: {**best, "model": foreign})
    failed, _ = audited(run)
    assert weights.from_seed.asks in failed and weights.below_target.asks not in failed
    said = found(run, weights.from_seed)
    assert (
        "share 0.73) in the rows of tokens that occur" in said
        and ("in the positions past them" in said) is not positions
    )


def test_a_large_matrix_of_other_weights_is_named(run, other, monkeypatch):
    name = "transformer.h.0.mlp.c_fc.weight"
    monkeypatch.setattr(weights, "_LARGE", 1024)  # as many entries as the small run's have
    monkeypatch.setattr(weights, "_UNRELATED", 3)
    assert audited(run) == fails()
    foreign = torch.load(other.best, weights_only=True)["model"]
    edit_best(run, lambda best: best["model"].update({name: foreign[name]}))
    failed, _ = audited(run)
    assert weights.from_seed.asks in failed
    assert re.match(
        rf"[-.\d]+ \(chance: 0 ± 0.0312; .*\) in {name}$", found(run, weights.from_seed)
    )


def all_starts_set(**values):
    """An edit: these settings in every start and resume."""

    def edit(events):
        for event in events:
            event.get("config", {}).update(values)

    return edit


def test_records_that_claim_another_size_than_that_of_the_weights_fail_as_that(run):
    edit_events(run, all_starts_set(n_embd=64))
    edit_json(run.config, n_embd=64)
    failed, unknown = audited(run)
    assert failed >= asked({*SMALL, records.best_belongs}) and weights.from_seed.asks in unknown
    assert "other sizes" in found(run, weights.from_seed)


def test_weights_that_are_not_finite_fail_wherever_they_are_used(run):
    edit_best(run, lambda best: best["model"]["transformer.wte.weight"].fill_(math.nan) is None)
    failed, unknown = audited(run)
    assert (
        failed
        >= asked(
            {
                *SMALL,
                weights.below_target,
                weights.recorded_loss,
                weights.from_seed,
                outputs.samples,
            }
        )
        and not unknown
    )


def test_a_state_that_is_a_tensor_of_values_fails(run):
    edit_best(run, lambda best: best["state"].update(step=torch.tensor([1, 2])))
    failed, unknown = audited(run)
    assert weights.loads.asks in failed and unknown >= asked({weights.from_seed, outputs.samples})
    assert "holds no number of its step" in found(run, weights.loads)


def test_a_batch_that_no_machine_could_read_fails_at_once(run):
    edit_events(run, all_starts_set(batch_size=10**9))
    failed, _ = audited(run)
    assert failed >= asked({*SMALL, weights.first_losses, records.arithmetic})


def test_random_weights_fail_against_the_target(run):
    first = seeds_weights(run)
    edit_best(run, lambda best: {**best, "model": first})
    assert audited(run) == fails(
        weights.below_target, weights.recorded_loss, outputs.samples, outputs.recall
    )


@pytest.mark.parametrize(
    "changes",
    [
        dict(tokens_seen=10**6),
        dict(loss=0.01),
        dict(best_train_loss=0.05),
        dict(train_loss=0.05),
        dict(best_train_loss_step=3),
    ],
)
def test_a_state_edited_in_best_pt_fails_against_the_records(run, changes):
    edit_best(run, lambda best: best["state"].update(changes))
    assert audited(run) == fails(records.best_belongs)


@pytest.mark.parametrize("changes", [dict(run_id="another"), dict(run_id=None)])
def test_a_best_pt_of_another_identity_fails(run, changes):
    edit_best(run, lambda best: best.update(changes))
    assert audited(run) == fails(records.best_belongs)


def test_best_pt_of_a_branch_does_not_belong_to_the_other(tmp_path, text):
    """A copy of a run that is resumed by itself keeps its identity: steps and losses differ."""
    run = train_small(tmp_path / "run", text, steps=4, eval_every=2, sample_every=0)
    shutil.copytree(run.path, tmp_path / "branch")
    branch = RunDirectory(tmp_path / "branch")
    for each, lr in ((run, 1e-2), (branch, 2e-3)):
        train(
            RunConfig.resolve({"out_dir": str(each.path), "resume": "auto", "steps": 8, "lr": lr})
        )
    assert audited(run)[0] == asked({*SMALL, weights.below_target})
    shutil.copyfile(branch.best, run.best)
    assert records.best_belongs.asks in audited(run)[0]


def test_a_checkpoint_of_another_run_does_not_say_what_the_records_say(run, other):
    shutil.copyfile(other.best, run.best)
    failed, _ = audited(run)
    assert failed >= asked({weights.recorded_loss, weights.from_seed, records.best_belongs})


@pytest.mark.parametrize(
    "edit, said",
    [
        (
            lambda model: model.update({"lm_head.weight": torch.zeros(50257, 16)}),
            "lm_head.weight: [50257, 16] torch.float32 torch.strided, on a device instead of nothing",
        ),
        (
            lambda model: model.pop("transformer.wpe.weight"),
            "transformer.wpe.weight: nothing instead of [64, 16]",
        ),
        (
            lambda model: model.update({"transformer.ln_f.bias": torch.zeros(17)}),
            "transformer.ln_f.bias: [17] torch.float32",
        ),
        (
            lambda model: model.update({"transformer.ln_f.bias": torch.zeros(16).half()}),
            "[16] torch.float16 torch.strided, on a device instead of [16] torch.float32",
        ),
        (
            lambda model: model.update(
                {"transformer.wte.weight": model["transformer.wte.weight"].to_sparse()}
            ),
            "torch.sparse_coo",
        ),
        (
            lambda model: model.update(
                {"transformer.wte.weight": model["transformer.wte.weight"].to("meta")}
            ),
            "on no device",
        ),
    ],
)
def test_weights_of_another_architecture_are_named(run, edit, said):
    edit_best(run, lambda best: [edit(best["model"])][:0])
    failed, unknown = audited(run)
    assert failed == asked({*SMALL, weights.architecture}) and unknown == asked(NEED_THE_NETWORK)
    assert said in found(run, weights.architecture)


class _Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize("content", [b"not a checkpoint", None])
def test_a_checkpoint_that_is_none_fails_and_nothing_in_it_runs(
    run, tmp_path, monkeypatch, content
):
    monkeypatch.chdir(tmp_path)
    run.best.write_bytes(content) if content else torch.save(
        {"format": 1, "model": _Bomb()}, run.best
    )
    failed, unknown = audited(run)
    assert failed == asked({weights.course_text, weights.loads}) and unknown == asked(
        NEED_BEST - {weights.loads}
    )
    assert not Path("exploded").exists()


# -- excerpts and other texts ----------------------------------------------------------------------------------------


def test_an_excerpt_fails_as_one_and_one_that_claims_the_whole_text_fails_against_it(
    tmp_path, text
):
    run = train_small(tmp_path / "run", text, steps=4, eval_every=2, sample_every=2, max_tokens=200)
    assert audited(run) == fails(weights.below_target, weights.whole_text)
    whole = {"max_tokens": 0}
    edit_events(run, all_starts_set(**whole))
    edit_json(run.config, **whole)
    edit_best(run, lambda best: best["config"].update(whole))
    failed, unknown = audited(run)
    assert (
        failed
        == asked(
            {
                *SMALL,
                weights.below_target,
                weights.recorded_loss,
                weights.first_losses,
                records.arithmetic,
                outputs.samples,
                outputs.recall,
            }
        )
        and not unknown
    )  # the last opening was too short


def test_a_run_that_claims_another_text_everywhere_fails_against_that_text(run, tmp_path, text):
    claimed = tmp_path / "claimed.txt"
    claimed.write_text(text.read_text(encoding="utf-8")[::-1], encoding="utf-8", newline="\n")
    sha256 = corpus.load_corpus(str(claimed)).sha256
    edit_events(
        run,
        lambda events: [
            e["corpus"].update(sha256=sha256, path=str(claimed)) for e in events if "corpus" in e
        ][:0],
    )
    edit_best(run, lambda best: best.update(corpus_sha256=sha256))
    failed, unknown = audited(run)
    assert failed >= asked(
        {
            *SMALL,
            weights.below_target,
            weights.recorded_loss,
            weights.first_losses,
            records.arithmetic,
        }
    )
    assert (
        weights.from_seed.asks in failed and not unknown
    )  # training moved the rows of tokens that the claimed text never holds


# -- bad input -------------------------------------------------------------------------------------------------------


def incomplete(run, capsys):
    """(what failed, what could not be checked, the error) of a run of which a part is missing."""
    assert main(["verify", str(run.path), "--device", "cpu"]) == 2
    said = capsys.readouterr()
    lines = said.out.splitlines()
    error = next(line for line in said.err.splitlines() if line.startswith("error:"))
    assert not run.audit.exists() and error.count(str(run.path)) >= 1
    return *(
        {line[14:] for line in lines if line.startswith(mark)}
        for mark in ("✗ fails", "– not checked")
    ), error


def test_a_folder_that_is_no_run_is_one_line(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "holds no run" in said.err
    assert list(tmp_path.iterdir()) == []


def test_without_best_pt_the_records_are_checked_all_the_same(run, capsys):
    run.best.unlink()
    failed, unknown, error = incomplete(run, capsys)
    assert "checkpoints/best.pt is missing" in error
    assert failed == {weights.course_text.asks} and unknown == asked(NEED_BEST)


def test_without_its_text_a_run_is_checked_as_far_as_that_goes(run, text, tmp_path, capsys):
    gone = {"input_file": str(tmp_path / "gone.txt")}
    edit_events(run, all_starts_set(**gone))
    edit_events(
        run,
        lambda events: [
            e["corpus"].update(path=gone["input_file"]) for e in events if "corpus" in e
        ][:0],
    )
    edit_json(run.config, **gone)
    edit_best(run, lambda best: best["config"].update(gone))
    failed, unknown, error = incomplete(run, capsys)
    assert f"sha256 {run.read_summary()['corpus']['sha256'][:12]}…, is not on this machine" in error
    assert failed == {weights.parameters.asks} and unknown == asked(NEED_TEXT)


def test_an_unfinished_run_is_said_to_be_one_and_checked(tmp_path, text, capsys):
    run = train_small(tmp_path / "run", text, steps=4, eval_every=2, sample_every=2)
    edit_events(run, event_set("end", -1, status="interrupted"))
    failed, unknown, error = incomplete(run, capsys)
    assert "unfinished (interrupted at step 4 of 4)" in error
    assert failed == asked({*SMALL, weights.below_target, records.ended}) and not unknown


@pytest.mark.parametrize(
    "path, said",
    [
        ("logs/train_metrics.csv", "train_metrics.csv"),
    ],
)
def test_records_that_are_missing_are_named(earlier, capsys, path, said):
    (earlier.path / path).unlink()
    failed, unknown, error = incomplete(earlier, capsys)
    assert said in error and failed >= asked(SMALL) and unknown


def test_a_quick_look_is_named_one_never_passes_and_leaves_the_audit_alone(run, capsys):
    run.audit.write_text("kept", encoding="utf-8")
    assert main(["verify", str(run.path), "--sample", "3", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "(a quick look)" in out and "proves nothing" in out and "Proved" not in out
    assert (
        f"– not checked {weights.below_target.asks}" in out
        and run.audit.read_text(encoding="utf-8") == "kept"
    )
    with pytest.raises(UserError, match="sample 999 is not below"):
        verify(str(run.path), {"device": "cpu"}, sample=999)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--sample", "0"], "'0' is not 1 or more windows"),
        (["--amp", "int8"], "amp 'int8'"),
        (["--device", "tpu"], "device 'tpu'"),
        (["--sampel", "3"], "sampel"),
        (["--replay", "0"], "'0' is not 1 or more steps, or all"),
        (["--replay", "3", "--sample", "3"], "give one of them"),
    ],
)
def test_a_wrong_flag_is_one_line(reached, capsys, words, said):
    assert main(["verify", str(reached.path), *words]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


# -- special files and folders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "summary.json", "logs/events.jsonl"])
def test_a_pipe_in_the_place_of_a_record_is_one_line(run, capsys, name):
    (run.path / name).unlink()
    os.mkfifo(run.path / name)
    status = main(["verify", str(run.path), "--device", "cpu"])
    said = capsys.readouterr()
    assert status in (1, 2) and "not a regular file" in said.out + said.err


def test_a_pipe_in_the_place_of_the_samples_fails(run):
    run.samples.unlink()
    os.mkfifo(run.samples)
    assert audited(run) == fails(records.records)


def test_a_summary_that_is_an_endless_device_is_one_line(run, capsys):
    run.summary.unlink()
    run.summary.symlink_to("/dev/zero")
    assert main(["verify", str(run.path), "--device", "cpu"]) == 2
    assert "not a regular file" in capsys.readouterr().err


def test_only_regular_files_up_to_a_size_are_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_regular(path, limit=5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_regular(path, limit=4)
    with pytest.raises(OSError, match="not a regular file"):
        read_regular(tmp_path)


def test_a_folder_that_cannot_be_written_gets_its_verdict(good, capsys, monkeypatch):
    def refuse(run, path, content):
        raise NotWritten(path, OSError(errno.EROFS, "Read-only file system"))

    monkeypatch.setattr(RunDirectory, "write_json", refuse)
    assert main(["verify", str(good.path), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "Proved:" in out and "was not written: [Errno 30] Read-only file system." in out
    assert not good.audit.exists() and "--out_dir" not in out


# -- counting, and what weights grew from --------------------------------------------------------------------------------------------


def test_a_folder_in_the_place_of_the_losses_of_tokens_leaves_the_verdict(good, capsys):
    good.token_losses.unlink(missing_ok=True)
    good.token_losses.mkdir()
    assert main(["verify", str(good.path), "--device", "cpu"]) == 0
    assert "token_losses.npz was not written: [Errno" in capsys.readouterr().out


def test_positions_that_no_window_reads_do_not_count():
    assert counted_parameters(1_000, block_size=1024, n_embd=2) == 1_000
    assert counted_parameters(1_000, block_size=1124, n_embd=2) == 800


def honest_and_mixed(shape, moved):
    """Weights that training moved so many times as far as they are large, and foreign ones with 3 %
    of the seed's."""
    generator = torch.Generator().manual_seed(0)
    seed, travel, foreign = (0.02 * torch.randn(shape, generator=generator) for _ in range(3))
    return seed, seed + moved * travel, moved * (foreign + travel) + 0.03 * seed


@pytest.mark.parametrize(
    "kind, shape, moved",
    [
        (
            "matrix",
            (768, 768),
            8,
        ),  # as far as GPT-2 124M moves its lowest matrix on the way to the target
        ("matrix", (768, 768), 0.1),
        ("matrix", (256, 256), 3),
        ("seen", (11_706, 64), 2),
        ("read", (128, 768), 1.2),
    ],
)
def test_a_mixture_with_3_percent_of_the_seeds_weights_did_not_grow_from_it(kind, shape, moved):
    seed, honest, mixed = honest_and_mixed(shape, moved)
    assert weights.grown(kind, honest, seed)[0] and not weights.grown(kind, mixed, seed)[0]


def test_weight_decay_may_have_taken_most_of_the_seeds_weights():
    seed, honest, mixed = honest_and_mixed((768, 768), 1)
    decayed = honest - 0.9 * seed
    assert not weights.grown("matrix", decayed, seed)[0]
    assert weights.grown("matrix", decayed, seed, decay=0.1)[0]


def test_a_model_too_small_to_tell_is_not_checked(run, monkeypatch):
    monkeypatch.setattr(weights, "_FEWEST", 10**9)
    failed, unknown = audited(run)
    assert unknown == {weights.from_seed.asks}


# -- replay ----------------------------------------------------------------------------------------------------------


def replayed(run, *words):
    return main(["verify", str(run.path), "--device", "cpu", "--amp", "fp32", "--replay", *words])


@pytest.mark.slow
def test_a_run_is_replayed_to_the_last_digit_without_its_checkpoints(run, capsys):
    shutil.rmtree(run.best.parent)
    assert replayed(run, "all") == 0
    steps = run.read_summary()["step"]
    out = capsys.readouterr().out
    n = steps + len(history(read_events(run.events)).measurements)
    assert f"{n} losses of steps 1 to {steps}, all to the last digit" in out
    kept = read_audit(run.audit).replay
    assert kept.check.ok and kept.steps == steps and kept.bound == kept.largest_difference == 0
    assert not read_audit(run.audit).passed  # of the weights, nothing is known


def test_a_replay_and_an_audit_of_one_state_are_kept_together(good):
    assert replayed(good, "2") == 0 and audited(good) == (set(), set())
    both = read_audit(good.audit)
    assert both.passed and both.replay.steps == 2 and "all 19 checks hold" in both.verdict
    assert replayed(good, "3") == 0
    assert read_audit(good.audit).checks == both.checks and read_audit(good.audit).replay.steps == 3


def test_a_run_of_an_earlier_version_is_replayed_within_the_bound(earlier):
    assert replayed(earlier, "25") == 0
    assert read_audit(earlier.audit).replay.bound == replay.bound(25)


def test_a_resumed_run_with_another_learning_rate_is_replayed(tmp_path, text):
    run = train_small(tmp_path / "run", text, steps=4, sample_every=0)
    more = {"out_dir": str(run.path), "resume": "auto", "steps": 8, "lr": 1e-3}
    train(RunConfig.resolve(more))
    assert replayed(run, "all") == 0
    run.events.unlink()
    assert replayed(run, "all") == 0


@pytest.mark.parametrize("factor, elsewhere", [(1 + 1e-5, False), (1.01, True)])
def test_an_edited_loss_fails_the_replay(run, capsys, factor, elsewhere):
    if elsewhere:  # as on another machine
        run.events.unlink()
        edit_rows(
            run.metrics, lambda rows: rows[2].update(loss=f"{float(rows[2]['loss']) * factor}")
        )
    else:
        edit_events(
            run,
            lambda events: event_set(
                "step", 1, loss=[e for e in events if e["event"] == "step"][1]["loss"] * factor
            )(events),
        )
    assert replayed(run, "10") == 1
    assert "✗ fails" in capsys.readouterr().out
    made = read_audit(run.audit).replay
    assert made.at_step == 2 and made.bound == (replay.bound(10) if elsewhere else 0)


@pytest.mark.parametrize("forged", [dict(), dict(compile=True)])
def test_a_record_that_names_another_machine_may_not_be_off_by_1_percent(run, forged):
    run_on_another_machine(run)
    edit_events(run, all_starts_set(**forged))
    assert replayed(run, "10") == 0
    assert 0 < read_audit(run.audit).replay.bound < 0.01
    edit_events(
        run,
        lambda events: [
            e.update(loss=e["loss"] * 1.01)
            for e in events
            if e["event"] == "step" and e["step"] == 10
        ][:0],
    )
    assert replayed(run, "10") == 1 and read_audit(run.audit).replay.at_step == 10


def test_the_bound_grows_with_the_steps_up_to_a_cap():
    bounds = [replay.bound(step) for step in (1, 10, 13, 16, 17, 10**9)]
    assert bounds[:2] == [4e-3, 4e-3] and bounds == sorted(bounds)
    assert bounds[-1] == bounds[-2] == bounds[-3] == pytest.approx(0.256)


def test_a_step_that_overflowed_in_fp16_is_replayed_without_its_update(tmp_path, text, monkeypatch):
    clip, calls = torch.nn.utils.clip_grad_norm_, []

    def overflow_at_step_2(*args):
        calls.append(args)
        return torch.tensor(math.inf) if len(calls) == 2 else clip(*args)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", overflow_at_step_2)
    run = train_small(tmp_path / "run", text, steps=8, eval_every=8, sample_every=0)
    monkeypatch.undo()
    assert [e["skipped"] for e in read_events(run.events) if e["event"] == "step"].index(True) == 1
    run_on_another_machine(run)
    assert replayed(run, "all") == 1  # the gradients of step 2 are finite
    edit_events(
        run, lambda events: [e.update(amp="fp16") for e in events if e["event"] == "start"][:0]
    )
    assert replayed(run, "all") == 0


def test_weights_swapped_after_a_step_fail_the_replay(tmp_path, text, other, monkeypatch):
    """The program writes its own records, all of them true but for where the weights came from."""
    foreign = torch.load(other.best, weights_only=True)["model"]
    step = loop.training_step
    losses = []

    def swap(learner, batch):
        result = step(learner, batch)
        losses.append(result.loss)
        if len(losses) == 1:
            learner.model.load_state_dict(foreign)
        return result

    monkeypatch.setattr(loop, "training_step", swap)
    run = train_small(tmp_path / "run", text, steps=4, eval_every=2, sample_every=0)
    monkeypatch.undo()
    failed, _ = audited(run)
    assert {records.random_start.asks, weights.from_seed.asks} <= failed
    assert replayed(run, "2") == 1 and read_audit(run.audit).replay.at_step == 2


def test_a_replay_without_its_text_is_one_line(run, text, tmp_path, capsys):
    edit_events(run, all_starts_set(input_file=str(tmp_path / "gone.txt")))
    edit_events(
        run, lambda events: [e["corpus"].update(path="") for e in events if "corpus" in e][:0]
    )
    edit_json(run.config, input_file="")
    assert replayed(run, "2") == 2
    assert "is not on this machine" in capsys.readouterr().err


# What a page says is proved


def test_a_page_calls_nothing_proved_that_is_not_here_to_check(good):
    audit = verify(str(good.path), {"device": "cpu"})
    assert audit.passed
    facts = read_facts(good)
    assert facts.proof == ("✓ proved", audit.tally)
    assert [check.ok for check in facts.record_checks] == [True] * (5 + 6)
    shutil.rmtree(good.best.parent)
    facts = read_facts(good)
    assert facts.audit is not None
    assert facts.proof == ("recorded", "the weights are not here to check")


@pytest.mark.parametrize(
    "forge, said",
    [
        (lambda audit: audit["checks"].__delitem__(slice(1, None)), "exactly the present checks"),
        (lambda audit: audit["checks"][0].update(asks="all is well"), "exactly the present checks"),
        (lambda audit: audit["checks"].clear(), "holds no check"),
        (lambda audit: audit.update(n_predictions=2047), "not about every prediction of the text"),
        (lambda audit: audit["state"].update(step=1), "another state of this run"),
        (lambda audit: audit.update(best_sha256="0" * 64), "another best.pt"),
    ],
)
def test_a_forged_audit_is_not_shown(good, forge, said):
    verify(str(good.path), {"device": "cpu"})
    audit = json.loads(good.audit.read_text(encoding="utf-8"))
    forge(audit)
    good.audit.write_text(json.dumps(audit), encoding="utf-8")
    facts = read_facts(good)
    assert facts.audit is None and facts.proof[0] == "not found"
    assert any(said in note for note in facts.notes)


@pytest.mark.parametrize("weights_of", ["the seed", "another run", "the run, a little off"])
def test_a_page_does_not_call_a_hand_written_audit_proof(good, other, weights_of):
    """The audit names the hash of the best.pt that is there, and a loss that agrees."""
    verify(str(good.path), {"device": "cpu"})
    model = torch.load(good.best, weights_only=True)["model"]
    model, doubt = {
        "the seed": (seeds_weights(good), weights.recorded_loss),
        "another run": (torch.load(other.best, weights_only=True)["model"], weights.from_seed),
        "the run, a little off": (
            {name: tensor * 1.3 for name, tensor in model.items()},
            weights.recorded_loss,
        ),
    }[weights_of]
    edit_best(good, lambda best: {**best, "model": model})
    edit_json(good.audit, best_sha256=file_sha256(good.best))
    assert read_audit(good.audit).passed
    facts = read_facts(good)
    assert facts.proof[0] == "✗ not proved" and doubt.asks in facts.proof[1] and not facts.reached
    page = build_report(good).read_text(encoding="utf-8")
    assert "Not proved; not confirmed for this page" in page and "Proved:" not in page


def test_a_model_that_learnt_only_the_windows_a_page_might_read_is_found_out(
    tmp_path, text, monkeypatch
):
    """The program writes its own records, but knows 10 of the 20 windows only."""
    measure = loop.training_loss

    def learnt(windows):
        return windows.evenly_spread(10)

    def of_learnt(model, windows, precision, n, *more):
        measured = measure(model, windows, precision, 10, *more)
        return dataclasses.replace(measured, windows="all", n_targets=windows.n_targets)

    monkeypatch.setattr(loop, "training_loss", of_learnt)
    monkeypatch.setattr(
        loop, "micro_batches_of", lambda step, config, windows, _: [windows.batch(learnt(windows))]
    )
    run = train_small(tmp_path / "run", text, seq_len=16, steps=120, eval_windows=0, sample_every=0)
    monkeypatch.undo()
    monkeypatch.setattr(audit_command, "_QUICK_TOKENS", 160)
    assert run.read_summary()["status"] == "target_reached"
    checks = {check.asks: check for check in quick_checks(read_record(run.path), weights=True)}
    assert checks[weights.from_seed.asks].ok and checks[weights.recorded_loss.asks].ok is False


@pytest.mark.slow
@pytest.mark.parametrize(
    "text, more",
    [
        ("a" * 4000, dict(n_embd=192)),
        ("la " * 600, dict(n_embd=64, seq_len=64)),
        ("All work and no play makes Jack a dull boy.\n" * 30, {}),
        ("Before we proceed any further, hear me speak.\n" * 30, dict(optimizer="muon")),
    ],
)
def test_an_honest_run_on_a_repetitive_text_is_not_accused(tmp_path, text, more):
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    settings = dict(steps=60, grad_accum=1, eval_windows=0, amp="fp32", sample_every=0)
    run = train_small(tmp_path / "run", path, **settings, **more)
    failed, unknown = audited(run)
    expected = asked({weights.parameters, weights.course_text})
    assert failed == expected
    assert unknown <= asked({records.random_start, weights.from_seed})


def test_a_page_that_cannot_find_the_text_calls_nothing_proved(good, tmp_path):
    verify(str(good.path), {"device": "cpu"})
    gone = str(tmp_path / "gone.txt")
    edit_events(good, all_starts_set(input_file=gone))
    edit_events(
        good, lambda events: [e["corpus"].update(path=gone) for e in events if "corpus" in e][:0]
    )
    edit_json(good.audit, records_sha256=file_sha256(good.events))
    assert read_facts(good).proof[0] == "✗ not proved"


def test_a_small_run_that_claims_to_be_the_courses_is_not_believed(run):
    verify(str(run.path), {"device": "cpu"})
    audit = json.loads(run.audit.read_text(encoding="utf-8"))
    audit["checks"] = [{**audit["checks"][0], "ok": True}]
    run.audit.write_text(json.dumps(audit), encoding="utf-8")
    summary = json.loads(run.summary.read_text(encoding="utf-8"))
    corpus = {**summary["corpus"], "is_course_input": True, "sha256": COURSE_SHA256}
    edit_json(run.summary, n_params=124_439_808, corpus=corpus, best_train_loss=0.0888)
    shutil.rmtree(run.best.parent)
    facts = read_facts(run)
    failed = {
        condition.asks: condition.shows for condition in facts.conditions if not condition.holds
    }
    assert not facts.reached and facts.proof[0] == "not found"
    assert "its sizes give" in failed["at least 124,000,000 parameters"]
    assert "summary.json is another text" in failed["its records are consistent"]


def test_a_summary_that_claims_an_end_beside_events_without_one_is_not_believed(run):
    lines = run.events.read_text(encoding="utf-8").splitlines(keepends=True)
    run.events.write_text("".join(lines[:-1]), encoding="utf-8")
    edit_json(run.summary, best_train_loss=0.05, train_loss=0.05)
    shutil.rmtree(run.best.parent)
    facts = read_facts(run)
    assert not facts.reached
    assert "its records are consistent" in {
        c.asks for c in facts.conditions if c.state == "not met"
    }


def test_an_audit_of_records_that_were_edited_since_is_not_shown(good):
    verify(str(good.path), {"device": "cpu"})
    edit_events(good, event_set("step", 3, loss=9.0))
    facts = read_facts(good)
    assert facts.audit is None and any("another state" in note for note in facts.notes)


def test_steps_that_are_not_on_record_cannot_be_replayed(run, capsys):
    edit_events(run, without_event("step", 2))
    assert main(["verify", str(run.path), "--replay", "5"]) == 2
    assert "the loss of step 3 is not on record" in capsys.readouterr().err


def test_an_edited_training_loss_fails_the_replay(run):
    edit_events(run, event_set("measured", 1, train_loss=5.0))
    assert replayed(run, "12") == 1


@pytest.mark.parametrize("name", ["token_losses.npz", "figures/loss.png", "logs/events.jsonl"])
def test_a_page_does_not_wait_for_a_pipe(run, name):
    path = run.path / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert main(["report", str(run.path)]) == 0
