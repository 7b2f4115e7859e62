"""A Dask cluster of real processes on loopback, whose workers can be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

START_S = 120
LOOPBACK = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")


class Cluster:
    """A scheduler and its workers; each process logs to a file of `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workers: list[subprocess.Popen[bytes]] = []
        file = folder / "scheduler.json"
        self.scheduler = self._start("dask_scheduler", "--no-dashboard", "--port", "0", "--scheduler-file", str(file))
        self._until(lambda: file.is_file() and file.read_text().endswith("}"))
        self.address: str = json.loads(file.read_text())["address"]

    def add_worker(self, *options: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start a worker that nothing starts again, and wait until the scheduler knows it."""
        before = self._count()
        given = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(self.folder), *options)
        worker = self._start("dask_worker", self.address, *given, **variables)
        self.workers.append(worker)
        self._until(lambda: self._count() > before)
        return worker

    def running(self, *words: str) -> dict[int, psutil.Process]:
        """The process whose command line ends with words, by the index of the worker that started it."""
        found = {}
        for index, worker in enumerate(self.workers):
            if worker.poll() is None:
                for child in psutil.Process(worker.pid).children(recursive=True):
                    with suppress(psutil.Error):  # it has just ended
                        if child.cmdline()[-len(words) :] == list(words):
                            found[index] = child
        return found

    def stop(self) -> None:
        """End all processes."""
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait(timeout=30)

    def _start(self, module: str, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.{module}", *LOOPBACK, *arguments]
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_", "PYTHONPATH"))
        }
        number = len(list(self.folder.glob("*.log")))
        with (self.folder / f"{number}-{module}.log").open("wb") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=kept | variables,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _count(self) -> int:
        from distributed import Client

        with Client(self.address, set_as_default=False) as client:
            return len(client.nthreads())

    def _until(self, true: object) -> None:
        deadline = time.monotonic() + START_S
        while not true():  # type: ignore[operator]
            logs = "".join(log.read_text() for log in sorted(self.folder.glob("*.log")))
            assert time.monotonic() < deadline, logs
            time.sleep(0.1)


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[Cluster]:
    """A cluster that is stopped in the end."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Cluster(folder)
    try:
        for _ in range(workers):
            made.add_worker()
        yield made
    finally:
        made.stop()
