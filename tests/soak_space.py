"""Many visitors at once ask the app of a Space for a while, and each must get the answer to its own question.

    python -m tests.soak_space out/full/space --clients 20 --seconds 60

They ask over HTTP, as the page does: into the queue, and then listening to their answer. Each has a prompt of its own and asks for
the likeliest continuation; what that is transformers' own `generate` has said before, and no two are the same. Now and then
one leaves in the midst of its answer. No answer may fail but by the queue's bound, and the app must not grow.
"""

from __future__ import annotations

import argparse
import collections
import html
import json
import random
import re
import statistics
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpt2_nb_utils.space.serve import Served, serving

TOKENS = 24
"""Of each answer."""
SETTLED = 1 / 3
"""Share of the time after which the app has seen everybody and must not grow any more."""
MOST_GROWTH = 64
"""MB by which it may do so: what a process has freed it does not give back at once."""
_LEAVES = 8
"""One question in so many is left before it is answered."""
_PATIENCE = 300.0


class Wrong(Exception):
    """An answer that was not what it must be."""


class QueueFull(Exception):
    """The queue had its bound, and said so."""


class Visitor:
    """What a browser does with the app, without one.

    Args:
        url: of the page.
        address: which the app is to take for that of the visitor; 127.0.0.1 when empty.
    """

    def __init__(self, url: str, address: str = ""):
        headers = {"X-Forwarded-For": address} if address else {}
        self._http = httpx.Client(base_url=url, timeout=_PATIENCE, trust_env=False, headers=headers)
        dependencies = self._http.get("/config").raise_for_status().json()["dependencies"]
        (self._write,) = (each["id"] for each in dependencies if each["api_name"] == "write")

    def join(self, values: list[Any], session: str) -> httpx.Response:
        """Put a question into the queue."""
        return self._http.post(
            "/gradio_api/queue/join",
            headers={"Content-Type": "application/json"},  # httpx refuses nan, browsers may not
            content=json.dumps({"data": values, "fn_index": self._write, "session_hash": session}),
        )

    def listen(self, session: str) -> Iterator[dict[str, Any]]:
        """The messages about it; whoever stops listening has left."""
        with self._http.stream(
            "GET", "/gradio_api/queue/data", params={"session_hash": session}
        ) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    yield json.loads(line.removeprefix("data:"))

    def ask(self, values: list[Any], leave: bool = False) -> tuple[str, str, float]:
        """Ask and wait for the answer.

        Args:
            values: prompt, temperature, top-k, top-p, length, seed.
            leave: go away when the answer begins.

        Returns:
            The line about the answer, the answer, both as HTML, and the seconds until it began.

        Raises:
            QueueFull: the queue was full.
            Wrong: any other failure.
        """
        session, begun, waited = uuid.uuid4().hex, time.monotonic(), None
        response = self.join(values, session)
        if response.status_code == 503:
            raise QueueFull
        if response.status_code != 200:
            raise Wrong(f"HTTP status {response.status_code}: {response.text[:200]}")
        for message in self.listen(session):
            if message["msg"] == "process_generating" and waited is None:
                waited = time.monotonic() - begun
                if leave:
                    return "", "", waited
            if message["msg"] == "process_completed":
                if not message["success"]:
                    raise Wrong(f"failed: {message['output']}")
                line, answer = message["output"]["data"]
                return line, answer, waited or time.monotonic() - begun
        raise Wrong("the connection ended before the answer")


def written(answer: str) -> str:
    """The text that an answer shows, prompt included."""
    return html.unescape(re.sub("<[^>]*>", "", answer.partition("</p>")[0]))


def questions(folder: Path, n: int) -> dict[str, str]:
    """Prompts from all over the text, and what `generate` continues them with."""
    text = (folder / "corpus.txt").read_text(encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    longest = min(model.config.n_positions, model.config.training_run["seq_len"]) - TOKENS
    found: dict[str, str] = {}
    for number in range(n):
        ids = tokenizer(text[len(text) * number // n :][:200])["input_ids"][: min(8, longest)]
        drawn = model.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=TOKENS, min_new_tokens=TOKENS
        )[0]
        found[tokenizer.decode(ids)] = tokenizer.decode(drawn)
    if len(set(found.values())) < n:
        raise Wrong(
            f"{n} prompts have only {len(set(found.values()))} different answers: a confusion of them would not show"
        )
    return found


def soak(folder: Path, served: Served, clients: int, seconds: float, seed: int = 1) -> str:
    """Let so many clients ask for so long.

    Args:
        served: the running app of this folder.

    Returns:
        A line of figures.

    Raises:
        Wrong: an answer that was not the one asked for, an error, or an app that grew.
    """
    asked = list(questions(folder, clients).items())
    counts: collections.Counter[str] = collections.Counter()
    waits: list[float] = []
    problems: list[str] = []
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        visitor, chance = (
            Visitor(served.url, f"10.0.0.{number}"),
            random.Random(seed * 1000 + number),
        )
        prompt, expected = asked[number]
        while time.monotonic() < end and not problems:
            leave = chance.random() < 1 / _LEAVES
            try:
                _, answer, waited = visitor.ask([prompt, 0, 0, 1, TOKENS, 0], leave)
            except QueueFull:
                counts["refused"] += 1
                time.sleep(1)
                continue
            except (Wrong, httpx.HTTPError) as error:
                problems.append(f"client {number}: {type(error).__name__} {error}")
                return
            counts["left" if leave else "answered"] += 1
            waits.append(waited)
            if not leave and written(answer) != expected:
                problems.append(
                    f"client {number} asked {prompt!r} and got {written(answer)!r}, not {expected!r}"
                )

    threads = [
        threading.Thread(target=client, args=(number,), daemon=True) for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    memory = []
    while any(thread.is_alive() for thread in threads):
        memory.append(psutil.Process(served.process.pid).memory_info().rss / 1e6)
        time.sleep(min(1, seconds / 20))
    if problems:
        raise Wrong("; ".join(problems[:3]))
    settled = memory[int(len(memory) * SETTLED)]
    if memory[-1] - settled > MOST_GROWTH:
        raise Wrong(f"the app grew from {settled:,.0f} to {memory[-1]:,.0f} MB")
    return (
        f"{clients} clients for {seconds:.0f} s: {counts['answered']} answers, each its own, {counts['left']} left early, "
        f"{counts['refused']} times the queue was full; an answer began after {statistics.median(waits):.1f} s, "
        f"{max(waits):.1f} s at most; memory {settled:,.0f} MB after a third of the time, {memory[-1]:,.0f} MB at the end, "
        f"{max(memory):,.0f} MB at most"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Let many visitors at once ask the app of a Space."
    )
    parser.add_argument(
        "folder", type=Path, help="the Space's folder, as the command `space` writes it"
    )
    parser.add_argument("--clients", type=int, default=20, help="at once (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="how long (default: %(default)s)")
    args = parser.parse_args()
    try:
        with serving(args.folder) as served:
            print(soak(args.folder, served, args.clients, args.seconds))
    except Wrong as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
