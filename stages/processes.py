"""Several `dvc repro` side by side on this machine.

DVC runs one stage after another. What makes it safe to run several of it is its own locking, and that each is given
single stages (`-s`) whose inputs are finished. None outlives this process: a `dvc` that ran on after a kill would keep
its outputs locked, and record a stage that nobody waits for.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import psutil

from stages import warm
from stages.pool import Said
from stages.shell import ending_with_us, environment, start_dvc

Process = subprocess.Popen[str] | warm.Warm
LOOK_S = 5.0
"""Between two looks at the memory of what runs: each takes milliseconds a process."""


class Processes:
    """A `Place`: a bounded number of processes, in this workspace."""

    shared = True

    def __init__(self, workers: int, memory: Callable[[], int], options: Sequence[str]) -> None:
        """Set up.

        Args:
            workers: processes at a time, at most.
            memory: gives the bytes that one process is thought to need. A further one is started only while so many
                are free, and as many as the largest one has used so far.
            options: of `dvc repro`.
        """
        self._workers = workers
        self._memory = memory
        self._options = options
        self._running: set[Process] = set()
        self._largest = 0
        self._looked = -LOOK_S

    def room(self, running: int) -> bool:
        """Whether the bound and the memory allow one more."""
        if time.monotonic() - self._looked >= LOOK_S:
            self._looked = time.monotonic()
            self._largest = max([self._largest, *(_resident(process.pid) for process in tuple(self._running))])
        return running < self._workers and (not running or self._fits())

    def start(self, names: Sequence[str], tell: Callable[[Said], None]) -> None:
        """Start a process."""
        arguments = ("--wait-for-lock", "repro", "--single-item", *self._options, *names)
        process: Process
        if warm.possible():
            process = warm.Warm(arguments, environment())
        else:
            process = start_dvc(*arguments, stderr=subprocess.STDOUT)
        self._running.add(process)
        threading.Thread(target=self._listen, args=(process, tell), daemon=True).start()

    def stop(self, number: int) -> None:
        """Send a signal to the processes and all they started."""
        for process in tuple(self._running):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    def _listen(self, process: Process, tell: Callable[[Said], None]) -> None:
        assert process.stdout is not None
        with ending_with_us(process.pid):
            for line in process.stdout:
                tell(line.rstrip())
            status = process.wait()
        self._running.discard(process)
        tell(status)

    def _fits(self) -> bool:
        return psutil.virtual_memory().available > max(self._memory(), self._largest)


def _resident(pid: int) -> int:
    """Bytes of memory of a process and its children; 0 if it has just ended."""
    try:
        process = psutil.Process(pid)
        return sum(_own(part) for part in (process, *process.children(recursive=True)))
    except psutil.Error:
        return 0


def _own(process: psutil.Process) -> int:
    """Bytes of a process, its part of what it shares with others where the system knows that."""
    return getattr(process.memory_full_info(), "pss", 0) or process.memory_info().rss
