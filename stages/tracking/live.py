"""What stage scripts call: their figures appear in MLflow while they run.

MLflow never enters a stage's process. A second process (`stages.tracking.recorder`) takes what is logged from a
pipe, so that tracking cannot delay a stage, fail it or change its bits, prints nothing into its terminal, and
closes the run even when the stage is killed. It ignores Ctrl-C, which is meant for the stage.

`ESPALIER_TRACKING=off` turns live tracking off; `python -m stages.sync` adds the runs from dvc.lock then.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from stages import params
from stages.tracking import forked

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from stages.params import Params

READY_S = 10
"""Seconds that a stage which ends at once waits for its recorder to have read dvc.lock: then DVC may go on writing
it, or remove a temporary workspace."""


@contextmanager
def track(stage: str, key: str, settings: Params) -> Iterator[Run]:
    """Log what a stage does to the MLflow run of its level.

    Args:
        stage: its name in dvc.yaml: train, prune, finetune, evaluate.
        key: a level, `baseline` or `dense`.
        settings: params with the section `tracking`.

    Yields:
        What to log with. The run ends as FINISHED, as FAILED if the block raises, as KILLED on Ctrl-C.
    """
    run = Run(_start_recorder(stage, key, settings.tracking.experiment) if _is_on() else None)
    try:
        yield run
    except KeyboardInterrupt:
        run.end("KILLED")
        raise
    except BaseException:
        run.end("FAILED")
        raise
    run.end("FINISHED")


class Recorder(NamedTuple):
    """Both ends of a recorder, which nobody waits for: its own input, and the output that it closes."""

    stdin: TextIO
    stdout: TextIO


class Run:
    """The MLflow run that a stage writes to. Nothing here raises because MLflow does not work."""

    def __init__(self, recorder: Recorder | None) -> None:
        self._recorder = recorder

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log figures: without a step, those of the metrics file; with one, points of a curve."""
        self._send(
            metrics={name: float(value) for name, value in metrics.items()}, step=step, time_ms=int(time.time() * 1000)
        )

    def callbacks(self, steps: int = 0) -> list[TrainerCallback]:
        """Trainer callbacks that log the loss curves as training goes; of one that begins after so many steps."""
        return [] if self._recorder is None else [_log_curves(self, steps)]

    def end(self, status: str) -> None:
        """Say how the stage ended. What is left to write is written while the next stage starts."""
        self._send(end=status)
        if self._recorder is None:
            return
        select.select([self._recorder.stdout], [], [], READY_S)
        with suppress(OSError):
            self._recorder.stdin.close()

    def _send(self, **message: Any) -> None:
        if self._recorder is None:
            return
        try:
            self._recorder.stdin.write(json.dumps(message) + "\n")
            self._recorder.stdin.flush()
        except OSError:  # it has ended, and said why
            self._recorder = None


def _is_on() -> bool:
    """Off by the user's wish, and in all processes of a distributed stage but the first."""
    return not params.switched_off(forked.SWITCH) and int(os.environ.get("RANK", 0)) == 0


def _start_recorder(*arguments: str) -> Recorder | None:
    """A new recorder, which outlives the stage by as long as it takes to write the rest."""
    (read, write), (heard, said) = os.pipe(), os.pipe()
    try:
        if not forked.start(arguments, read, said):
            _start_anew(arguments, read, said)
    except OSError as error:
        print(f"not tracked: {error}; `python -m stages.sync` adds the run later", file=sys.stderr, flush=True)
        os.close(write)
        os.close(heard)
        return None
    finally:
        os.close(read)
        os.close(said)
    return Recorder(os.fdopen(write, "w", encoding="utf-8"), os.fdopen(heard, encoding="utf-8"))


def _start_anew(arguments: tuple[str, ...], read: int, said: int) -> None:
    subprocess.Popen(
        (sys.executable, "-m", "stages.tracking.recorder", *arguments),
        stdin=read,
        stdout=said,
        env=forked.environment(),
        start_new_session=True,  # Ctrl-C in the terminal does not reach it
    )


def _log_curves(run: Run, steps: int = 0) -> TrainerCallback:
    from transformers import TrainerCallback

    class LogCurves(TrainerCallback):
        """Passes on what the Trainer logs, under the column names of the curve file."""

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
            names = {"loss": "loss", "eval_loss": "validation_loss", "learning_rate": "learning_rate"}
            names["sparsity"] = "sparsity"
            points = {name: float(logs[logged]) for logged, name in names.items() if logged in logs}
            if points and state.is_world_process_zero:
                run.log_metrics(points, step=steps + state.global_step)

    return LogCurves()
