"""Real services on loopback: MLflow's servers, PostgreSQL from this machine's packages, S3 by moto."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PATIENCE_S = 300
PASSWORD = "correct-horse"


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    command: Sequence[str], log: Path, variables: Mapping[str, str] = os.environ, folder: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its children, which ends with the block; what it says goes into the log."""
    with log.open("w") as said:
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=said, stderr=said, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


@contextmanager
def mlflow_server(backend: str, folder: Path, *options: str, **environment: str) -> Iterator[str]:
    """Address of a tracking server over a database."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), *options]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    variables = {**os.environ, "MLFLOW_BACKEND_STORE_URI": backend, **quiet, **environment}
    log = folder / f"server-{port}.log"
    with running(command, log, variables) as process:
        address = f"http://127.0.0.1:{port}"
        wait_for(f"{address}/health", process, log)
        yield address


@contextmanager
def s3(folder: Path) -> Iterator[str]:
    """Address of an S3 server."""
    port = free_port()
    log = folder / "moto.log"
    with running([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], log) as process:
        wait_for(f"http://127.0.0.1:{port}/moto-api/", process, log)
        yield f"http://127.0.0.1:{port}"


def wait_for(url: str, process: subprocess.Popen[Any], log: Path) -> None:
    """Wait until an address answers; the process behind it has to live, and what it says is in the log."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            urllib.request.urlopen(url).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)


@contextmanager
def postgresql() -> Iterator[str]:
    """Address of an empty PostgreSQL database, with a password in it. It runs as a user without rights."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    binaries = installed[-1] if installed else Path(found).parent if (found := shutil.which("initdb")) else None
    if binaries is None:
        pytest.skip("PostgreSQL is not installed on this machine (Debian: apt install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="espalier-pg-"))  # not below pytest's, which only their owner may enter
    try:
        (folder / "password").write_text(PASSWORD)
        user = "nobody" if os.geteuid() == 0 else None
        if user:
            for path in (folder, folder / "password"):
                shutil.chown(path, user)
        data = folder / "data"
        subprocess.run(
            [binaries / "initdb", "-D", data, "-U", "mlflow", "-A", "scram-sha-256", f"--pwfile={folder}/password"],
            check=True, capture_output=True, user=user, cwd=folder,
        )  # fmt: skip
        port = free_port()
        options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off -c max_connections=200"
        control = [binaries / "pg_ctl", "-D", data, "-w", "-t", str(PATIENCE_S)]
        start = [*control, "-l", folder / "log", "-o", options, "start"]
        started = subprocess.run(
            start, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, user=user, cwd=folder
        )
        assert not started.returncode, (folder / "log").read_text()
        try:
            yield f"postgresql://mlflow:{PASSWORD}@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run(
                [*control, "-m", "immediate", "stop"], check=True, capture_output=True, user=user, cwd=folder
            )
    finally:
        shutil.rmtree(folder)
