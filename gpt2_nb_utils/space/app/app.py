"""The page of the Space: a prompt, the model's answer as it grows, and what of it appears verbatim in the text.

It needs gradio, torch and transformers, and the files beside it: `model/` and `corpus.txt`. Its sampling draws the same
tokens as the package that trained the model.
"""

from __future__ import annotations

import asyncio
import html
import itertools
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
from typing import Annotated, Any

# Before the imports, which read them: no analytics, no look-ups on the Hub, and gradio, which makes a table of its last calls
# after each of them, keeps a hundred instead of ten thousand.
os.environ.update(
    GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1", GRADIO_ANALYTICS_MAX_EVENTS="100"
)

import gradio as gr
import jinja2
import pydantic
import torch
import uvicorn
from fastapi import FastAPI
from gradio import queueing
from gradio.route_utils import FnIndexInferError
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse, PlainTextResponse
from torch import Tensor
from transformers import AutoTokenizer, DynamicCache, GPT2LMHeadModel
from transformers.utils import logging as transformers_logging
from uvicorn.protocols.http.h11_impl import H11Protocol

HERE = Path(__file__).parent
MOST_TOKENS = 400
"""Of one answer: about 20 seconds of two CPU cores."""
MOST_WAITING = 20
"""Requests in the queue. One answer is written at a time, with all cores: two at a time would each be half as fast."""
MOST_OF_ONE = 5
"""Of these, requests from one address: whoever sends more leaves room for others."""
UNREAD = 5.0
"""Seconds after which a request is dropped whose messages nobody reads."""
PROXIES = "127.0.0.0/8,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16"
"""Addresses inside a Space, from which a header may name that of the visitor."""
PATIENCE = 10.0
"""Seconds in which a request must have arrived whole."""
MOST_TYPED = 64 * 1024
"""Characters of a prompt on the page, which cuts off what is pasted beyond: far more than the model sees."""
MOST_SENT = 4 * MOST_TYPED
"""Bytes of a request: so much that a prompt of the page fits, whose characters take up to three each."""
MEMORISED = 16
"""Tokens in a row that must appear in the text to count as memorised. A speaker's heading between the end of one speech and
the first word of the next has up to 15: a model that knows the names writes all of them without remembering a place."""
REFRESH = 0.1
"""Seconds between two states of a growing answer on the page, so that showing it does not slow the model down."""
LARGEST_SEED = 2**31 - 1
WAITING, WRITING = "Waiting for its turn …", "Writing …"
"""How the line about an answer begins until the answer is complete."""
STRANGERS = ("ASTRONAUT:\nHow far", "My dear robot,", "Chapter 1. Of whales")
"""Beginnings that no play of Shakespeare's has."""


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(strict=True))
class Settings:
    """How an answer is drawn.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: draw among the k most likely; 0 means all.
        top_p: of these, the fewest that have this probability together (Holtzman et al. 2020); 1 means all.
        length: tokens to write.
        seed: of the draws; also as text, as the page sends it.

    Raises:
        pydantic.ValidationError: a value that is not one of those that the page offers.
    """

    temperature: Annotated[float, pydantic.Field(ge=0, le=2)]
    top_k: Annotated[int, pydantic.Field(ge=0, le=1000)]
    top_p: Annotated[float, pydantic.Field(ge=0.01, le=1)]
    length: Annotated[int, pydantic.Field(ge=1, le=MOST_TOKENS)]
    seed: Annotated[int, pydantic.Field(ge=0, le=LARGEST_SEED, strict=False)]


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
    # Relative to the largest: no temperature is too small.
    weights = ((kept - kept.max()) / settings.temperature).softmax(dim=-1)
    if settings.top_p < 1:
        largest, order = weights.sort(descending=True)
        # Left out where those before it are enough.
        weights[order[largest.cumsum(dim=0) - largest >= settings.top_p]] = 0
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

    def encode_long(self, text: str) -> Tensor:
        """Token ids (N,) of a text of any length, part by part: the tokenizer takes hundreds of bytes for each of them.

        GPT-2 joins no line break to the word before it, so a cut there changes no token.
        """
        parts = re.finditer(r".{100000}.*?\S(?=\n)|.+", text, re.DOTALL)
        return torch.cat([torch.tensor(self.encode(part[0]), dtype=torch.int32) for part in parts])

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def continuation(self, ids: list[int], settings: Settings) -> Iterator[int]:
        """The tokens that follow `ids`, one after the other."""
        ids, start, cache = list(ids), -1, DynamicCache()
        generator = torch.Generator().manual_seed(settings.seed)
        for _ in range(settings.length):
            before, start = start, context_start(len(ids), self.context)
            new = ids[-1:]
            if start != before:  # at first, and wherever the context slides: positions are absolute
                new, cache = ids[start:], DynamicCache()
            ids.append(draw(self._logits(new, cache), settings, generator))
            yield ids[-1]

    @torch.inference_mode()  # not around the loop: between two tokens another thread may continue it
    def _logits(self, ids: list[int], cache: DynamicCache) -> Tensor:
        """Logits (V,) of the token after `ids`, which come after those in the cache."""
        seen = self._network(
            torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        return seen.logits[0, -1]


class Verbatim:
    """How much of the end of a growing text appears verbatim in the corpus.

    Args:
        corpus: tokens of the text that the model was trained on (N,).
    """

    def __init__(self, corpus: Tensor):
        self._corpus = corpus
        # For each place of the corpus, how many tokens before it are the last ones of the text.
        self._matching = torch.zeros(len(corpus) + 1, dtype=torch.int32)

    def add(self, token: int) -> int:
        """Add a token; how many tokens in a row at the end of the text now appear somewhere in the corpus."""
        self._matching[1:] = (self._matching[:-1] + 1) * (self._corpus == token)
        return int(self._matching[1:].max())


@dataclass
class Answer:
    """What has been written so far, and when.

    Attributes:
        given: the end of the prompt, as far as the model sees it.
        text: what follows it.
        ends: for each token, where it ends in the text.
        known: for each token, whether it is part of a memorised stretch.
        longest: tokens of the longest stretch that appears in the corpus.
        times: for each token, seconds since the visitor's turn came.
    """

    given: str
    settings: Settings
    text: str = ""
    ends: list[int] = field(default_factory=list)
    known: list[bool] = field(default_factory=list)
    longest: int = 0
    times: list[float] = field(default_factory=list)

    def add(self, text: str, stretch: int, seconds: float) -> None:
        """Add a token.

        Args:
            text: with this token.
            stretch: how many tokens in a row, up to this one, appear in the corpus.
        """
        self.text = text
        self.ends.append(len(text))
        self.known.append(False)
        if stretch >= MEMORISED:
            self.known[-stretch:] = [True] * stretch
        self.longest = max(self.longest, stretch)
        self.times.append(seconds)

    def parts(self) -> Iterator[tuple[str, bool]]:
        """The text in pieces, each with whether it is memorised."""
        end = 0
        for known, tokens in itertools.groupby(
            zip(self.known, self.ends), key=lambda pair: pair[0]
        ):
            begin, end = end, list(tokens)[-1][1]
            yield self.text[begin:end], known

    def rate(self) -> float | None:
        """Tokens per second after the first one."""
        seconds = self.times[-1] - self.times[0]
        return (len(self.times) - 1) / seconds if seconds > 0 else None


def answers(model: Model, corpus: Tensor, prompt: Any, *values: Any) -> Iterator[tuple[str, str]]:
    """The answer to a prompt as it grows.

    Args:
        values: temperature, top-k, top-p, length and seed, as they were sent; an empty seed is drawn.

    Yields:
        A line about the answer, and the answer, both as HTML. The line names a value that cannot be used.
    """
    begun = time.perf_counter()
    try:
        *others, seed = values
        if seed is None or str(seed).strip() == "":
            seed = secrets.randbelow(LARGEST_SEED + 1)
        settings = Settings(**dict(zip(Settings.__dataclass_fields__, (*others, seed))))
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        name = problem["loc"][0].replace("_", "-").capitalize()
        yield (
            note(f"{name} {shortened(problem['input'])}: {problem['msg']}.", wrong=True),
            gr.skip(),
        )
        return
    if not isinstance(prompt, str) or not prompt:
        yield note("The prompt is empty: write one, or choose an example.", wrong=True), gr.skip()
        return
    ids = model.encode(prompt)
    start = context_start(len(ids), model.context)
    answer = Answer("… " * (start > 0) + model.decode(ids[start:]), settings)
    verbatim = Verbatim(corpus)
    cut = (
        f" The prompt has {n_tokens(len(ids))}, and the model sees the last {len(ids) - start:,} of them: "
        f"it was trained on {model.context:,} at a time."
        if start
        else ""
    )
    written, shown = [], 0.0
    for token in model.continuation(ids, settings):
        written.append(token)
        text = model.decode(written).rstrip("\ufffd")  # a token can end within a character
        seconds = time.perf_counter() - begun
        answer.add(text, verbatim.add(token), seconds)
        if seconds - shown >= REFRESH or len(written) == 1:
            shown = seconds
            yield note(WRITING + cut), page_of(answer)
    yield (
        note(f"Written: {n_tokens(len(written))} in {seconds:.1f} seconds." + cut),
        page_of(answer),
    )


def shortened(value: Any) -> str:
    """A value of a visitor as text for a line."""
    return reprlib.repr(value).encode("ascii", "backslashreplace").decode()


def note(line: str, wrong: bool = False) -> str:
    """A line for the visitor, which screen readers read out."""
    return f'<p role="status" class="note{" wrong" * wrong}">{html.escape(line)}</p>'


ASKED = f"""line => line.includes("{WAITING}") || line.includes("{WRITING}") ? undefined
  : {json.dumps(note(WAITING))}"""
"""JavaScript for the line where an answer is asked for: gradio takes no other while one is awaited or written."""
OVER = f"""line => line.includes("{WAITING}") ? {json.dumps(note("Nothing was written."))}
  : line.includes("{WRITING}") ? {json.dumps(note("Stopped."))} : undefined"""
"""JavaScript for the line where an answer is over: of one that was not written to its end it says what became of it."""
LIST = """
{%- macro list(kind, items) -%}
<dl class="{{ kind }}">{% for item in items %}<div><dt>{{ item[0] }}</dt><dd>
{%- if item[2] %}<b>{{ item[1] }}</b> {{ item[2] }}{% else %}{{ item[1] }}{% endif %}</dd></div>{% endfor %}</dl>
{%- endmacro -%}
"""
ANSWER = jinja2.Template(
    LIST
    + """<p class="written"><span class="given">{{ answer.given }}</span>
{%- for text, known in answer.parts() %}{% if known %}<mark>{{ text }}</mark>{% else %}{{ text }}{% endif %}{% endfor %}</p>
<div class="bar" role="img" aria-label="{{ share }} memorised"><span style="width:{{ share }}"></span></div>
{{- list("figures", figures) }}""",
    autoescape=True,
)
HEADING = jinja2.Template(
    LIST
    + """<h1>{{ title }}</h1><p>Give it a beginning: where it knows it, it recites; elsewhere it composes in the same style.
<mark>Marked</mark> is what appears in its text verbatim, {{ memorised }} tokens or more in a row.</p>
{{- list("facts", facts) }}""",
    autoescape=True,
)


def page_of(answer: Answer) -> str:
    """The answer as HTML in which every piece of text is escaped."""
    n, rate = len(answer.known), answer.rate()
    share = f"{sum(answer.known) / n:.0%}"
    figures = [
        ("Memorised", f"{share} of {n_tokens(n)}"),
        ("Longest stretch in its text", n_tokens(answer.longest)),
        ("Speed", f"{rate:.1f} tokens/s" if rate else "–"),
        ("First token after", f"{answer.times[0]:.2f} s"),
        ("Seed", answer.settings.seed),
    ]
    return ANSWER.render(answer=answer, share=share, figures=figures)


def n_tokens(n: int) -> str:
    return f"{n:,} token{'s' * (n != 1)}"


def heading(run: dict[str, Any]) -> str:
    """What this is, and which run it shows."""
    loss, target, corpus = run["train_loss"], run["target_loss"], run["corpus"]
    facts = [
        ("Training loss", "not measured", "on the whole text")
        if loss is None
        else (
            "Training loss",
            f"{loss:.4f}",
            f"nats per token on the whole text; {'' if reached(run) else 'not '}below {target}",
        ),
        ("Text", corpus["name"], f"{n_tokens(corpus['tokens'])}, and nothing else"),
        ("Model", "GPT-2", f"{run['n_params']:,} parameters, from random weights"),
        ("Run", run["name"], f"{run['steps']:,} steps. {run['verdict']}"),
    ]
    return HEADING.render(title=title(run), memorised=MEMORISED, facts=facts)


def reached(run: dict[str, Any]) -> bool:
    """Whether the model has memorised its text, as far as that was measured."""
    return run["train_loss"] is not None and run["train_loss"] < run["target_loss"]


def title(run: dict[str, Any]) -> str:
    return f"A GPT-2 that has {'memorised' if reached(run) else 'read'} one text"


def openings(model: Model, corpus: Tensor, n: int = 3, tokens: int = 14) -> list[str]:
    """Beginnings from the text, spread over it.

    They are taken where a window of the training began with a passage: what a model knows, it knows at the positions at
    which it saw it.
    """
    begins = [
        start
        for start in range(0, len(corpus) - tokens, model.run["seq_len"])
        if start == 0 or model.decode(corpus[start - 2 : start].tolist()).endswith("\n\n")
    ]
    chosen = [begins[len(begins) * part // n] for part in range(n)] if begins else []
    texts = [model.decode(corpus[start : start + tokens].tolist()) for start in chosen]
    return list(dict.fromkeys(filter(None, (text.rstrip("\ufffd \n") for text in texts))))


SLIDERS = (
    ("Temperature", 0, 2, 0, 0.05, "0 always takes the most likely token"),
    ("Top-k", 0, 1000, 40, 1, "Draw among the k most likely tokens; 0: all"),
    ("Top-p", 0.01, 1, 1, 0.01, "… and of these among the fewest with this probability; 1: all"),
    ("Length", 1, MOST_TOKENS, 120, 1, "Tokens to write"),
)
"""Of the page, but for the seed: label, lowest, highest and first value, step, explanation."""


RECITE, IMPROVISE = "Recite", "Improvise"
"""The two modes: the most likely token each time, which is how a model recites; or a draw, at the temperature below."""
IMPROVISING = 0.8


def page(model: Model, corpus: Tensor) -> gr.Blocks:
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
                    info="Shift + Enter continues it",
                )
                mode = gr.Radio(
                    [RECITE, IMPROVISE],
                    value=RECITE,
                    label="Mode",
                    info="Recite: the most likely token each time; Improvise: draw among the likely ones",
                    elem_id="mode",
                )
                with gr.Row():
                    begin = gr.Button(
                        "Continue the text", variant="primary", elem_id="write", min_width=100
                    )
                    stop = gr.Button("Stop", variant="stop", elem_id="stop", min_width=100)
                for label, texts in (
                    ("From the text" + ", which it has memorised" * reached(model.run), known),
                    ("Not from the text, so it has to compose", list(STRANGERS)),
                ):
                    if texts:
                        labels = [" ⏎ ".join(text.split("\n")) for text in texts]
                        buttons = gr.Examples(
                            texts,
                            prompt,
                            label=label,
                            example_labels=labels,
                            api_visibility="private",
                        )
                        buttons.dataset.elem_classes = ["examples"]
                        # An example is continued at once, as if its reader had pressed the button.
                        buttons.load_input_event.then(
                            None, js="() => document.querySelector('#write').click()"
                        )
                with gr.Accordion("Settings", open=False, elem_classes="later"):
                    settings = [
                        gr.Slider(low, high, value, step=step, label=label, info=info)
                        for label, low, high, value, step, info in SLIDERS
                    ]
                    # Not gr.Number, which shows 0 where it is empty.
                    seed = gr.Textbox(
                        max_lines=1,
                        label="Seed",
                        info="The same seed gives the same text; empty: a new one each time",
                    )
            with gr.Column(min_width=280, elem_id="answering"):
                line = shown(note("The answer comes here."), "note")
                answer = shown("", "answer")
        temperature = settings[0]
        mode.input(
            None,
            mode,
            temperature,
            js=f"mode => mode === '{RECITE}' ? 0 : {IMPROVISING}",
            api_visibility="private",
        )
        temperature.input(
            None,
            temperature,
            mode,
            js=f"value => value > 0 ? '{IMPROVISE}' : '{RECITE}'",
            api_visibility="private",
        )
        asked = gr.on(
            [begin.click, prompt.submit], None, line, line, js=ASKED, api_visibility="private"
        )
        writing = asked.then(
            lambda *sent: (yield from answers(model, corpus, *sent)),
            [prompt, *settings, seed],
            [line, answer],
            preprocess=False,
            show_progress_on=answer,
            concurrency_limit=1,
            api_name="write",
        )
        stop.click(None, cancels=[writing], api_visibility="private")
        # Also after a stop, and not before the server knew of it: until then the line may be written over.
        for over in (writing.then, writing.failure):
            over(None, line, line, js=OVER, api_visibility="private")
    blocks.queue(max_size=MOST_WAITING, api_open=False)
    blocks._queue.__class__ = FairQueue  # gradio offers no way to choose the class
    # How often it looks for work, in seconds; its own 0.001 takes the model a part of its time.
    blocks._queue.sleep_when_free = 0.02
    return blocks


class FairQueue(queueing.Queue):
    """Gradio's queue, which nobody can fill alone, and which drops requests whose messages nobody reads."""

    async def push(self, body: Any, request: Any, username: Any) -> Any:
        """Take a request in, unless as many from the same address are waiting as one may have."""
        address = request.client.host
        if sum(event.request.client.host == address for event in self._waiting()) >= MOST_OF_ONE:
            return False, f"{MOST_OF_ONE} of your requests are waiting: try again.", "queue_full"
        return await super().push(body, request, username)

    def get_events(self) -> Any:
        """The next request, as gradio chooses it; called many times a second while one is waiting."""
        now = time.monotonic()
        running = [event for job in self.active_jobs if job for event in job]
        for event in self._waiting() + running:
            messages = self.pending_messages_per_session.get(event.session_hash)
            if messages is None or messages.empty():  # gradio puts the first one in at once
                event.last_read = now
            elif now - getattr(event, "last_read", event.enqueue_time) > UNREAD:
                event.alive = False  # gradio passes over it, and ends it if it is running
        return super().get_events()

    def _waiting(self) -> list[Any]:
        return [
            event for each in self.event_queue_per_concurrency_id.values() for event in each.queue
        ]


class PatientProtocol(H11Protocol):
    """HTTP as uvicorn speaks it, but a connection ends on which the head of a request takes too long."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_another_than(self.cycle)

    def on_response_complete(self) -> None:
        self._expect_another_than(self.cycle)
        super().on_response_complete()

    def _expect_another_than(self, cycle: Any) -> None:
        self.loop.call_later(PATIENCE, lambda: self.cycle is cycle and self.transport.close())


def shown(text: str, name: str) -> gr.HTML:
    """A place for HTML of ours, in which all other text is escaped."""
    return gr.HTML(text, elem_id=name, js_on_load=None, apply_default_css=False)


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
        app, patience = self._app, None
        if scope["type"] == "http":
            method, path = scope["method"].replace("HEAD", "GET"), scope["path"]
            length = dict(scope["headers"]).get(b"content-length", b"")
            if method not in self._OPEN or not self._OPEN[method].fullmatch(path) or ".." in path:
                app = PlainTextResponse("There is nothing here.", 404)
            elif method == "POST" and not length.isdigit():
                app = refusal(411, "The request does not say how long it is: send Content-Length.")
            elif method == "POST" and int(length) > MOST_SENT:
                app = refusal(413, f"The prompt is too long: send at most {MOST_SENT:,} bytes.")
            elif method == "POST":  # answered at once: what the model writes comes by a GET
                patience = PATIENCE
        try:
            async with asyncio.timeout(patience):
                await app(scope, receive, send)
        except TimeoutError:
            answer = refusal(408, "The request did not arrive whole: send it again.")
            await answer(scope, receive, send)


def refusal(status: int, reason: str) -> JSONResponse:
    """The answer to a request that cannot be used: the page shows its `detail`."""
    return JSONResponse({"detail": reason}, status, headers={"Connection": "close"})


def served(blocks: gr.Blocks, host: str) -> FastAPI:
    """The page as an app, behind what keeps everything else out.

    Args:
        host: the address at which it is served. Where that is every address, as on a Space, any name may lead to it.
    """
    own = ["localhost", "127.0.0.1", "[::1]", host]
    everywhere = host in ("0.0.0.0", "::", "[::]")
    # Around gradio's own middleware, which allows credentials to any page where the host is not this machine.
    app = FastAPI(
        openapi_url=None,
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=["*"] if everywhere else own),
            Middleware(Doorkeeper),
        ],
    )

    def unknown(request: Any, error: Exception) -> JSONResponse:
        return refusal(404, "The request names a function or a session that is not here.")

    blocks.state_session_capacity = 200
    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        theme=THEME,
        css=STYLE,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        # What gradio raises where a request names a function that it does not have.
        app_kwargs={"exception_handlers": {KeyError: unknown, FnIndexInferError: unknown}},
    )


STYLE = """
.gradio-container { --soft: #57534e; --line: #d6d3d1; --box: #fff; --memorised: #fbd98c; --on-mark: #1a1a1a; --bad: #a4301c;
  max-width: 72rem !important; margin: 0 auto !important; }
.dark .gradio-container, .gradio-container.dark { --soft: #b5afa8; --line: #44403c; --box: #1d2026; --memorised: #6d4513; --on-mark: #fbf8f1; --bad: #f2a08f; }
#heading .html-container, #note .html-container, #answer .html-container { padding: 0; }
#heading h1 { margin: 0 0 .4rem; font-size: 1.7rem; line-height: 1.2; font-weight: 650; text-wrap: balance; }
#heading p { margin: 0 0 .8rem; line-height: 1.5; }
mark { background: var(--memorised); color: var(--on-mark); border-radius: 2px; box-decoration-break: clone; -webkit-box-decoration-break: clone; }
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
.bar span { display: block; height: 100%; background: var(--memorised); }
#write { flex-grow: 2 !important; }
.min_value, .max_value { color: var(--soft) !important; }  /* of a slider: too pale to be read */
@media (max-width: 40rem) {  /* the answer below the examples, and the settings last */
  #columns { flex-direction: column; }
  #asking { display: contents; }
  #answering { order: 1; }
  .later { order: 2; }
  .examples { width: calc(100vw - 4rem) !important; overflow-x: auto; }
  .examples .gallery { flex-wrap: nowrap; }
  .examples .gallery-item { flex: none; max-width: 80vw; }
  #answer { width: 100%; }
  #answer { padding: .7rem .8rem; }
  .facts, .figures { grid-template-columns: 1fr 1fr; }
}
"""


THEME = gr.themes.Base(
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


def main() -> int:
    """Serve the page until it is stopped; the exit status."""
    on_space = "SPACE_ID" in os.environ
    host = os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0" if on_space else "127.0.0.1")
    port = os.environ.get("GRADIO_SERVER_PORT", "7860")
    problems = [
        f"{HERE / name} is missing: write the folder again"
        for name in ("model", "corpus.txt")
        if not (HERE / name).exists()
    ]
    if not (port.isdecimal() and len(port) < 6 and 0 < int(port) < 2**16):
        is_none = "is no port: set a whole number from 1 to 65,535"
        problems.append(f"GRADIO_SERVER_PORT {shortened(port)} {is_none}")
    if problems:
        print(f"error: {problems[0]}", file=sys.stderr)
        return 2
    # A Space's own; its machine has more cores, and threads would wait for each other.
    if os.environ.get("CPU_CORES", "").isdigit():
        torch.set_num_threads(int(os.environ["CPU_CORES"]))
    transformers_logging.disable_progress_bar()
    model = Model(HERE / "model")
    corpus = model.encode_long((HERE / "corpus.txt").read_text(encoding="utf-8"))
    uvicorn.run(
        served(page(model, corpus), host),
        host=host.strip("[]"),
        port=int(port),
        http=PatientProtocol,
        log_level="warning",
        timeout_graceful_shutdown=1,
        # On a Space, its proxies say who a visitor is.
        forwarded_allow_ips=PROXIES if on_space else None,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
