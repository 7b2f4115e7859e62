"""MLflow servers that refuse, are slow, or die while a model trains."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from servers import free_port

from chaos.faults import Fault, no_error
from chaos.ground import FORCE, RUNNING, Ended, Ground
from chaos.network import beside, proxy, pump, served

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
    home = ground.root / ".scratch/server"
    home.mkdir(parents=True, exist_ok=True)
    command = ("mlflow", "server", "--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--workers", "1")
    options = ("--artifacts-destination", str(home), "--host", "127.0.0.1", "--port")
    with served(ground, *command, *options, **QUIET) as (port, run):

        def end() -> None:
            if run.process.poll() is None:
                run.kill()

        yield f"http://127.0.0.1:{port}", end


@contextmanager
def delayed(address: str) -> Iterator[str]:
    """A proxy to an HTTP server that hands on each answer late."""

    def carry(client: socket.socket, behind: socket.socket) -> None:
        beside(client, behind)
        pump(behind, client, SLOW_S)

    with proxy(int(address.rpartition(":")[2]), carry) as port:
        yield f"http://127.0.0.1:{port}"


def faults(seed: int) -> list[Fault]:
    """All of this family."""
    return [Refused(), Slow(), Dying()]
