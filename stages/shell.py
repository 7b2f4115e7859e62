"""Running git and DVC, and who gets Ctrl-C while they run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import stages
from stages.errors import UserError
from stages.lockfile import refuse_damaged

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, termination, and a terminal that was closed."""
DVC = (sys.executable, "-P", "-m", "stages.run_dvc")
"""With `-P`, of this code and not of a project in the working directory, which may be another revision."""

ERROR = "ERROR:"
SUPPORT = "Having any troubles?"
"""How DVC begins an error, and the line with which it ends one that it did not expect."""


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """For DVC: this interpreter first on the path, since stages are `python -m …`, and output line by line."""
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ.get('PATH', '')}"  # noqa: PTH120
    package = str(Path(stages.__file__).parents[1])
    code = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PATH": path, "PYTHONPATH": code, "PYTHONUNBUFFERED": "1", **(changes or {})}


def start(command: Sequence[str], variables: Mapping[str, str], **options: Any) -> subprocess.Popen[str]:
    """Start a command in a process group of its own, so that the terminal's Ctrl-C reaches it only through us."""
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
        env=variables,
        **options,
    )


def start_dvc(*arguments: str, changes: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
    """Start dvc as `start` does."""
    return start([*DVC, *arguments], environment(changes), **options)


class Turn(NamedTuple):
    """DVC turns to a stage."""

    stage: str
    kept: bool
    """It need not run: nothing has changed, or the run cache has it."""


def turn(line: str) -> Turn | None:
    """Whether a line of DVC's output says which stage it turns to."""
    kept = re.match(r"(?:Stage )?'([^']+)' (?:didn't change|is cached)", line)
    begun = kept or re.match(r"(?:Running stage|Verifying data sources in stage:) '([^']+)'", line)
    return Turn(begun[1], kept is not None) if begun else None


def dvc(*arguments: str) -> str:
    """What a dvc command prints.

    Raises:
        UserError: it failed, with the error it named; or dvc.lock is cut short.
    """
    refuse_damaged()
    answer = subprocess.run([*DVC, *arguments], capture_output=True, encoding="utf-8", check=False, env=environment())
    if answer.returncode:
        refuse_damaged(thoroughly=True)
        raise UserError(f"`dvc {arguments[0]}` failed: {reason(answer.stderr)}")
    return answer.stdout


def reason(said: str) -> str:
    """Why a dvc command failed, as one line: what follows the first `ERROR:`, else the last line.

    Args:
        said: its standard error. An error may go on over several lines, the first of which says what happened and
            the last what to do; where to ask for help is left out.
    """
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith(SUPPORT)]
    begins = next((n for n, line in enumerate(lines) if line.startswith(ERROR)), len(lines) - 1)
    return " ".join(" ".join(lines[begins:]).removeprefix(ERROR).split()) if lines else "no message"


def last_line(said: str) -> str:
    """The last line of an output that is not blank, which is where a command that failed says why."""
    return next((line for line in reversed(said.splitlines()) if line.strip()), "no message").strip()


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run git to its end, its output captured."""
    return subprocess.run(["git", *arguments], capture_output=True, encoding="utf-8", check=False)


@contextmanager
def ending_with_us(group: int) -> Iterator[None]:
    """Have a process group killed when this process ends, be it by a signal that nobody can act on."""
    # This process has the only other end of the pipe that the shell reads from.
    command = ["sh", "-c", f"read -r _; kill -s KILL -- -{group}"]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        guard.kill()
        guard.communicate()


@contextmanager
def stopping(handler: Any) -> Iterator[None]:
    """Have a handler take Ctrl-C, termination and a closed terminal."""
    before = [signal.signal(number, handler) for number in STOPPING]
    try:
        yield
    finally:
        for number, old in zip(STOPPING, before, strict=True):
            signal.signal(number, old)
