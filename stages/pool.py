"""A graph of stages, worked off in chains that run side by side: here, or wherever a `Place` has them run."""

from __future__ import annotations

import queue
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TextIO

from stages.shell import stopping, turn

Said = str | int | None
"""By a chain of stages: a line that DVC printed, its exit status in the end, or None: it begins anew."""
State = Literal["waiting", "queued", "running", "done", "kept", "failed", "skipped"]
TICK_S = 0.5
"""Between two pictures of the progress."""


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


class Place(Protocol):
    """Where chains of stages run."""

    shared: bool
    """Whether what a stage makes is there for all others as soon as the next stage of its chain begins; else when the
    chain has ended."""

    def room(self, running: int) -> bool:
        """Whether a chain may be started while so many run."""

    def start(self, names: Sequence[str], tell: Callable[[Said], None]) -> None:
        """Have DVC bring stages up to date, one after another; what comes of it is told, from any thread."""

    def stop(self, number: int) -> None:
        """Send a signal to all that runs; each chain still tells its exit status."""


@dataclass
class _Job:
    """Stages that run one after another."""

    chain: list[Task]
    log: TextIO
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=100))
    """The last ones that the current stage printed."""


class Pool:
    """Works off tasks; what one failure does not concern goes on."""

    def __init__(
        self, tasks: Sequence[Task], place: Place, *, logs: Path, show: Callable[[Sequence[Task]], None]
    ) -> None:
        """Set up.

        Args:
            tasks: in the order in which they are taken, as far as their needs allow.
            place: where they run.
            logs: existing folder for what the stages print, a file for each chain.
            show: called with the tasks whenever something may have changed.
        """
        self.tasks = {task.name: task for task in tasks}
        self.said: dict[str, list[str]] = {}
        """The last lines that a failed stage printed."""
        self._place = place
        self._logs = logs
        self._show = show
        self._jobs: list[_Job] = []
        self._news: queue.Queue[tuple[_Job, Said]] = queue.Queue()
        self._asked = self._passed = 0

    def run(self) -> None:
        """Run until nothing more can be.

        Raises:
            KeyboardInterrupt: after all that ran, told to stop, has stopped.
        """
        with stopping(self._interrupt):
            try:
                while self._start() or self._jobs:
                    self._pass_on()
                    self._show(list(self.tasks.values()))
                    self._read()
            finally:
                if self._jobs:  # this ends by an error
                    self._place.stop(signal.SIGTERM)
        self._show(list(self.tasks.values()))
        if self._asked:
            raise KeyboardInterrupt

    def _interrupt(self, *_: object) -> None:
        # Passed on by the main loop: a chain being started right now is not on the list yet.
        self._asked += 1

    def _pass_on(self) -> None:
        """Hand Ctrl-C on; a second one does not wait for a stage to end in good order."""
        if self._asked > self._passed:
            self._passed = self._asked
            self._place.stop(signal.SIGINT if self._asked == 1 else signal.SIGKILL)

    def _start(self) -> bool:
        """Start as many chains as may run; whether one was started."""
        before = len(self._jobs)
        while not self._asked and self._place.room(len(self._jobs)):
            chain = self._take()
            if not chain:
                break
            names = [task.name for task in chain]
            job = _Job(chain, (self._logs / f"{names[0].replace('/', '-')}.log").open("w", encoding="utf-8"))
            self._jobs.append(job)
            self._place.start(names, lambda said, job=job: self._news.put((job, said)))  # type: ignore[misc]
        return len(self._jobs) > before

    def _take(self) -> list[Task]:
        """The first waiting task that can run, and those of the same key that then can, each needing the one before."""
        finished = {name for name, task in self.tasks.items() if task.state in ("done", "kept")}
        if not self._place.shared:
            finished -= {task.name for job in self._jobs for task in job.chain}
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

    def _read(self) -> None:
        """Take in what the chains say within the next tick."""
        until = time.monotonic() + TICK_S
        while (left := until - time.monotonic()) > 0:
            try:
                job, said = self._news.get(timeout=left)
            except queue.Empty:
                break
            if isinstance(said, int):
                self._end(job, said)
                return
            if said is None:
                _begin_anew(job)
            else:
                job.log.write(f"{said}\n")
                job.log.flush()
                self._follow(job, said)

    def _follow(self, job: _Job, line: str) -> None:
        """Learn from DVC's output which stage has begun, so that those before it are finished."""
        begun = turn(line)
        if begun is None:
            job.lines.append(line)
            return
        task = next((task for task in job.chain if task.name == begun.stage), None)
        if task is None:
            return
        _finish([task for task in job.chain if task.state == "running"])
        job.lines.clear()
        task.state = "running"
        task.restored = begun.kept
        task.started = time.monotonic()

    def _end(self, job: _Job, status: int) -> None:
        self._jobs.remove(job)
        job.log.close()
        left = [task for task in job.chain if task.state in ("queued", "running")]
        if status == 0:
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


def _begin_anew(job: _Job) -> None:
    """A chain starts from its first stage again, since the worker that had it is gone."""
    job.lines.clear()
    for task in job.chain:
        task.state, task.restored, task.started = "queued", False, 0.0


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
