"""Recorders that begin with MLflow in memory.

Importing MLflow takes a second of a processor, for each of a level's three stages. While a sweep runs, one process that
has imported it waits at a socket, and is forked for every recorder. A stage that finds no such process, or one of
another project's code, starts a recorder of its own.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import stages
from stages import params
from stages.tracking.client import QUIET

SWITCH = "ESPALIER_TRACKING"
ADDRESS = "ESPALIER_RECORDERS"
"""Of the socket, after the folder of the code that answers there."""
IMPORTED = (
    "mlflow",
    "mlflow.store.tracking.rest_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "sqlalchemy.dialects.sqlite",
    "stages.tracking.recorder",
)
WAITING = 64
"""Stages that may ask at the same time, more than a machine runs."""
ASKING_S = 1.0
"""Seconds after which a stage that asks in vain starts a recorder of its own."""
PACKAGE = str(Path(stages.__file__).parents[1])


@contextmanager
def recorders() -> Iterator[None]:
    """Have stages find the process that is forked for their recorders; what it was forked for goes on after it."""
    server, folder = None, Path()
    if sys.platform == "linux" and not params.switched_off(SWITCH):
        with suppress(OSError):  # no place for a socket, or no process: recorders are started one by one
            folder = Path(tempfile.mkdtemp(prefix="espalier-"))
            server = _serve(folder)
    try:
        yield
    finally:
        os.environ.pop(ADDRESS, None)
        if server is not None:
            assert server.stdin is not None
            server.terminate()
            server.wait()
            server.stdin.close()
            shutil.rmtree(folder, ignore_errors=True)


def _serve(folder: Path) -> subprocess.Popen[bytes]:
    """Start the process, whose socket is in a folder; it removes that if this process is killed."""
    address = str(folder / "recorders")
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen(WAITING)
            server = subprocess.Popen(
                (sys.executable, "-m", "stages.tracking.forked", str(listener.fileno()), str(folder)),
                stdin=subprocess.PIPE,  # at its end, however this process ends, so does the server
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[listener.fileno()],
                env=environment() | QUIET,
                start_new_session=True,  # Ctrl-C in the terminal does not reach it
            )
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    os.environ[ADDRESS] = f"{PACKAGE}\n{address}"
    return server


def environment() -> dict[str, str]:
    """Variables with which a process finds the code that this one runs, wherever it is started."""
    path = os.pathsep.join(filter(None, (PACKAGE, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


def start(arguments: Sequence[str], read: int, write: int) -> bool:
    """Ask for a recorder, without waiting for it; whether there is somebody to ask.

    Args:
        arguments: of the recorder.
        read: file descriptor of its standard input.
        write: of its standard output. Its standard error is that of this process.
    """
    package, _, address = os.environ.get(ADDRESS, "").partition("\n")
    if not address or package != PACKAGE:
        return False
    asked = {"arguments": list(arguments), "folder": str(Path.cwd()), "variables": dict(os.environ)}
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ASKING_S)
            connection.connect(address)
            socket.send_fds(connection, [b"\0"], [read, write, 2])
            connection.sendall(json.dumps(asked).encode())
    except OSError:
        return False
    return True


def main() -> None:
    """Fork for whoever asks, until standard input ends."""
    import importlib

    for name in IMPORTED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for recorders
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        while sys.stdin not in (ready := select.select([sys.stdin, listener], [], [])[0]):
            assert ready == [listener]
            connection, _ = listener.accept()
            with connection, suppress(OSError, ValueError):  # who asked has gone meanwhile, or stalls
                connection.settimeout(ASKING_S)
                _answer(connection)
    shutil.rmtree(sys.argv[2], ignore_errors=True)


def _answer(connection: socket.socket) -> None:
    """Fork a recorder, as asked for."""
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
    try:
        with connection.makefile("rb") as asked:
            request = json.loads(asked.read())
        if not os.fork():
            _record(descriptors, **request)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _record(
    descriptors: Sequence[int], arguments: Sequence[str], folder: str, variables: Mapping[str, str]
) -> NoReturn:
    """In a fork: what `python -m stages.tracking.recorder ARGUMENTS` does."""
    from stages.tracking import recorder

    status = 1
    try:
        os.setsid()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(variables)
        os.chdir(folder)
        sys.argv = [recorder.__file__, *arguments]
        recorder.main()
        status = 0
    except SystemExit as end:
        status = int(bool(end.code))
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
