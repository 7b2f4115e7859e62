"""Several `dvc repro` side by side: a graph of stages, worked off by a bounded number of processes.

DVC runs one stage after another. What makes it safe to run several of it is its own locking, and that each is given
single stages (`-s`) whose inputs are finished.
"""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil

from stages.shell import start_dvc, stopping

State = Literal["waiting", "queued", "running", "done", "kept", "failed", "skipped"]
TICK_S = 0.5
"""Between looks at memory, and between two pictures of the progress."""


@dataclass
class Task:
    """One stage to bring up to date."""

    name: str
    needs: frozenset[str]
    """Stages that have to be finished first."""
    key: str
    """What it belongs to: a level, or "" for what all levels share."""
    state: State = "waiting"
    """`queued`: given to a process. `kept`: DVC found it up to date, or in its run cache. `skipped`: what it needs has
    failed."""
    started: float = 0.0
    """By the monotonic clock."""
    seconds: float = 0.0
    """That it took."""
    restored: bool = False
    """Whether DVC said that it need not run; it may still fail to fetch the outs."""


@dataclass
class _Job:
    """A DVC process and the stages it was given, one after another."""

    process: subprocess.Popen[str]
    chain: list[Task]
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=100))
    """The last ones that the current stage printed."""


class Pool:
    """Works off tasks; what one failure does not concern goes on."""

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        workers: int,
        memory: Callable[[], int],
        options: Sequence[str],
        logs: Path,
        show: Callable[[Sequence[Task]], None],
    ) -> None:
        """Set up.

        Args:
            tasks: in the order in which they are taken, as far as their needs allow.
            workers: processes at a time, at most.
            memory: gives the bytes that one process is thought to need. A further one is started only while so many
                are free, and as many as the largest one has used so far.
            options: of `dvc repro`.
            logs: existing folder for what the stages print, a file for each process.
            show: called with the tasks whenever something may have changed.
        """
        self.tasks = {task.name: task for task in tasks}
        self.said: dict[str, list[str]] = {}
        """The last lines that a failed stage printed."""
        self._workers = workers
        self._memory = memory
        self._options = options
        self._logs = logs
        self._show = show
        self._jobs: list[_Job] = []
        self._lines: queue.Queue[tuple[_Job, str | None]] = queue.Queue()
        self._largest = 0
        self._asked = self._passed = 0

    def run(self) -> None:
        """Run until nothing more can be.

        Raises:
            KeyboardInterrupt: after the processes, told to stop, have stopped.
        """
        with stopping(self._interrupt):
            try:
                while self._start() or self._jobs:
                    self._pass_on()
                    self._show(list(self.tasks.values()))
                    self._read()
            finally:
                for job in self._jobs:  # none, unless this ends by an error
                    with suppress(ProcessLookupError):
                        os.killpg(job.process.pid, signal.SIGTERM)
        self._show(list(self.tasks.values()))
        if self._asked:
            raise KeyboardInterrupt

    def _interrupt(self, *_: object) -> None:
        # Passed on by the main loop: a process being started right now is not on the list yet.
        self._asked += 1

    def _pass_on(self) -> None:
        """Hand Ctrl-C on; a second one does not wait for a stage to end in good order."""
        if self._asked > self._passed:
            self._passed = self._asked
            for job in self._jobs:
                if job.process.poll() is None:
                    os.killpg(job.process.pid, signal.SIGINT if self._asked == 1 else signal.SIGKILL)

    def _start(self) -> bool:
        """Start as many processes as may run; whether one was started."""
        before = len(self._jobs)
        while len(self._jobs) < self._workers and not self._asked and (not self._jobs or self._fits()):
            chain = self._take()
            if not chain:
                break
            names = [task.name for task in chain]
            process = start_dvc(
                "--wait-for-lock", "repro", "--single-item", *self._options, *names, stderr=subprocess.STDOUT
            )
            job = _Job(process, chain)
            self._jobs.append(job)
            threading.Thread(target=self._listen, args=(job,), daemon=True).start()
        return len(self._jobs) > before

    def _take(self) -> list[Task]:
        """The first waiting task that can run, and those of the same key that then can, each needing the one before."""
        finished = {name for name, task in self.tasks.items() if task.state in ("done", "kept")}
        known = self.tasks.keys()
        chain: list[Task] = []
        for task in self.tasks.values():
            given = {link.name for link in chain}
            ready = task.state == "waiting" and task.needs & known <= finished | given
            if ready and (not chain or (task.key == chain[0].key and chain[-1].name in task.needs)):
                chain.append(task)
        for task in chain:
            task.state = "queued"
        return chain

    def _fits(self) -> bool:
        return psutil.virtual_memory().available > max(self._memory(), self._largest)

    def _listen(self, job: _Job) -> None:
        assert job.process.stdout is not None
        with (self._logs / f"{job.chain[0].name.replace('/', '-')}.log").open("w", encoding="utf-8") as log:
            for line in job.process.stdout:
                log.write(line)
                log.flush()
                self._lines.put((job, line.rstrip()))
        self._lines.put((job, None))

    def _read(self) -> None:
        """Take in what the processes said within the next tick, and how large they are."""
        until = time.monotonic() + TICK_S
        while (left := until - time.monotonic()) > 0:
            try:
                job, line = self._lines.get(timeout=left)
            except queue.Empty:
                break
            if line is None:
                self._end(job)
                return
            self._follow(job, line)
        for job in self._jobs:
            self._largest = max(self._largest, _resident(job.process.pid))

    def _follow(self, job: _Job, line: str) -> None:
        """Learn from DVC's output which stage has begun, so that those before it are finished."""
        kept = _KEPT.match(line)
        turn = kept or _BEGUN.match(line)
        if turn is None:
            job.lines.append(line)
            return
        task = next((task for task in job.chain if task.name == turn[1]), None)
        if task is None:
            return
        _finish([task for task in job.chain if task.state == "running"])
        job.lines.clear()
        task.state = "running"
        task.restored = kept is not None
        task.started = time.monotonic()

    def _end(self, job: _Job) -> None:
        self._jobs.remove(job)
        left = [task for task in job.chain if task.state in ("queued", "running")]
        if job.process.wait() == 0:
            _finish(left)
            return
        for task in left:
            task.state = "waiting"
        if self._asked or not left:
            return
        failed = left[0]
        failed.state = "failed"
        self.said[failed.name] = list(job.lines)
        lost = {failed.name}
        for task in self.tasks.values():  # needs come before those who have them
            if task.state == "waiting" and task.needs & lost:
                task.state = "skipped"
                lost.add(task.name)


def _finish(tasks: Sequence[Task]) -> None:
    for task in tasks:
        task.state = "kept" if task.restored else "done"
        task.seconds = time.monotonic() - task.started if task.started else 0.0


_BEGUN = re.compile(r"(?:Running stage|Verifying data sources in stage:) '([^']+)'")
_KEPT = re.compile(r"(?:Stage )?'([^']+)' (?:didn't change|is cached)")
"""Lines of DVC's output that name the stage it turns to."""


def _resident(pid: int) -> int:
    """Bytes of memory of a process and its children; 0 if it has just ended."""
    try:
        process = psutil.Process(pid)
        return sum(part.memory_info().rss for part in (process, *process.children(recursive=True)))
    except psutil.Error:
        return 0


def ordered(edges: Mapping[str, frozenset[str]]) -> list[str]:
    """Names so that each comes after what it needs, otherwise in the order given."""
    found: dict[str, None] = {}

    def visit(name: str) -> None:
        if name in found:
            return
        for other in sorted(edges[name], key=list(edges).index):
            visit(other)
        found[name] = None

    for name in edges:
        visit(name)
    return list(found)
