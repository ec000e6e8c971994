"""Hugging Face's GPT-2 with our sizes and weights: its training step as its users write it, and its `generate`.

Attention, loss and cache are the library's own defaults. Dropout is 0, as in ours.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2_nb_utils.bench.steps import TimedStep
from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.model.gpt2 import GPT2
from gpt2_nb_utils.training.optimizer import build_optimizer
from gpt2_nb_utils.training.precision import Precision
from gpt2_nb_utils.training.start import model_sizes


def transformers_gpt2(config: RunConfig) -> Any:
    """A `GPT2LMHeadModel` with the weights that ours starts from."""
    import transformers

    sizes = model_sizes(config)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=sizes.vocab_size,
            n_positions=sizes.block_size,
            n_embd=sizes.n_embd,
            n_layer=sizes.n_layer,
            n_head=sizes.n_head,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    model.load_state_dict(
        GPT2(sizes, seed=config.seed).state_dict(), strict=False
    )  # the head's key is missing: it is tied
    model.tie_weights()
    return model


class TransformersStep(TimedStep):
    """A plain training step with the library's model, and the optimizer and the clipping of ours.

    Args:
        compiled: put model and loss through torch.compile.
    """

    def __init__(self, config: RunConfig, compiled: bool = False):
        super().__init__(config)
        self.model = transformers_gpt2(config).to(self.precision.device).train()
        # Its parameters have the names of ours, by which they are grouped.
        self.optimizer = build_optimizer(self.model, config, self.precision.muon_dtype)
        self.loss = torch.compile(self._loss) if compiled else self._loss

    def step(self, micro_batches: list[tuple[Tensor, Tensor]]) -> float:
        device = self.precision.device
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for x, y in micro_batches:
            with self.precision.autocast():
                loss = self.loss(x.to(device), y.to(device)) / len(micro_batches)
            self.scaler.scale(loss).backward()
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self.config.clip_grad or float("inf")
        )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return float(total)

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        # What the library does with `labels`, but for the shift: y stands one token on already.
        logits = self.model(input_ids=x, use_cache=False).logits.float()  # (B, T, V)
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())


class TransformersSampling:
    """The library's `generate`, always taking the likeliest token.

    Args:
        prompt: token ids, (t,).
    """

    def __init__(self, config: RunConfig, prompt: Tensor):
        self.precision = Precision.of(config)
        self.model = transformers_gpt2(config).to(self.precision.device).eval()
        self.prompt = prompt[None].to(self.precision.device)  # (1, t)

    def turn(self, new_tokens: int) -> tuple[float, list[int]]:
        """Continue the prompt; seconds, and the new ids."""
        self.precision.wait()
        begun = time.perf_counter()
        ids = self.model.generate(
            self.prompt,
            attention_mask=torch.ones_like(self.prompt),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        self.precision.wait()
        return time.perf_counter() - begun, ids[0, self.prompt.size(1) :].tolist()
