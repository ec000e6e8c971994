"""What is timed: our GPT-2 and Hugging Face's, and the bare matrix products of a step.

Ids are random, from the seed: speed does not depend on what they say, every side sees the same, and
no file is needed. Both sides take the step of `train`; only model and loss differ. Hugging Face's
attention, loss and cache are the library's own defaults, with dropout 0 as in ours.

Of the matrix products, the linear layers are counted, forward and in both directions of the
backward pass: queries, keys and values, the projection of the attention, both layers of the MLP in
each block, and the head. Attention's own products (queries with keys, weights with values) are left
out, of the rate as of the step; so are those of Muon.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2_nb_utils.bench.worker import Figures
from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.large_blocks import keep_large_blocks
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config
from gpt2_nb_utils.model.sampling import generate
from gpt2_nb_utils.tokenization.bpe import VOCAB_SIZE
from gpt2_nb_utils.training.checkpoints import read_checkpoint, save_checkpoint
from gpt2_nb_utils.training.optimizer import build_optimizer
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.step import Learner, training_step

_WARM_UP_AT_MOST = 20
_OPERATORS_SHOWN = 12
_HEAD_MULTIPLE = 64
"""On a GPU the model's head product has its columns padded to a multiple of it
(`head_loss.padded_product`)."""


def build_model(config: RunConfig, side: str) -> nn.Module:
    """GPT-2 on the CPU with the weights that a run starts from: `ours`, or the one of
    `transformers`."""
    ours = GPT2(GPT2Config.of(config), seed=config.seed)
    if side == "ours":
        return ours
    import transformers

    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_positions=config.block_size,
            **config.model_dump(include={"n_embd", "n_layer", "n_head"}),
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
            bos_token_id=None,
            eos_token_id=None,  # otherwise a text could end early
        )
    )
    model.load_state_dict(ours.state_dict(), strict=False)  # the head is missing there: it is tied
    model.tie_weights()
    return model


def _seconds_each(work: Callable[[], object], times: int, precision: Precision) -> float:
    precision.wait()
    begun = time.perf_counter()
    for _ in range(times):
        work()
    precision.wait()
    return (time.perf_counter() - begun) / times


class Side:
    """A model with its optimizer: its training steps, its sampling and its checkpoint, against the
    clock.

    Args:
        config: sizes, batch, optimizer, device and number format; the seed is that of weights and
            ids.
        side: whose model, `ours` or `transformers`.
        compiled: put model and loss through torch.compile.
    """

    def __init__(self, config: RunConfig, side: str = "ours", compiled: bool = False):
        if side == "ours":
            keep_large_blocks()
        self.config, self.precision = config, Precision.of(config)
        self.model = build_model(config, side).to(self.precision.device).train()
        # Their parameters have the names of ours, by which they are grouped.
        self.optimizer = build_optimizer(self.model, config, self.precision.muon_dtype)
        loss_sum = self._our_loss if side == "ours" else self._their_loss
        self.learner = Learner(
            self.model,
            self.optimizer,
            self.precision.scaler(),
            self.precision,
            config.clip_grad,
            loss_sum=torch.compile(loss_sum) if compiled else loss_sum,
        )
        shape = (config.grad_accum, config.batch_size, config.seq_len + 1)
        generator = torch.Generator().manual_seed(config.seed)
        ids = torch.randint(VOCAB_SIZE, shape, generator=generator)
        self._micro_batches = [(each[:, :-1], each[:, 1:]) for each in ids]

    def _our_loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self.model.loss(x, y, reduction="sum")

    def _their_loss(self, x: Tensor, y: Tensor) -> Tensor:
        # What the library does with `labels`, except for the shift: y is already one token ahead.
        logits = self.model(input_ids=x, use_cache=False).logits.float()  # (B, T, V)
        return F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum")

    def _step(self) -> None:
        self._result = training_step(self.learner, self._micro_batches)

    def warm_up(self) -> tuple[float, Figures]:
        """Take steps until one updates the weights (in fp16 the loss scale is found first), and two
        at least.

        Returns:
            Seconds of the last step; and `loss` of the batch with the initial weights, in nats per
            token, with the `peak_memory_gb` of the process so far, in GiB.
        """
        self._step()
        loss = self._result.loss
        for _ in range(_WARM_UP_AT_MOST):
            seconds = self.turn(1)
            if not self._result.skipped:
                break
        return seconds, {"loss": loss, "peak_memory_gb": _peak_memory(self.precision.device)}

    def turn(self, times: int) -> float:
        """Take `times` steps; seconds per step."""
        return _seconds_each(self._step, times, self.precision)

    def profile(self) -> list[Figures]:
        """The operators that one step spends most of its time in.

        Returns:
            Rows of `operator`, `share` of the step's time (on a GPU, of the time that kernels run),
            `ms` and `calls`, without what an operator calls in turn.
        """
        on_gpu = self.precision.device.type == "cuda"
        with torch.profiler.profile() as profiler:
            self.turn(1)
        micros = {
            event: event.self_device_time_total if on_gpu else event.self_cpu_time_total
            for event in profiler.key_averages()
            # Kernels are listed beside the operators that started them: counting both would count
            # them twice.
            if event.device_type == torch.autograd.DeviceType.CPU
        }
        total = sum(micros.values())
        return [
            {
                "operator": event.key,
                "share": micros[event] / total,
                "ms": micros[event] / 1000,
                "calls": event.count,
            }
            for event in sorted(micros, key=micros.get, reverse=True)[:_OPERATORS_SHOWN]
        ]

    def sample(
        self, prompt: Tensor, new_tokens: int, use_cache: bool = True
    ) -> tuple[float, list[int]]:
        """Continue a prompt (t,) in fp32, as the samples of a run are drawn, with the most likely
        token each time.

        Returns:
            Seconds, and the new ids.
        """
        begun = time.perf_counter()
        if isinstance(self.model, GPT2):
            ids = generate(self.model, [prompt], new_tokens, temperature=0, use_cache=use_cache)
        else:
            prompts = prompt[None].to(self.precision.device)  # (1, t)
            ids = self.model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        new = ids[0][len(prompt) :].tolist()  # on the CPU: the device has finished
        return time.perf_counter() - begun, new

    def save(self, path: Path) -> float:
        """Write what takes room in last.pt; seconds until it is on disk."""
        content = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return _seconds_each(lambda: save_checkpoint(path, content), 1, self.precision)

    def load(self, path: Path) -> float:
        """Read a checkpoint that was just written, so that the operating system still has it in
        memory; seconds until it is on the device."""
        return _seconds_each(
            lambda: read_checkpoint(path, self.precision.device), 1, self.precision
        )


def _peak_memory(device: torch.device) -> float:
    """On a GPU, the most that tensors have taken; on a CPU, the largest resident set, Python and
    torch included. In GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**30
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (2**30 if sys.platform == "darwin" else 2**20)


def linear_layers(sizes: GPT2Config) -> list[tuple[int, int, int]]:
    """The linear layers of a model: input features, output features, and how many there are."""
    C, L = sizes.n_embd, sizes.n_layer
    return [
        (C, 3 * C, L),  # queries, keys and values
        (C, C, L),  # the attention's projection
        (C, 4 * C, L),  # MLP
        (4 * C, C, L),
        (C, sizes.vocab_size, 1),  # head
    ]


def flops_of_products(sizes: GPT2Config, n_tokens: int) -> int:
    """Floating-point operations of the products of one step: a multiplication and an addition each,
    3 products a layer."""
    weights = sum(n_in * n_out * times for n_in, n_out, times in linear_layers(sizes))
    return 3 * 2 * n_tokens * weights


class Products:
    """The products of one micro-batch, each into a buffer that is there already.

    Layers of one shape share their operands.
    """

    def __init__(self, config: RunConfig):
        self.precision = Precision.of(config)
        device, dtype = self.precision.device, self.precision.dtype
        n_rows = config.batch_size * config.seq_len
        random = functools.partial(torch.randn, device=device, dtype=dtype)
        self._products: list[tuple[Tensor, Tensor, Tensor]] = []  # left, right, result
        for n_in, n_out, times in linear_layers(GPT2Config.of(config)):
            if device.type == "cuda" and dtype != torch.float32 and n_out == VOCAB_SIZE:
                n_out += -n_out % _HEAD_MULTIPLE
            x, weight, dy = random(n_rows, n_in), random(n_in, n_out), random(n_rows, n_out)
            # y, the gradient of x, the gradient of the weight
            for left, right in ((x, weight), (dy, weight.t()), (x.t(), dy)):
                self._products += [(left, right, left @ right)] * times

    def turn(self, times: int) -> float:
        """Do all of them `times` times; seconds for one time."""
        return _seconds_each(self._multiply, times, self.precision)

    def _multiply(self) -> None:
        for left, right, result in self._products:
            torch.mm(left, right, out=result)
