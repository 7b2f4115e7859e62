"""An S3 remote that fails in the middle of a push."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from chaos.faults import Fault, error_of_one_line, no_error
from chaos.ground import Ended, Ground, finished_files, objects
from chaos.trackers import free_port, listening, pump

ACCESS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
QUICK = {**ACCESS, "AWS_MAX_ATTEMPTS": "2", "AWS_RETRY_MODE": "standard"}
BUCKET = "espalier"


@dataclass(frozen=True)
class Refused:
    """After so many connections the remote takes no more; pushed again, nothing is missing."""

    connections: int
    name: str = "S3 remote refuses in the middle of `dvc push`; pushed again, it is complete"
    how: str = "real S3 server (moto) behind a proxy that closes every connection after the first ones"

    def inject(self, ground: Ground) -> Iterator[Ended | None]:
        """Push to a remote that ends; push again; have a clone pull."""
        with bucket(ground) as (port, count):
            with failing(port, self.connections) as bad:
                remote(ground, bad)
                ended = ground.end("dvc", "push", "--run-cache", **QUICK)
                yield ended if ended.status and count() else Ended(0, f"{ended.said}{count()} objects there")
            remote(ground, port)
            again = ground.end("dvc", "push", "--run-cache", **ACCESS)
            yield from self._cloned(ground, again)

    def _cloned(self, ground: Ground, pushed: Ended) -> Iterator[Ended]:
        clone = Ground(ground.root.with_name("clone"))
        try:
            ground.run("git", "clone", "-q", str(ground.root), str(clone.root))
            shutil.copy(ground.root / ".dvc/config", clone.root / ".dvc/config")
            ended = clone.end("dvc", "repro", "--pull", **ACCESS)
            wrong = [name for name, was in ground.finished.items() if finished_files(clone.root).get(name) != was]
            if pushed.status or ended.status or wrong or "Running stage" in ended.said or not all(objects(clone.root)):
                yield Ended(0, f"{pushed.said}{ended.said}in the clone {wrong[:3]} are missing")
            else:
                yield Ended(-1, ended.said)
        finally:
            shutil.rmtree(clone.root, ignore_errors=True)

    def expect(self, ended: Ended | None) -> Iterator[str]:
        """A push that fails says so; -1 is of a clone that had all of it."""
        assert ended
        if ended.status == -1:
            yield from no_error(Ended(0, ended.said))
        else:
            yield from error_of_one_line(ended, "failed to push|[Cc]onnect|endpoint")


def remote(ground: Ground, port: int) -> None:
    """Have the project's remote at a port of loopback."""
    ground.run("dvc", "remote", "add", "--force", "--default", "storage", f"s3://{BUCKET}/storage")
    ground.run("dvc", "remote", "modify", "storage", "endpointurl", f"http://127.0.0.1:{port}")
    (ground.given.pop(".dvc/config", None))  # changed on purpose


@contextmanager
def bucket(ground: Ground):
    """An S3 server with an empty bucket: its port, and what counts its objects."""
    import boto3

    port = free_port()
    run = ground.start("python", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port))
    try:
        listening(port, run.process)
        keys = dict(zip(("aws_access_key_id", "aws_secret_access_key", "region_name"), ACCESS.values(), strict=True))
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **keys)
        client.create_bucket(Bucket=BUCKET)
        yield port, lambda: client.list_objects_v2(Bucket=BUCKET)["KeyCount"]
    finally:
        with suppress(ProcessLookupError):
            run.kill()


@contextmanager
def failing(port: int, blocks: int) -> Iterator[int]:
    """A proxy that carries so many pieces to a server, and then closes what it has and takes nothing more."""
    left = threading.Semaphore(blocks)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=carry, args=(listener.accept()[0],), daemon=True).start()

        def carry(client: socket.socket) -> None:
            with suppress(OSError), client, socket.create_connection(("127.0.0.1", port)) as behind:
                threading.Thread(target=pump, args=(behind, client), daemon=True).start()
                while (block := client.recv(2**16)) and left.acquire(blocking=False):
                    behind.sendall(block)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


def faults(seed: int) -> list[Fault]:
    """All of this family."""
    return [Refused(40)]
