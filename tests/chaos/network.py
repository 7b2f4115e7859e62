"""Servers of the project struck, and what stands between it and them."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from servers import free_port

from chaos.ground import Ground, Started


@contextmanager
def served(ground: Ground, *command: str, **environment: str) -> Iterator[tuple[int, Started]]:
    """A server on loopback, by a command whose last argument is the port: the port, and the command."""
    port = free_port()
    run = ground.start(*command, str(port), **environment)
    try:
        _listening(port, run.process)
        yield port, run
    finally:
        with suppress(ProcessLookupError):
            run.kill()


def _listening(port: int, process: subprocess.Popen[str]) -> None:
    """Wait until somebody listens on a port of loopback."""
    deadline = time.monotonic() + 120
    while True:
        with socket.socket() as trial:
            if not trial.connect_ex(("127.0.0.1", port)):
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise TimeoutError(f"{process.args} does not listen")
        time.sleep(0.2)


@contextmanager
def proxy(port: int, carry: Callable[[socket.socket, socket.socket], None]) -> Iterator[int]:
    """The port of a proxy to a port of loopback: `carry(client, behind)` hands on what passes in a connection."""

    def serve() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=connect, args=(listener.accept()[0],), daemon=True).start()

    def connect(client: socket.socket) -> None:
        with suppress(OSError), client, socket.create_connection(("127.0.0.1", port)) as behind:
            carry(client, behind)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


def beside(source: socket.socket, target: socket.socket) -> None:
    """Copy, without waiting for the end of it."""
    threading.Thread(target=pump, args=(source, target), daemon=True).start()


def pump(source: socket.socket, target: socket.socket, wait_s: float = 0) -> None:
    """Copy until the source ends, each piece so late."""
    with suppress(OSError):
        while block := source.recv(2**16):
            time.sleep(wait_s)
            target.sendall(block)
        target.shutdown(socket.SHUT_WR)
