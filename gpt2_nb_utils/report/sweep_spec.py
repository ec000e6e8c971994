"""The spec of a sweep: a TOML file with the settings of many runs.

    title = "Which learning rate?"     # optional
    [common]                           # settings of all runs, by the names of `RunConfig`
    preset = "tiny"
    [runs.slow]                        # one table per run: its name, and what it does otherwise
    lr = 0.001
    [runs.fast]
    lr = 0.01

It knows what a spec may say, and checks all of it. It deliberately runs nothing and writes nothing.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError

SET_BY_THE_SWEEP = ("out_dir", "resume", "overwrite")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_NO_FILE_ON_WINDOWS = re.compile(r"con|prn|aux|nul|com\d|lpt\d", re.IGNORECASE)


@dataclass(frozen=True)
class Spec:
    """A sweep that can be run.

    Attributes:
        source: the file, as it is.
        title: what the sweep asks, in a line; may be empty.
        common: the settings that the file gives to all runs.
        runs: the complete settings of each run by its name, in the order of the file.
    """

    source: str
    title: str
    common: dict[str, Any]
    runs: dict[str, RunConfig]

    @property
    def varying(self) -> list[str]:
        """The names of the settings in which the runs differ."""
        return [
            name
            for name in RunConfig.model_fields
            if name not in SET_BY_THE_SWEEP
            and len({getattr(config, name) for config in self.runs.values()}) > 1
        ]


def read_spec(path: Path, out_dir: Path) -> Spec:
    """Read a spec and complete the settings of each run, whose directory is `<out_dir>/<name>`.

    Raises:
        UserError: the file cannot be read, or something in it is not a spec, not a setting or not a value of one.
    """
    try:
        source = path.read_text(encoding="utf-8")
        content = tomllib.loads(source)
    except OSError as error:
        raise UserError(
            f"spec {path} cannot be read ({error.strerror}): name a TOML file"
        ) from None
    except ValueError as error:  # no UTF-8, or no TOML: a name given twice too
        raise UserError(
            f"spec {path} is not valid TOML ({' '.join(str(error).split())}): mend it there"
        ) from None
    for name in content:
        if name not in ("title", "common", "runs"):
            raise UserError(
                f"spec {path}: unknown entry {name!r}: a spec holds title, [common] and one [runs.NAME] per run"
            )
    title, common, runs = (
        content.get("title", ""),
        content.get("common", {}),
        content.get("runs", {}),
    )
    if not isinstance(title, str):
        raise UserError(f"spec {path}: title {title!r} is no text: put it in quotes")
    if not isinstance(common, dict) or not isinstance(runs, dict) or not runs:
        raise UserError(
            f"spec {path} names no runs: write [common] once, and [runs.NAME] for each run, with settings below it"
        )
    configs: dict[str, RunConfig] = {}
    for name, settings in runs.items():
        try:
            _check_name(name, configs)
            configs[name] = _resolve(common, settings, out_dir / name)
        except UserError as error:
            raise UserError(f"spec {path}: run {name!r}: {error}") from None
    return Spec(source, " ".join(title.split()), common, configs)


def _check_name(name: str, others: dict[str, RunConfig]) -> None:
    if not _NAME.fullmatch(name) or _NO_FILE_ON_WINDOWS.fullmatch(name):
        raise UserError("the name becomes a folder: take up to 64 letters, digits, - and _")
    for other in others:
        if other.lower() == name.lower():
            raise UserError(
                f"{other!r} has the same name but for capitals, and some systems the same folder: rename one"
            )


def _resolve(common: dict[str, Any], settings: Any, out_dir: Path) -> RunConfig:
    if not isinstance(settings, dict):
        raise UserError("it has no table of settings: write [runs.NAME] in a line of its own")
    given = {**common, **settings}
    for name in SET_BY_THE_SWEEP:
        if name in given:
            raise UserError(
                f"{name} is set by the sweep, to <--out_dir>/NAME for out_dir: leave it out"
                if name == "out_dir"
                else f"{name} is set by the sweep, which goes on where it was broken off: leave it out"
            )
    for name, value in given.items():
        if isinstance(value, dict):
            raise UserError(
                f"{name!r} is a table, not a setting (a dot in [runs.NAME] makes one): leave out the dot"
            )
    return RunConfig.resolve({**given, "out_dir": str(out_dir), "resume": "auto"})
