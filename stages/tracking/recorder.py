"""The process that writes one stage's live figures to MLflow; `stages.tracking.live` starts it.

    python -m stages.tracking.recorder STAGE KEY EXPERIMENT < messages

Reads JSON lines from standard input: {"metrics": {…}, "step": …, "time_ms": …} and, last, {"end": STATUS}. If the
input ends without that, the stage was killed, and so the run is. The stage does not wait for this process; if MLflow
does not work, it says so in one line on standard error.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from stages.tracking.client import tracking_uri, workspace
from stages.tracking.content import as_text, curve_name, describe, final_name, stored
from stages.tracking.identity import on_disk
from stages.tracking.pipeline import Pipeline
from stages.tracking.store import Store, reason

if TYPE_CHECKING:
    from mlflow.entities import Metric

FLUSH_S = 1.0
"""Seconds over which figures are gathered into one request."""
LAST_WORDS_S = 60
"""Seconds after the stage's end when a recorder that still waits for MLflow gives up."""
BEFORE = "HEAD before the run; the commit with its dvc.lock comes after"
Message = dict[str, Any]


def main() -> None:
    """Record until the stage ends."""
    terminal = _silence()
    messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
    # Reading goes on while MLflow is imported or slow: the stage must never wait for the pipe.
    threading.Thread(target=_read, args=(sys.stdin, messages), daemon=True).start()
    os.nice(10)
    stage, key, experiment = sys.argv[1:]
    try:
        record(stage, key, experiment, messages)
    except Exception as error:
        why = reason(error, tracking_uri())
        print(f"not tracked: {why}; `python -m stages.sync` adds the run later", file=terminal, flush=True)
        sys.exit(1)


def record(stage: str, key: str, experiment: str, messages: queue.SimpleQueue[Message]) -> None:
    """Find or make the run of a level and write to it until the end message."""
    pipeline = Pipeline(workspace())
    revision, run = on_disk(pipeline, key)
    content = describe(pipeline, run)
    values = pipeline.inputs(stage, key).params
    content.params |= {name: as_text(value) for name, value in values.items()}
    store = Store(experiment, pipeline.root, commit_is=BEFORE, timeout_s=10, retries=1)
    store.open(describe(pipeline, revision))
    run_id = store.open(content)
    store.begin(run_id, stage)
    held = store.points(run_id, stage)  # of the same stage run before: the same points need not be there twice
    batch: list[Message] = [{}]
    while "end" not in batch[-1]:
        batch = _gather(messages)
        metrics = [metric for message in batch for metric in _metrics(store, stage, message)]
        if metrics := [m for m in metrics if (m.key, m.step, m.value) not in held]:
            store.log(run_id, metrics)
    store.end(run_id, stage, batch[-1]["end"])


def _metrics(store: Store, stage: str, message: Message) -> Iterator[Metric]:
    step = message.get("step")
    name_of = final_name if step is None else curve_name
    for name, value in message.get("metrics", {}).items():
        yield store.metric(name_of(stage, name), stored(value), step or 0, message["time_ms"])


def _gather(messages: queue.SimpleQueue[Message]) -> list[Message]:
    """Wait for a message, then take along what comes within `FLUSH_S`."""
    batch = [messages.get()]
    deadline = time.monotonic() + FLUSH_S
    while "end" not in batch[-1] and (rest := deadline - time.monotonic()) > 0:
        try:
            batch.append(messages.get(timeout=rest))
        except queue.Empty:
            break
    return batch


def _read(source: TextIO, messages: queue.SimpleQueue[Message]) -> None:
    last: Message = {}
    for line in source:
        last = json.loads(line)
        messages.put(last)
    signal.alarm(LAST_WORDS_S)
    if "end" not in last:
        messages.put({"end": "KILLED"})


def _silence() -> TextIO:
    """Send all that libraries print to nowhere; returns the real standard error."""
    terminal = os.fdopen(os.dup(2), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return terminal


if __name__ == "__main__":
    main()
