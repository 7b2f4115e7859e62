"""What a command takes: its own clock, processor time and memory, all of its processes together."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import stages
from stages.errors import UserError
from stages.shell import last_line


@dataclass(frozen=True)
class Cost:
    """Of one command that has ended."""

    wall_s: float
    cpu_s: float
    """User and system time, of its children too: what another program on the machine does hardly changes it."""
    peak_bytes: int
    """Of its largest process."""


def cost(command: Sequence[str], folder: Path, variables: Mapping[str, str] | None = None) -> Cost:
    """Run a command in a folder, with this project's code.

    Raises:
        UserError: it failed; with the last line it said.
    """
    root = str(Path(stages.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "DVC_NO_ANALYTICS": "1"}
    start = time.perf_counter()
    with (folder / ".said").open("w+") as said:
        process = subprocess.Popen(
            command, cwd=folder, env={**environment, **(variables or {})}, stdout=said, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - start
        said.seek(0)
        last = last_line(said.read())
    if process.returncode:
        raise UserError(f"{' '.join(command)} failed: {last}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
