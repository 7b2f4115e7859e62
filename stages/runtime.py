"""What fixes the bits of a computation on one kind of CPU: seed, thread count, precision."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

from stages.errors import UserError
from stages.params import Runtime
from stages.startup import collect_rarely

PORTABLE = "AVX512_CORE_BF16"
"""The most that oneDNN is to use for bits that other processors have too: AMX, which comes after it, adds up in another
order."""


def prepare(runtime: Runtime) -> None:
    """Fix threads and seeds of this process, and keep to kernels whose result does not vary."""
    collect_rarely()
    if runtime.instructions == "portable":
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", PORTABLE)  # read when oneDNN computes for the first time
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
    import torch
    from transformers import set_seed
    from transformers.utils import logging

    torch.set_num_threads(runtime.threads)
    if torch.cuda.is_available():
        # On a CPU the kernels used here repeat exactly as they are (tests compare the bits), and this switch
        # would load the compiler: a second for every stage of every level.
        torch.use_deterministic_algorithms(True)
    set_seed(runtime.seed)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def run_together(runtime: Runtime, module: str, *arguments: str) -> bool:
    """Have a stage that trains run by `runtime.processes` processes, which `torchrun` starts; False: by this one alone.

    Where torchrun has started this one, there is nothing to start, and the number has to be that of params: it decides
    how many texts a step has, and so what comes out.

    Raises:
        UserError: one of them failed, or it is another number.
    """
    if "WORLD_SIZE" in os.environ:
        if processes() != runtime.processes:
            raise UserError(
                f"torchrun started {processes()} processes, runtime.processes is {runtime.processes}: make it as many"
            )
        return False
    if runtime.processes == 1:
        return False
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
    variables = {"OMP_NUM_THREADS": str(runtime.threads)} | dict(os.environ)  # torchrun prints a page where it is unset
    variables.pop("DVC_STAGE", None)  # outputs are kept here
    command = (*launcher, str(runtime.processes), "--module", module, *arguments)
    if subprocess.run(command, env=variables, check=False).returncode:
        raise UserError(f"one of {runtime.processes} processes failed: what went wrong is said above")
    return True


def processes() -> int:
    """How many processes train together: those `torchrun` started, else one."""
    return int(os.environ.get("WORLD_SIZE", 1))


def writes_outputs() -> bool:
    """Whether this process writes and tracks: the first of those that train together."""
    return int(os.environ.get("RANK", 0)) == 0


def autocast_bf16(runtime: Runtime) -> bool:
    """Whether training computes in bf16 (weights stay fp32).

    Raises:
        UserError: bf16 is demanded on a GPU that cannot do it.
    """
    import torch

    if runtime.precision == "fp32":
        return False
    if torch.cuda.is_available():
        supported = torch.cuda.is_bf16_supported()
        if runtime.precision == "bf16" and not supported:
            raise UserError("runtime.precision is bf16, which this GPU does not support: use auto or fp32")
        return supported
    # Without the instructions bf16 is emulated: right, but slower than fp32.
    capabilities = torch.cpu.get_capabilities()
    native = any(value for name, value in capabilities.items() if name.endswith("bf16"))
    return runtime.precision == "bf16" or native
