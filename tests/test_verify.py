"""The audit: an honest run fails only where it is small, and each forgery fails at the line that it forged."""

import csv
import dataclasses
import json
import math
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
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config
from gpt2_nb_utils.results import audit_agreement as agreement
from gpt2_nb_utils.results import audit_outputs as outputs
from gpt2_nb_utils.results import audit_records as records
from gpt2_nb_utils.results import audit_weights as weights
from gpt2_nb_utils.results.audit import read_audit
from gpt2_nb_utils.results.token_losses import keep, read_token_losses
from gpt2_nb_utils.results.verify import verify
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.tokenization import corpus
from gpt2_nb_utils.tokenization.bpe import encode
from gpt2_nb_utils.tokenization.windows import Windows
from gpt2_nb_utils.training.loop import train
from gpt2_nb_utils.training.run_log import read_metrics
from gpt2_nb_utils.training.samples_file import format_sample, read_samples

SMALL = {weights.parameters, weights.course_text}
"""What a small run on a text of its own fails by right."""
NEED_THE_NETWORK = {
    weights.below_target,
    weights.recorded_loss,
    weights.kinship,
    outputs.samples,
    outputs.recall,
}
NEED_BEST = NEED_THE_NETWORK | {
    weights.loads,
    weights.architecture,
    weights.parameters,
    agreement.best_agrees,
}
NEED_TEXT = {
    weights.course_text,
    weights.whole_text,
    weights.below_target,
    weights.recorded_loss,
    weights.first_losses,
    weights.kinship,
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
    path.write_text(
        json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8"
    )


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
    samples = read_samples(run.samples)
    run.samples.write_text("".join(map(format_sample, edit(samples))), encoding="utf-8")


def end_otherwise(samples):
    return [dataclasses.replace(one, text=one.text + "!") for one in samples]


def edit_best(run, edit):
    content = torch.load(run.best, weights_only=True)
    torch.save(edit(content) or content, run.best)


def seeds_weights(run):
    """The random weights with which the run began."""
    return GPT2(
        GPT2Config(**torch.load(run.best, weights_only=True)["model_config"]), seed=1337
    ).state_dict()


# -- honest runs -----------------------------------------------------------------------------------------------------


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
    assert "none of step 7, at which best.pt was written, for the run drew none there" in found(
        run, outputs.samples
    )


@pytest.fixture
def good(run, monkeypatch):
    """The same run, where its size and its text are what is asked."""
    summary = run.read_summary()
    monkeypatch.setattr(weights, "COURSE_MIN_PARAMS", summary["n_params"])
    monkeypatch.setattr(corpus, "COURSE_SHA256", summary["corpus"]["sha256"])
    edit_json(run.summary, corpus={**summary["corpus"], "is_course_input": True})
    return run


def test_a_run_of_which_everything_holds_passes(good, capsys):
    assert main(["verify", str(good.path), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "Proved: training loss 0.0" in out and "✗" not in out and "–" not in out
    assert json.loads(good.audit.read_text(encoding="utf-8"))["passed"] is True
    assert read_audit(good.audit).passed


def test_one_check_that_cannot_be_made_is_enough_not_to_pass(good, capsys):
    edit_samples(good, end_otherwise)
    edit_json(good.environment, processor="another")
    assert main(["verify", str(good.path), "--device", "cpu"]) == 1
    assert (
        "Not proved: 1 of 18 could not be made." in capsys.readouterr().out
        and not read_audit(good.audit).passed
    )
    assert main(["verify", str(good.path), "--device", "cpu", "--sample", "3"]) == 1


def test_the_audit_keeps_what_it_found_beside_the_run(run):
    shown = verify(str(run.path), {"device": "cpu"})
    kept = read_audit(run.audit)
    assert kept == dataclasses.replace(shown, machine=kept.machine) and not kept.passed
    recorded = run.read_summary()
    assert (
        kept.training_loss == pytest.approx(recorded["best_train_loss"], rel=1e-5)
        and kept.training_loss < 0.099999
    )
    assert kept.n_predictions == recorded["corpus"]["tokens"] - 1
    assert (
        kept.machine["amp"] == "fp32"
        and kept.is_of(recorded, run.best)
        and not kept.is_of({**recorded, "step": 1}, run.best)
    )
    edit_best(run, lambda best: best.update(corpus_sha256="0" * 64))
    assert not kept.is_of(recorded, run.best)


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
        and losses.is_of(run.read_summary())
    )
    assert losses.loss == pytest.approx(audit.training_loss, abs=1e-9)
    assert losses.all_losses().mean() == pytest.approx(audit.training_loss, rel=1e-3)


def test_a_run_in_bf16_is_audited_in_fp32(tmp_path, text):
    run = train_small(tmp_path / "run", text, steps=4, eval_every=2, sample_every=2, amp="bf16")
    assert audited(run) == fails(weights.below_target)


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
            or max((row.step for row in read_metrics(run.metrics)), default=0) < 30
        ):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    reached, saved = (
        read_metrics(run.metrics)[-1].step,
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
    "edit, also",
    [
        (row_set(12, loss="7.5"), [records.log_and_metrics]),
        (row_set(12, lr="0.01"), [records.log_and_metrics, agreement.records_agree]),
        (
            row_set(12, loss="0.01"),
            [records.log_and_metrics, agreement.records_agree],
        ),  # below the best batch on record
        (row_set(-1, train_loss="0.01"), [records.log_and_metrics, agreement.records_agree]),
        (row_set(12, tokens="5000"), [records.arithmetic]),
        (row_set(12, epoch="3.9"), [records.arithmetic]),
        (row_set(12, elapsed_s="0"), [records.arithmetic]),
        (row_set(12, loss=""), [records.log_and_metrics]),
        (row_set(12, step=""), [records.arithmetic, records.log_and_metrics]),
        (lambda rows: rows[:12] + rows[13:], [records.arithmetic, records.log_and_metrics]),
        (lambda rows: rows[:12] + rows[11:], [records.arithmetic]),
        (
            lambda rows: rows[:-1],
            [records.arithmetic, records.log_and_metrics, agreement.records_agree],
        ),
        (lambda rows: [*rows[:12], rows[13], rows[12], *rows[14:]], [records.arithmetic]),
        (row_set(12, tok_per_s="123456"), [records.arithmetic, records.log_and_metrics]),
    ],
)
def test_edited_metrics_fail_where_they_were_edited(run, edit, also):
    edit_rows(run.metrics, edit)
    assert audited(run) == fails(*also)


@pytest.mark.parametrize(
    "changes, also",
    [
        (
            dict(best_train_loss=0.05),
            [weights.recorded_loss, agreement.records_agree, agreement.best_agrees],
        ),
        (
            dict(best_train_loss=0.05, train_loss=0.05),
            [weights.recorded_loss, agreement.records_agree, agreement.best_agrees],
        ),
        (
            dict(best_train_loss="0.05"),
            [weights.recorded_loss, agreement.records_agree, agreement.best_agrees],
        ),
        (dict(n_params=124_439_808), [agreement.records_agree, agreement.best_agrees]),
        (dict(seed=1), [agreement.records_agree]),
        (dict(seconds=1.0), [records.arithmetic, agreement.records_agree]),
        (dict(wall_seconds=1.0), [agreement.records_agree]),
        (dict(tok_per_s=123_456.0), [records.arithmetic]),
        (dict(device="cuda: NVIDIA H100"), [agreement.records_agree]),
        (dict(torch="1.0"), [agreement.records_agree]),
        (dict(preset="full"), [agreement.records_agree]),
        (dict(target_loss=0.5), [agreement.records_agree]),
        (dict(train_loss_windows=4), [agreement.records_agree]),
        (dict(train_loss_step=10**6), [agreement.records_agree]),
        (dict(best_batch_step=10**6), [agreement.records_agree]),
        (dict(status="steps_done"), [records.ended]),
        (dict(loss=0.01), [agreement.records_agree]),
        (dict(best_batch_loss=0.001), [agreement.records_agree]),
        (dict(target_reached=False), [agreement.records_agree, records.ended]),
        (dict(tokens_seen=10**6), [records.arithmetic]),
        (dict(resumed_with=[]), [records.chain]),
    ],
)
def test_an_edited_summary_fails_where_it_was_edited(run, changes, also):
    edit_json(run.summary, **changes)
    assert audited(run) == fails(*also)


def test_a_stopped_run_that_claims_to_have_come_to_its_end_fails_against_its_log(tmp_path, text):
    run = train_small(tmp_path / "run", text, steps=4, eval_every=2, sample_every=2)
    edit_text(run.log, ("steps_done at step 4", "interrupted at step 4"))
    assert audited(run) == fails(weights.below_target, records.ended)
    assert (
        found(run, records.ended)
        == "steps done at step 4 of 4, but the log ends with interrupted at step 4"
    )


def test_settings_edited_in_config_and_summary_alike_fail_against_the_log(run):
    edit_json(run.config, lr=1e-3)
    edit_json(run.summary, config=run.read_config())
    assert audited(run) == fails(agreement.records_agree)
    assert found(run, agreement.records_agree) == "lr: 0.001 in config.json, 0.02 in the log"


def test_a_learning_rate_edited_in_metrics_and_log_alike_fails_against_the_schedule(run):
    edit_rows(run.metrics, row_set(12, lr="0.01"))
    content = run.log.read_text(encoding="utf-8")
    run.log.write_text(
        re.sub(r"(step 12/20  .*  lr )\S+", r"\g<1>1.000e-02", content), encoding="utf-8"
    )
    assert audited(run) == fails(agreement.records_agree)
    assert (
        found(run, agreement.records_agree)
        == "learning rate of step 12: 0.01 in the metrics, 0.02 in the schedule"
    )


def test_an_environment_with_another_torch_than_the_run_had_fails(run):
    resumed = json.loads(run.environment.read_text(encoding="utf-8"))["resumed"]
    resumed[-1]["packages"]["torch"] = "1.0"
    edit_json(run.environment, resumed=resumed)
    assert audited(run) == fails(agreement.records_agree)


@pytest.mark.parametrize(
    "old, new",
    [
        (r"sha256 \w{12}…", "sha256 86c4e6aa9db7…"),
        (r"model [\d,]+ parameters", "model 124,439,808 parameters"),
        (r"  amp fp32  ", "  amp fp16  "),
    ],
)
def test_a_log_that_names_another_text_model_or_machine_fails_against_the_summary(run, old, new):
    content = run.log.read_text(encoding="utf-8")
    assert re.search(old, content)
    run.log.write_text(re.sub(old, new, content), encoding="utf-8")
    assert audited(run) == fails(agreement.records_agree)


def test_losses_of_tokens_that_were_forged_are_measured_and_written_anew(run):
    tokens = torch.arange(1000)
    forged = Windows(tokens, 8)
    keep(
        run,
        run.read_summary(),
        forged,
        {index: torch.zeros(len(forged.window(index)[0])) for index in range(len(forged))},
    )
    audit = verify(str(run.path), {"device": "cpu"})
    assert read_token_losses(run.token_losses).loss == pytest.approx(audit.training_loss, abs=1e-9)


# -- forged recall ---------------------------------------------------------------------------------------------------


def recall_set(place, **values):
    return lambda rows: rows[place].update(values)


@pytest.mark.parametrize(
    "edit, said",
    [
        (
            recall_set(-1, verbatim="0", right="1"),
            "openings verbatim, 1 of 17 tokens right on record",
        ),  # possible, but not what best.pt does
        (recall_set(3, verbatim="4", right="1"), "step 30 cannot have 4 of 4 openings verbatim"),
        (recall_set(3, verbatim="0", right="17"), "step 30 cannot have"),
        (recall_set(3, right="0.123"), "step 30 cannot have"),  # 4 openings have no such mean
        (recall_set(3, openings="3"), "step 30 cannot have"),
        (recall_set(3, given="31"), "step 30 cannot have"),
        (
            recall_set(3, verbatim="99"),
            "step 30 has 0 rows for 1 measurement",
        ),  # more than there are: no such row
        (lambda rows: rows[:3] + rows[4:], "step 30 has 0 rows for 1 measurement"),
        (lambda rows: rows[:3] + rows[2:], "step 20 has 2 rows for 1 measurement"),
        (lambda rows: [*rows, {**rows[3], "step": "35"}], "step 35 has 1 row for 0 measurements"),
        (lambda rows: [rows[1], rows[0], *rows[2:]], "not in the order"),
        (lambda rows: rows[4:], "step 0 has 0 rows"),  # not where the run went on
    ],
)
def test_forged_recall_fails_where_it_was_forged(run, edit, said):
    edit_rows(run.recall, edit)
    assert audited(run) == fails(outputs.recall)
    assert said in found(run, outputs.recall)


def test_recall_of_best_pt_is_counted_anew(run):
    assert audited(run) == fails()
    best = torch.load(run.best, weights_only=True)["state"]["step"]
    assert re.search(
        rf"; step {best}, that of best.pt: (.*) on record, \1 counted anew",
        found(run, outputs.recall),
    )


@pytest.mark.parametrize(
    "edit",
    [
        Path.unlink,
        lambda path: path.write_text(path.read_text(encoding="utf-8").splitlines()[0] + "\n"),
    ],
)
def test_a_run_of_an_earlier_version_which_counted_no_recall_is_audited_without(good, capsys, edit):
    edit(good.recall)
    assert main(["verify", str(good.path), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "all 17 checks hold" in out and out.count(outputs.recall.asks) == 1
    assert (
        f"Not asked, for the run claims nothing of it: {outputs.recall.asks} (logs/recall.csv is missing or empty"
        in out
    )


def test_recall_may_begin_where_this_version_went_on_with_a_run_of_an_earlier_one(run):
    edit_rows(run.recall, lambda rows: [row for row in rows if int(row["step"]) > 20])
    assert audited(run) == fails()


def test_recall_that_cannot_be_read_is_not_checked_and_does_not_pass(run):
    run.recall.write_bytes(b"step\n\xff\n")
    assert audited(run) == (asked(SMALL), {outputs.recall.asks})


@pytest.mark.parametrize(
    "name",
    [
        "step",
        "corpus",
        "best_train_loss_windows",
        "epoch",
        "resumed_with",
        "seconds",
        "best_batch_loss",
    ],
)
def test_a_value_of_the_wrong_type_is_a_check_that_fails(run, name):
    edit_json(run.summary, **{name: "x"})
    assert audited(run)[0] > asked(SMALL)


def test_a_summary_that_claims_the_course_text_fails_against_the_text_and_best_pt(run):
    edit_json(
        run.summary,
        corpus={
            **run.read_summary()["corpus"],
            "sha256": corpus.COURSE_SHA256,
            "is_course_input": True,
        },
    )
    assert audited(run) == fails(agreement.records_agree, agreement.best_agrees)


def test_records_edited_together_still_fail_against_the_weights(run):
    """Summary, metrics, log and best.pt all say 0.05; the weights do not."""
    loss = run.read_summary()["best_train_loss"]
    edit_json(run.summary, best_train_loss=0.05, train_loss=0.05)
    edit_rows(run.metrics, row_set(-1, train_loss="0.05"))
    edit_text(run.log, (f"training loss {loss:.6f} (whole", "training loss 0.050000 (whole"))
    edit_best(run, lambda best: best["state"].update(train_loss=0.05, best_train_loss=0.05))
    assert audited(run) == fails(weights.recorded_loss)


def test_a_run_that_starts_at_the_loss_of_trained_weights_fails_at_its_start(run):
    edit_rows(run.metrics, row_set(0, train_loss="4.0"))
    edit_rows(run.metrics, row_set(1, loss="4.0"))
    log = run.log.read_text(encoding="utf-8")
    log = re.sub(r"(step 0/20  training loss )\S+", r"\g<1>4.000000", log)
    run.log.write_text(re.sub(r"(step 1/20  loss )\S+", r"\g<1>4.0000", log), encoding="utf-8")
    assert audited(run) == fails(records.random_start, weights.first_losses)


def test_a_run_that_went_on_from_the_weights_of_another_does_not_count_as_from_scratch(
    tmp_path, other
):
    run = RunDirectory(tmp_path / "run")
    more = {"steps": other.read_summary()["step"] + 10, "target_loss": 1e-9, "sample_every": 1}
    train(RunConfig.resolve({"resume": str(other.last), "out_dir": str(run.path), **more}))
    failed, unknown = audited(run)
    assert (
        failed - asked({weights.below_target})
        == asked(
            {*SMALL, records.random_start, weights.first_losses, records.arithmetic, records.chain}
        )
        and not unknown
    )


@pytest.mark.parametrize(
    "old, new",
    [
        ("resumed at step 20 in", "resumed at step 25 in"),
        ("from the checkpoint of step 20", "from the checkpoint of step 25"),
        ("from random weights (seed 1337)", "from gpt2"),
        ("  seed=1337  ", "  seed=1338  "),
    ],
)
def test_a_log_that_was_resumed_from_nowhere_has_a_broken_chain(run, old, new):
    edit_text(run.log, (old, new))
    failed, unknown = audited(run)
    assert records.chain.asks in failed and not unknown


def test_a_forged_sample_fails(run):
    edit_samples(run, lambda samples: [*samples[:-1], *end_otherwise(samples[-1:])])
    assert audited(run) == fails(outputs.samples)


def test_the_greedy_sample_is_written_again_and_a_forged_one_fails(run):
    final = read_samples(run.samples)[-1]
    assert (
        final.final
        and audited(run) == fails()
        and "one of them greedy" in found(run, outputs.samples)
    )
    edit_text(
        run.samples,
        (format_sample(final), format_sample(dataclasses.replace(final, text=final.text + "!"))),
    )
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


@pytest.mark.parametrize(
    "edit, said",
    [
        (
            lambda samples: [one for one in samples if one.step != 40],
            "the samples of step 40 are missing",
        ),
        (
            lambda samples: [dataclasses.replace(samples[0], step=30), *samples],
            "the run drew no samples at step 30",
        ),
        (lambda samples: [samples[0], *samples], "prompt 1 of step 20 is there 2 times"),
        (
            lambda samples: [dataclasses.replace(samples[0], text="No."), *samples[1:]],
            "prompt 1 of step 20 is not how its text begins",
        ),
    ],
)
def test_samples_of_other_steps_must_be_those_that_the_run_drew(run, edit, said):
    edit_samples(run, edit)
    assert audited(run) == fails(outputs.samples) and found(run, outputs.samples) == said


def test_a_sample_that_differs_from_that_of_another_machine_is_no_proof_either_way(run):
    edit_samples(run, end_otherwise)
    edit_json(run.environment, processor="another")
    assert audited(run) == (asked(SMALL), {outputs.samples.asks})


# -- forged weights --------------------------------------------------------------------------------------------------


def test_other_weights_that_reach_the_target_as_well_did_not_grow_from_the_seed(run, other):
    foreign = torch.load(other.best, weights_only=True)
    edit_best(run, lambda best: {**best, "model": foreign["model"]})
    failed, unknown = audited(run)
    assert (
        failed - {outputs.recall.asks}
        == asked({*SMALL, weights.recorded_loss, weights.kinship, outputs.samples})
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
    assert weights.kinship.asks in failed


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
    assert weights.kinship.asks in failed and weights.below_target.asks not in failed
    said = found(run, weights.kinship)
    assert (
        "in the rows of tokens that occur (unrelated ones: 0" in said
        and ("in the positions past them" in said) is not positions
    )


def test_a_large_matrix_of_other_weights_is_named(run, other, monkeypatch):
    name = "transformer.h.0.mlp.c_fc.weight"
    monkeypatch.setattr(weights, "_LARGE", 1024)  # as many entries as the small run's have
    assert f"in {name}" not in str(audited(run))
    edit_best(
        run,
        lambda best: best["model"].update(
            {name: torch.load(other.best, weights_only=True)["model"][name]}
        ),
    )
    failed, _ = audited(run)
    assert weights.kinship.asks in failed and f"in {name} (unrelated ones: 0 ± 0.0312)" in found(
        run, weights.kinship
    )


def test_records_that_claim_another_size_than_that_of_the_weights_fail_as_that(run):
    config = {**run.read_config(), "n_embd": 64}
    edit_json(run.config, n_embd=64)
    edit_json(run.summary, config=config)
    failed, unknown = audited(run)
    assert failed >= asked({*SMALL, agreement.records_agree}) and weights.kinship.asks in unknown
    assert "other sizes" in found(run, weights.kinship)


def test_weights_that_are_not_finite_fail_wherever_they_are_used(run):
    edit_best(run, lambda best: best["model"]["transformer.wte.weight"].fill_(math.nan) is None)
    failed, unknown = audited(run)
    assert (
        failed
        >= asked(
            {*SMALL, weights.below_target, weights.recorded_loss, weights.kinship, outputs.samples}
        )
        and not unknown
    )


def test_a_state_that_is_a_tensor_of_values_fails(run):
    edit_best(run, lambda best: best["state"].update(step=torch.tensor([1, 2])))
    failed, unknown = audited(run)
    assert weights.loads.asks in failed and unknown >= asked({weights.kinship, outputs.samples})
    assert "holds no number of its step" in found(run, weights.loads)


def test_a_batch_that_no_machine_could_read_fails_at_once(run):
    edit_json(run.config, batch_size=10**9)
    edit_json(run.summary, config=run.read_config())
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
        dict(seconds=1e-3),
        dict(windows_drawn=1),
        dict(best_train_loss=0.05),
    ],
)
def test_a_state_edited_in_best_pt_fails_against_the_records(run, changes):
    edit_best(run, lambda best: best["state"].update(changes))
    assert audited(run) == fails(agreement.best_agrees)


def test_settings_edited_in_best_pt_fail_against_the_log(run):
    edit_best(run, lambda best: best["config"].update(lr=1e-3))
    assert (
        audited(run) == fails(agreement.best_agrees)
        and found(run, agreement.best_agrees) == "lr: 0.001 in best.pt, 0.02 in the log"
    )


def test_a_checkpoint_of_another_run_does_not_say_what_the_records_say(run, other):
    shutil.copyfile(other.best, run.best)
    failed, _ = audited(run)
    assert failed >= asked({weights.recorded_loss, weights.kinship, agreement.best_agrees})


@pytest.mark.parametrize(
    "edit, said",
    [
        (
            lambda model: model.update({"lm_head.weight": torch.zeros(50257, 16)}),
            "lm_head.weight is stored besides",
        ),
        (lambda model: model.pop("transformer.wpe.weight"), "transformer.wpe.weight is missing"),
        (
            lambda model: model.update({"transformer.ln_f.bias": torch.zeros(17)}),
            "transformer.ln_f.bias is (17,)",
        ),
        (
            lambda model: model.update({"transformer.ln_f.bias": torch.zeros(16).half()}),
            "in torch.float16",
        ),
        (
            lambda model: model.update(
                {"transformer.wte.weight": model["transformer.wte.weight"].to_sparse()}
            ),
            "no plain tensor (torch.sparse_coo, cpu)",
        ),
        (
            lambda model: model.update(
                {"transformer.wte.weight": model["transformer.wte.weight"].to("meta")}
            ),
            "no plain tensor (torch.strided, meta)",
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
    edit_json(run.config, **whole)
    edit_json(run.summary, config=run.read_config())
    edit_best(run, lambda best: best["config"].update(whole))
    edit_text(run.log, ("max_tokens=200", "max_tokens=0"))
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
                agreement.records_agree,
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
    edit_json(
        run.summary, corpus={**run.read_summary()["corpus"], "sha256": sha256, "path": str(claimed)}
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
        weights.kinship.asks in failed and not unknown
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
    edit_json(run.config, **gone)
    edit_json(
        run.summary,
        config=run.read_config(),
        corpus={**run.read_summary()["corpus"], "path": gone["input_file"]},
    )
    edit_text(run.log, (str(text), gone["input_file"]))
    edit_best(run, lambda best: best["config"].update(gone))
    failed, unknown, error = incomplete(run, capsys)
    assert f"sha256 {run.read_summary()['corpus']['sha256'][:12]}…, is not on this machine" in error
    assert failed == {weights.parameters.asks} and unknown == asked(NEED_TEXT)


def test_an_unfinished_run_is_said_to_be_one_and_checked(tmp_path, text, capsys):
    run = train_small(tmp_path / "run", text, steps=4, eval_every=2, sample_every=2)
    edit_json(run.summary, status="interrupted")
    failed, unknown, error = incomplete(run, capsys)
    assert "unfinished (interrupted at step 4 of 4)" in error
    assert failed == asked({*SMALL, weights.below_target, records.ended}) and not unknown


@pytest.mark.parametrize(
    "path, said",
    [
        ("logs/train.log", "train.log is missing"),
        ("logs/train_metrics.csv", "train_metrics.csv is missing"),
        ("config.json", "config.json is missing"),
    ],
)
def test_records_that_are_missing_are_named(run, capsys, path, said):
    (run.path / path).unlink()
    failed, unknown, error = incomplete(run, capsys)
    assert said in error and failed == asked(SMALL) and unknown


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
    ],
)
def test_a_wrong_flag_is_one_line(reached, capsys, words, said):
    assert main(["verify", str(reached.path), *words]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
