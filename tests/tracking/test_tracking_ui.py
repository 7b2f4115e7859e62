"""`python -m stages.ui`: over the project's own database, and where a server is there already."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from servers import free_port, mlflow_server
from sweep_on_disk import ALL, REPOSITORY, Sweep

Sync = Callable[[], str]


@pytest.fixture
def server(tmp_path: Path, empty_database: Path) -> Iterator[str]:
    """A tracking server on loopback."""
    database = shutil.copy(empty_database, tmp_path / "server.db")
    options = ("--workers", "1", "--artifacts-destination", str(tmp_path / "artifacts"))
    with mlflow_server(f"sqlite:///{database}", tmp_path, *options) as address:
        yield address


def test_through_a_server(
    sweep: Sweep, server: str, sync: Sync, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    assert sync() == f"{ALL} runs, {ALL} made: {server}\n"
    assert sync() == f"{ALL} runs, all up to date: {server}\n"
    assert not (sweep.root / "mlflow.db").exists()

    from stages import ui

    monkeypatch.setattr("sys.argv", ["ui"])
    ui.main()
    assert capsys.readouterr().out.startswith(f"compare levels at {server}/#/experiments/1/runs?viewStateShareKey")


def test_the_page_of_levels_is_kept_in_the_experiment(sweep: Sweep, database: Path, sync: Sync) -> None:
    from mlflow import MlflowClient

    from stages.tracking.view import VIEW_TAG

    sync()
    experiment = MlflowClient(f"sqlite:///{database}").get_experiment_by_name("espalier")
    view = json.loads(experiment.tags[VIEW_TAG])
    assert "metrics.`bleu`" in view["selectedColumns"]
    assert experiment.artifact_location == (sweep.root / "mlartifacts").as_uri()


@pytest.mark.parametrize("port", [-1, 0, 65536])
def test_ports_that_there_are_not(
    port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stages import ui

    monkeypatch.setattr("sys.argv", ["ui", "--port", str(port)])
    with pytest.raises(SystemExit):
        ui.main()
    assert capsys.readouterr().err == f"error: --port must be in 1 to 65535, not {port}\n"


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM])
def test_the_ui_leaves_no_server_behind(
    sweep: Sweep, sync: Sync, monkeypatch: pytest.MonkeyPatch, ended_by: signal.Signals
) -> None:
    sync()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.ui", "--port", str(port)],
        cwd=sweep.root,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert f"http://127.0.0.1:{port}/" in process.stdout.readline()
    for _ in range(240):
        with suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
            break
        time.sleep(0.25)
    else:
        raise AssertionError("no server")
    process.send_signal(ended_by)
    assert process.wait(timeout=300) == 0
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
