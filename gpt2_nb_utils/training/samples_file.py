"""The form of `samples/samples.txt`: easy to read for a person, exact to read back for a program.

It knows text only. It deliberately does not know who generates a sample or who shows it.

    === step 15 · prompt 1 of 3 · temperature 0.8 · top_k 40 ===
    PROMPT: "First Citizen:"
    SAMPLE:
    | First Citizen:
    | Before we proceed any further, hear me speak.

Every line of generated text carries a prefix, so that no text can imitate a header. A line with characters
that a terminal or an editor would act on (control characters, carriage returns, exotic line ends) is written
as a JSON string after `|= ` instead.
"""

from __future__ import annotations

import codecs
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from gpt2_nb_utils.errors import UserError

_HEADER = re.compile(
    r"=== step (\d{1,15}) · prompt (\d{1,15})(?: of (\d{1,15}))?((?: · [a-z_]\w* \S+)*) ==="
)
_ACTED_ON = re.compile(
    r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


@dataclass(frozen=True)
class Sample:
    """One generated text.

    Args:
        step: optimizer updates before it was generated.
        prompt_index: number of its prompt, from 1.
        prompt: the text that the model was given.
        text: the text as stored by the caller (prompt included or not: the caller decides).
        settings: `prompts` (how many there are at each step) and whatever was set, such as `temperature`, `top_k`.
    """

    step: int
    prompt_index: int
    prompt: str
    text: str
    settings: dict[str, int | float] = field(default_factory=dict)

    @property
    def final(self) -> bool:
        """Whether it is the one that a run ends with: greedy, beside those that were drawn at the same step."""
        return self.settings.get("temperature") == 0 and "prompts" not in self.settings


def format_sample(sample: Sample) -> str:
    """The block of one sample, ending with an empty line: append it to the file (as UTF-8)."""
    number = f"prompt {sample.prompt_index}"
    if "prompts" in sample.settings:
        number += f" of {sample.settings['prompts']}"
    others = [
        f"{name} {json.dumps(value)}"
        for name, value in sample.settings.items()
        if name != "prompts"
    ]
    lines = [
        f"=== {' · '.join([f'step {sample.step}', number, *others])} ===",
        f"PROMPT: {_json(sample.prompt)}",
        "SAMPLE:",
        *map(_prefixed, sample.text.split("\n")),
    ]
    return "\n".join(lines) + "\n\n"


def read_samples(path: Path) -> list[Sample]:
    """All samples of a file, in its order; a block that a killed run left unfinished is not among them.

    Raises:
        UserError: the file is not UTF-8, or a line has no place in the form.
    """
    written = Path(path).read_bytes().replace(b"\r\n", b"\n")
    try:
        # Not final: a killed run may have left half a character. Only "\n" ends a line here.
        lines = codecs.getincrementaldecoder("utf-8")().decode(written).split("\n")
    except UnicodeDecodeError:
        raise UserError(
            f"{path} is not UTF-8: restore it, or remove it to do without samples"
        ) from None
    samples: list[Sample] = []
    block: list[str] = []
    for number, line in enumerate(
        lines[:-1], start=1
    ):  # what follows the last "\n" is no whole line
        if line:
            block.append(line)
        elif block:  # the empty line that ends a block
            try:
                samples.append(_parse(block))
            except ValueError:
                raise UserError(
                    f"{path} line {number - len(block)} starts no readable sample: restore the file, "
                    f"or remove it to do without samples"
                ) from None
            block = []
    return samples


def _parse(block: list[str]) -> Sample:
    header, prompt, marker, *text = block
    match = _HEADER.fullmatch(header)
    if match is None or not prompt.startswith("PROMPT: ") or marker != "SAMPLE:" or not text:
        raise ValueError
    step, index, prompts, others = match.groups()
    settings: dict[str, int | float] = {"prompts": int(prompts)} if prompts else {}
    for item in others.split(" · ")[1:]:
        name, _, value = item.partition(" ")
        settings[name] = json.loads(value)
    return Sample(
        int(step),
        int(index),
        _from_json(prompt.removeprefix("PROMPT: ")),
        "\n".join(map(_unprefixed, text)),
        settings,
    )


def _prefixed(line: str) -> str:
    return f"|= {_json(line)}" if _ACTED_ON.search(line) else f"| {line}"


def _unprefixed(line: str) -> str:
    if line.startswith("|= "):
        return _from_json(line[3:])
    if line.startswith("| ") or line == "|":  # an editor may have cut the trailing space
        return line[2:]
    raise ValueError


def _from_json(literal: str) -> str:
    text = json.loads(literal)
    if not isinstance(text, str):
        raise ValueError
    return text


def _json(text: str) -> str:
    """`text` as a JSON string that is printable everywhere."""
    literal = json.dumps(text, ensure_ascii=False)
    return _ACTED_ON.sub(lambda match: f"\\u{ord(match[0]):04x}", literal)
