"""Seconds and peak extra memory of a call, in the process that measures itself."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stages.errors import UserError
from stages.memory import give_back

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Cost:
    """What a call took."""

    seconds: float
    """On the clock."""
    cpu_seconds: float
    """Of the processor, all threads together: hardly changed by what else the machine does."""
    extra_bytes: int
    """Most resident memory above what there was right before."""


def cost(run: Callable[[], None]) -> Cost:
    """Run it once.

    Memory that was freed before is given back first, so that none of what the call takes is hidden in it, and the
    kernel's high-water mark is set to what is resident. Both are Linux's own.

    Raises:
        UserError: the kernel does not let the mark be reset, as where there is no /proc.
    """
    gc.collect()
    give_back()
    try:
        RESET.write_text("5", encoding="ascii")  # sets VmHWM to VmRSS: proc_pid_clear_refs(5)
    except OSError as error:
        raise UserError(f"cannot measure peak memory here ({error}): run this on Linux") from None
    before = _kilobytes("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    return Cost(seconds, cpu_seconds, (_kilobytes("VmHWM") - before) * 1024)


def _kilobytes(field: str) -> int:
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1])
