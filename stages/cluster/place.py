"""The workers of a Dask cluster as a place where chains of stages run."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import layout, machine, params
from stages.cluster import results
from stages.cluster.connection import by_value, connected, on_worker, versions
from stages.cluster.workshop import CALL, Made, Workshop
from stages.errors import INTERRUPTED, UserError
from stages.processes import Processes
from stages.scratch import commit_of
from stages.shell import dvc, git, last_line, start_dvc
from stages.tracking.secrets import hidden

if TYPE_CHECKING:
    from distributed import Client, Future

PACKAGES = (*machine.DECIDING, "dvc", "filelock")
WRITTEN = (layout.OUTPUTS, layout.SCRATCH, "dvc.lock")
"""By stages: what need not be committed."""
PIPELINE = Path("dvc.yaml")


@contextmanager
def workers_at(address: str, repository: str | None, ready: Sequence[str]) -> Iterator[Workers]:
    """The workers of the cluster whose scheduler is at `address`, each with its clone of the project.

    Args:
        address: as in tcp://host:8786.
        repository: URL or path that workers clone; None for the git remote "origin".
        ready: stages that are up to date here and needed there; what they made is pushed to the DVC remote.

    Raises:
        UserError: the project is not committed or has no remote, or something is wrong with the cluster.
    """
    workshop = _workshop(repository, bool(ready))
    with connected(address) as client:
        if ready:
            print(f"pushing what {len(ready)} finished stages made", flush=True)
            _push(ready)
        _prepare(client, workshop)
        yield Workers(client, workshop)


def _workshop(repository: str | None, filled: bool) -> Workshop:
    """What workers are to do.

    Raises:
        UserError: the project is not committed, or lacks a remote of git or of DVC.
    """
    commit = commit_of("HEAD")
    apart = [f":(exclude){path}" for path in WRITTEN]
    changed = [
        line
        for paths in ([".", *apart], [str(layout.CODE)])  # by which workers tell what is to be made
        for line in git("status", "--porcelain", "--untracked-files=all", "--", *paths).stdout.splitlines()
    ]
    if changed:
        raise UserError(
            f"{changed[0][3:]} is not committed, and workers clone a commit: commit it, or have git ignore it"
        )
    if repository is None:
        answer = git("remote", "get-url", "origin")
        if answer.returncode:
            raise UserError("workers clone the project: give --repository URL, or `git remote add origin URL`")
        repository = answer.stdout.strip()
    if Path(repository).exists():
        repository = str(Path(repository).absolute())
    with suppress(UserError):
        if dvc("config", "core.remote").strip():
            return Workshop(
                repository=repository,
                commit=commit,
                below=git("rev-parse", "--show-prefix").stdout.strip(),
                wanted=versions(PACKAGES),
                topic=f"espalier-{uuid.uuid4().hex}",
                filled=filled,
                reach=by_value(results.reach),
                push=by_value(results.push),
            )
    raise UserError(
        "there is no DVC remote for results to come back by: `dvc remote add --default NAME URL` (docs/teams.md)"
    )


def _push(names: Sequence[str]) -> None:
    """Push what stages made, from here.

    Raises:
        UserError: it failed; with the last line it said.
    """
    given = pickle.dumps((by_value(results.push), (names,)))
    answer = subprocess.run([sys.executable, "-c", CALL], input=given, capture_output=True, check=False)
    if answer.returncode:
        last = last_line(answer.stderr.decode(errors="replace"))
        raise UserError(hidden(f"cannot push to the DVC remote: {last}"))


def _prepare(client: Client, workshop: Workshop) -> None:
    """Have every worker that is there clone the project, and look whether it can work.

    Raises:
        UserError: one cannot.
    """
    workers = sorted(client.nthreads())
    if not workers:
        print("no worker has joined the cluster yet: waiting for one", flush=True)
        return
    print(f"{len(workers)} workers make clones of {workshop.commit[:7]}", flush=True)
    prepare = on_worker(by_value(workshop), "prepare")
    asked = [client.submit(prepare, workers=[worker], pure=False) for worker in workers]
    for worker, future in zip(workers, asked, strict=True):
        try:
            problem = future.result()
        except Exception as error:
            raise UserError(f"the worker {worker} cannot work: {error}") from None
        if problem:
            raise UserError(f"the worker {worker} {problem}")


@dataclass
class _Chain:
    """Stages that a worker has been given."""

    names: Sequence[str]
    here: Sequence[str]
    """Those that are to run on this machine when the worker has finished the others."""
    tell: Callable[[Any], None]
    attempt: str = ""
    """Of them there are several if a worker is lost."""
    heard: int = 0
    """Lines of the attempt that were told."""


@dataclass
class _Ended:
    """A chain that no worker has any more."""

    chain: _Chain
    status: int
    finished: Sequence[str]


class Workers:
    """A `Place`: the workers of a Dask cluster, each with a clone of the project.

    What a worker has pushed is restored in this workspace from the DVC remote's run cache before a chain has ended.
    Stages whose outs git holds, which DVC keeps no runs of, run on this machine: they compare, and measure time.
    """

    shared = False

    def __init__(self, client: Client, workshop: Workshop) -> None:
        """Listen to what workers say."""
        self._client = client
        self._uncached = stages_without_runs(PIPELINE)
        self._here = Processes(1, lambda: 0, [])
        self._code = by_value(workshop)
        self._chains: dict[str, _Chain] = {}
        self._lock = threading.RLock()
        self._ended: queue.Queue[_Ended] = queue.Queue()
        self._futures: dict[str, Future[Any]] = {}
        self._restoring: subprocess.Popen[str] | None = None
        self._stopping = False
        client.subscribe_topic(workshop.topic, self._hear)
        threading.Thread(target=self._restore_ended, daemon=True).start()

    def room(self, running: int) -> bool:
        """Always: chains wait at the scheduler, where a cluster that grows with its work can see them."""
        return True

    def start(self, names: Sequence[str], tell: Callable[[Any], None]) -> None:
        """Give stages to the cluster."""
        count = next((at for at, name in enumerate(names) if name.partition("@")[0] in self._uncached), len(names))
        given, here = list(names[:count]), names[count:]
        if not given:
            self._here.start(here, tell)
            return
        key = f"{names[0]}-{uuid.uuid4().hex}"
        with self._lock:
            self._chains[key] = _Chain(given, here, tell)
        future = self._client.submit(on_worker(self._code, "make"), given, key, key=f"espalier-{key}", pure=False)
        self._futures[key] = future
        future.add_done_callback(lambda done: self._end(key, done))

    def stop(self, number: int) -> None:
        """Send a signal to what workers run, and take back what they have not begun."""
        self._stopping = True
        self._here.stop(number)
        if (restoring := self._restoring) is not None:
            with suppress(ProcessLookupError):
                os.killpg(restoring.pid, number)
        with suppress(Exception):  # of a cluster that is gone nothing runs
            self._client.run(on_worker(self._code, "stop"), number, on_error="ignore")
        kill = number == signal.SIGKILL
        with self._lock:
            begun = {key for key, chain in self._chains.items() if chain.attempt}
        self._client.cancel([future for key, future in tuple(self._futures.items()) if kill or key not in begun])

    def _hear(self, event: tuple[float, dict[str, Any]]) -> None:
        """Pass a line on that a worker's DVC printed."""
        _, said = event
        with self._lock:
            chain = self._chains.get(said["chain"])
            if chain is None:
                return
            if said["attempt"] != chain.attempt:
                if chain.attempt:
                    chain.tell(None)
                chain.attempt, chain.heard = said["attempt"], 0
            if said["number"] == chain.heard + 1:
                chain.heard += 1
                chain.tell(said["line"])

    def _end(self, key: str, future: Future[Any]) -> None:
        """A worker has finished a chain, or none ever will."""
        with self._lock:
            chain = self._chains.pop(key)
        del self._futures[key]
        try:
            made = Made(*future.result())
        except BaseException as error:
            status = INTERRUPTED if self._stopping else 1
            chain.tell(f"error: {_reason(error)}")
            self._ended.put(_Ended(chain, status, []))
            return
        if made.attempt != chain.attempt:
            chain.tell(None)
            chain.heard = 0
        for line in made.said[chain.heard :]:
            chain.tell(line)
        self._ended.put(_Ended(chain, made.status, made.finished))

    def _restore_ended(self) -> None:
        """Bring what ended chains have finished into the workspace, as many chains at a time as there are."""
        while True:
            some = [self._ended.get()]
            with suppress(queue.Empty):
                while True:
                    some.append(self._ended.get_nowait())
            names = [name for ended in some for name in ended.finished]
            together = self._restore(names)
            for ended in some:
                said = self._restore(ended.finished) if together and some[1:] else together
                for line in said:
                    ended.chain.tell(line)
                if ended.chain.here and not (ended.status or said or self._stopping):
                    self._here.start(ended.chain.here, ended.chain.tell)
                else:
                    ended.chain.tell(ended.status or int(bool(said)))

    def _restore(self, names: Sequence[str]) -> list[str]:
        """Have DVC restore what workers have pushed; what it said if it could not."""
        if not names or self._stopping:
            return []
        try:
            process = start_dvc("--wait-for-lock", "repro", "--pull", "--single-item", *names, stderr=subprocess.STDOUT)
        except OSError as error:  # no process or memory is left; the sweep is not to wait for ever
            return [f"error: what the worker made cannot be restored: {error}"]
        self._restoring = process
        said = []
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line.rstrip())
            if line.startswith("Running stage"):
                os.killpg(process.pid, signal.SIGKILL)
                said.append("error: what the worker made cannot be restored: it is not on the DVC remote as pushed")
        self._restoring = None
        return said if process.wait() else []


def stages_without_runs(file: Path) -> set[str]:
    """Names, without levels, of stages that DVC keeps no runs of: git holds outs of theirs that are no metrics."""
    stages = params.read_yaml(file)["stages"]
    return {
        name
        for name, stage in stages.items()
        for out in stage.get("outs", [])
        if isinstance(out, dict) and any(options.get("cache") is False for options in out.values())
    }


def _reason(error: BaseException) -> str:
    """Why no worker has finished a chain."""
    from concurrent.futures import CancelledError

    from distributed import KilledWorker

    if isinstance(error, KilledWorker):
        return "its workers were lost one after another, most likely for lack of memory"
    if isinstance(error, CancelledError):
        return "the Dask scheduler was lost"
    return f"{type(error).__name__}: {error}"
