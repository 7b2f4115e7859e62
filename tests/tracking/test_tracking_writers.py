"""Six writers at once, each with a clone of its own as on six machines: no run is lost, and none is there twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import PASSWORD, mlflow_server, postgresql, s3
from sweep_on_disk import Sweep

from stages.tracking.identity import in_lock
from stages.tracking.pipeline import Pipeline

LIVE = ["l1-0.5", "l1-0.5", "magnitude-0.9"]
"""Two of them are the same level."""
WRITER = """
import sys, time
from pathlib import Path
from stages import sync
from stages.tracking import recorder
import mlflow, mlflow.store.tracking.rest_store, mlflow.store.tracking.sqlalchemy_store
role, ready, go = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
recorder.LAST_WORDS_S = 600  # processors are shared with whatever else there is
ready.touch()
while not go.exists():
    time.sleep(0.01)
sys.argv = ["sync"] if role == "sync" else ["recorder", "finetune", role, "espalier"]
(sync if role == "sync" else recorder).main()
"""
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "aws-secret", "AWS_DEFAULT_REGION": "us-east-1"}


def write_at_once(folder: Path, uri: str, **environment: str) -> None:
    """Three that sync a whole sweep and three that log stages of it live."""
    go = folder / "go"
    processes = []
    for n, role in enumerate(["sync", "sync", "sync", *LIVE]):
        clone = Sweep(folder / f"clone{n}")
        clone.run_all()
        points = [{"metrics": {"loss": 3 / step}, "step": step, "time_ms": step} for step in (7, 14, 21)]
        said = clone.root / "said"
        said.write_text("\n".join(json.dumps(line) for line in [*points, {"end": "FINISHED"}]))
        command = [sys.executable, "-c", WRITER, role, str(folder / f"ready{n}"), str(go)]
        values = {**os.environ, "MLFLOW_TRACKING_URI": uri, **environment}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, cwd=clone.root, env=values, stdin=said.open(), **pipes))
    while len(list(folder.glob("ready*"))) < len(processes):
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        time.sleep(0.05)
    go.touch()
    results = [(*process.communicate(), process.returncode) for process in processes]
    assert [(error, status) for _, error, status in results] == [("", 0)] * len(results)
    assert not any(PASSWORD in said for said, _, _ in results)


def check(folder: Path, uri: str) -> list[Any]:
    """Every run of the sweep is there once, whole and ended; returns them."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiments = [one for one in client.search_experiments() if one.name == "espalier"]
    assert len(experiments) == 1
    found = client.search_runs([experiments[0].experiment_id])
    expected = {run.identity: run for run in in_lock(Pipeline(folder / "clone0"))}
    assert Counter(run.data.tags["espalier.identity"] for run in found) == dict.fromkeys(expected, 1)
    parent = next(run for run in found if "espalier.key" not in run.data.tags)
    for run in found:
        key = run.data.tags.get("espalier.key")
        assert run.info.status == "FINISHED"
        assert run.data.tags.get("mlflow.parentRunId") == (parent.info.run_id if key else None)
        if key:
            figures = json.loads((folder / f"clone0/outputs/metrics/evaluate/{key}.json").read_text())
            assert figures.items() <= run.data.metrics.items()
        if key and key not in LIVE and key != "baseline":
            history = client.get_metric_history(run.info.run_id, "finetune/loss")
            assert len({point.step for point in history}) == len(history) == 40
    return list(found)


@pytest.fixture(autouse=True)
def _environment(sweep: Sweep) -> None:
    """The paths and variables of a test of tracking."""


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with postgresql() as uri:
        yield uri


def test_through_a_server(tmp_path: Path, empty_database: Path) -> None:
    """On SQLite."""
    backend = tmp_path / "server.db"
    backend.write_bytes(empty_database.read_bytes())
    with mlflow_server(f"sqlite:///{backend}", tmp_path, "--workers", "2") as address:
        write_at_once(tmp_path, address)
        check(tmp_path, address)


def test_on_an_empty_postgresql(tmp_path: Path, database: str) -> None:
    """All six are its first users: MLflow alone fails at migrating it in five."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install -e '.[server]'")
    write_at_once(tmp_path, database)
    check(tmp_path, database)


def test_through_a_server_on_postgresql_with_artifacts_in_s3(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has the keys; members upload and download through it with none."""
    import boto3
    from mlflow import MlflowClient
    from sqlalchemy import create_engine, text

    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install -e '.[server]'")
    with create_engine(database, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("CREATE DATABASE shared"))
    backend = f"{database.rpartition('/')[0]}/shared"
    with s3(tmp_path) as endpoint:
        secret = {"aws_access_key_id": "key", "aws_secret_access_key": KEYS["AWS_SECRET_ACCESS_KEY"]}
        bucket = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **secret)
        bucket.create_bucket(Bucket="mlflow")
        options = ("--workers", "2", "--artifacts-destination", "s3://mlflow/artifacts")
        with mlflow_server(backend, tmp_path, *options, MLFLOW_S3_ENDPOINT_URL=endpoint, **KEYS) as address:
            write_at_once(tmp_path, address)
            run = check(tmp_path, address)[0]
            client = MlflowClient(address)
            client.log_text(run.info.run_id, "the chosen level", "card.md")
            objects = bucket.list_objects_v2(Bucket="mlflow")["Contents"]
            assert [one["Key"].endswith(f"{run.info.run_id}/artifacts/card.md") for one in objects] == [True]
            path = client.download_artifacts(run.info.run_id, "card.md", str(tmp_path))
            assert Path(path).read_text() == "the chosen level"
