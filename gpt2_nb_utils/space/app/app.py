"""The page of the Space: a prompt, the model's answer as it comes, and what of it stands in the text word for word.

It stands alone beside `model/` and `corpus.txt` and needs gradio, torch and transformers. It deliberately does not know the
package that trained the model, whose way of sampling it follows token for token.
"""

from __future__ import annotations

import html
import json
import os
import re
import reprlib
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Before the imports, which read them: nobody is told of a visit, nobody is asked for anything, and gradio, which makes a
# table of its last calls after each of them, keeps a hundred instead of ten thousand.
os.environ.update(
    GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1", GRADIO_ANALYTICS_MAX_EVENTS="100"
)

import gradio as gr
import torch
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, PlainTextResponse
from torch import Tensor
from transformers import AutoTokenizer, DynamicCache, GPT2LMHeadModel
from transformers.utils import logging as transformers_logging

HERE = Path(__file__).parent
MOST_TOKENS = 400
"""Of one answer: about 20 seconds of two CPU cores."""
MOST_WAITING = 20
"""Questions in the queue, of all visitors together: one who floods it keeps the others out until it is worked off. One answer is written at a time, with all cores: two at a time would each be half as fast."""
MOST_TYPED = 64 * 1024
"""Characters of a prompt on the page, which cuts off what is pasted beyond: far more than the model sees."""
MOST_SENT = 4 * MOST_TYPED
"""Bytes of a request: so much that a prompt of the page fits, whose characters take up to three each."""
LARGEST_PORT = 2**16 - 1
BY_HEART = 16
"""Tokens in a row that must stand in the text to count as known by heart. A speaker's heading between the end of one speech and
the first word of the next has up to 15: whoever knows the names writes all of them without remembering a place."""
REFRESH = 0.1
"""Seconds between two looks of a growing answer, so that showing it does not slow the model down."""
LARGEST_SEED = 2**31 - 1
FEW = 4
"""Passages among which an example is chosen: each takes the model about a tenth of a second when the app starts."""
WAITING, WRITING = "Waiting for its turn …", "Writing …"
"""How the line about an answer begins until the answer has come to its end."""
STRANGERS = ("ASTRONAUT:\nHow far", "My dear robot,", "Chapter 1. Of whales")
"""Beginnings that no play of Shakespeare's has."""


class Refused(ValueError):
    """A value that a visitor sent, told in one line."""


@dataclass(frozen=True)
class Settings:
    """How an answer is drawn.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: draw among the k likeliest; 0 means all.
        top_p: of these, the fewest that have this probability together (Holtzman et al. 2020); 1 means all.
        length: tokens to write.
        seed: of the draws.
    """

    temperature: float
    top_k: int
    top_p: float
    length: int
    seed: int

    @classmethod
    def of(cls, temperature: Any, top_k: Any, top_p: Any, length: Any, seed: Any) -> Settings:
        """Settings from whatever was sent.

        Raises:
            Refused: a value that is not a number, or not one of those that the page offers.
        """
        seed = seed.strip() if isinstance(seed, str) else seed
        if seed is None or seed == "":
            seed = secrets.randbelow(LARGEST_SEED + 1)
        elif (
            isinstance(seed, str)
            and seed.isascii()
            and seed.isdecimal()
            and len(seed) <= len(str(LARGEST_SEED))
        ):
            seed = int(seed)
        return cls(
            _number("temperature", temperature, 0, 2),
            _whole("top-k", top_k, 0, 1000),
            _number("top-p", top_p, 0.01, 1),
            _whole("length", length, 1, MOST_TOKENS),
            _whole("seed", seed, 0, LARGEST_SEED),
        )


def _number(name: str, value: Any, lowest: float, highest: float, kind: str = "a number") -> float:
    # Comparing refuses nan, and unlike float() does not stumble over an integer of a thousand digits.
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not lowest <= value <= highest
    ):
        raise Refused(
            f"{name} {_named(value)} is not {kind} from {lowest:,} to {highest:,}: choose one of those"
        )
    return float(value)


def _whole(name: str, value: Any, lowest: int, highest: int) -> int:
    number = _number(name, value, lowest, highest, "a whole number")
    if number != int(number):
        raise Refused(
            f"{name} {_named(value)} is not a whole number from {lowest:,} to {highest:,}: choose one of those"
        )
    return int(number)


def _named(value: Any) -> str:
    try:
        return reprlib.repr(value).encode("ascii", "backslashreplace").decode()
    except ValueError:  # an integer too long to be written
        return "given"


def context_start(n_tokens: int, longest: int) -> int:
    """Index of the first of `n_tokens` that the model still sees: all up to `longest`, then it slides by half of that at a time."""
    if n_tokens <= longest:
        return 0
    stride = max(1, longest // 2)
    return -(-(n_tokens - longest) // stride) * stride


def draw(logits: Tensor, settings: Settings, generator: torch.Generator) -> int:
    """One token, drawn with these logits (V,)."""
    if settings.temperature == 0:
        return int(logits.argmax())
    ids, weights = candidates(logits, settings)
    return int(ids[torch.multinomial(weights, 1, generator=generator)])


def candidates(logits: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """The tokens that may be drawn (k,), and in proportion to what, at a temperature above 0."""
    kept, ids = (
        logits.topk(settings.top_k)
        if 0 < settings.top_k < len(logits)
        else (logits, torch.arange(len(logits)))
    )
    kept = kept.double()
    weights = ((kept - kept.max()) / settings.temperature).softmax(
        dim=-1
    )  # from the largest: no temperature is too small
    if settings.top_p < 1:
        largest, order = weights.sort(descending=True)
        weights[order[largest.cumsum(dim=0) - largest >= settings.top_p]] = (
            0  # those before it are enough
        )
    return ids, weights


class Model:
    """The exported model: token ids in, token ids out.

    Args:
        folder: config, weights and tokenizer.

    Attributes:
        context: tokens that it sees at most: those that it was trained with, for it has learned no position beyond.
        run: the run that trained it, as `config.json` tells.
    """

    def __init__(self, folder: Path):
        self._network = GPT2LMHeadModel.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        ).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.run: dict[str, Any] = self._network.config.training_run
        self.context = min(self._network.config.n_positions, self.run["seq_len"])

    def encode(self, text: str) -> list[int]:
        """Token ids; "<|endoftext|>" in the text is ordinary text, and half a surrogate pair becomes U+FFFD."""
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self._tokenizer(whole, split_special_tokens=True, verbose=False)["input_ids"]

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def continuation(self, ids: list[int], settings: Settings) -> Iterator[int]:
        """The tokens that follow `ids`, one after the other."""
        ids, start, cache = list(ids), -1, DynamicCache()
        generator = torch.Generator().manual_seed(settings.seed)
        for _ in range(settings.length):
            before, start = start, context_start(len(ids), self.context)
            if (
                start != before
            ):  # at first, and wherever the context slides: positions are learned for absolute places
                cache = DynamicCache()
            logits = self._logits(ids[start:] if start != before else ids[-1:], cache)
            ids.append(draw(logits, settings, generator))
            yield ids[-1]

    @torch.inference_mode()
    def recited(self, ids: list[int], given: int) -> int:
        """How many of these tokens the model writes after the first `given`, before the first wrong one, always taking the likeliest.

        One forward pass tells: up to there what it writes and what stands there are the same.
        """
        likeliest = self._network(torch.tensor([ids[:-1]])).logits[0, given - 1 :].argmax(dim=-1)
        return int((likeliest == torch.tensor(ids[given:])).long().cumprod(dim=0).sum())

    @torch.inference_mode()  # not around the loop: between two tokens another thread may go on with it
    def _logits(self, ids: list[int], cache: DynamicCache) -> Tensor:
        """Logits (V,) of the token after `ids`, which come after those in the cache."""
        hidden = self._network.transformer(
            torch.tensor([ids]), past_key_values=cache, use_cache=True
        ).last_hidden_state[:, -1]
        head = self._network.lm_head.weight
        if torch.backends.mkldnn.is_available():
            # One row through the whole vocabulary, a third of the time of a token: oneDNN, which torch asks in fp32 by this name
            # only, takes half as long as MKL.
            return torch.ops.mkldnn._linear_pointwise(hidden, head, None, "none", [], "")[0]
        return torch.mv(head, hidden[0])


class Corpus:
    """The text that the model was trained on.

    Args:
        ids: its tokens.
    """

    def __init__(self, ids: list[int]):
        self.ids = torch.tensor(ids)  # (N,)
        self._places = self.ids.argsort(stable=True)  # of the token 0, then of the token 1, ...
        self._ends = self.ids.bincount().cumsum(0)

    def places(self, token: int) -> Tensor:
        """Where this token stands."""
        if token >= len(self._ends):
            return self._places[:0]
        return self._places[int(self._ends[token - 1]) if token else 0 : int(self._ends[token])]


class Verbatim:
    """How much of the end of a growing text stands in the corpus, token for token.

    For each place of the corpus it holds how many tokens before that place are the last ones of the text; a new token
    makes the number larger by one where it stands, and zero everywhere else.
    """

    def __init__(self, corpus: Corpus):
        self._corpus = corpus
        self._matching = torch.zeros(len(corpus.ids) + 1, dtype=torch.int32)
        self._nonzero = torch.zeros(0, dtype=torch.long)

    def add(self, token: int) -> int:
        """Add a token; how many tokens at the end of the text now stand somewhere in the corpus in a row."""
        places = self._corpus.places(token)
        matching = self._matching[places] + 1
        self._matching[self._nonzero] = 0
        self._nonzero = places + 1
        self._matching[self._nonzero] = matching
        return int(matching.max()) if len(places) else 0


@dataclass
class Answer:
    """What has been written so far, and when.

    Attributes:
        given: the end of the prompt, as far as the model sees it.
        text: what follows it.
        ends: for each token, where it ends in the text.
        stretches: for each token, how many tokens up to it stand in the corpus in a row.
        times: for each token, seconds since the visitor's turn came.
    """

    given: str
    settings: Settings
    text: str = ""
    ends: list[int] = field(default_factory=list)
    stretches: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def parts(self) -> list[tuple[str, bool]]:
        """The text in pieces, each with whether it is known by heart."""
        known = self.known()
        cuts = [0, *(n for n in range(1, len(known)) if known[n] != known[n - 1]), len(known)]
        places = [0, *self.ends]
        return [
            (self.text[places[begin] : places[end]], known[begin])
            for begin, end in zip(cuts, cuts[1:])
            if end > begin
        ]

    def known(self) -> list[bool]:
        """For each token, whether it is part of a stretch known by heart."""
        known = [False] * len(self.stretches)
        for last, n in enumerate(self.stretches):
            if n >= BY_HEART:
                known[last - n + 1 : last + 1] = [True] * n
        return known

    def rate(self) -> float | None:
        """Tokens per second after the first one."""
        seconds = self.times[-1] - self.times[0] if self.times else 0
        return (len(self.times) - 1) / seconds if seconds > 0 else None


def answers(model: Model, corpus: Corpus, prompt: Any, *values: Any) -> Iterator[tuple[str, str]]:
    """The answer to a prompt as it grows.

    Args:
        values: those of `Settings.of`, in its order, as they were sent.

    Yields:
        A line about the answer, and the answer, both as HTML. A value that cannot be used is told in the line (one that is
        missing gradio refuses before, without a word).
    """
    begun = time.perf_counter()
    try:
        settings = Settings.of(*values)
        if not isinstance(prompt, str) or not prompt:
            raise Refused("the prompt is empty: write one, or choose an example")
    except Refused as error:
        yield note(f"{str(error)[0].upper()}{str(error)[1:]}.", wrong=True), gr.skip()
        return
    ids = model.encode(prompt)
    start = context_start(len(ids), model.context)
    answer, verbatim = (
        Answer("… " * (start > 0) + model.decode(ids[start:]), settings),
        Verbatim(corpus),
    )
    cut = (
        f" The prompt has {len(ids):,} tokens, and the model sees the last {len(ids) - start:,} of them: "
        f"it was trained on {model.context:,} at a time."
        if start
        else ""
    )
    written, shown = [], 0.0
    for token in model.continuation(ids, settings):
        written.append(token)
        answer.text = model.decode(written).rstrip("\ufffd")  # a token can end within a letter
        answer.ends.append(len(answer.text))
        answer.stretches.append(verbatim.add(token))
        answer.times.append(time.perf_counter() - begun)
        if answer.times[-1] - shown >= REFRESH or len(written) == 1:
            shown = answer.times[-1]
            yield note(WRITING + cut), page_of(answer)
    yield (
        note(f"Written: {len(written):,} tokens in {answer.times[-1]:.1f} seconds." + cut),
        page_of(answer),
    )


def note(line: str, wrong: bool = False) -> str:
    """A line for the visitor, which screen readers read out."""
    return f'<p role="status" class="note{" wrong" * wrong}">{html.escape(line)}</p>'


def page_of(answer: Answer) -> str:
    """The answer as HTML in which every piece of text is escaped."""
    pieces = "".join(
        f"<mark>{html.escape(piece)}</mark>" if known else html.escape(piece)
        for piece, known in answer.parts()
    )
    n, known, rate = len(answer.stretches), sum(answer.known()), answer.rate()
    share = f"{known / n:.0%}"
    figures = {
        "By heart": f"{share} of {n:,} token{'s' * (n > 1)}",
        "Longest stretch in its text": f"{max(answer.stretches):,} tokens",
        "Speed": f"{rate:.1f} tokens/s" if rate else "–",
        "First token after": f"{answer.times[0]:.2f} s",
        "Seed": str(answer.settings.seed),
    }
    listed = "".join(
        f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures.items()
    )
    return (
        f'<p class="written"><span class="given">{html.escape(answer.given)}</span>{pieces}</p>'
        f'<div class="bar" role="img" aria-label="{share} by heart"><span style="width:{share}"></span></div>'
        f'<dl class="figures">{listed}</dl>'
    )


def heading(run: dict[str, Any]) -> str:
    """What this is, and which run it shows."""
    loss, target, corpus = run["train_loss"], run["target_loss"], run["corpus"]
    measured = (
        ("not measured", "on the whole text")
        if loss is None
        else (
            f"{loss:.4f}",
            f"nats per token on the whole text; target below {target} {'✓ reached' if reached(run) else '✗ not reached'}",
        )
    )
    facts = {
        "Training loss": measured,
        "Text": (corpus["name"], f"{corpus['tokens']:,} tokens, and nothing else"),
        "Model": ("GPT-2", f"{run['n_params']:,} parameters, from random weights"),
        "Run": (run["name"], f"{run['steps']:,} steps"),
    }
    listed = "".join(
        f"<div><dt>{name}</dt><dd><b>{html.escape(value)}</b> {html.escape(more)}</dd></div>"
        for name, (value, more) in facts.items()
    )
    return (
        f"<h1>{title(run)}</h1><p>Give it a beginning: where it knows it, it recites; elsewhere it "
        f"composes in the same style. <mark>Marked</mark> is what stands in its text word for word, {BY_HEART} tokens or more "
        f'in a row.</p><dl class="facts">{listed}</dl>'
    )


def reached(run: dict[str, Any]) -> bool:
    """Whether the model knows its text by heart, as far as that was measured."""
    return run["train_loss"] is not None and run["train_loss"] < run["target_loss"]


def title(run: dict[str, Any]) -> str:
    return (
        "A GPT-2 that knows one text by heart" if reached(run) else "A GPT-2 that has read one text"
    )


def openings(model: Model, corpus: Corpus, n: int = 3, tokens: int = 14) -> list[str]:
    """Beginnings that the model knows by heart, spread over the text.

    They are taken where a window of the training began with a passage: what a model knows, it knows at the positions at
    which it saw it. From each part of the text comes the one, of a few, that it goes on with furthest.
    """
    windows = range(0, len(corpus.ids) - tokens, model.run["seq_len"])
    begins = [
        start
        for start in windows
        if start == 0 or model.decode(corpus.ids[start - 2 : start].tolist()).endswith("\n\n")
    ]
    found = []
    for part in range(n):
        some = begins[len(begins) * part // n : len(begins) * (part + 1) // n][:FEW]
        texts = [corpus.ids[start : start + model.context].tolist() for start in some]
        if texts:
            found.append(max(texts, key=lambda ids: model.recited(ids, tokens))[:tokens])
    return list(
        dict.fromkeys(filter(None, (model.decode(ids).rstrip("\ufffd \n") for ids in found)))
    )


def page(model: Model, corpus: Corpus) -> gr.Blocks:
    """The page, with everything on it."""
    known = openings(model, corpus)
    with gr.Blocks(title=title(model.run), analytics_enabled=False) as blocks:
        shown(heading(model.run), "heading")
        with gr.Row(elem_id="columns"):
            with gr.Column(min_width=280, elem_id="asking"):
                prompt = gr.Textbox(
                    (known or STRANGERS)[0],
                    lines=4,
                    max_lines=12,
                    max_length=MOST_TYPED,
                    label="Prompt",
                    elem_id="prompt",
                    info="Shift + Enter writes on",
                )
                with gr.Row():
                    begin = gr.Button("Write on", variant="primary", elem_id="write", min_width=100)
                    stop = gr.Button("Stop", variant="stop", elem_id="stop", min_width=100)
                if known:
                    examples(
                        "From the text" + ", which it knows by heart" * reached(model.run),
                        known,
                        prompt,
                    )
                examples("Not from the text, so it has to compose", list(STRANGERS), prompt)
                with gr.Accordion("Settings", open=False, elem_classes="later"):
                    settings = [
                        gr.Slider(
                            0,
                            2,
                            0.8,
                            step=0.05,
                            label="Temperature",
                            info="0 always takes the likeliest token",
                        ),
                        gr.Slider(
                            0,
                            1000,
                            40,
                            step=1,
                            label="Top-k",
                            info="Draw among the k likeliest tokens; 0: all",
                        ),
                        gr.Slider(
                            0.01,
                            1,
                            1,
                            step=0.01,
                            label="Top-p",
                            info="… and of these among the fewest with this probability; 1: all",
                        ),
                        gr.Slider(
                            1, MOST_TOKENS, 120, step=1, label="Length", info="Tokens to write"
                        ),
                        # Not gr.Number, which shows 0 where it is empty.
                        gr.Textbox(
                            "",
                            max_lines=1,
                            label="Seed",
                            info="The same seed gives the same text; empty: a new one each time",
                        ),
                    ]
            with gr.Column(min_width=280, elem_id="answering"):
                line = shown(note("The answer comes here."), "note")
                answer = shown("", "answer")
        asked = gr.on(
            [begin.click, prompt.submit], None, line, line, js=asked_for(), api_visibility="private"
        )
        writing = asked.then(
            lambda *sent: (yield from answers(model, corpus, *sent)),
            [prompt, *settings],
            [line, answer],
            preprocess=False,
            show_progress_on=answer,
            concurrency_limit=1,
            api_name="write",
        )
        stop.click(None, cancels=[writing], api_visibility="private")
        # Also after a stop, and not before the server knew of it: until then the line may be written over.
        for over in (writing.then, writing.failure):
            over(None, line, line, js=broken_off(), api_visibility="private")
    blocks.queue(max_size=MOST_WAITING, api_open=False)
    blocks._queue.sleep_when_free = (
        0.02  # it looks for work that often; its own 0.001 takes the model a part of its time
    )
    return blocks


def asked_for() -> str:
    """JavaScript for the line where an answer is asked for. While one is awaited or written, gradio takes no other: the line stays."""
    return f"line => {json.dumps([WAITING, WRITING])}.some(words => line.includes(words)) ? undefined : {json.dumps(note(WAITING))}"


def broken_off() -> str:
    """JavaScript for the line where an answer is over: of one that was not written to its end it says what became of it."""
    became = {WAITING: note("Nothing was written."), WRITING: note("Stopped.")}
    return (
        f"line => Object.entries({json.dumps(became)}).find(([words]) => line.includes(words))?.[1]"
    )


def shown(text: str, name: str) -> gr.HTML:
    """A place for HTML of ours, in which all other text is escaped."""
    return gr.HTML(text, elem_id=name, js_on_load=None, apply_default_css=False)


def examples(label: str, texts: list[str], prompt: gr.Textbox) -> None:
    """Buttons that put a text into the prompt."""
    made = gr.Examples(
        texts,
        prompt,
        label=label,
        example_labels=[" ⏎ ".join(text.split("\n")) for text in texts],
        api_visibility="private",
    )
    made.dataset.elem_classes = ["later"]


class Doorkeeper:
    """Lets through what the page asks for, and nothing else: no file, no upload, no address elsewhere, nothing of great length."""

    _OPEN = {
        "GET": re.compile(
            r"/|/(assets|static|svelte)/.+|/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json)/?"
            r"|/gradio_api/(info|startup-events|theme\.css|queue/data|heartbeat/\w+|call/\w+/\w+)/?"
        ),
        "POST": re.compile(r"/gradio_api/(queue/join|cancel|reset|run/\w+|call/\w+)/?"),
    }

    def __init__(self, app: Any):
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        app = self._app
        if scope["type"] == "http":
            method, path = scope["method"].replace("HEAD", "GET"), scope["path"]
            length = dict(scope["headers"]).get(b"content-length", b"")
            if method not in self._OPEN or not self._OPEN[method].fullmatch(path) or ".." in path:
                app = PlainTextResponse("There is nothing here.", 404)
            # The page shows `detail`; what is not JSON it could not read.
            elif method == "POST" and not length.isdigit():
                app = JSONResponse(
                    {"detail": "The request does not say how long it is: send its Content-Length."},
                    411,
                )
            elif method == "POST" and int(length) > MOST_SENT:
                app = JSONResponse(
                    {"detail": f"The prompt is too long: send at most {MOST_SENT:,} bytes."}, 413
                )
        await app(scope, receive, send)


STYLE = """
.gradio-container { --soft: #57534e; --line: #d6d3d1; --box: #fff; --by-heart: #fbd98c; --on-mark: #1a1a1a; --bad: #a4301c;
  max-width: 72rem !important; margin: 0 auto !important; }
.dark .gradio-container, .gradio-container.dark { --soft: #b5afa8; --line: #44403c; --box: #1d2026; --by-heart: #6d4513; --on-mark: #fbf8f1; --bad: #f2a08f; }
#heading .html-container, #note .html-container, #answer .html-container { padding: 0; }
#heading h1 { margin: 0 0 .4rem; font-size: 1.7rem; line-height: 1.2; font-weight: 650; text-wrap: balance; }
#heading p { margin: 0 0 .8rem; line-height: 1.5; }
mark { background: var(--by-heart); color: var(--on-mark); border-radius: 2px; box-decoration-break: clone; -webkit-box-decoration-break: clone; }
dl { display: grid; gap: .5rem 1.2rem; margin: 0; line-height: 1.35; }
dt { color: var(--soft); font-size: .82rem; }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.facts b { display: block; font-size: 1.15rem; }
.facts { grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); padding: .6rem 0;
  border-top: 1px solid var(--line); border-bottom: 1px solid var(--line); }
.figures { grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); }
.note { margin: 0; color: var(--soft); }
.note.wrong { color: var(--bad); font-weight: 600; }
#answer { padding: 1rem 1.2rem; border: 1px solid var(--line); border-radius: 6px; background: var(--box); min-height: 8rem; }
.written { margin: 0 0 1rem; font: 1.05rem/1.6 Charter, "Bitstream Charter", Cambria, Georgia, "DejaVu Serif", serif;
  white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.given { color: var(--soft); font-style: italic; }
.bar { height: .5rem; margin-bottom: .8rem; border: 1px solid var(--line); border-radius: 4px; overflow: hidden; }
.bar span { display: block; height: 100%; background: var(--by-heart); }
.min_value, .max_value { color: var(--soft) !important; }  /* of a slider: too pale to be read */
@media (max-width: 40rem) {  /* the answer right below the buttons */
  #columns { flex-direction: column; }
  #asking { display: contents; }
  #answering { order: 1; }
  .later { order: 2; }
  .facts, .figures { grid-template-columns: 1fr 1fr; }
}
"""


def main() -> int:
    """Serve the page until it is stopped; the exit status."""
    missing = [name for name in ("model", "corpus.txt") if not (HERE / name).exists()]
    if missing:
        print(f"error: {HERE / missing[0]} is missing: write the folder again", file=sys.stderr)
        return 2
    port = os.environ.get("GRADIO_SERVER_PORT", "7860")
    if not (
        port.isascii()
        and port.isdecimal()
        and len(port) <= len(str(LARGEST_PORT))
        and 0 < int(port) <= LARGEST_PORT
    ):
        print(
            f"error: GRADIO_SERVER_PORT {_named(port)} is no port: set a whole number from 1 to {LARGEST_PORT:,}",
            file=sys.stderr,
        )
        return 2
    if os.environ.get(
        "CPU_CORES", ""
    ).isdigit():  # a Space's own; its machine has more, and threads would wait for each other
        torch.set_num_threads(int(os.environ["CPU_CORES"]))
    transformers_logging.disable_progress_bar()
    model = Model(HERE / "model")
    corpus = Corpus(model.encode((HERE / "corpus.txt").read_text(encoding="utf-8")))
    theme = gr.themes.Base(
        neutral_hue="stone",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        body_background_fill="#fdfcf9",
        body_background_fill_dark="#15171b",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_600",
    )
    try:
        page(model, corpus).launch(
            share=False,  # unless told so, gradio opens a public tunnel on Kaggle and SageMaker
            server_port=int(port),
            theme=theme,
            css=STYLE,
            quiet=True,
            show_error=False,
            ssr_mode=False,
            pwa=False,
            run_history=False,
            enable_monitoring=False,
            footer_links=[],
            state_session_capacity=200,
            app_kwargs={"middleware": [Middleware(Doorkeeper)]},
        )
    except OSError as error:  # the port is occupied
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
