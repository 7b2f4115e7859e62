"""The project that a fault strikes: a copy of one whose pipeline ran undisturbed, and what that one left."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import project as small
from ruamel.yaml import YAML

from stages import cache
from stages.files import md5
from stages.verify import TIMINGS

CHANGES: dict[str, Any] = {
    "train": {"epochs": 8, "checkpoint_every": 5},
    "sweep": {"method": ["magnitude", "l1"], "sparsity": [0.6]},
}
"""A longer training, with checkpoints to go on from, and levels with and without one in `prune`."""
CACHE = Path(".dvc/cache")
PATIENCE_S = 600
"""Seconds after which a command is said to hang."""
RUNNING = "Running stage '"


@dataclass(frozen=True)
class Ended:
    """A command that ended."""

    status: int
    said: str
    """Standard output and standard error, as they came."""


@dataclass
class Ground(small.Project):
    """A copy of the undisturbed project."""

    expected: Mapping[str, str] = field(default_factory=dict)
    """Of each out but timings: its md5 where nothing went wrong."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """How long each stage took then."""
    finished: Mapping[str, str] = field(default_factory=dict)
    """sha256 of each file under outputs but timings."""
    given: dict[str, str] = field(default_factory=dict)
    """sha256 of each file that git has, outputs left out."""
    cached: set[str] = field(default_factory=set)
    """Objects of DVC's cache that have to stay there."""

    def start(self, *command: str, **environment: str) -> Started:
        """Start a command as a shell does: as leader of a process group."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "ESPALIER_", "MLFLOW_", "PYTHONPATH"))}
        ours = {"PATH": path, "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            command,
            cwd=self.root,
            env={**kept, **ours, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        return Started(process)

    def end(self, *command: str, **environment: str) -> Ended:
        """Run a command to its end."""
        return self.start(*command, **environment).wait()

    def force(self, stage: str, **environment: str) -> Ended:
        """Run one stage of the pipeline whatever dvc.lock says, and nothing from the run cache."""
        return self.end(*FORCE, stage, **environment)

    def sha(self, path: str) -> str:
        """sha256 of a file of the project."""
        return sha256(self.root / path)

    def forget(self, stage: str) -> None:
        """Take what a stage made out of DVC's cache: as a clone that did not pull that."""
        outs = YAML(typ="safe").load(self.root / "dvc.lock")["stages"][stage]["outs"]
        for name in {out["md5"] for out in outs}:
            (self.root / CACHE / "files/md5" / name[:2] / name[2:]).unlink(missing_ok=True)
            self.cached.discard(name)

    def empty(self) -> None:
        """As a clone that has made nothing yet."""
        self.cached.clear()
        for path in ("outputs", ".scratch", ".dvc/cache", ".dvc/tmp"):
            shutil.rmtree(self.root / path, ignore_errors=True)
        for path in ("dvc.lock", "mlflow.db"):
            (self.root / path).unlink(missing_ok=True)


FORCE = ("dvc", "repro", "--single-item", "--force", "--no-run-cache")


class Started:
    """A command that runs, and what it has said so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: list[tuple[float, str]] = []
        self._grown = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            with self._grown:
                self._lines.append((time.monotonic(), line))
                self._grown.notify_all()
        with self._grown:
            self._grown.notify_all()

    @property
    def said(self) -> str:
        """All of it."""
        return "".join(line for _, line in self._lines)

    @property
    def lines(self) -> list[tuple[float, str]]:
        """Its lines, and when they came."""
        return list(self._lines)

    def until(self, text: str) -> bool:
        """Wait for a line that holds a text; False if the command ended without."""
        seen = 0
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with self._grown:
                if len(self._lines) == seen and self._reader.is_alive():
                    self._grown.wait(1)
                new, seen = self._lines[seen:], len(self._lines)
            if any(text in line for _, line in new):
                return True
            if not new and not self._reader.is_alive():
                return False
        raise TimeoutError(f"nothing said {text!r} in {PATIENCE_S} s:\n{self.said}")

    def running(self, seconds: float) -> bool:
        """Whether it still runs after so long."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def kill(self) -> Ended:
        """SIGKILL to the command and all that it started, but for a recorder, which is on its own."""
        os.killpg(self.process.pid, signal.SIGKILL)
        return self.wait()

    def wait(self) -> Ended:
        """Let it end."""
        try:
            status = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise TimeoutError(f"{self.process.args} did not end in {PATIENCE_S} s:\n{self.said}") from None
        self._reader.join(10)  # a recorder, which outlives its stage, may hold the pipe open
        return Ended(status, self.said)


def undisturbed(folder: Path) -> Ground:
    """Make a project and let its pipeline run.

    Raises:
        RuntimeError: it failed.
    """
    folder.mkdir(parents=True)
    made = small.make(folder)
    made.set(**CHANGES)
    made.commit("params")
    ground = Ground(folder)
    run = ground.start("dvc", "repro")
    ended = run.wait()
    if ended.status:
        raise RuntimeError(f"undisturbed, the pipeline failed:\n{ended.said}")
    moments = [(moment, line.split("'")[1]) for moment, line in run.lines if line.startswith(RUNNING)]
    ends = [moment for moment, _ in moments[1:]] + [time.monotonic()]
    ground.seconds = {stage: end - moment for (moment, stage), end in zip(moments, ends, strict=True)}
    ground.commit("finished")
    return described(ground)


def adopted(folder: Path, made: Path) -> Ground:
    """A copy of a project whose pipeline ran elsewhere, a few seconds a stage."""
    shutil.copytree(made, folder, symlinks=True)
    ground = Ground(folder)
    ground.run("dvc", "repro")
    if ground.run("git", "status", "--porcelain").stdout:
        ground.commit("finished")
    stages = YAML(typ="safe").load(folder / "dvc.lock")["stages"]
    ground.seconds = dict.fromkeys(stages, 5.0)
    return described(ground)


def described(ground: Ground) -> Ground:
    """Note what it holds now as what it has to hold after any fault."""
    ground.expected = ground.locked()
    ground.finished = finished_files(ground.root)
    ground.given = given_files(ground)
    return ground


@contextmanager
def copied(ground: Ground, folder: Path) -> Iterator[Ground]:
    """A copy to strike, which is removed in the end."""
    shutil.copytree(ground.root, folder, symlinks=True)
    try:
        yield Ground(folder, ground.expected, ground.seconds, ground.finished, ground.given, set(objects(folder)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def finished_files(root: Path) -> dict[str, str]:
    """sha256 of what stages left, timings apart.

    Nor of what a killed one was writing, which neither DVC nor git sees and the next that writes there removes.
    """
    names = (path.relative_to(root) for path in sorted((root / "outputs").rglob("*")) if path.is_file())
    kept = (name for name in names if not any(name.is_relative_to(timing) for timing in TIMINGS))
    seen = (name for name in kept if not any(part.endswith(".partial") for part in name.parts))
    return {str(name): sha256(root / name) for name in seen if name.name != ".gitignore"}


def given_files(ground: Ground) -> dict[str, str]:
    """sha256 of what a person committed: code, params, data."""
    names = ground.run("git", "ls-files").stdout.splitlines()
    return {n: sha256(ground.root / n) for n in names if not n.startswith("outputs/") and n != "dvc.lock"}


def sha256(path: Path) -> str:
    """Of a file; empty if there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def objects(root: Path) -> dict[str, bool]:
    """Every object of DVC's cache, and whether it holds what its name says."""
    return {path.parent.name + path.name: md5(path) == name for path, name in cache.objects(root / CACHE)}
