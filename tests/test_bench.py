"""The command `bench`: its figures hold together, both sides do the same work, and a page says what was measured."""

import json
import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))
from run_command import TRAINING, clone  # noqa: E402

from gpt2_nb_utils.__main__ import main  # noqa: E402
from gpt2_nb_utils.bench import comparison  # noqa: E402
from gpt2_nb_utils.bench.comparison import check_same, formats, measure_training  # noqa: E402
from gpt2_nb_utils.bench.sides import flops_of_products  # noqa: E402
from gpt2_nb_utils.bench.worker import Worker, in_turn, ratios  # noqa: E402
from gpt2_nb_utils.config import RunConfig  # noqa: E402
from gpt2_nb_utils.errors import UserError  # noqa: E402
from gpt2_nb_utils.model import cpu_kernels  # noqa: E402
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config  # noqa: E402
from gpt2_nb_utils.report import bench_table  # noqa: E402
from gpt2_nb_utils.results.runs_table import KEPT  # noqa: E402

SIZES = GPT2Config(block_size=64, n_layer=2, n_head=2, n_embd=16)
SMALL = [
    "--block_size=64",
    "--n_layer=2",
    "--n_head=2",
    "--n_embd=16",
    "--batch_size=2",
    "--seq_len=32",
    "--device=cpu",
]
TOKENS = 2 * 32


def command(*words) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "gpt2_nb_utils", "bench", *map(str, words)],
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory, text_file):
    """What the command prints and writes for a very small model, compared with transformers in two rounds."""
    folder = tmp_path_factory.mktemp("bench") / "out" / "reference" / "bench"
    done = command(
        *SMALL,
        "--grad_accum=2",
        "--max_new_tokens=12",
        f"--input_file={text_file}",
        "--rounds=2",
        "--against=transformers",
        "--profile",
        "--json",
        "--out_dir",
        folder,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done, json.loads(done.stdout), folder


@pytest.mark.slow
def test_the_standard_output_is_json_alone_and_so_is_the_file(measured):
    done, result, folder = measured
    assert json.loads((folder / "bench.json").read_text(encoding="utf-8")) == result
    assert "training step (fp32), round" in done.stderr  # what it is doing is told, but elsewhere
    # The checkpoint that was timed is gone.
    assert {path.name for path in folder.iterdir()} == {"bench.json", "table.md"}


@pytest.mark.slow
def test_every_figure_asked_for_is_there_and_positive(measured):
    _, result, _ = measured
    figures = [
        result["train"][name] for name in ("tok_per_s", "ms_per_step", "batch_size", "seq_len")
    ]
    figures += [
        result[name]
        for name in (
            "matmul_gflops",
            "share_of_matmul",
            "peak_memory_gb",
            "sample_tok_per_s",
            "import_s",
            "checkpoint_save_s",
            "checkpoint_load_s",
            "corpus_load_s",
            "help_s",
        )
    ]
    figures += [
        result["against"][name] for name in ("tok_per_s", "ratio_median", "ratio_min", "ratio_max")
    ]
    assert all(figure > 0 for figure in figures)
    assert (
        result["train"]["batch_size"],
        result["train"]["seq_len"],
        result["against"]["name"],
    ) == (2, 32, "transformers")
    assert 0.1 < result["peak_memory_gb"] < 4  # torch alone takes some hundred megabytes
    assert (
        result["torch"] == torch.__version__
        and result["command"].startswith("python")
        and " bench " in result["command"]
    )


@pytest.mark.slow
def test_the_ratio_is_that_of_the_rounds(measured):
    _, result, _ = measured
    ours, theirs = result["rounds"]["tok_per_s"]["ours"], result["rounds"]["tok_per_s"]["against"]
    assert len(ours) == len(theirs) == 2
    pairs = [a / b for a, b in zip(ours, theirs)]
    against = result["against"]
    assert against["ratio_min"] <= against["ratio_median"] <= against["ratio_max"]
    assert [against["ratio_min"], against["ratio_max"]] == pytest.approx(
        [min(pairs), max(pairs)], rel=1e-3
    )


@pytest.mark.slow
def test_speed_time_and_share_of_the_matrix_products_fit_each_other(measured):
    _, result, _ = measured
    speeds, rates = result["rounds"]["tok_per_s"]["ours"], result["rounds"]["matmul_gflops"]
    assert (
        min(speeds) * 0.999
        <= 2 * TOKENS / (result["train"]["ms_per_step"] / 1000)
        <= max(speeds) * 1.001
    )
    flops_per_token = 6 * (12 * SIZES.n_layer * SIZES.n_embd**2 + SIZES.n_embd * SIZES.vocab_size)
    shares = [speed * flops_per_token / 1e9 / rate for speed, rate in zip(speeds, rates)]
    assert result["share_of_matmul"] == pytest.approx(statistics.median(shares), rel=1e-3)


@pytest.mark.slow
def test_both_sides_start_from_the_same_loss_and_write_the_same_text(measured):
    _, result, _ = measured
    assert result["train"]["loss"] == pytest.approx(result["against"]["loss"], rel=1e-4)
    assert result["train"]["loss"] == pytest.approx(10.825, abs=0.5)  # ln 50257: random weights
    sample = result["sample"]
    assert (
        sample["new_tokens"]
        == sample["same_as_recomputed"]
        == sample["against"]["same_tokens"]
        == 12
    )


@pytest.mark.slow
def test_the_profile_names_the_operators_that_take_the_time_of_a_step(measured):
    _, result, _ = measured
    rows = result["profile"]
    assert "aten::mm" in [row["operator"] for row in rows]
    shares = [row["share"] for row in rows]
    assert shares == sorted(shares, reverse=True) and 0.5 < sum(shares) <= 1.001


# What the figures rest on


def test_the_operations_of_the_matrix_products_are_those_that_torch_counts_without_attention(
    monkeypatch,
):
    monkeypatch.setattr(cpu_kernels, "ENABLED", False)  # the counter does not know its products
    model = GPT2(SIZES)
    ids = torch.randint(SIZES.vocab_size, (2, 33), generator=torch.Generator().manual_seed(1))
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
    counted = counter.get_flop_counts()["Global"]
    of_linear_maps = sum(
        flops
        for operator, flops in counted.items()
        if operator in (torch.ops.aten.mm, torch.ops.aten.addmm)
    )
    assert flops_of_products(SIZES, TOKENS) == of_linear_maps


def test_sides_take_turns_round_by_round_and_each_ratio_is_of_one_round():
    order = []
    answers = in_turn(
        {
            "a": lambda: order.append("a") or len(order),
            "b": lambda: order.append("b"),
        },
        3,
        "test",
    )
    assert order == ["a", "b", "a", "b", "a", "b"] and answers["a"].tolist() == [1, 3, 5]
    assert ratios(np.array([10, 20, 90]), np.array([10, 10, 30])) == {
        "ratio_median": 2,
        "ratio_min": 1,
        "ratio_max": 3,
    }


@pytest.mark.parametrize(
    "amp, theirs, fits",
    [
        ("fp32", 10.8259, True),
        ("fp32", 10.83, False),
        ("fp16", 10.83, True),
        ("fp16", 10.85, False),
        ("fp32", float("nan"), False),
    ],
)
def test_sides_that_begin_with_another_loss_are_not_compared(amp, theirs, fits):
    if fits:
        check_same(10.825, theirs, amp)
    else:
        with pytest.raises(UserError, match="first loss is 10.825000 here and"):
            check_same(10.825, theirs, amp)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_worker_prints_to_the_standard_error_and_its_death_is_put_down_to_memory(capfd):
    with Worker("ours", "", print, "said by the worker"):
        pass
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        Worker("ours", "", divmod, 1, 0)
    fits = "ours: batch_size 9 and seq_len 9 do not fit into memory"
    with pytest.raises(UserError, match=rf"{fits} \(its process died\): lower them"):
        Worker("ours", "batch_size 9 and seq_len 9", signal.raise_signal, signal.SIGKILL)
    with pytest.raises(UserError, match=f"{fits}: lower them"):
        Worker("ours", "batch_size 9 and seq_len 9", torch.empty, 1 << 50)
    said = capfd.readouterr()
    assert said.out == "" and "said by the worker" in said.err


@pytest.mark.parametrize(
    "amp, units, expected",
    [
        ("auto", True, ["bf16", "fp32"]),
        ("auto", False, ["fp32"]),
        ("bf16", False, ["bf16"]),
        ("fp32", True, ["fp32"]),
    ],
)
def test_both_formats_are_measured_where_the_processor_has_bf16_units(
    monkeypatch, amp, units, expected
):
    for query in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, query, lambda: units, raising=False)
    assert formats(RunConfig.resolve({"device": "cpu", "amp": amp})) == expected


@pytest.mark.slow
def test_a_second_format_has_its_own_columns_and_both_sides_compute_in_it(monkeypatch):
    monkeypatch.setattr(comparison, "formats", lambda config: ["bf16", "fp32"])
    words = {word.split("=")[0].removeprefix("--"): word.split("=")[1] for word in SMALL}
    result = measure_training(RunConfig.resolve(words), 1, compared=True, profile=False)
    losses = [part["against"]["loss"] for part in (result, result["fp32"])]
    assert result["train"]["loss"] != result["fp32"]["train"]["loss"]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=1e-2)
    result |= {"amp": "bf16", "transformers": "5"}
    head, (step, *_) = bench_table._head(result), bench_table.lines(result)
    assert head[1:3] == ("ours, bf16", "transformers, bf16")
    assert head[4:6] == ("ours, fp32", "transformers, fp32") and len(step) == len(head) == 7
    assert step[4] == bench_table._number(result["fp32"]["train"]["tok_per_s"])


# Bad input


@pytest.mark.parametrize(
    "words, parts",
    [
        (["--seq_len=65"], ["seq_len 65 exceeds block_size 64"]),
        (["--against=pytorch"], ["--against", "pytorch", "choose from", "transformers"]),
        (["--only=steps"], ["--only", "steps", "train", "sample", "files", "run", "processes"]),
        (
            ["--only=processes", "--nproc_per_node=3"],
            ["batch_size 2", "3 processes", "--batch_size 3"],
        ),
        (["--rounds=0"], ["--rounds", "'0' is not a count"]),
        (["--only=sample", "--profile"], ["--profile", "--only"]),
        (
            [
                "--only=sample",
                "--against=transformers",
                "--max_new_tokens=62",
                "--prompt=First Citizen:",
            ],
            ["max_new_tokens 62", "block_size 64", "lower max_new_tokens to 61"],
        ),
        (["--only=files", "--input_file=nowhere.txt"], ["input_file nowhere.txt does not exist"]),
        (["--device=cuda:99"], ["device cuda:99", "CUDA devices"]),
        (["--out_dir={folder}"], ["bench.json is not what `bench` writes", "--out_dir"]),
        (
            ["--only=train", "--batch_size=100000000000"],
            ["batch_size 100000000000", "seq_len 32", "memory", "lower"],
        ),
    ],
)
def test_a_users_mistake_is_one_line_with_status_2_and_nothing_measured(
    words, parts, tmp_path, capfd
):
    (tmp_path / "bench.json").write_text("{}", encoding="utf-8")
    assert main(["bench", *SMALL, "--json", *(word.format(folder=tmp_path) for word in words)]) == 2
    said = capfd.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("error: ")
    assert all(part in said.err for part in parts), said.err
    assert (tmp_path / "bench.json").read_text(encoding="utf-8") == "{}"


def test_a_part_is_added_to_what_was_measured_before_and_nothing_is_measured_twice_unasked(
    measured, tmp_path, capfd
):
    _, before, _ = measured
    file = tmp_path / "bench.json"
    kept = {
        name: value for name, value in before.items() if name not in ("sample", "sample_tok_per_s")
    }
    words = [
        "bench",
        *SMALL,
        "--only=sample",
        "--max_new_tokens=4",
        "--rounds=1",
        f"--out_dir={tmp_path}",
    ]
    for other, says in (
        ({**kept, "machine": {**kept["machine"], "cpu_count": 999}}, "another machine"),
        (before, "has sample already"),
    ):
        file.write_text(json.dumps(other), encoding="utf-8")
        assert main(words) == 2
        assert says in capfd.readouterr().err
        assert json.loads(file.read_text(encoding="utf-8")) == other
    file.write_text(json.dumps(kept), encoding="utf-8")
    assert main(words) == 0
    after = json.loads(file.read_text(encoding="utf-8"))
    assert after["sample"]["new_tokens"] == 4
    commands = after["command"].splitlines()
    assert commands[0] == before["command"] and len(commands) == 2
    assert {name: after[name] for name in kept if name not in ("command", "time")} == {
        name: kept[name] for name in kept if name not in ("command", "time")
    }


def test_without_transformers_the_comparison_says_what_to_install(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["bench", *SMALL, "--against=transformers"]) == 2
    assert "pip install transformers" in capfd.readouterr().err


# What is measured on demand


@pytest.mark.slow
def test_the_run_around_the_step_and_processes_are_measured_by_the_real_commands(
    tmp_path, text_file, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", str(clone(tmp_path / "clone", TRAINING)))
    done = command(
        *SMALL,
        f"--input_file={text_file}",
        "--steps=2",
        "--sample_every=2",
        "--max_new_tokens=4",
        "--only",
        "run",
        "processes",
        "--out_dir",
        tmp_path,
        "--rounds=1",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    run = result["run"]
    assert (run["steps"], run["sample_every"], run["save_every"], run["log_every"]) == (
        2,
        2,
        100,
        10,
    )
    for name in ("train", "papermill"):
        assert (
            0 < run[name]["wall_tok_per_s"] <= run[name]["tok_per_s"]
            and run[name]["start_up_s"] > 0
        )
    assert run["train_cost"] == pytest.approx(
        1 - run["train"]["wall_tok_per_s"] / run["bare_tok_per_s"], abs=1e-3
    )
    assert run["papermill_cost"] == pytest.approx(
        1 - run["papermill"]["wall_tok_per_s"] / run["train"]["wall_tok_per_s"], abs=1e-3
    )
    assert [row["n"] for row in result["processes"]["rows"]] == [1, 2] and result["processes"][
        "batch_size"
    ] == 2
    alone, two = (row["tok_per_s"] for row in result["processes"]["rows"])
    assert result["processes"]["rows"][1]["ratio_median"] == pytest.approx(two / alone, rel=1e-3)
    assert "train" not in result and "import_s" not in result
    for part in (
        "train, 2 steps, by the wall clock, tokens/s",
        "the same through papermill",
        "train with 1 process, steps of 2 × 32 tokens in all, tokens/s",
        "train with 2 processes",
        f"{two / alone:.2f} (one round) of one process",
        "its start-up before the first step",
        result["torch"],
    ):
        assert part in done.stdout, done.stdout


@pytest.mark.parametrize(
    "cost, words",
    [(0.058, "loses 5.8% against train"), (-0.039, "3.9% more than train in their own turn")],
)
def test_a_run_that_met_a_faster_machine_than_its_measure_did_is_not_said_to_lose_less_than_nothing(
    cost, words
):
    assert bench_table._cost(cost, "train") == words


# The page beside bench.json


@pytest.mark.slow
def test_the_page_shows_what_bench_wrote(measured):
    _, result, folder = measured
    shown = (folder / "table.md").read_text(encoding="utf-8")
    against = result["against"]
    assert (
        f"{against['ratio_median']:.2f} ({against['ratio_min']:.2f} to {against['ratio_max']:.2f})"
        in shown
    )
    assert f"fp32 ({result['amp_reason']})" in shown if result["amp_reason"] else True
    assert (
        f"| {result['share_of_matmul']:.0%} |" in shown
        and f"```sh\n{result['command']}\n```" in shown
    )
    plain = shown.replace(r"\_", "_")
    assert f"torch {torch.__version__}" in plain and "| aten::mm |" in plain
    assert "training step of 2 × 32 × 2 tokens, tokens/s" in shown


def test_the_committed_page_is_that_of_the_committed_figures():
    folder = KEPT / "bench"
    result = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    page = (folder / "table.md").read_text(encoding="utf-8")
    assert page == bench_table.as_markdown(result)
