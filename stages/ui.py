"""Open MLflow's UI on this machine.

    python -m stages.ui [--port 5000]

In:  the database that runs go to (mlflow.db, or MLFLOW_TRACKING_URI).
Out: a server at 127.0.0.1 until Ctrl-C or termination, and the address of the page that compares levels. If
     MLFLOW_TRACKING_URI is a server already, only the address.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys

from stages import params
from stages.errors import UserError, command
from stages.shell import stopping
from stages.tracking.client import is_server, project, tracking_uri, workspace
from stages.tracking.secrets import hidden
from stages.tracking.view import link

HOST = "127.0.0.1"
PORTS = range(1, 2**16)


@command
def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Open MLflow's UI on this machine.")
    parser.add_argument("--port", type=int, default=5000, help="to listen on (default: 5000)")
    port = parser.parse_args().port
    if port not in PORTS:
        raise UserError(f"--port must be in {PORTS.start} to {PORTS.stop - 1}, not {port}")
    settings = params.load("tracking", path=workspace() / params.PARAMS_FILE)
    uri = tracking_uri()
    if not is_server(uri):
        _check_free(port)

    from stages.tracking.store import Store, explained

    with explained(uri):
        store = Store(settings.tracking.experiment, commit="", commit_is="", timeout_s=30, retries=2)
    server = hidden(uri) if is_server(uri) else f"http://{HOST}:{port}"
    print(f"compare levels at {link(server, store.experiment_id)}", flush=True)
    if not is_server(uri):
        _serve(uri, port)


def _serve(uri: str, port: int) -> None:
    artifacts = (project() / "mlartifacts").as_uri()
    server = (
        *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"),
        *("--default-artifact-root", artifacts),
        *("--uvicorn-opts", "--log-level critical"),
    )
    # Job execution is for judging the texts of language models: eight more processes, 2 GB of memory.
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    quiet |= {"PYTHONWARNINGS": "ignore"}
    # Arguments can be read by everybody on this machine, and a database's address may have a password.
    quiet |= {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_REGISTRY_STORE_URI": uri}
    process = subprocess.Popen(server, env={**os.environ, **quiet}, start_new_session=True)
    asked = False

    def stop(*_: object) -> None:
        nonlocal asked
        asked = True
        os.killpg(process.pid, signal.SIGTERM)

    with stopping(stop):
        status = process.wait()
    if not asked:
        raise UserError(f"MLflow's server ended with status {status}")


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise UserError(f"port {port} is taken: choose another with --port") from None


if __name__ == "__main__":
    main()
