"""A run directory as a run leaves it, made in a second: for the tests of what reads run directories."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import random
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import torch
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from torch import Tensor

from gpt2_nb_utils.machine import environment
from gpt2_nb_utils.results import audit_outputs, audit_weights
from gpt2_nb_utils.results.audit import Audit, Check, audited_state, records_sha256
from gpt2_nb_utils.results.record import read_record
from gpt2_nb_utils.results.token_losses import keep
from gpt2_nb_utils.results.verify import CHECKS
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.tokenization.bpe import encode
from gpt2_nb_utils.tokenization.dataset import TokenDataset
from gpt2_nb_utils.training.events import samples_text
from gpt2_nb_utils.training.records import Sample

COURSE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
HOSTILE = "First Citizen: <script>document.title = 'broken'</script> <img src=x onerror=alert(1)> & | ``` -->"
COMMAND = "python -m gpt2_nb_utils run --out_dir 'out/a run' --steps 30"
_PYTHON = {
    "kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}


def summary(**changes: Any) -> dict[str, Any]:
    """The summary of an ordinary sanity run, with `changes`."""
    content = {
        "preset": "sanity",
        "command": COMMAND,
        "seed": 1337,
        "device": "cpu",
        "amp": "fp32",
        "torch": "2.9.0+cpu",
        "n_params": 124_439_808,
        "config": {
            "steps": 30,
            "n_layer": 12,
            "n_head": 12,
            "n_embd": 768,
            "block_size": 1024,
            "max_tokens": 0,
            "target_loss": 0.099999,
            "log_every": 1,
            "resume": "",
        },
        "corpus": {
            "source": "input_file",
            "path": "data/input.txt",
            "sha256": COURSE_SHA256,
            "chars": 1_115_394,
            "tokens": 338_025,
            "is_course_input": True,
        },
        "status": "steps_done",
        "step": 30,
        "epoch": 15_360 / 338_024,
        "tokens_seen": 15_360,
        "seconds": 118.4,
        "wall_seconds": 171.2,
        "tok_per_s": 129.7,
        "loss": 6.3121,
        "best_batch_loss": 6.1007,
        "best_batch_step": 29,
        "train_loss": 6.4012,
        "train_loss_windows": 16,
        "best_train_loss": 6.4012,
        "best_train_loss_windows": 16,
        "best_train_loss_step": 30,
        "target_loss": 0.099999,
        "target_reached": False,
    }
    return {**content, **changes}


def reached(**changes: Any) -> dict[str, Any]:
    """The summary of a run that meets every condition of the course, with `changes`."""
    return summary(
        **{
            **dict(
                preset="full",
                status="target_reached",
                train_loss=0.0912,
                train_loss_windows="all",
                best_train_loss=0.0912,
                best_train_loss_windows="all",
                target_reached=True,
                device="cuda",
                amp="fp16",
            ),
            **changes,
        }
    )


def make_run(folder: Path, content: dict[str, Any] | None = None) -> RunDirectory:
    """A complete run in `folder` with metrics, log, samples and two figures; no notebooks."""
    run = RunDirectory(folder)
    content = summary() if content is None else content
    run.write_json(run.summary, content)
    run.write_json(run.config, content.get("config") or {})
    run.write_json(run.environment, environment())
    run.metrics.parent.mkdir()
    noise, best = random.Random(1), content.get("best_train_loss")
    learned = isinstance(best, float) and best < 1  # then the metrics say so as well
    lowest = 0.3 if learned else 6.2
    with run.metrics.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            "step,epoch,tokens,loss,train_loss,lr,grad_norm,loss_scale,tok_per_s,elapsed_s".split(
                ","
            )
        )
        table.writerow([0, 0, 0, "", "10.8712", "", "", "", "", 0])
        for step in range(1, 31):
            loss = lowest + (10.9 - lowest) * math.exp((1 - step) / 7) + noise.gauss(0, 0.08)
            train_loss = f"{loss + 0.1:.6f}" if step % 15 == 0 else ""
            if learned and step == 30:
                train_loss = f"{best:.6f}"
            table.writerow(
                [
                    step,
                    f"{step * 512 / 338024:.7g}",
                    step * 512,
                    f"{loss:.6f}",
                    train_loss,
                    f"{6e-4 * min(1, step / 5):.3e}",
                    f"{2 + noise.random():.4f}",
                    "",
                    f"{noise.gauss(130, 4):.1f}",
                    f"{step * 3.9:.2f}",
                ]
            )
    run.log.write_text(
        "".join(
            f"2025-01-02 03:04:{step:02d} step {step}/30  loss {10.9 - step / 8:.4f}  lr 6.0e-04  130 tok/s\n"
            for step in range(1, 31)
        ),
        encoding="utf-8",
    )
    texts = {
        0: " toughest conduit|| Marketable\x1b[31m bra ``` tubeellen" * 6,
        30: "\nThe, and the, to the my\nI you of that\n\nROMEO:\nAnd, " + HOSTILE,
    }
    run.samples.parent.mkdir()
    run.samples.write_text(
        samples_text(
            Sample(
                step,
                number,
                prompt,
                prompt + text,
                {"prompts": 2, "temperature": 0.8, "top_k": 40},
            )
            for step, text in texts.items()
            for number, prompt in enumerate(["First Citizen:", "Speak.\n<b>"], start=1)
        ),
        encoding="utf-8",
    )
    run.figures.mkdir()
    for name, picture in _pictures().items():
        (run.figures / name).write_bytes(picture)
    return run


@cache
def _pictures() -> dict[str, bytes]:
    from matplotlib.figure import Figure

    pictures = {}
    for name, label in (("loss", "loss (nats per token)"), ("grad_norm", "gradient norm")):
        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel=label)
        axes.plot(
            range(1, 31),
            [6.2 + 4.7 * math.exp(-step / 7) for step in range(1, 31)],
            label="batch loss",
        )
        axes.plot([15, 30], [6.9, 6.4], "o--", color="black", label="training loss (16 windows)")
        axes.axhline(0.099999, color="grey", linestyle=":", label="target")
        axes.legend()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        pictures[f"{name}.png"] = buffer.getvalue()
    return pictures


_OF_NOTHING = hashlib.sha256().hexdigest()  # of a best.pt with nothing in it


def add_audit(
    run: RunDirectory, found: str = "0.0912 over all 338,024 predictions", ok: bool = True
) -> RunDirectory:
    """Put an audit beside the run: of its checks one is as given, one were not possible, the others hold."""
    states = {audit_weights.course_text: ok, audit_outputs.samples: None}
    checks = tuple(
        Check(check.asks, states.get(check, True), found, "as asked") for check in CHECKS
    )
    Audit(
        "2026-01-02T03:04:05+00:00",
        "python -m gpt2_nb_utils verify out/x",
        {"device": "cpu", "amp": "fp32"},
        _OF_NOTHING,
        0.0912,
        338_024,
        audited_state(read_record(run.path).summary),
        checks,
        records_sha256=records_sha256(run),
    ).write(run)
    return run


def add_token_losses(
    run: RunDirectory,
    text: str = f"{HOSTILE}\n\nAll:\nSpeak, speak.\n" * 9,
    seq_len: int = 16,
    measured: list[int] | None = None,
) -> tuple[TokenDataset, dict[int, Tensor]]:
    """Put the losses of a text beside the run, each prediction with one of its own: n hundredths for the n-th, up to 9 nats."""
    windows = TokenDataset(torch.from_numpy(encode(text)), seq_len)
    numbers = torch.arange(1, windows.n_targets + 1)
    losses = {
        index: (numbers[index * seq_len : (index + 1) * seq_len] % 900) / 100
        for index in (range(len(windows)) if measured is None else measured)
    }
    keep(run, read_record(run.path).summary, windows, losses)
    return windows, losses


def add_notebook(run: RunDirectory, name: str, cells: list[Any], **metadata: Any) -> Path:
    """Put a notebook with these cells, outputs as they stand, among the run's executed ones."""
    run.notebooks.mkdir(exist_ok=True)
    path = run.notebooks / name
    nbformat.write(new_notebook(cells=cells, metadata={**_PYTHON, **metadata}), path)
    return path


def executed(source: str, *outputs: Any, **metadata: Any) -> Any:
    """A code cell with these outputs, as if it had run."""
    return new_code_cell(source, execution_count=1, outputs=list(outputs), metadata=metadata)


def html_output(text: str) -> Any:
    return new_output("display_data", data={"text/html": text, "text/plain": "[html]"})


def execute_notebook(run: RunDirectory, name: str, sources: list[tuple[str, str]]) -> Path:
    """Run (kind, source) cells in a real kernel and keep the notebook, also when a cell fails."""
    tags = {"parameters": {"tags": ["parameters"]}}
    cells = [
        new_markdown_cell(text)
        if kind == "markdown"
        else new_code_cell(text, metadata=tags.get(kind, {}))
        for kind, text in sources
    ]
    notebook = new_notebook(cells=cells, metadata=_PYTHON)
    try:
        NotebookClient(
            notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": "."}}
        ).execute()
    except CellExecutionError:
        pass
    run.notebooks.mkdir(exist_ok=True)
    path = run.notebooks / name
    nbformat.write(notebook, path)
    return path


TOKENIZATION = [
    (
        "markdown",
        """# Tokenization

This notebook cuts the corpus into **tokens**. It needs nothing and takes ten seconds.""",
    ),
    ("code", "from gpt2_nb_utils import notebook\nprint('Python 3  torch 2.9  numpy 2.4')"),
    (
        "parameters",
        """# Settings of this run. None leaves a value to the preset.
seed: int = 1337  # seed of weights, window order and samples, a remark that makes the line wider than any phone shows
seq_len: int = None""",
    ),
    (
        "markdown",
        r"""## One line, token by token

Every token has its own colour. The text is `$HOME` and costs $5 or $6.

| letter | id |
|---|---|
| `a` | $x_1$ |
| `b` | $x_2$ |""",
    ),
    (
        "code",
        f"import html\nfrom IPython.display import HTML, display\nline = {HOSTILE!r}"
        + """
colours = ['#fde2b8', '#cfe8d5', '#d5dffb', '#f6d0dc'] * 9
words = [f'<span style="background:{colour};color:#222">{html.escape(word)}</span>'
         for word, colour in zip(line.split(' '), colours)]
display(HTML('<p>' + ' '.join(words) + '</p>'))""",
    ),
    (
        "markdown",
        r"""## The loss

The mean cross-entropy over all $N - 1$ targets:

$$
\mathcal{L} = -\frac{1}{N-1} \sum_{i=1}^{N-1} \ln p_\theta(x_{i+1} \mid x_{\le i})
$$

A uniform guess costs $\ln 50257 = 10.825$. A formula that nobody knows: $\nosuchcommand{x}$.

$$\text{softmax}\left(\frac{Q K^\top}{\sqrt{d_k}} + M\right) V = \text{a formula wider than a phone} + a_1 + a_2 + a_3 +
a_4 + a_5 + a_6 + a_7 + a_8 + a_9 + a_{10} + a_{11} + a_{12}$$""",
    ),
    (
        "code",
        """def loss(logits, targets):  # (B, T, V), (B, T)
    \"\"\"Mean cross-entropy, in nats.\"\"\"
    return -sum(x for x in logits) / max(len(targets), 1)

for step in range(3):
    print(f'step {step}', 'x' * 40 * step)""",
    ),
    (
        "markdown",
        "### A table\n\nThe longest tokens come last. See [the next notebook](02_model.ipynb).",
    ),
    (
        "code",
        """rows = ''.join(f'<tr><td>token {i}</td><td>{i ** 7}</td><td>{"wide" * 40}</td></tr>' for i in range(4))
HTML('<table><tr><th>token</th><th>count</th><th>note</th></tr>' + rows + '</table>')""",
    ),
    (
        "code",
        """from matplotlib import pyplot as plt
figure, axes = plt.subplots(figsize=(7, 3))
axes.plot([1, 2, 3], [3, 2, 1])
axes.set(xlabel='rank', ylabel='count')
notebook.show(figure, alt='Counts fall as the rank grows.')""",
    ),
    (
        "code",
        """import sys
from gpt2_nb_utils.progress import Progress
bar = Progress(4, 'training')
bar.update(4, loss='3.21')
bar.close()
print('a warning', file=sys.stderr)
list(range(6))""",
    ),
    ("markdown", "## Try this\n\n1. Change the line.\n2. Count the tokens."),
]
"""A notebook with a bit of everything that the report must show."""

FAILING = [
    ("markdown", "# Training\n\nThe loop, until a cell fails."),
    ("code", "print('step 1')"),
    ("code", "def deep():\n    return 1 / 0  # <script>alert(1)</script>\n\ndeep()"),
    ("code", "print('never')"),
]
