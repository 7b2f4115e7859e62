"""Writers of the same runs at once: how long a tracking server takes, and whether all runs are there, once each.

    python -m benchmarks.tracking [--writers 6] [--levels 20] [--points 100]

In:  MLFLOW_TRACKING_URI, else a new SQLite database behind a server that is started for it.
Out: a line a writer as it ends, then seconds, and the runs expected and found. Ends with status 1 if they differ.

Each writer is a process with all levels of one revision, in an order of its own. What it writes is what a level of the
default pipeline has. The experiment gets a name of its own, and stays for a person to look at.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.synchronize import Barrier
from pathlib import Path
from urllib.request import urlopen

from stages.errors import UserError, command
from stages.files import digest
from stages.tracking.client import tracking_uri
from stages.tracking.content import IDENTITY, KEY, REVISION, Content
from stages.tracking.secrets import hidden

START_S = 300


@command
def main() -> None:
    """Write, count, say."""
    parser = argparse.ArgumentParser(description="Writers of the same MLflow runs at once.")
    parser.add_argument("--writers", type=int, default=6, help="processes (default: 6)")
    parser.add_argument("--levels", type=int, default=20, help="of the revision that all of them write (default: 20)")
    parser.add_argument("--points", type=int, default=100, help="of a level's loss curve (default: 100)")
    options = parser.parse_args()
    if min(options.writers, options.levels, options.points) < 1:
        raise UserError("--writers, --levels and --points must be at least 1")
    experiment = f"benchmark-{uuid.uuid4().hex[:8]}"
    with _server():
        spread = multiprocessing.get_context("spawn")
        ready = spread.Barrier(options.writers + 1)
        arguments = (experiment, options.levels, options.points, ready)
        writers = [spread.Process(target=_write, args=(seed, *arguments)) for seed in range(options.writers)]
        for writer in writers:
            writer.start()
        ready.wait()
        begun = time.perf_counter()
        for writer in writers:
            writer.join()
        seconds = time.perf_counter() - begun
        expected = {content.identity for content in _contents(options.levels, 1)}
        found = _found(experiment)
        print(
            f"{options.writers} writers of {options.levels} levels at {hidden(tracking_uri())}: {seconds:.1f} s, "
            f"{len(expected)} runs expected, {found.total()} found",
            flush=True,
        )
    if found != Counter(expected) or any(writer.exitcode for writer in writers):
        raise UserError("runs are missing or there twice, or a writer failed: see above")


def _write(seed: int, experiment: str, levels: int, points: int, ready: Barrier) -> None:
    from stages.tracking.store import Store

    parent, *children = _contents(levels, points)
    random.Random(seed).shuffle(children)
    import mlflow.store.tracking.rest_store  # noqa: F401  (its import is not what is measured)

    ready.wait()
    begun = time.perf_counter()
    store = Store(experiment, commit="", commit_is="", timeout_s=120, retries=3)
    known = store.runs()
    done = Counter(store.upsert(content, known) for content in (parent, *children))
    said = ", ".join(f"{done[outcome]} {outcome}" for outcome in ("made", "updated", "up to date"))
    print(f"writer {seed}: {time.perf_counter() - begun:.1f} s, {said}", flush=True)


def _contents(levels: int, points: int) -> Iterator[Content]:
    revision = digest("revision")
    yield Content(revision, None, "revision", tags={IDENTITY: revision, REVISION: revision})
    for n in range(levels):
        key = f"magnitude-{n / levels:.4f}"
        tags = {IDENTITY: digest(key), REVISION: revision, KEY: key}
        tags |= {f"dvc.{stage}.lock": digest(stage + key) for stage in ("prune", "finetune", "evaluate")}
        curve = {step: 3 / (step + n + 1) for step in range(points)}
        yield Content(
            digest(key),
            revision,
            key,
            params={f"finetune.knob{i}": str(i) for i in range(40)},
            metrics={f"figure{i}": i + n / 7 for i in range(40)},
            curves={"finetune/loss": curve, "finetune/learning_rate": curve},
            tags=tags,
        )


def _found(experiment: str) -> Counter[str]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri())
    made = client.get_experiment_by_name(experiment)
    runs = client.search_runs([made.experiment_id], max_results=50_000) if made else []
    return Counter(run.data.tags[IDENTITY] for run in runs if run.info.status == "FINISHED")


@contextmanager
def _server() -> Iterator[None]:
    """A server for as long as the block, unless the environment names one."""
    if os.environ.get("MLFLOW_TRACKING_URI"):
        yield
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as folder:
        arguments = (
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            address.rpartition(":")[2],
        )
        environment = {
            **os.environ,
            "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        with (Path(folder) / "log").open("w") as log:
            process = subprocess.Popen(
                arguments, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True
            )
        try:
            for _ in range(START_S):
                with suppress(OSError), urlopen(f"{address}/health"):
                    break
                time.sleep(1)
            else:
                raise UserError("MLflow's server did not start")
            os.environ["MLFLOW_TRACKING_URI"] = address
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


if __name__ == "__main__":
    main()
