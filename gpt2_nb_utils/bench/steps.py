"""A training step that can be timed: what every side does, and our side, which is the step of `train`.

Ids are random, from the seed and the number of the step: speed does not depend on what they say, every side sees the
same, and no file is needed.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpt2_nb_utils.bench.memory import peak_memory
from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.large_blocks import keep_large_blocks
from gpt2_nb_utils.model.gpt2 import GPT2
from gpt2_nb_utils.tokenization.bpe import VOCAB_SIZE
from gpt2_nb_utils.training.optimizer import build_optimizer
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.start import model_sizes
from gpt2_nb_utils.training.step import training_step

_WARM_UP_AT_MOST = 20
_OPERATORS_SHOWN = 12


@dataclass(frozen=True)
class WarmUp:
    """What the steps before the clock starts tell.

    Attributes:
        loss: of the first batch, with the initial weights, in nats per token.
        seconds: that the last of them took.
        peak_memory_gb: of the process so far, in GiB.
    """

    loss: float
    seconds: float
    peak_memory_gb: float


class TimedStep(ABC):
    """A model with its optimizer, which takes steps against the clock.

    Args:
        config: sizes, batch, optimizer, device and number format; the seed is that of weights and ids.
    """

    def __init__(self, config: RunConfig):
        self.config, self.precision = config, Precision.of(config)
        self.scaler = self.precision.scaler()

    @abstractmethod
    def step(self, micro_batches: list[tuple[Tensor, Tensor]]) -> float:
        """Update the weights once; the loss of the batch before, in nats per token."""

    def warm_up(self) -> WarmUp:
        """Take steps until one updates the weights (in fp16 the loss scale is found first), and two at least."""
        losses: list[float] = []
        while True:
            scale = self.scaler.get_scale()
            seconds, loss = self._timed(len(losses), 1)
            losses.append(loss)
            updated = self.scaler.get_scale() >= scale
            if updated and len(losses) > 1 or len(losses) == _WARM_UP_AT_MOST:
                return WarmUp(losses[0], seconds, peak_memory(self.precision.device))

    def turn(self, number: int, times: int) -> float:
        """Take `times` steps.

        Args:
            number: of the round; each has batches of its own.

        Returns:
            Seconds per step.
        """
        return self._timed(_WARM_UP_AT_MOST + number * times, times)[0] / times

    def profile(self) -> list[dict[str, Any]]:
        """The operators that one step spends most of its time in.

        Returns:
            Rows of `operator`, `share` of the step's time (on a GPU, of the time that kernels run), `ms` and `calls`,
            without what an operator calls in turn.
        """
        from torch.profiler import ProfilerActivity, profile

        on_gpu = self.precision.device.type == "cuda"
        micro_batches = self._micro_batches(0)
        with profile(
            activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]
        ) as profiler:
            self.step(micro_batches)
            self.precision.wait()
        # Kernels are listed beside the operators that started them: counting both would count them twice.
        events = [
            event
            for event in profiler.key_averages()
            if event.device_type == torch.autograd.DeviceType.CPU
        ]
        micros = {
            event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total
            for event in events
        }
        total = sum(micros.values())
        events.sort(key=lambda event: -micros[event.key])
        return [
            {
                "operator": event.key,
                "share": micros[event.key] / total,
                "ms": micros[event.key] / 1000,
                "calls": event.count,
            }
            for event in events[:_OPERATORS_SHOWN]
        ]

    def _timed(self, first: int, times: int) -> tuple[float, float]:
        batches = [self._micro_batches(first + i) for i in range(times)]
        self.precision.wait()
        begun = time.perf_counter()
        for micro_batches in batches:
            loss = self.step(micro_batches)
        self.precision.wait()
        return time.perf_counter() - begun, loss

    def _micro_batches(self, number: int) -> list[tuple[Tensor, Tensor]]:
        config = self.config
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
        ids = torch.randint(
            VOCAB_SIZE,
            (config.grad_accum, config.batch_size, config.seq_len + 1),
            generator=generator,
        )
        return [(row[:, :-1], row[:, 1:]) for row in ids]


class OurStep(TimedStep):
    """The step of `train`."""

    def __init__(self, config: RunConfig):
        keep_large_blocks()
        super().__init__(config)
        self.model = GPT2(model_sizes(config), seed=config.seed).to(self.precision.device)
        self.parameters = list(self.model.parameters())
        self.optimizer = build_optimizer(self.model, config, self.precision.muon_dtype)
        self.loss_sum = lambda x, y: self.model.loss(x, y, reduction="sum")
        if config.compile:
            self.loss_sum = torch.compile(self.loss_sum)

    def step(self, micro_batches: list[tuple[Tensor, Tensor]]) -> float:
        return training_step(
            self.loss_sum,
            self.parameters,
            self.optimizer,
            self.scaler,
            self.precision,
            micro_batches,
            self.config.clip_grad,
        ).loss
