"""A server with MLflow's accounts: without credentials one clear line, with them all that tracking does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import mlflow_server
from sweep_on_disk import ALL, Sweep

pytest.importorskip("flask_wtf", reason="Flask-WTF is not installed: pip install -e '.[server]'")
Sync = Callable[[], str]
ADMIN, MEMBER = ("admin", "admin-horse-battery"), ("ann", "ann-horse-battery")
INI = """[mlflow]
default_permission = {permission}
database_uri = sqlite:///{folder}/accounts.db
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


@pytest.fixture
def server(tmp_path: Path, empty_database: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """As docs/teams.md sets one up; with the permission that members have by default."""
    folder = tmp_path / "accounts"
    folder.mkdir()
    (folder / "basic_auth.ini").write_text(INI.format(permission=request.param, folder=folder))
    (folder / "server.db").write_bytes(empty_database.read_bytes())
    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "signs-forms",
    }
    options = ("--app-name", "basic-auth", "--workers", "2")
    with mlflow_server(f"sqlite:///{folder}/server.db", folder, *options, **environment) as address:
        yield address


def use(monkeypatch: pytest.MonkeyPatch, account: tuple[str, str]) -> None:
    for name, value in zip(("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"), account, strict=True):
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("server", ["EDIT"], indirect=True)
def test_accounts(
    sweep: Sweep, server: str, sync: Sync, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow.server import get_app_client

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    refused = f"MLflow at {server} refuses: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    for account in (None, ("ann", "nobody-has-this")):
        if account:
            use(monkeypatch, account)
        with pytest.raises(SystemExit):
            sync()
        error = capsys.readouterr().err
        assert error.startswith(f"error: {refused}") and error.count("\n") == 1
        assert "nobody-has-this" not in error
        live = _stage(sweep)  # training goes on
        assert live.stdout == "stage done\n" and live.stderr.startswith(f"not tracked: {refused}")
        assert live.stderr.count("\n") == 1

    use(monkeypatch, ADMIN)
    get_app_client("basic-auth", server).create_user(*MEMBER)
    assert sync() == f"{ALL} runs, {ALL} made: {server}\n"
    use(monkeypatch, MEMBER)
    assert sync() == f"{ALL} runs, all up to date: {server}\n"
    sweep.run(*(f"{stage}@magnitude-0.7" for stage in ("prune", "finetune", "evaluate")))
    assert sync() == f"{ALL + 1} runs, 1 made: {server}\n"
    assert _stage(sweep).stderr == ""

    from mlflow import MlflowClient

    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("espalier")
    found = client.search_runs([experiment.experiment_id])
    assert len({run.info.run_name for run in found}) == len(found) == ALL + 1
    said = str([run.to_dictionary() for run in found])
    assert not any(password in said for _, password in (ADMIN, MEMBER))


@pytest.mark.parametrize("server", ["READ"], indirect=True)
def test_a_member_that_may_only_read(
    sweep: Sweep, server: str, sync: Sync, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient
    from mlflow.server import get_app_client

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    use(monkeypatch, ADMIN)
    accounts = get_app_client("basic-auth", server)
    accounts.create_user(*MEMBER)
    sync()
    experiment = MlflowClient(server).get_experiment_by_name("espalier").experiment_id
    sweep.run(*(f"{stage}@magnitude-0.7" for stage in ("prune", "finetune", "evaluate")))
    use(monkeypatch, MEMBER)
    with pytest.raises(SystemExit):
        sync()
    assert capsys.readouterr().err == (
        f"error: MLflow at {server} refuses: this account may not write there; ask its administrator\n"
    )
    use(monkeypatch, ADMIN)
    accounts.grant_user_permission(MEMBER[0], "experiment", experiment, "EDIT")
    use(monkeypatch, MEMBER)
    assert sync() == f"{ALL + 1} runs, 1 made: {server}\n"


def _stage(sweep: Sweep) -> subprocess.CompletedProcess[str]:
    code = (
        "from stages import params; from stages.tracking.live import track\n"
        "with track('finetune', 'l1-0.5', params.load('tracking')) as run: run.log_metrics({'loss': 1.0}, step=1)\n"
        "print('stage done')"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=sweep.root, capture_output=True, text=True, check=True)
