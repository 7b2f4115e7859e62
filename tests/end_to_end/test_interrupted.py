"""`dvc repro`, killed with all it started while a model trains, and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import project as projects
import pytest


def start(project: projects.Project, *command: str) -> subprocess.Popen[str]:
    """Start a command as the leader of a process group, as a shell does."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        cwd=project.root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def checkpoints(project: projects.Project, pattern: str) -> set[Path]:
    return set((project.root / ".scratch" / "checkpoints" / "train").glob(pattern))


def end_when(project: projects.Project, pattern: str, number: int, how: signal.Signals) -> str:
    """Send a signal to `dvc repro train` and its children when so many such paths were written; what it printed."""
    process = start(project, "dvc", "repro", "train")
    seen: set[Path] = set()
    deadline = time.monotonic() + 300
    while len(seen) < number:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        seen |= checkpoints(project, pattern)
        time.sleep(0.002)
    os.killpg(process.pid, how)
    return process.communicate(timeout=300)[0]


@pytest.mark.timeout(600)
def test_killed_and_interrupted_it_goes_on(tmp_path):
    project = projects.make(tmp_path)
    project.set(train={"epochs": 40, "checkpoint_every": 10, "early_stopping_patience": None})
    project.repro("clean")

    end_when(project, "*/step-*", 2, signal.SIGKILL)
    said = end_when(project, "*/step-*", 3, signal.SIGINT)
    assert "going on from step" in said
    assert "is kept to go on from" in said and "run the same command to go on" in said
    said = end_when(project, "ended.json", 1, signal.SIGKILL)  # the stage is done, but DVC does not know it yet
    assert "going on from step" in said and "outputs/models/baseline" not in project.locked()
    said = project.run("dvc", "repro", "train").stderr
    assert "going on from step" in said
    ended = project.locked()
    project.run("python", "-c", "from stages.training import checkpoints; checkpoints.remove_recorded()")
    assert not checkpoints(project, "*")

    # Changing how often checkpoints are kept makes nothing again; forced, the run is the same without them.
    project.set(train={"checkpoint_every": 0})
    assert project.repro("train") == []
    assert project.repro("--force", "--single-item", "train") == ["train"]
    assert project.locked() == ended
