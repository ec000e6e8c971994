"""Numbers that are not finite, too large, or zero: how many steps are skipped, when a run stops, and what it keeps."""

import math
from dataclasses import replace

import pytest
import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.training import train as loop
from gpt2_nb_utils.training.checkpoints import read_checkpoint
from gpt2_nb_utils.training.events import history, read_events
from gpt2_nb_utils.training.train import SKIPS_IN_A_ROW, train


@pytest.fixture
def losses_times(monkeypatch):
    """Call it with a factor for the losses of the steps after `good`, as far as `until`."""

    def install(factor: float, good: int = 3, until: int = 10_000) -> None:
        step, done = loop.training_step, []

        def spoilt(learner, micro_batches):
            done.append(None)
            times, loss_sum = factor if good < len(done) <= until else 1.0, learner.loss_sum
            learner = replace(learner, loss_sum=lambda x, y: loss_sum(x, y) * times)
            return step(learner, micro_batches)

        monkeypatch.setattr(loop, "training_step", spoilt)

    return install


def run(settings: dict) -> tuple[dict, RunDirectory]:
    return train(RunConfig.resolve(settings)), RunDirectory(settings["out_dir"])


def weights_after(steps: int, given: dict, folder: str) -> dict:
    return read_checkpoint(
        run({**given, "steps": steps, "out_dir": given["out_dir"] + folder})[1].last
    )["model"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "amp, factor",
    [
        ("fp32", float("nan")),
        ("fp32", float("inf")),
        ("fp32", 1e30),
        ("fp16", float("nan")),
        ("fp16", 1e30),
    ],
    ids=[
        "nan",
        "inf",
        "gradients too large for their norm",
        "fp16 nan",
        "fp16 overflow at every step",
    ],
)
def test_steps_without_finite_gradients_are_skipped_up_to_a_bound_and_the_last_good_weights_kept(
    settings, losses_times, amp, factor
):
    given = settings(amp=amp, steps=100, save_every=1, eval_every=100, sample_every=0)
    expected = weights_after(3, given, "-good")
    losses_times(factor)
    with pytest.raises(
        UserError,
        match="20 steps in a row had no finite gradients.*lower lr.*last good checkpoint is kept",
    ) as caught:
        run(given)
    assert ("--amp" in str(caught.value)) == (
        amp == "fp16"
    )  # a run in fp32 is not told to take fp32
    directory = RunDirectory(given["out_dir"])
    assert (
        directory.read_summary()["step"] == 3 + SKIPS_IN_A_ROW
        and directory.read_summary()["status"] == "failed"
    )
    last = read_checkpoint(directory.last)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in last["model"].items())
    if amp == "fp16":
        scales = [row.loss_scale for row in history(read_events(directory.events)).rows]
        assert scales[3] / scales[-1] == 2.0 ** (
            SKIPS_IN_A_ROW - 1
        )  # halved at each, and no further


@pytest.mark.parametrize("amp", ["fp32", "fp16"])
def test_a_few_steps_without_finite_gradients_are_skipped_and_training_goes_on(
    settings, losses_times, amp
):
    given = settings(amp=amp, steps=20, eval_every=20, sample_every=0)
    losses_times(float("nan"), good=3, until=3 + SKIPS_IN_A_ROW - 8)
    summary, directory = run(given)
    assert summary["status"] == "steps_done" and math.isfinite(summary["loss"])
    assert directory.log.read_text(encoding="utf-8").count("  skipped: ") == SKIPS_IN_A_ROW - 8
    losses = [row.loss for row in history(read_events(directory.events)).rows]
    assert losses[-1] < losses[1]


def test_huge_gradients_are_clipped_and_leave_finite_weights(settings, losses_times):
    losses_times(1e15, good=0)
    summary, directory = run(settings(steps=6, clip_grad=1.0))
    assert summary["status"] == "steps_done" and summary["train_loss"] < 10.9
    assert all(
        1e14 < row.grad_norm < math.inf for row in history(read_events(directory.events)).rows[1:]
    )


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_with_a_learning_rate_of_zero_a_run_ends_with_the_weights_it_began_with(
    settings, optimizer
):
    given = settings(optimizer=optimizer, lr=0.0, steps=3, weight_decay=0.1, sample_every=0)
    summary, directory = run(given)
    config = RunConfig.resolve(given)
    assert summary["status"] == "steps_done"
    began_with = GPT2(GPT2Config.of(config), seed=config.seed).state_dict()
    assert all(
        torch.equal(tensor, began_with[name])
        for name, tensor in read_checkpoint(directory.last)["model"].items()
    )


def test_the_same_seed_gives_the_same_losses_to_the_last_digit_and_another_seed_does_not(
    settings, tmp_path
):
    ends = []
    for number, seed in enumerate((5, 5, 6)):
        torch.manual_seed(number)  # what went on before in the process does not matter
        _, directory = run(settings(seed=seed, out_dir=str(tmp_path / f"run{number}")))
        state = read_checkpoint(directory.last)["state"]
        losses = [
            (row.loss, row.train_loss, row.grad_norm)
            for row in history(read_events(directory.events)).rows
        ]
        ends.append(
            (
                losses,
                state["loss"],
                state["smoothed_loss"],
                state["train_loss"],
                directory.samples.read_bytes(),
            )
        )
    assert ends[0] == ends[1]
    assert ends[0][0] != ends[2][0]
