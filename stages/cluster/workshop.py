"""What a worker does: make stages in a clone of the project of its own, and push what comes of them.

All of it travels to the worker by value: the revision of Espalier there, if there is any, is not used. In the clone
the stages run as the commit has them.
"""

from __future__ import annotations

import itertools
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from stages.cluster.connection import VARIABLE, differing
from stages.errors import INTERRUPTED, UserError
from stages.scratch import ELSEWHERE
from stages.shell import ending_with_us, last_line, start, turn
from stages.tracking.secrets import hidden, without_password

CALL = "import pickle, sys; code, arguments = pickle.load(sys.stdin.buffer); pickle.loads(code)(*arguments)"
"""Python that calls what comes on its standard input."""
PUSHES = 3
"""Tries, some seconds apart."""
PAUSE_S = 5


class Made(NamedTuple):
    """What came of a chain of stages."""

    attempt: str
    """A name for it: there are several if a worker is lost."""
    status: int
    """As of a process that ended."""
    said: list[str]
    """Every line."""
    finished: list[str]
    """Stages that are on the DVC remote now."""


@dataclass
class Workshop:
    """Makes stages of one commit, one chain at a time; every worker process has one."""

    repository: str
    """URL or path that workers clone."""
    commit: str
    """Full name of the commit."""
    below: str
    """The project's folder in the repository, "" if it is the repository's."""
    wanted: Mapping[str, str]
    """Versions of packages."""
    topic: str
    """Of the events with what DVC prints."""
    filled: bool
    """Whether the head has pushed something to the DVC remote."""
    reach: bytes
    """`results.reach`, pickled by value."""
    push: bytes
    """`results.push`, pickled by value."""
    process: subprocess.Popen[str] | None = None
    stopped: bool = False

    def prepare(self) -> str:
        """Clone the project and look for its DVC remote; what is in the way, "" if nothing is."""
        try:
            self._check()
            with self._clone() as folder:
                self._call(folder, self.reach, self.filled)
        except UserError as error:
            return str(error)
        return ""

    def make(self, names: Sequence[str], chain: str) -> tuple[str, int, list[str], list[str]]:
        """Bring stages up to date, with what they need from the remote, and push what was made.

        Args:
            names: of stages, each needing the one before.
            chain: what events about it are marked with.

        Returns:
            What `Made` has, as a plain tuple, since the class is another one where it arrives.
        """
        from distributed import get_worker

        worker, attempt = get_worker(), uuid.uuid4().hex
        said: list[str] = []

        def say(line: str) -> None:
            line = hidden(line)
            said.append(line)
            worker.log_event(self.topic, {"chain": chain, "attempt": attempt, "number": len(said), "line": line})

        say(f"on {worker.address}")
        status, finished = 1, []
        try:
            self._check()
            with self._clone() as folder:
                status = self._reproduce(folder, names, say)
                begun = [place.stage for line in said if (place := turn(line)) and place.stage in names]
                made = list(names) if status == 0 else begun[:-1]
                self._push(folder, made)
                finished = made
        except UserError as error:
            say(f"error: {error}")
            status = status or 1
        return attempt, INTERRUPTED if self.stopped else status, said, finished

    def stop(self, number: int) -> None:
        """Send a signal to what runs, and begin nothing more."""
        self.stopped = True
        self._signal(number)

    def _check(self) -> None:
        """Check the worker.

        Raises:
            UserError: it does two things at a time, or has other versions of packages.
        """
        from distributed import get_worker

        if (threads := get_worker().state.nthreads) != 1:
            raise UserError(f"has {threads} threads, each of which would make a level: start it with --nthreads 1")
        if problem := differing(self.wanted):
            raise UserError(problem)

    def _reproduce(self, folder: Path, names: Sequence[str], say: Callable[[str], None]) -> int:
        """Run DVC; stages that others have finished are restored, never run again. Its exit status."""

        def follow(line: str) -> None:
            say(line)
            place = turn(line)
            if place and not place.kept and place.stage not in names and not place.stage.endswith(".dvc"):
                say(f"error: {place.stage} would run again here: its run is not on the DVC remote")
                self._signal(signal.SIGKILL)

        return self._run(folder, [sys.executable, "-m", "dvc", "repro", "--pull", "--allow-missing", *names], follow)

    def _push(self, folder: Path, names: Sequence[str]) -> None:
        """Push what stages made.

        Raises:
            UserError: it failed, and again.
        """
        for again in range(PUSHES if names else 0):
            try:
                if again:
                    time.sleep(PAUSE_S)
                self._call(folder, self.push, names)
                return
            except UserError as error:
                if self.stopped or again == PUSHES - 1:
                    raise UserError(f"cannot push to the DVC remote: {error}") from None

    def _call(self, folder: Path, code: bytes, *arguments: Any) -> None:
        """Call a function in a process of its own, whose folder is the clone.

        Raises:
            UserError: it raised something.
        """
        self._must(folder, [sys.executable, "-c", CALL], pickle.dumps((code, arguments)))

    def _must(
        self, folder: Path, command: Sequence[str], given: bytes = b"", variables: Mapping[str, str] | None = None
    ) -> None:
        """Run a command, with further variables.

        Raises:
            UserError: it failed; with the last line it said.
        """
        said: list[str] = []
        if self._run(folder, command, said.append, given, variables):
            raise UserError(hidden(last_line("\n".join(said))))

    def _run(
        self,
        folder: Path,
        command: Sequence[str],
        follow: Callable[[str], None],
        given: bytes = b"",
        variables: Mapping[str, str] | None = None,
    ) -> int:
        """Run a command to its end, which is this process's end at the latest; its exit status."""
        if self.stopped:
            return INTERRUPTED
        with tempfile.TemporaryFile() as stdin:
            stdin.write(given)
            stdin.seek(0)
            environment = self._variables() | dict(variables or {})
            process = start(command, environment, cwd=folder, stdin=stdin, stderr=subprocess.STDOUT)
        self.process = process
        if self.stopped:  # between the look at it above and now
            self._signal(signal.SIGTERM)
        with ending_with_us(process.pid):
            assert process.stdout is not None
            for line in process.stdout:
                follow(line.rstrip())
            status = process.wait()
        self.process = None
        return status

    def _signal(self, number: int) -> None:
        if (process := self.process) is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    def _variables(self) -> dict[str, str]:
        """For what runs in the clone: nothing that leads out of it, and MLflow only on a server."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith((*ELSEWHERE, VARIABLE))}
        tracking = {} if "MLFLOW_TRACKING_URI" in kept else {"ESPALIER_TRACKING": "off"}
        site = {"DVC_SITE_CACHE_DIR": str(self._home() / "site"), "DVC_NO_ANALYTICS": "1", "GIT_TERMINAL_PROMPT": "0"}
        return kept | tracking | site | {"PATH": path, "PYTHONUNBUFFERED": "1"}

    def _home(self) -> Path:
        """Where this machine's workers keep their clones, and the DVC cache that the clones share."""
        from distributed import get_worker

        return Path(get_worker().local_directory).parent / "espalier"

    @contextmanager
    def _clone(self) -> Iterator[Path]:
        """The project's folder in a clone that no other worker uses meanwhile; it is kept for the next time.

        Raises:
            UserError: git fails, or does not have the commit.
        """
        from filelock import FileLock, Timeout

        clones = self._home() / self.commit[:12]
        clones.mkdir(parents=True, exist_ok=True)
        for number in itertools.count():
            lock = FileLock(clones / f"{number}.lock")
            with suppress(Timeout):
                lock.acquire(timeout=0)
            if lock.is_locked:
                break
        try:
            folder = clones / str(number)
            if not folder.is_dir():
                self._make_clone(folder)
            yield folder / self.below
        finally:
            lock.release()

    def _make_clone(self, folder: Path) -> None:
        half = folder.with_suffix(".partial")
        shutil.rmtree(half, ignore_errors=True)
        address, variables = without_password(self.repository)
        try:
            self._must(
                folder.parent, ["git", "clone", "--quiet", "--no-checkout", address, str(half)], variables=variables
            )
        except UserError as error:
            raise UserError(f"cannot clone {hidden(self.repository)}: {error}") from None
        try:
            self._must(half, ["git", "checkout", "--quiet", "--detach", self.commit])
        except UserError:
            where = hidden(self.repository)
            raise UserError(f"cannot find commit {self.commit[:7]} in {where}: `git push` it") from None
        self._must(half, ["git", "remote", "remove", "origin"])  # whose address may have a password in it
        own = half / self.below / ".dvc" / "config.local"
        own.write_text(f"[cache]\n    dir = {self._home() / 'cache'}\n", encoding="utf-8")
        half.rename(folder)
