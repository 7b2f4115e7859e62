"""MLflow servers that refuse, are slow, or die while a model trains."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from chaos.faults import Fault, no_error
from chaos.ground import FORCE, RUNNING, Ended, Ground

SLOW_S = 4.0
"""Seconds that a slow server takes to answer, whatever it is asked."""
QUIET = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""A server without the half dozen processes of jobs that nothing here asks for."""
LATER = r"not tracked: .*`python -m stages\.sync` adds the run later"


@dataclass(frozen=True)
class Refused:
    """Nobody listens."""

    name: str = "MLflow server refuses"
    how: str = "real: a port on loopback that nobody listens on"

    def inject(self, ground: Ground) -> Iterator[Ended | None]:
        """Train, then have `sync` add the run to the usual database."""
        yield ground.force("train", MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port()}")

    def expect(self, ended: Ended | None) -> Iterator[str]:
        """Training goes on, and says how to have the run later."""
        yield from no_error(ended, LATER)


@dataclass(frozen=True)
class Slow:
    """Every answer takes seconds."""

    name: str = "MLflow server slow"
    how: str = f"real server behind a proxy that waits {SLOW_S:g} s before each answer"

    def inject(self, ground: Ground) -> Iterator[Ended | None]:
        """Train while the server dawdles; what it costs the stage is in the undisturbed run's seconds."""
        with server(ground) as (address, _), delayed(address) as slow:
            began = time.monotonic()
            ended = ground.force("train", MLFLOW_TRACKING_URI=slow)
            yield Ended(ended.status, f"{ended.said}took {time.monotonic() - began:.1f} s")
            yield synced(ground, address)

    def expect(self, ended: Ended | None) -> Iterator[str]:
        """It is not slowed down by as much as one answer a point would take."""
        yield from no_error(ended)


@dataclass(frozen=True)
class Dying:
    """The server ends for good after the first figures."""

    name: str = "MLflow server dies while a model trains; sync fills in later"
    how: str = "real: SIGKILL to the server and its workers once the stage has logged to it"

    def inject(self, ground: Ground) -> Iterator[Ended | None]:
        """Kill it under the stage; then start it again and sync."""
        with server(ground) as (address, end):
            run = ground.start(*FORCE, "train", MLFLOW_TRACKING_URI=address)
            run.until(RUNNING)
            run.running(0.6 * ground.seconds["train"])
            end()
            yield run.wait()
        with server(ground) as (address, _):
            yield synced(ground, address)

    def expect(self, ended: Ended | None) -> Iterator[str]:
        """Training goes on."""
        yield from no_error(ended)


def synced(ground: Ground, address: str) -> Ended:
    """What `sync` says; exit status 1 unless a second one has nothing to do and every level is there once."""
    first = ground.end("python", "-m", "stages.sync", MLFLOW_TRACKING_URI=address)
    again = ground.end("python", "-m", "stages.sync", MLFLOW_TRACKING_URI=address)
    said = f"{first.said}{again.said}"
    names = names_of_runs(address)
    levels = {name.partition("@")[2] for name in ground.seconds if "@" in name} | {"dense", "baseline"}
    if first.status or again.status or "all up to date" not in again.said:
        return Ended(1, said)
    if not levels <= set(names) or len(names) != len(set(names)):
        return Ended(1, f"{said}runs: {', '.join(sorted(names))}")
    return Ended(0, said)


def names_of_runs(address: str) -> list[str]:
    """Of every run of the experiment."""
    import mlflow

    client = mlflow.MlflowClient(address)
    experiment = client.get_experiment_by_name("espalier")
    return [run.info.run_name for run in client.search_runs([experiment.experiment_id])] if experiment else []


@contextmanager
def server(ground: Ground) -> Iterator[tuple[str, Callable[[], None]]]:
    """An MLflow server of the project's own; its address, and what kills it."""
    port = free_port()
    home = ground.root / ".scratch/server"
    home.mkdir(parents=True, exist_ok=True)
    command = ["mlflow", "server", "--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--workers", "1"]
    run = ground.start(
        *command, "--artifacts-destination", str(home), "--host", "127.0.0.1", "--port", str(port), **QUIET
    )
    try:
        listening(port, run.process)
        yield f"http://127.0.0.1:{port}", lambda: (run.process.poll() is None and run.kill()) and None
    finally:
        with suppress(ProcessLookupError):
            run.kill()


def listening(port: int, process: subprocess.Popen[str]) -> None:
    """Wait until somebody listens on a port of loopback."""
    deadline = time.monotonic() + 120
    while True:
        with socket.socket() as trial:
            if not trial.connect_ex(("127.0.0.1", port)):
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise TimeoutError(f"{process.args} does not listen")
        time.sleep(0.2)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def delayed(address: str) -> Iterator[str]:
    """A proxy to an HTTP server that hands on each answer late."""
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=carry, args=(listener.accept()[0],), daemon=True).start()

        def carry(client: socket.socket) -> None:
            with suppress(OSError), client, socket.create_connection((host, int(port))) as behind:
                threading.Thread(target=pump, args=(client, behind), daemon=True).start()
                pump(behind, client, SLOW_S)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def pump(source: socket.socket, target: socket.socket, wait_s: float = 0) -> None:
    """Copy until the source ends, each piece so late."""
    with suppress(OSError):
        while block := source.recv(2**16):
            time.sleep(wait_s)
            target.sendall(block)
        target.shutdown(socket.SHUT_WR)


def faults(seed: int) -> list[Fault]:
    """All of this family."""
    return [Refused(), Slow(), Dying()]
