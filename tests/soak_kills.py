"""Training that is killed again and again, and goes on with `--resume auto`, must end as if nobody had touched it.

    python -m tests.soak_kills --kills 100 --seed 1

Each life of a run is the real command `train` in a process of its own, ended by SIGKILL: after a random time, after a random
number of steps, or while best.pt or last.pt is being written, which is made certain by a slow disk and by waiting for the
half-written file. A run is killed a few times and then left to its end; there its metrics, its samples and both of its
checkpoints must equal those of a run that was left alone, bit for bit, but for the clock: the columns tok_per_s and elapsed_s,
and the seconds in a checkpoint. After every kill, whatever bears the name of a checkpoint must be whole.

Processes are forked from this one, which has imported everything and computes nothing, so that a life begins in no time.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(
    OMP_NUM_THREADS="1", GPT2_NB_UTILS_NO_DOWNLOAD="1"
)  # no threads: they would not outlive a fork

import torch

from gpt2_nb_utils.__main__ import main as command
from gpt2_nb_utils.run_directory import RunDirectory
from gpt2_nb_utils.tokenization.corpus import load_corpus
from gpt2_nb_utils.training import checkpoints
from gpt2_nb_utils.training import train as loop
from gpt2_nb_utils.training.checkpoints import is_whole, read_checkpoint
from gpt2_nb_utils.training.events import COLUMNS

CLOCK = ("tok_per_s", "elapsed_s", "seconds", "wall_seconds")
"""What no two runs have in common."""
TINY: dict[str, Any] = {
    "preset": "tiny",
    "device": "cpu",
    "n_embd": 8,
    "max_tokens": 512,
    "batch_size": 4,
    "max_new_tokens": 8,
    "log_every": 1,
    "eval_every": 2,
    "sample_every": 3,
    "save_every": 1,
    "lr_schedule": "constant",
    "warmup_steps": 2,
}
RUNS: dict[str, dict[str, Any]] = {
    "adamw": {**TINY, "lr": 0.01, "steps": 12},
    "muon, fp16": {
        **TINY,
        "optimizer": "muon",
        "amp": "fp16",
        "lr": 0.02,
        "embedding_lr": 0.01,
        "vector_lr": 0.01,
        "steps": 9,
    },
    "to a target": {**TINY, "lr": 0.03, "steps": 60, "target_loss": 9.5, "eval_windows": 0},
}
"""Settings, by name. The last ends on its own, at a measurement."""
_PATIENCE = 300.0
"""Seconds in which something must happen; on a busy machine a life may take a minute."""


class Wrong(Exception):
    """What a kill destroyed."""


def start(given: dict[str, Any], log: Path, slow_disk: bool = False) -> int:
    """Begin a life of a run: a process with the command `train`. Its id."""
    process = os.fork()
    if process:
        return process
    status = 70
    try:
        with log.open("a") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        if slow_disk:
            _slow_down()
        status = command(["train", *(f"--{name}={value}" for name, value in given.items())])
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(status)


def _slow_down() -> None:
    """A checkpoint takes a while, and the next is due as soon as it is written."""
    write, saver = checkpoints._Stream.write, loop.Saver
    checkpoints._Stream.write = lambda stream, data: time.sleep(0.001) or write(stream, data)
    loop.Saver = lambda paths, **more: saver(paths, share=1.0, **more)


def wait_for(process: int, log: Path, condition: Callable[[], bool] = lambda: False) -> int | None:
    """Wait until the condition holds (None) or the process, whose output is in `log`, ends (its exit status)."""
    begun = time.monotonic()
    while not condition():
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() - begun > _PATIENCE:
            os.kill(process, signal.SIGUSR1)  # says where it hangs
            time.sleep(1.0)
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            raise Wrong(f"nothing happened for {_PATIENCE:.0f} seconds: {log.read_text()[-4000:]}")
        time.sleep(0.002)
    return None


def half_written(run: RunDirectory) -> list[str]:
    """The checkpoints that a kill has left half written."""
    return [path.name for path in (run.best, run.last) if list(path.parent.glob(f".{path.name}.*"))]


class Soak:
    """Kills runs and counts.

    Args:
        folder: where they are.
        seed: of the moments.
    """

    def __init__(self, folder: Path, seed: int):
        self.folder, self.random = folder, random.Random(seed)
        self.where: collections.Counter[str] = collections.Counter()
        self.moments: list[str] = []
        self.kills = self.runs = 0
        self.text = folder / "input.txt"
        self.text.write_text(load_corpus("").text[:20_000], encoding="utf-8", newline="\n")
        self.references = {name: self._reference(name) for name in RUNS}

    def _settings(self, name: str, folder: str) -> dict[str, Any]:
        return {**RUNS[name], "input_file": self.text, "out_dir": self.folder / folder}

    def _reference(self, name: str) -> tuple[RunDirectory, float]:
        given, begun = self._settings(name, f"{name}, left alone"), time.monotonic()
        status = wait_for(start(given, self.folder / "output.txt"), self.folder / "output.txt")
        if status != 0:
            raise Wrong(
                f"{name}: exit status {status} without a kill: {(self.folder / 'output.txt').read_text()[-2000:]}"
            )
        return RunDirectory(given["out_dir"]), time.monotonic() - begun

    def run(self, name: str, kills: int) -> None:
        """Train one run with so many kills, or fewer where it ends before, and compare it with the one left alone."""
        self.moments.clear()
        self.runs += 1
        reference, seconds = self.references[name]
        given = self._settings(name, f"{self.runs}, {name}")
        run, output = RunDirectory(given["out_dir"]), self.folder / f"{self.runs}.txt"
        given["resume"] = "auto"  # which begins anew where there is nothing yet
        for number in range(kills):
            if not self._life(given, run, output, seconds, number):
                break
        else:
            status = wait_for(start(given, output), output)
            self._expect(status == 0, f"exit status {status}: {output.read_text()[-2000:]}")
        self._compare(run, reference)

    def _life(
        self, given: dict[str, Any], run: RunDirectory, output: Path, seconds: float, number: int
    ) -> bool:
        """One life of a run, the first two of which end while a checkpoint is written; False if it came to its end unkilled."""
        kinds = ["last.pt", "best.pt", "steps", "steps", "time", "time"]
        kind = kinds[number] if number < 2 else self.random.choice(kinds)
        before = run.log.stat().st_size if run.log.exists() else 0
        process = start(given, output, slow_disk=kind.endswith(".pt"))
        if kind == "time":
            moment, begun = self.random.uniform(0, 1.2 * seconds), time.monotonic()
            said, condition = (
                f"{moment:.3f} s after its start",
                lambda: time.monotonic() - begun > moment,
            )
        elif kind == "steps":
            steps, delay = self.random.randint(1, 4), self.random.uniform(0, 0.03)
            said, condition = (
                f"{delay:.3f} s after {steps} steps",
                lambda: self._new_lines(run, before).count("  loss ") >= steps,
            )
        else:
            path = getattr(run, kind.removesuffix(".pt"))
            said, condition = (
                f"while {kind} was written",
                lambda: bool(list(path.parent.glob(f".{kind}.*"))),
            )
        status = wait_for(process, output, condition)
        if status is None:
            time.sleep(
                delay
                if kind == "steps"
                else self.random.uniform(0, 0.02)
                if kind.endswith(".pt")
                else 0
            )
            os.kill(process, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if status != -signal.SIGKILL:
            self._expect(status == 0, f"exit status {status}: {output.read_text()[-2000:]}")
            return False
        lines, halves = self._new_lines(run, before), half_written(run)
        self.kills += 1
        place = (
            f"while {halves[0]} was written"
            if halves
            else "before the first step"
            if "  loss " not in lines
            else "elsewhere"
        )
        self.where[place] += 1
        self.moments.append(f"{said} ({place})")
        for path in (run.best, run.last, run.previous):
            self._expect(not path.exists() or is_whole(path), f"{path.name} is not whole")
        if run.summary.exists():
            run.read_summary()
        return True

    @staticmethod
    def _new_lines(run: RunDirectory, before: int) -> str:
        """What this life has logged; a run that begins anew has a new log."""
        if not run.log.exists():
            return ""
        written = run.log.read_bytes()
        return written[
            before if len(written) >= before and b"new run in" not in written[before:] else 0 :
        ].decode(errors="replace")

    def _compare(self, run: RunDirectory, reference: RunDirectory) -> None:
        columns = [number for number, name in enumerate(COLUMNS) if name not in CLOCK]
        ours, theirs = (
            [
                [row.split(",")[number] for number in columns]
                for row in each.metrics.read_text().splitlines()
            ]
            for each in (run, reference)
        )
        self._expect(
            ours == theirs,
            f"the metrics differ: {[pair for pair in zip(ours, theirs) if pair[0] != pair[1]][:2]}, "
            f"{len(ours)} and {len(theirs)} rows",
        )
        self._expect(
            run.samples.read_bytes() == reference.samples.read_bytes(), "the samples differ"
        )
        for ours, theirs in ((run.best, reference.best), (run.last, reference.last)):
            one, other = read_checkpoint(ours), read_checkpoint(theirs)
            for part in (one.keys() | other.keys()) - {
                "config",
                "events",
                "run_id",
            }:  # another folder, other times
                self._expect(
                    _same(one.get(part), other.get(part)), f"{ours.name} differs in its {part}"
                )
        self._expect(
            run.read_summary()["status"] == reference.read_summary()["status"], "the status differs"
        )
        files = [
            sorted(
                str(path.relative_to(each.path))
                for path in each.path.rglob("*")
                if not path.name.startswith("set_aside_")
            )
            for each in (run, reference)
        ]
        self._expect(files[0] == files[1], f"the files differ: {set(files[0]) ^ set(files[1])}")

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise Wrong(f"{otherwise}\nkilled {'; '.join(self.moments) or 'never'}")


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return (
            isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            name in CLOCK or _same(value, other[name]) for name, value in one.items()
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Kill training at random moments and see that nothing is lost."
    )
    parser.add_argument("--kills", type=int, default=100, help="how often (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default: %(default)s)")
    args = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), args.seed)
        try:
            while soak.kills < args.kills:
                name = list(RUNS)[soak.runs % len(RUNS)]
                soak.run(name, min(args.kills - soak.kills, soak.random.randint(4, 12)))
        except Wrong as error:
            print(f"seed {args.seed}, kill {soak.kills}, run {soak.runs}: {error}", file=sys.stderr)
            return 1
    print(
        f"{soak.kills} kills with seed {args.seed} in {time.monotonic() - begun:.0f} s: "
        + ", ".join(f"{count} {place}" for place, count in soak.where.most_common())
    )
    print(
        f"{soak.runs} of {soak.runs} runs ended as the ones left alone: metrics but for the clock, samples, best.pt, last.pt"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
