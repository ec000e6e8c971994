"""The commands: `python -m gpt2_nb_utils COMMAND`; `build_parser` lists them.

Flags are read here, and the work is handed on. Slow modules are imported by the command that needs
them, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import errno
import io
import sys
from collections.abc import Callable
from os.path import expanduser  # the shell leaves the ~ of --to=~/x
from pathlib import Path
from typing import Any, NoReturn

from gpt2_nb_utils import __version__, dist_env
from gpt2_nb_utils.bench.settings import add_bench_flags
from gpt2_nb_utils.config import RunConfig, add_flags, check_names, counted
from gpt2_nb_utils.errors import FULL, NotWritten, UserError
from gpt2_nb_utils.progress import send_nowhere
from gpt2_nb_utils.text import visible

_OUT_DIR = RunConfig.model_fields["out_dir"].default
_PORT = 7860  # Gradio's own


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (`{self.prog} --help` lists the flags)")


def _run(args: argparse.Namespace) -> int:
    """All notebooks, headless, and the report: from the text to index.html."""
    from gpt2_nb_utils.report.run import run

    return _show_end(run(RunConfig.resolve(args.given)))


def _train(args: argparse.Namespace) -> int:
    """The training of notebook 03 alone."""
    from gpt2_nb_utils.large_blocks import keep_large_blocks
    from gpt2_nb_utils.training.distributed import connected
    from gpt2_nb_utils.training.train import train

    config = RunConfig.resolve(args.given)
    keep_large_blocks()  # before the processes exchange their first tensors
    with connected() as dist:
        summary = train(config, dist=dist)
        return _show_end(summary) if dist.is_main else _exit_status(summary["status"])


def _sweep(args: argparse.Namespace) -> int:
    """Train every run of a TOML file of settings, and set them side by side in a table and a
    figure."""
    from gpt2_nb_utils.report.sweep import FIGURE, TABLE, sweep

    folder = Path(args.out_dir)
    outcomes = sweep(Path(args.spec), folder, args.keep_checkpoints).outcomes
    table = (folder / TABLE).read_text(encoding="utf-8")
    print("", table, f"figure      {folder / FIGURE}", sep="\n")
    statuses = {outcome.status for outcome in outcomes}
    if statuses == {"failed"}:
        return 1
    return _exit_status("interrupted" if "interrupted" in statuses else "")


def _sample(args: argparse.Namespace) -> int:
    """Let the model of a run continue a prompt."""
    from gpt2_nb_utils.results.sample import continuations, sample_from_run

    if args.from_hf is None:
        texts, demo = sample_from_run(args.run_dir or _OUT_DIR, args.given)
    elif args.run_dir is not None:
        raise UserError(
            f"RUN_DIR {args.run_dir} and --from_hf {args.from_hf} name a model each: give one of "
            f"them"
        )
    else:
        from gpt2_nb_utils.space.hf_format import read_hf

        source = read_hf(args.from_hf)
        texts, demo = continuations(source.load_model, source.settings, args.given), source.demo
    for text in texts:
        print(visible(text), end="\n\n")
    if demo:
        print(
            "(by a model that was trained on the demonstration corpus, not on the course's "
            "input.txt)",
            file=sys.stderr,
        )
    return 0


def _verify(args: argparse.Namespace) -> int:
    """Prove a run again from its weights and its text: an audit that trusts nothing recorded."""
    from gpt2_nb_utils.results.verify import verify, verify_by_replay

    if args.replay is None:
        return 0 if verify(args.run_dir, args.given, args.sample).passed else 1
    if args.sample:
        raise UserError(
            f"--sample {args.sample} measures weights and --replay trains: give one of them"
        )
    return 0 if verify_by_replay(args.run_dir, args.given, args.replay).replay.check.ok else 1


def _report(args: argparse.Namespace) -> int:
    """The executed notebooks of a run as self-contained HTML."""
    from gpt2_nb_utils.report.report import build_report
    from gpt2_nb_utils.run_directory import RunDirectory

    print(build_report(RunDirectory(args.run_dir)))
    return 0


def _readme(args: argparse.Namespace) -> int:
    """Put the results of a run between the AUTO markers of a README."""
    from gpt2_nb_utils.report.readme import fill_readme
    from gpt2_nb_utils.run_directory import RunDirectory

    changed = fill_readme(RunDirectory(args.run_dir), Path(args.readme))
    print(f"{args.readme}: {'filled from ' + args.run_dir if changed else 'nothing to change'}")
    return 0


def _bench(args: argparse.Namespace) -> int:
    """Measure the speed of training, sampling, start-up and checkpoints on this machine."""
    import json

    from gpt2_nb_utils.bench.command import bench
    from gpt2_nb_utils.report.bench_table import as_text

    result = bench(
        args.only,
        args.given,
        args.against,
        args.rounds,
        args.profile,
        args.nproc_per_node,
        args.folder,
        args.again,
    )
    print(json.dumps(result, indent=2, ensure_ascii=False) if args.json else as_text(result))
    return 0


def _space(args: argparse.Namespace) -> int:
    """Export the model of a run to the Hugging Face format, with an app around it: the folder of a
    Space."""
    from gpt2_nb_utils.space.folder import build_space, how_to_publish

    if args.port is not None and not args.serve:
        raise UserError(f"--port {args.port} is the port of the app: add --serve, or leave it out")
    space = build_space(args.run_dir, args.to, args.dtype, args.overwrite)
    print(
        f"{space.folder}: {space.n_bytes / 1e6:,.0f} MB, weights in {space.dtype}"
        f"{'' if space.written else ' (was there already)'}"
    )
    if args.screenshots is not None:
        from gpt2_nb_utils.space.screenshots import take_screenshots

        for picture in take_screenshots(space.folder, Path(args.screenshots)):
            print(picture)
    if args.serve:
        from gpt2_nb_utils.space.serve import serve

        serve(space.folder, args.port or _PORT)
    if args.screenshots is None:
        print("to publish it:", *how_to_publish(space.folder), sep="\n  ")
    return 0


def _show_end(summary: dict[str, Any]) -> int:
    """Print how a run ended and where everything is; the exit status."""
    try:
        _print_end(summary)
        print(end="", flush=True)
    except OSError:  # where nobody can read it, the run has ended all the same
        send_nowhere(sys.stdout)
    return _exit_status(summary["status"])


def _print_end(content: dict[str, Any]) -> None:
    from gpt2_nb_utils.results.verdict import SMOKE_TEST, full_run
    from gpt2_nb_utils.run_directory import RunDirectory
    from gpt2_nb_utils.training.records import Summary

    summary = Summary.model_validate(content)
    if summary.corpus.source == "demo":
        print(
            "This run used the demonstration corpus, not the course's input.txt (data/README.md "
            "says where to put it)."
        )
    best = summary.best_measured
    measured = "not measured"
    if best is not None:
        measured = f"{best.loss:.6f}, {best.extent(summary.config['max_tokens'])}"
    print(
        f"{summary.status.replace('_', ' ')} at step {summary.step:,}: training loss {measured}; "
        f"target {summary.target_loss} {'reached' if summary.target_reached else 'not reached'}"
    )
    if summary.preset == SMOKE_TEST and not summary.target_reached:
        print(full_run(summary))
    directory = RunDirectory(summary.config["out_dir"])
    for title, path in {
        "report": directory.report / "index.html",
        "notebooks": directory.notebooks,
        "checkpoints": directory.last.parent,
        "log": directory.log,
        "metrics": directory.metrics,
        "samples": directory.samples,
        "figures": directory.figures,
        "space": directory.space,
    }.items():
        if path.exists():
            print(f"{title:12}{path}")


def _exit_status(status: str) -> int:
    """That of a run: 128 + the number of the signal that interrupted it, else 0."""
    if status != "interrupted":
        return 0
    from gpt2_nb_utils.training.stop_request import exit_status

    return exit_status()


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line. Each command is a function of this module, in `function`; its
    docstring is the help."""
    parser = _Parser(
        prog="python -m gpt2_nb_utils",
        allow_abbrev=False,
        description="GPT-2 (124M) trained from scratch on one text file, until it has memorised "
        "that file.",
    )
    parser.add_argument("--version", action="version", version=f"gpt2_nb_utils {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)

    def command(function: Callable[..., int]) -> argparse.ArgumentParser:
        text = " ".join(function.__doc__.split())
        summary = text[0].lower() + text[1:].rstrip(".")
        name = function.__name__.strip("_")
        added = commands.add_parser(name, help=summary, description=text, allow_abbrev=False)
        added.set_defaults(function=function)
        return added

    def command_on_a_run(function: Callable[..., int]) -> argparse.ArgumentParser:
        added = command(function)
        added.add_argument(
            "run_dir",
            nargs="?",
            default=_OUT_DIR,
            type=expanduser,
            metavar="RUN_DIR",
            help=f"run directory (default: {_OUT_DIR})",
        )
        return added

    add_flags(command(_run))
    add_flags(command(_train))
    sweep = command(_sweep)
    sweep.add_argument(
        "spec",
        type=expanduser,
        metavar="SPEC",
        help="TOML file: [common] settings, [runs.NAME] with what differs",
    )
    sweep.add_argument(
        "--out_dir",
        default="out/sweep",
        type=expanduser,
        metavar="DIR",
        help="folder for the runs, the table and the figure (default: %(default)s)",
    )
    sweep.add_argument(
        "--keep_checkpoints",
        action="store_true",
        help="leave checkpoints/best.pt of each run there",
    )
    sample = command_on_a_run(_sample)
    sample.set_defaults(run_dir=None)
    sample.add_argument(
        "--from_hf",
        type=expanduser,
        metavar="DIR",
        help="take the model of this folder in the Hugging Face format instead "
        "(a Space's folder does as well)",
    )
    add_flags(
        sample,
        ("seed", "prompt", "num_prompts", "max_new_tokens", "top_k", "temperature", "device"),
    )
    verify = command_on_a_run(_verify)
    verify.add_argument(
        "--sample",
        type=counted("1 or more windows"),
        default=0,
        metavar="N",
        help="a quick look: measure only N windows, which proves nothing (default: all)",
    )
    steps = counted("1 or more steps, or all")
    verify.add_argument(
        "--replay",
        type=lambda text: 0 if text == "all" else steps(text),
        metavar="N|all",
        help="repeat the first N steps from the seed and compare every loss with the one on record: needs "
        "no checkpoint",
    )
    add_flags(
        verify,
        ("device", "amp"),
        {"usually": {"amp": "fp32"}, "with --replay": {"amp": "auto"}},
    )
    command_on_a_run(_report)
    readme = command_on_a_run(_readme)
    readme.add_argument(
        "--readme",
        default="README.md",
        type=expanduser,
        metavar="FILE",
        help="file to fill (default: %(default)s)",
    )
    space = command_on_a_run(_space)
    space.add_argument(
        "--to", type=expanduser, metavar="DIR", help="folder to write (default: RUN_DIR/space)"
    )
    space.add_argument(
        "--dtype",
        choices=("float16", "float32"),
        default="float16",
        help="number format of the stored weights (default: %(default)s)",
    )
    space.add_argument(
        "--overwrite", action="store_true", help="replace another export that is there"
    )
    space.add_argument(
        "--serve", action="store_true", help="then start the app on 127.0.0.1, until Ctrl-C"
    )
    space.add_argument(
        "--port",
        type=counted("a port: give a number from 1 to 65535", highest=65535),
        metavar="INT",
        help=f"port of the app (default: {_PORT})",
    )
    space.add_argument(
        "--screenshots",
        type=expanduser,
        metavar="DIR",
        help="take pictures of the app in headless Chromium",
    )
    add_bench_flags(command(_bench))
    return parser


def _failed_first(message: str) -> bool:
    """Whether this process has to report a failure: of several that torchrun started, one does."""
    if dist_env.world_size() == 1:
        return True
    from gpt2_nb_utils.training.distributed import first_failure

    return first_failure(message)[0] == dist_env.rank()


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status: 0, 2 for bad input, 128 + its number after a signal that asked to stop, 1
        for anything else that failed.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A console of Windows, or a pipe, may not know ✓ or ♞.
            stream.reconfigure(errors="backslashreplace")
    try:
        args, unknown = build_parser().parse_known_args(argv)
        if unknown:
            if unknown[0].startswith("--"):
                check_names([unknown[0].removeprefix("--").partition("=")[0]])
            raise UserError(
                f"unexpected argument {unknown[0]!r} (`python -m gpt2_nb_utils {args.command} "
                f"--help` lists the flags)"
            )
        if dist_env.world_size() > 1 and args.command != "train":
            raise UserError(
                f"{args.command} works in one process, and torchrun started "
                f"{dist_env.world_size()}: start it without torchrun; train is the one that shares "
                f"its work out"
            )
        args.given = {
            name: value for name, value in vars(args).items() if name in RunConfig.model_fields
        }
        return args.function(args)
    except UserError as error:
        if _failed_first(str(error)):
            print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        if dist_env.rank() == 0:
            print("interrupted", file=sys.stderr)
        return _exit_status("interrupted")
    except BrokenPipeError:
        return 1
    except OSError as error:
        if error.errno not in (*FULL, errno.EROFS):  # the machine's affair wherever it occurs
            raise
        print(f"error: {NotWritten(error.filename or 'a file', error)}", file=sys.stderr)
        return NotWritten.exit_status


if __name__ == "__main__":
    dist_env.exit_with(main)
