"""What a fault is, how one is tried, and what it must never cost."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from chaos.ground import Ended, Ground, copied, finished_files, given_files, objects

SHOWN = 20
"""Lines of what a command said that are shown where something was lost."""


class Fault(Protocol):
    """Something that goes wrong."""

    name: str
    """What goes wrong, in the words of the table."""
    how: str
    """How it is brought about here, and what of it is simulated."""

    def inject(self, ground: Ground) -> Iterator[Ended | None]:
        """Bring it about, once for every item; each is a command that met it, None if there is nothing to be said.

        What was broken is as it was when this ends, unless the person who meets the fault would have to mend it.
        """

    def expect(self, ended: Ended | None) -> Iterator[str]:
        """What is wrong with how a command that met the fault ended."""


class Skipped(Exception):
    """The fault cannot be brought about here; says why."""


@dataclass(frozen=True)
class Row:
    """What became of one fault."""

    family: str
    fault: str
    times: int
    survived: int
    lost: int
    seconds: int
    how: str


@dataclass(frozen=True)
class Result:
    """A row, and what there is to be said of what was lost."""

    row: Row
    losses: tuple[str, ...]


def tried(family: str, fault: Fault, undisturbed: Ground, scratch: Path) -> Result:
    """Strike a copy of the undisturbed project, then let the pipeline run as if nothing had been.

    Raises:
        Skipped: it cannot be brought about here.
    """
    began = time.monotonic()
    times = 0
    lost = 0
    losses: list[str] = []
    with copied(undisturbed, scratch / "struck") as ground:
        try:
            for ended in fault.inject(ground):
                times += 1
                wrong = [*fault.expect(ended), *_harm(ground)]
                lost += bool(wrong)
                losses += [f"{why}\n{_end(ended)}".strip() for why in wrong]
        except TimeoutError as error:
            times += 1
            lost += 1
            losses.append(str(error))
        if wrong := [*_not_recovered(ground)]:
            lost = max(lost, 1)
            losses += wrong
    seconds = round(time.monotonic() - began)
    return Result(Row(family, fault.name, times, times - lost, lost, seconds, fault.how), (*losses,))


def _end(ended: Ended | None) -> str:
    """The last lines of what a command said."""
    return "\n".join(ended.said.splitlines()[-SHOWN:]) if ended else ""


def error_of_one_line(ended: Ended | None, *wanted: str) -> Iterator[str]:
    """A fault that a person has to hear of: one line that holds these words, exit status other than 0."""
    assert ended
    if not ended.status:
        yield "exit status 0"
    if "Traceback (most recent call last)" in ended.said:
        yield "a traceback"
    ours = [line for line in ended.said.splitlines() if re.match(r"(error|interrupted)\b", line)]
    theirs = [line for line in ended.said.splitlines() if line.startswith("ERROR: ")]
    if len(ours) > 1 or not (ours or theirs):
        yield f"{len(ours)} lines that begin with error:"
    said = " ".join(ours or theirs)
    for word in wanted:
        if not re.search(word, said):
            yield f"the error does not say {word!r}: {said}"


def no_error(ended: Ended | None, *wanted: str) -> Iterator[str]:
    """A fault that does not stop anything; words that are said of it all the same."""
    assert ended
    if ended.status:
        yield f"exit status {ended.status}"
    if "Traceback (most recent call last)" in ended.said:
        yield "a traceback"
    for word in wanted:
        if not re.search(word, ended.said):
            yield f"nothing says {word!r}"


def _harm(ground: Ground) -> Iterator[str]:
    """What must not be at any moment: a committed file or a cached object that is lost or changed."""
    given = given_files(ground)
    yield from (f"{name}, committed, was changed" for name, was in ground.given.items() if given.get(name) != was)
    now = objects(ground.root)
    yield from (f"cached object {name} is lost" for name in sorted(ground.cached - now.keys()))
    yield from (f"cached object {name} does not hold what its name says" for name, whole in now.items() if not whole)
    ground.cached |= now.keys()


def _not_recovered(ground: Ground) -> Iterator[str]:
    """What is other than in the undisturbed project once `dvc repro` has run without a fault."""
    ended = ground.end("dvc", "repro")
    if ended.status:
        yield f"afterwards `dvc repro` ended with {ended.status}:\n{ended.said}"
        return
    locked = ground.locked()
    yield from (
        f"afterwards {path} has other bits" for path in ground.expected if locked.get(path) != ground.expected[path]
    )
    files = finished_files(ground.root)
    for name in sorted({*files, *ground.finished}):
        if files.get(name) != ground.finished.get(name):
            yield f"afterwards {name} is not as in the undisturbed project"
