"""What a run is recorded with: the machine, the versions of its packages, and the command that
started it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from gpt2_nb_utils import dist_env
from gpt2_nb_utils.errors import in_notebook
from gpt2_nb_utils.wording import NOT_RECORDED

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux says how much a container may take, of version 2 and of version 1."""


def memory_limit() -> int:
    """Bytes of memory that this process may use: the machine's, or what a container or `ulimit -v`
    allows."""
    limit = psutil.virtual_memory().total
    for path in map(Path, _LIMITS):
        with contextlib.suppress(OSError, ValueError):  # not Linux, no container, or "max"
            limit = min(limit, int(path.read_text(encoding="ascii")))
    with contextlib.suppress(ImportError):  # Windows
        import resource

        allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
        limit = limit if allowed == resource.RLIM_INFINITY else min(limit, allowed)
    return limit


def environment() -> dict[str, Any]:
    """What the run ran on: machine, Python and the versions of the packages that matter."""
    packages = {}
    for name in (
        "torch",
        "numpy",
        "tiktoken",
        "matplotlib",
        "pydantic",
        "papermill",
        "nbconvert",
        "jupyterlab",
        "transformers",
    ):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    release = platform.release().partition("-")[0]
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {release} {platform.machine()}",
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "packages": packages,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def sources_sha256() -> str:
    """The sha256 of this package's own .py files: sorted relative paths, each with the bytes of its
    file."""
    package, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(path.relative_to(package).as_posix() for path in package.rglob("*.py")):
        digest.update(path.encode("utf-8") + b"\0" + (package / path).read_bytes() + b"\0")
    return digest.hexdigest()


def command_line(given: Mapping[str, Any] | None = None) -> str:
    """The command that started this process, as it was given, but for where this machine keeps its
    programs.

    In a Jupyter kernel, whoever started it, it is the papermill command that does the same. The
    command line of any other program is not recorded: it may hold a password or a token.

    Args:
        given: the settings that a notebook was given.
    """
    if in_notebook():
        words = ["papermill", "notebooks/03_training.ipynb", "OUTPUT.ipynb"]
        for name, value in (given or {}).items():
            words += ["-r" if isinstance(value, str) else "-p", name, str(value)]
        return f"{shlex.join(words)}  # run in a Jupyter kernel" if given else NOT_RECORDED
    if Path(sys.argv[0]).absolute() != Path(__file__).with_name("__main__.py"):
        return NOT_RECORDED
    words = sys.orig_argv
    if dist_env.world_size() > 1:
        own = ["-m", __package__, *sys.argv[1:]]
        around = _words_of_parent()
        words = around if around[-len(own) :] == own else words
    # The program without its folder, which may hold the name of a user.
    if len(words) > 1 and Path(words[1]).is_absolute():
        words = words[1:]  # an installed script such as torchrun, with the interpreter before it
    return shlex.join([Path(words[0]).name, *words[1:]])


def _words_of_parent() -> list[str]:
    try:
        return psutil.Process(os.getppid()).cmdline()
    except psutil.Error:  # the parent may be gone or belong to somebody else
        return []
