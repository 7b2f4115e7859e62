"""The process that writes one stage's live figures to MLflow; `stages.tracking.live` starts it.

    python -m stages.tracking.recorder STAGE KEY EXPERIMENT < messages

Reads JSON lines from standard input: {"metrics": {…}, "step": …, "time_ms": …} and, last, {"end": STATUS}. If the
input ends without that, the stage was killed, and so the run is. Closes standard output when it has read all that it
needs from the workspace. The stage does not wait for the rest; if MLflow does not work, one line on standard error
says so.
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
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from stages.errors import UserError
from stages.startup import collect_rarely
from stages.tracking.client import git, project, tracking_uri, workspace
from stages.tracking.content import Content, as_text, curve_name, describe, final_name, stored
from stages.tracking.identity import on_disk
from stages.tracking.pipeline import Pipeline
from stages.tracking.store import Store, point, reason

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
    collect_rarely()
    ready, terminal = _silence()
    messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
    # Reading goes on while MLflow is imported or slow: the stage must never wait for the pipe.
    threading.Thread(target=_read, args=(sys.stdin, messages), daemon=True).start()
    os.nice(10)
    stage, key, experiment = sys.argv[1:]
    try:
        root = workspace()
        revision, run = _describe(root, stage, key)
        commit = git("rev-parse", "HEAD", folder=root)
        os.chdir(project())  # a temporary workspace is removed when its last stage has ended
        ready.close()
        store = Store(experiment, commit=commit, commit_is=BEFORE, timeout_s=10, retries=1)
        store.open(revision)
        record(store, store.open(run), stage, messages)
    except Exception as error:
        why = reason(error, tracking_uri())
        print(f"not tracked: {why}; `python -m stages.sync` adds the run later", file=terminal, flush=True)
        sys.exit(1)


def record(store: Store, run_id: str, stage: str, messages: queue.SimpleQueue[Message]) -> None:
    """Write to a run until the end message."""
    store.begin(run_id, stage)
    held = store.points(run_id, stage)  # of the same stage run before: the same points need not be there twice
    batch: list[Message] = [{}]
    while "end" not in batch[-1]:
        batch = _gather(messages)
        metrics = [metric for message in batch for metric in _metrics(store, stage, message)]
        if metrics := [metric for metric in metrics if point(metric) not in held]:
            store.log(run_id, metrics)
    store.end(run_id, stage, batch[-1]["end"])


def _metrics(store: Store, stage: str, message: Message) -> Iterator[Metric]:
    step = message.get("step")
    name_of = final_name if step is None else curve_name
    for name, value in message.get("metrics", {}).items():
        yield store.metric(name_of(stage, name), stored(value), step or 0, message["time_ms"])


def _describe(root: Path, stage: str, key: str) -> tuple[Content, Content]:
    """What the revision's run and the level's are to hold before the stage has logged anything."""
    pipeline = Pipeline(root)
    revision, run = on_disk(pipeline, key)
    if not revision.revision.data:
        raise UserError("dvc.lock does not say what data this is: start stages with `dvc repro`")
    content = describe(pipeline, run)
    values = pipeline.inputs(stage, key).params
    content.params |= {name: as_text(value) for name, value in values.items()}
    return describe(pipeline, revision), content


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


def _silence() -> tuple[TextIO, TextIO]:
    """Send all that libraries print to nowhere; returns the real standard output and error."""
    real = os.fdopen(os.dup(1), "w"), os.fdopen(os.dup(2), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return real


if __name__ == "__main__":
    main()
