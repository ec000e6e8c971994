"""One file, two libraries: what `transformers` makes of an exported model beside what this package makes of it.

It computes and compares. It deliberately does not show anything (`show` does).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2_nb_utils.model.gpt2 import GPT2
from gpt2_nb_utils.model.sampling import generate
from gpt2_nb_utils.space.folder import Space
from gpt2_nb_utils.space.hf_format import needed
from gpt2_nb_utils.space.hf_reader import read_hf
from gpt2_nb_utils.tokenization.bpe import decode, encode

TOLERANCE = 1e-4
"""Largest difference of two logits that counts as none: both libraries compute in fp32, but add up in another order."""
_LONGEST, _MOST_NEW = 256, 48


@dataclass(frozen=True)
class Parity:
    """How far two libraries agree, in fp32, on the first T tokens of a text.

    Attributes:
        apart: |ours − theirs| for each logit, both with the stored weights (T, V).
        rounded: |stored weights − the run's own weights| for each logit, both ours (T, V); all zero for float32.
        margins: by how much the likeliest token leads the next one (T,).
        prompt: the text that both continued, always with the likeliest token.
        ours, theirs: the prompt and its continuations.
        own: the same with the run's own weights.
        n_prompt: tokens of the prompt.
        tokens_alike: whether both tokenizers cut the whole text alike.
        n_tokens: into how many tokens.
    """

    apart: Tensor
    rounded: Tensor
    margins: Tensor
    prompt: str
    ours: list[int]
    theirs: list[int]
    own: list[int]
    n_prompt: int
    tokens_alike: bool
    n_tokens: int

    @property
    def holds(self) -> bool:
        """Whether the libraries agree in everything."""
        return (
            self.apart.max().item() <= TOLERANCE and self.ours == self.theirs and self.tokens_alike
        )


@torch.no_grad()
def compare(space: Space, own: GPT2) -> Parity:
    """Load an exported model with `transformers` and with this package, and let both read and continue its text.

    Args:
        space: the Space's folder.
        own: the model with the weights of its run.

    Raises:
        UserError: `transformers` is not installed, or the folder was changed.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="IProgress not found"
        )  # tqdm's, whose bars are switched off here
        transformers = needed("transformers")
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
    source = read_hf(space.model)
    stored = source.load_model()
    other = transformers.AutoModelForCausalLM.from_pretrained(
        source.folder, dtype=torch.float32, local_files_only=True
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.folder, local_files_only=True)

    text = (space.folder / "corpus.txt").read_text(encoding="utf-8")
    all_ids = encode(text)
    ids = torch.from_numpy(all_ids)[: min(source.settings["seq_len"], _LONGEST)]
    logits, reference, before = (
        stored(ids[None])[0],
        other(ids[None]).logits[0],
        own(ids[None])[0],
    )  # (T, V) each
    leading = before.topk(2, dim=-1).values
    prompt = ids[: max(1, len(ids) // 4)]
    n_new = max(
        1, min(len(ids) - len(prompt), _MOST_NEW)
    )  # within the context, where neither has to slide
    theirs = other.generate(
        prompt[None],
        attention_mask=torch.ones_like(prompt)[None],
        do_sample=False,
        max_new_tokens=n_new,
    )
    return Parity(
        apart=(logits - reference).abs(),
        rounded=(logits - before).abs(),
        margins=leading[:, 0] - leading[:, 1],
        prompt=decode(prompt),
        ours=generate(stored, [prompt], n_new, temperature=0)[0].tolist(),
        theirs=theirs[0].tolist(),
        own=generate(own, [prompt], n_new, temperature=0)[0].tolist(),
        n_prompt=len(prompt),
        tokens_alike=tokenizer(text)["input_ids"] == all_ids.tolist(),
        n_tokens=len(all_ids),
    )
