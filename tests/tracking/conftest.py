from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sweep_on_disk import REPOSITORY, Sweep

NUMBERS = itertools.count()
"""Of projects: MLflow keeps connections by address, and pytest makes the folder of a test that passed again."""


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once: MLflow takes seconds to lay out a new database."""
    from stages.tracking.client import connect

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    connect(f"sqlite:///{path}", timeout_s=5, retries=0)
    return path


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """A finished sweep in the working directory, with no database yet."""
    for name in ("DVC_ROOT", "DVC_STAGE", "MLFLOW_TRACKING_URI", "ESPALIER_TRACKING", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name in ("TIMEOUT", "MAX_RETRIES"):  # `connect` leaves them to whoever comes next in this process
        monkeypatch.delenv(f"MLFLOW_HTTP_REQUEST_{name}", raising=False)
    paths = (str(REPOSITORY), str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setattr("stages.tracking.pipeline.SETTLED_S", 0.0)  # only DVC writes a lock piece by piece
    sweep = Sweep(tmp_path / f"project-{next(NUMBERS)}")
    sweep.run_all()
    monkeypatch.chdir(sweep.root)
    return sweep


@pytest.fixture
def database(sweep: Sweep, empty_database: Path) -> Path:
    """The project's database, laid out but without runs."""
    return Path(shutil.copy(empty_database, sweep.root / "mlflow.db"))


@pytest.fixture
def runs(sweep: Sweep) -> Callable[[], dict[str, Any]]:
    """`runs()`: MLflow's runs by name; fails if two have the same."""

    def read() -> dict[str, Any]:
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{sweep.root / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("espalier")
        assert experiment is not None
        found = client.search_runs([experiment.experiment_id])
        named = {run.info.run_name: run for run in found}
        assert len(named) == len(found)
        return named

    return read


@pytest.fixture
def rows(sweep: Sweep) -> Callable[[], list[str]]:
    """`rows()`: all that is in the database, as SQL."""

    def read() -> list[str]:
        connection = sqlite3.connect(sweep.root / "mlflow.db")
        try:
            return list(connection.iterdump())
        finally:
            connection.close()

    return read


@pytest.fixture
def sync(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """`sync()`: run `python -m stages.sync` in this process; returns what it printed, raises SystemExit on errors."""
    from stages import sync

    monkeypatch.setattr("sys.argv", ["sync"])

    def run() -> str:
        capsys.readouterr()
        sync.main()
        return capsys.readouterr().out

    return run
