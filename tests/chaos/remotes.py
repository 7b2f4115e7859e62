"""An S3 remote that fails in the middle of a push."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from project import ACCESS

from chaos.faults import Fault, error_of_one_line, no_error
from chaos.ground import Ended, Ground, finished_files, objects
from chaos.network import beside, proxy, served

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
    ground.given.pop(".dvc/config", None)  # changed on purpose


@contextmanager
def bucket(ground: Ground) -> Iterator[tuple[int, Callable[[], int]]]:
    """An S3 server with an empty bucket: its port, and what counts its objects."""
    import boto3

    with served(ground, "python", "-m", "moto.server", "-H", "127.0.0.1", "-p") as (port, _):
        keys = dict(zip(("aws_access_key_id", "aws_secret_access_key", "region_name"), ACCESS.values(), strict=True))
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **keys)
        client.create_bucket(Bucket=BUCKET)
        yield port, lambda: client.list_objects_v2(Bucket=BUCKET)["KeyCount"]


@contextmanager
def failing(port: int, blocks: int) -> Iterator[int]:
    """A proxy that carries so many pieces to a server, and then closes what it has and takes nothing more."""
    left = threading.Semaphore(blocks)

    def carry(client: socket.socket, behind: socket.socket) -> None:
        beside(behind, client)
        while (block := client.recv(2**16)) and left.acquire(blocking=False):
            behind.sendall(block)

    with proxy(port, carry) as bad:
        yield bad


def faults(seed: int) -> list[Fault]:
    """All of this family."""
    return [Refused(40)]
