"""SIGKILL at random moments of every stage, and what DVC does between stages."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from chaos.faults import Fault
from chaos.ground import FORCE, RUNNING, Ended, Ground, Started

MORE = 10
"""Kills beside one in every stage."""
TRIES = 6
"""Of a kill that came too late, each in half the time of the one before."""
TARGETS = ("all", "stage")
"""`dvc repro` and all it started, as by a power cut; the stage's process alone, as by a system short of memory."""


@dataclass(frozen=True)
class Kill:
    """When to kill, and what."""

    stage: str
    share: float
    """Of the seconds that the stage took undisturbed; at the end DVC commits it."""
    target: str


@dataclass(frozen=True)
class Kills:
    """The whole pipeline, killed over and over and started again."""

    seed: int
    stages: tuple[str, ...] = ()
    """Only these, made anew where all is finished; none: all, from nothing."""
    name: str = "SIGKILL at a random moment of every stage, of dvc and all or of the stage alone"
    how: str = "real; moments and victims drawn by a seed"

    def inject(self, ground: Ground) -> Iterator[Ended | None]:
        """Kill by plan; a stage that ended before its moment came is made anew, and killed earlier."""
        if not self.stages:
            ground.empty()
        for kill in planned(self.seed, ground, self.stages):
            command = FORCE if self.stages else ("dvc", "repro")
            for halved in range(TRIES):
                if ended := struck(ground, replace(kill, share=kill.share / 2**halved), command):
                    yield ended
                    break
                command = FORCE

    def expect(self, ended: Ended | None) -> Iterator[str]:
        """Nobody is left to say anything, if not DVC; a traceback would be a bug of ours."""
        assert ended
        if "Traceback" in ended.said:
            yield "a traceback"
        if not ended.status:
            yield "exit status 0"


def planned(seed: int, ground: Ground, only: tuple[str, ...]) -> list[Kill]:
    """A kill in every stage, and some more, in the order in which stages run."""
    draw = random.Random(seed)
    stages = only or tuple(ground.seconds)
    chosen = [*stages, *draw.choices(stages, k=0 if only else MORE)]
    return [Kill(stage, draw.uniform(0.05, 1), draw.choice(TARGETS)) for stage in sorted(chosen, key=stages.index)]


def struck(ground: Ground, kill: Kill, command: tuple[str, ...]) -> Ended | None:
    """Run the pipeline up to the moment, and kill; None if it was over by then."""
    run = ground.start(*command, kill.stage)
    if not run.until(f"{RUNNING}{kill.stage}'"):
        return None
    if not run.running(kill.share * ground.seconds[kill.stage]):
        return None
    if kill.target == "stage" and (victim := stage_process(run, ground.root)):
        os.kill(victim, signal.SIGKILL)
        ended = run.wait()
    else:
        ended = run.kill()
    return ended if ended.status else None  # it was done before the signal came


def stage_process(run: Started, root: Path) -> int | None:
    """The process of the stage that runs, which is not DVC's."""
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        for child in psutil.Process(run.process.pid).children(recursive=True):
            try:
                if "-m stages." in " ".join(child.cmdline()) and "recorder" not in " ".join(child.cmdline()):
                    return child.pid
            except psutil.Error:
                continue
        time.sleep(0.02)
    return None


def faults(seed: int) -> list[Fault]:
    """All of this family."""
    again = ("clean", "prune@magnitude-0.6", "compare")
    return [Kills(seed), Kills(seed, again, "SIGKILL while finished stages are made anew")]
