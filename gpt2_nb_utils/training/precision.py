"""Device, autocast and loss scaling: what `device` and `amp` mean on this machine.

fp16 holds numbers up to 65,504 and loses those below about 6e-8. Autocast runs the matrix products in fp16 and keeps
weights, sums and the loss in fp32; the GradScaler multiplies the loss so that small gradients survive, and halves that
factor when they overflow. Source: Micikevicius et al., "Mixed Precision Training", arXiv 1710.03740.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch

from gpt2_nb_utils.config import RunConfig
from gpt2_nb_utils.errors import UserError
from gpt2_nb_utils.training.processes import ALONE, Processes

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Precision:
    """Where and in which number format a run computes.

    Attributes:
        device: the torch device.
        amp: `fp16`, `bf16` or `fp32`; never `auto`.
    """

    device: torch.device
    amp: str

    @classmethod
    def of(cls, config: RunConfig, processes: Processes = ALONE) -> Precision:
        """Resolve `device` and `amp`. Of several processes, each takes a GPU of its own.

        Raises:
            UserError: a CUDA device that is not there, or one for several processes.
        """
        name = config.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if name.startswith("cuda") and processes.count > 1:
            if ":" in name:
                raise UserError(
                    f"device {name} is one GPU, for {processes.count} processes: take --device cuda, and each takes its own "
                    f"(CUDA_VISIBLE_DEVICES chooses among them)"
                )
            if processes.local_count > torch.cuda.device_count():
                raise UserError(
                    f"device {config.device}: {processes.local_count} processes on a machine with "
                    f"{torch.cuda.device_count()} CUDA devices: start no more than that (--nproc_per_node), or take "
                    f"--device cpu"
                )
            name = f"cuda:{processes.local_rank}"
        elif name.startswith("cuda"):
            index = int(name.partition(":")[2] or 0)
            if index >= torch.cuda.device_count():
                raise UserError(
                    f"device {config.device}: this machine has {torch.cuda.device_count()} CUDA devices; "
                    f"take --device cpu or auto"
                )
        amp = config.amp if config.amp != "auto" else "fp16" if name.startswith("cuda") else "fp32"
        return cls(torch.device(name), amp)

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context in which the forward pass runs."""
        if self.amp == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=_DTYPES[self.amp])

    def scaler(self) -> torch.amp.GradScaler:
        """A GradScaler, at work for fp16 and passing everything through otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.amp == "fp16")

    @property
    def muon_dtype(self) -> torch.dtype:
        """Number format of Muon's matrix products, which bear a coarse one: bf16 where the device computes in it, else fp32.

        Older GPUs know fp16 but not bf16, and a CPU without bf16 units is many times slower in it. On a CPU it is taken
        with `amp` bf16 only.
        """
        if self.device.type == "cuda" and self.amp != "fp32":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            native = self.amp == "bf16"
        return torch.bfloat16 if native else torch.float32

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
