"""Two `dvc repro` at once, a clock that goes back, a terminal that is closed, a reader that goes away."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chaos.faults import Fault, Skipped, error_of_one_line, no_error
from chaos.ground import FORCE, RUNNING, Ended, Ground, finished_files

LIBRARIES = ("/usr/lib/*/faketime/libfaketime.so.1", "/usr/local/lib/faketime/libfaketime.so.1")


@dataclass(frozen=True)
class Twice:
    """A second `dvc repro` while the first one runs a stage."""

    name: str = "two `dvc repro` at once"
    how: str = "real: the second starts while the first runs a stage"

    def inject(self, ground: Ground) -> Iterator[Ended | None]:
        """Start both; whichever is refused has to say so, and the other has to end well."""
        for stage in ("train", "prune@magnitude-0.6"):
            first = ground.start(*FORCE, stage)
            first.until(RUNNING)
            second = ground.end(*FORCE, stage)
            ended = first.wait()
            yield second if not ended.status else Ended(0, f"the first failed:\n{ended.said}")

    def expect(self, ended: Ended | None) -> Iterator[str]:
        """The second is refused."""
        yield from error_of_one_line(ended, "lock|is (being|busy)|running")


@dataclass(frozen=True)
class Back:
    """Stages and DVC at a time years before that of the files they read."""

    name: str = "clock set back three years"
    how: str = "libfaketime (Debian's package faketime) in dvc and stages; file times are the kernel's"

    def inject(self, ground: Ground) -> Iterator[Ended | None]:
        """Make stages anew, then let the rest be looked at."""
        found = [str(path) for pattern in LIBRARIES for path in Path("/").glob(pattern.lstrip("/"))]
        if not found:
            raise Skipped("libfaketime is not installed: apt-get install faketime")
        clock = {"LD_PRELOAD": found[0], "FAKETIME": "-3y"}
        for stage in ("clean", "train", "evaluate_dense"):
            yield ground.force(stage, **clock)
        yield ground.end("dvc", "repro", **clock)
        yield ground.end("python", "-m", "stages.sync", **clock)

    def expect(self, ended: Ended | None) -> Iterator[str]:
        """Nothing is said of it; the bits are compared afterwards."""
        yield from no_error(ended)


@dataclass(frozen=True)
class Signal:
    """Ctrl-C, termination, a closed terminal, while a stage works."""

    name: str = "Ctrl-C, SIGTERM, a terminal closed"
    how: str = "real: the signal to the whole process group, in the middle of a stage"

    def inject(self, ground: Ground) -> Iterator[Ended | None]:
        """Send each to another stage."""
        for number, stage in (
            (signal.SIGINT, "clean"),
            (signal.SIGINT, "evaluate_dense"),
            (signal.SIGTERM, "finetune_dense"),
            (signal.SIGHUP, "prune@l1-0.6"),
        ):
            run = ground.start(*FORCE, stage)
            run.until(RUNNING)
            if run.running(0.4 * ground.seconds[stage]):
                os.killpg(run.process.pid, number)
            if (ended := run.wait()).status:  # else it was done before the signal came
                yield ended

    def expect(self, ended: Ended | None) -> Iterator[str]:
        """DVC or the stage says so."""
        assert ended
        if not ended.status:
            yield "exit status 0"
        if "Traceback" in ended.said:
            yield "a traceback"


@dataclass(frozen=True)
class Unread:
    """Nobody reads any more what DVC and a stage print, while outputs of other params are there."""

    stage: str = "train"
    name: str = "nobody reads what a stage prints: `| head`, Ctrl-C through `| tee`"
    how: str = "real: the reader of a pipe ends in the middle of a stage, whose params were changed"

    def inject(self, ground: Ground) -> Iterator[Ended | None]:
        """What failed must not be in the run cache as if it had ended well: the next run has to do it."""
        params = ground.root / "params.yaml"
        given = params.read_bytes()
        for reader, decay in (("head -n 2", 0.03), ("tee /dev/null", 0.04)):
            ground.set(train={"weight_decay": decay})
            before = finished_files(ground.root)
            try:
                run = ground.start("bash", "-c", f"set -o pipefail; dvc repro -s {self.stage} 2>&1 | {reader}")
                if "tee" in reader and run.until("step ") and run.running(0.2):
                    os.killpg(run.process.pid, signal.SIGINT)
                ended = run.wait()
                if "tee" in reader and not ended.status and finished_files(ground.root) != before:
                    continue  # it was done before the signal came, and its outputs are of the changed params
                again = ground.end("dvc", "repro", "-s", self.stage)
            finally:
                params.write_bytes(given)
            yield ended if f"{RUNNING}{self.stage}'" in again.said else Ended(0, again.said)

    def expect(self, ended: Ended | None) -> Iterator[str]:
        """It failed, and DVC took nothing for its outputs."""
        assert ended
        if not ended.status:
            yield "outputs of before were recorded for the changed params"
        if "Traceback" in ended.said:
            yield "a traceback"


def faults(seed: int) -> list[Fault]:
    """All of this family."""
    return [Twice(), Back(), Signal(), Unread()]
