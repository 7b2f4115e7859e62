"""The real pipeline on small data, run once."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import project as small
import pytest
from project import ACCESS, KEYS, Project


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project after its first `dvc repro`. Leave it as it was."""
    made = small.make(tmp_path_factory.mktemp("first"))
    assert set(made.repro()) == {
        "clean", "reference", "train", "finetune_dense", "evaluate_dense", "evaluate_baseline", "compare",
        "export", "benchmark",
        *(f"{stage}@{key}" for stage in ("prune", "finetune", "evaluate") for key in KEYS),
    }  # fmt: skip
    return made


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address of an S3 server with an empty bucket, and the bucket's."""
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("w") as said:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 300
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        endpoint = f"http://127.0.0.1:{port}"
        keys = dict(zip(("aws_access_key_id", "aws_secret_access_key", "region_name"), ACCESS.values(), strict=True))
        boto3.client("s3", endpoint_url=endpoint, **keys).create_bucket(Bucket="espalier")
        yield endpoint, "s3://espalier"
    finally:
        server.terminate()
        server.wait(timeout=300)
