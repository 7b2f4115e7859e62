"""What decides the bits of a computation besides its inputs: packages, kind of processor, environment variables."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

from stages import fingerprints
from stages.params import Runtime

DECIDING = ("torch", "transformers", "tokenizers", "numpy", "safetensors", "accelerate", "peft", "pyarrow", "sacrebleu")
"""Packages whose version can show in an output."""
VARIABLES = ("ATEN_CPU_CAPABILITY", "CUBLAS_", "DNNL_", "KMP_", "MKL_", "ONEDNN_", "OPENBLAS_", "TORCH_")
"""Names, or how names begin, of variables that choose kernels. (`runtime.threads` overrides NAME_NUM_THREADS.)"""

INSTRUCTIONS = ("amx", "asimd", "avx", "bf16", "f16c", "fma", "i8mm", "sve")
"""How the names begin, in /proc/cpuinfo, of instructions that kernels for matrices use."""


def describe(runtime: Runtime) -> dict[str, str | int]:
    """What computes here: torch, processor and instructions or GPU, whether all of these are used, precision of
    training as `auto` comes out, threads.

    Nothing but training goes by that precision: weights are fp32, and so are loss and generation.
    """
    import torch

    from stages.runtime import autocast_bf16

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{_processor()}, {_instructions()}"
    precision = "bf16" if autocast_bf16(runtime) else "fp32"
    return {
        "torch": torch.__version__,
        "device": device,
        "instructions": runtime.instructions,
        "training_precision": precision,
        "threads": runtime.threads,
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def features() -> dict[str, str | int]:
    """What decides how fast it computes: cores this process may use, and the CPU's vector and matrix instructions."""
    try:
        flags = re.search(r"^(?:flags|Features)\s*: (.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    except OSError:
        flags = None
    names = sorted(name for name in (flags[1].split() if flags else ()) if name.startswith(INSTRUCTIONS))
    return {"cores": cores(), "cpu_features": " ".join(names)}


def left_alone(runtime: Runtime) -> str | None:
    """What this processor has for training that params leave alone, and how to have it; None if nothing."""
    import torch

    amx = not torch.cuda.is_available() and torch.cpu.get_capabilities().get("amx_bf16", False)
    if not amx or runtime.instructions != "portable" or runtime.precision == "fp32":
        return None
    return (
        "this processor has AMX, which runtime.instructions: portable leaves alone for bits that others have too; "
        "native trains wide models several times as fast (docs/train.md)"
    )


def _processor() -> str:
    try:
        known = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        known = None
    return known[1] if known else platform.processor() or platform.machine()


def _instructions() -> str:
    import torch

    return str(torch.backends.cpu.get_cpu_capability())


def unlike_pins(root: Path) -> Iterator[str]:
    """Say which deciding packages are not the ones that a project pins."""
    pins = fingerprints.pins(root)
    for name, installed in fingerprints.installed_otherwise({name: pins[name] for name in DECIDING if name in pins}):
        yield f"{name}: {installed} is installed, {fingerprints.CONSTRAINTS} has {pins[name]}"


def variables() -> Iterator[str]:
    """Environment variables that are set and can change kernels, as `NAME=VALUE`."""
    for name, value in sorted(os.environ.items()):
        if name.startswith(VARIABLES) and not name.endswith("_NUM_THREADS"):
            yield f"{name}={value}"
