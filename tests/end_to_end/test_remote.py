"""A finished sweep travels through an S3 remote to a clone that trains nothing. The server is moto's, on loopback."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from project import KEYS, Project

ACCESS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
"""As in any team: from the environment, never from a file that git has."""


@pytest.fixture(scope="module")
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
        yield endpoint, "s3://espalier/storage"
    finally:
        server.terminate()
        server.wait(timeout=300)


def runs(project: Project) -> dict[str, dict[str, Any]]:
    """Of every MLflow run by name: what is the same for whoever synced it."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{project.root}/mlflow.db")
    experiment = client.get_experiment_by_name("espalier")
    found = client.search_runs([experiment.experiment_id])
    named = {
        run.info.run_name: {
            "metrics": run.data.metrics,
            "params": run.data.params,
            "identity": run.data.tags["espalier.identity"],
            "status": run.info.status,
        }
        for run in found
    }
    assert len(named) == len(found)
    return named


def test_a_fresh_clone_executes_nothing_and_has_the_same_runs(
    finished: Project, bucket: tuple[str, str], tmp_path: Path
):
    ours = Project(tmp_path / "ours")
    shutil.copytree(finished.root, ours.root, symlinks=True)
    endpoint, url = bucket
    ours.run("dvc", "remote", "add", "--default", "storage", url)
    ours.run("dvc", "remote", "modify", "storage", "endpointurl", endpoint)
    ours.commit("made")
    refused = ours.run(
        "dvc", "push", check=False, **(ACCESS | {"AWS_ACCESS_KEY_ID": ""}), AWS_EC2_METADATA_DISABLED="true"
    )
    assert refused.returncode and "credentials" in refused.stderr.lower()
    ours.run("dvc", "push", "--run-cache", **ACCESS)

    theirs = Project(tmp_path / "theirs")
    ours.run("git", "clone", "-q", str(ours.root), str(theirs.root))
    assert not (theirs.root / ".dvc/cache").exists() and not (theirs.root / "mlflow.db").exists()
    assert theirs.run("python", "-m", "stages.check").stdout == "dvc.lock is up to date.\n"
    said = theirs.run("dvc", "repro", "--pull", **ACCESS).stdout
    assert "Running stage" not in said
    assert theirs.run("git", "status", "--porcelain").stdout == ""
    assert theirs.run("dvc", "status").stdout.startswith("Data and pipelines are up to date")
    for key in KEYS:  # levels that have left the sweep are in the workspace still, but not in the commit
        files = list((ours.root / "outputs/models/finetuned" / key).rglob("*.safetensors"))
        assert files and all(
            (theirs.root / path.relative_to(ours.root)).read_bytes() == path.read_bytes() for path in files
        )

    for project in (ours, theirs):
        (project.root / "mlflow.db").unlink(missing_ok=True)
        project.run("python", "-m", "stages.sync")
    assert runs(theirs) == runs(ours) and set(KEYS) | {"dense", "baseline"} <= runs(theirs).keys()
