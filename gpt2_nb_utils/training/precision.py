"""Device, autocast and loss scaling: what `device` and `amp` mean on this machine.

fp16 holds numbers up to 65,504 and loses those below about 6e-8. Autocast runs the matrix products
in fp16 and keeps weights, sums and the loss in fp32; the GradScaler multiplies the loss so that
small gradients survive, and halves that factor when they overflow. bf16 has the range of fp32 and
needs none of this. Source: Micikevicius et al., "Mixed Precision Training", arXiv 1710.03740.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from dataclasses import dataclass

import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.training.distributed import SINGLE, DistContext
from gpt2_nb_utils.training.out_of_memory import is_out_of_memory

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_CPU_UNITS = {"AMX": "_is_amx_tile_supported", "AVX512-BF16": "_is_avx512_bf16_supported"}
"""Units for bf16 products, and the functions of `torch.cpu` that ask for them (where this torch has
them)."""
_WHEELS, _WHEELS_CUDA = "https://download.pytorch.org/whl/cu130", "13.0"
"""PyTorch's own packages with CUDA (pytorch.org/get-started), and the version of it."""


@dataclass(frozen=True)
class Precision:
    """Where and in which number format a run computes.

    Attributes:
        device: the torch device.
        amp: `fp16`, `bf16` or `fp32`; never `auto`.
        reason: why `auto` chose that format: `this processor has AMX`; empty where it was given.
    """

    device: torch.device
    amp: str
    reason: str = ""

    @classmethod
    def of(cls, config: RunConfig, context: DistContext = SINGLE) -> Precision:
        """Resolve `device` and `amp`. Of several processes, each takes a GPU of its own.

        Raises:
            UserError: a CUDA device that is not there, or one for several processes.
        """
        name, n_gpus = config.device, torch.cuda.device_count()
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if name.startswith("cuda") and context.world_size > 1:
            if ":" in name:
                raise UserError(
                    f"device {name} is one GPU, for {context.world_size} processes: take --device "
                    f"cuda, and each takes its own (CUDA_VISIBLE_DEVICES chooses among them)"
                )
            if context.local_world_size > n_gpus:
                raise UserError(
                    f"device {config.device}: {context.local_world_size} processes on a machine "
                    f"with {n_gpus} CUDA devices: start no more than that (--nproc_per_node), or "
                    f"take --device cpu"
                )
            name = f"cuda:{context.local_rank}"
        elif name.startswith("cuda"):
            if int(name.partition(":")[2] or 0) >= n_gpus:
                counted = f"this machine has {n_gpus} CUDA devices; take --device cpu or auto"
                raise UserError(f"device {config.device}: {unused_gpu() or counted}")
        device = torch.device(name)
        if config.amp != "auto":
            return cls(device, config.amp)
        if device.type == "cuda":
            return cls(device, "fp16", "the default on a GPU")
        units = cpu_bf16_units()
        reason = f"this processor has {units or 'no bf16 units'}"
        return cls(device, "bf16" if units else "fp32", reason)

    @property
    def description(self) -> str:
        """The number format and why it was chosen, for a log: `bf16: this processor has AMX`."""
        return f"{self.amp}: {self.reason}" if self.reason else self.amp

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the matrix products."""
        return _DTYPES[self.amp]

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context in which the forward pass runs."""
        if self.amp == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """A GradScaler, which scales in fp16 and passes everything through otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.amp == "fp16")

    @property
    def has_bf16_units(self) -> bool:
        """Whether the device multiplies bf16 matrices in hardware: others emulate it, many times
        slower than fp32."""
        if self.device.type != "cuda":
            return bool(cpu_bf16_units())
        with torch.cuda.device(self.device):  # otherwise the answer is that of card 0
            return torch.cuda.is_bf16_supported(including_emulation=False)

    @property
    def muon_dtype(self) -> torch.dtype:
        """Number format of Muon's matrix products, which tolerate a coarse one: bf16 where the
        device computes in it, else fp32.

        Older GPUs have fp16 but not bf16. On a CPU bf16 is taken with `amp` bf16 only.
        """
        on_gpu = self.device.type == "cuda" and self.amp != "fp32"
        coarse = self.has_bf16_units if on_gpu else self.amp == "bf16"
        return torch.bfloat16 if coarse else torch.float32

    @property
    def device_name(self) -> str:
        """The device as a person knows it."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"cpu ({torch.get_num_threads()} threads)"

    def wait(self) -> None:
        """Return when the device has done all it was given, so that a clock can be read."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def cpu_bf16_units() -> str:
    """The units of this processor for bf16 products, `AMX` or `AVX512-BF16`; empty where it has
    none."""
    for name, query in _CPU_UNITS.items():
        if getattr(torch.cpu, query, lambda: False)():
            return name
    return ""


def unused_gpu() -> str:
    """Why torch cannot use the NVIDIA GPU of this machine, and the fix; empty where it can, or
    where there is none."""
    driver = 0 if torch.cuda.is_available() else _cuda_of_driver()
    if driver == 0:
        return ""
    needed = torch.version.cuda or _WHEELS_CUDA
    problems, fixes = [], []
    if driver // 1000 < int(needed.partition(".")[0]):
        problems.append(f"its driver supports CUDA {driver // 1000}.{driver % 1000 // 10} at most")
        fixes.append(f"update the driver to one for CUDA {needed} (nvidia.com/drivers)")
    if torch.version.cuda is None:
        problems.append(f"torch {torch.__version__} is a build without CUDA")
        version = torch.__version__.partition("+")[0]
        fixes.append(f"pip install --upgrade torch=={version} --index-url {_WHEELS}")
    if not problems:
        problems.append("torch cannot initialise CUDA")
        fixes.append('see what python -c "import torch; torch.cuda.init()" says')
    return (
        f"this machine has an NVIDIA GPU that is not used: {' and '.join(problems)}: "
        f"{', then '.join(fixes)}, or take --device cpu"
    )


def _cuda_of_driver() -> int:
    """The CUDA version that the NVIDIA driver supports, as 1000 · major + 10 · minor; 0 where there
    is no driver, or it has no GPU."""
    count, version = ctypes.c_int(), ctypes.c_int()
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        failed = (
            driver.cuInit(0)
            or driver.cuDeviceGetCount(ctypes.byref(count))
            or driver.cuDriverGetVersion(ctypes.byref(version))
        )
    except (OSError, AttributeError):  # no driver, or not all of one
        return 0
    return version.value if count.value and not failed else 0


def check_device(precision: Precision, compile: bool = False) -> str:
    """Try the device, and torch.compile where it is asked for, with one small operation each.

    Returns:
        A warning: with bf16 on a CPU without units for it, how many times slower than fp32 that is.
        Otherwise empty.

    Raises:
        UserError: the device cannot be used, or nothing can be compiled for it.
    """
    device = precision.device
    try:
        x = torch.ones(2, device=device)
        (x + x).tolist()  # the values come back only when the device has computed them
    except RuntimeError as error:
        if is_out_of_memory(error):
            fix = "close the programs that use its memory, or take --device cpu"
        elif "no kernel image" in str(error):
            fix = "install a build of torch for it (pytorch.org), or take --device cpu"
        else:
            fix = "take --device cpu"
        raise UserError(
            f"device {device} ({precision.device_name}) cannot be used with torch "
            f"{torch.__version__} ({_first_line(error)}): {fix}"
        ) from None
    if compile:
        try:
            torch.compile(lambda x: x.sin() + 1)(x)
        except Exception as error:  # of a dozen kinds, by what is missing
            needed = "Triton" if device.type == "cuda" else "a C++ compiler"
            raise UserError(
                f"compile does not work on this machine ({_first_line(error)}): install {needed}, "
                f"or leave out --compile"
            ) from None
    if device.type == "cpu" and precision.amp == "bf16" and not precision.has_bf16_units:
        return (
            f"amp bf16: this processor has no bf16 units, and a product of the model takes "
            f"{_slowdown():.1f} × as long as in fp32: --amp fp32 is faster"
        )
    return ""


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _slowdown() -> float:
    """How many times as long a product of a block takes in bf16 as in fp32 on the CPU."""
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        # 128 rows: where bf16 is emulated, these take seconds.
        x, weight = torch.ones(128, 768, dtype=dtype), torch.ones(768, 3072, dtype=dtype)
        x @ weight  # the first one also sets things up
        begun = time.perf_counter()
        x @ weight
        seconds.append(time.perf_counter() - begun)
    return seconds[1] / seconds[0]
