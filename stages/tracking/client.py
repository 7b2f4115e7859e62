"""Where MLflow is, and a quiet client for it."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from stages.errors import UserError
from stages.tracking.view import VIEW_TAG, state

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASE = "mlflow.db"
ABOUT = (
    "One run a sparsity level, grouped under one run a revision: the state of data, code and params that its "
    "levels share. Made from dvc.lock and the metrics files; see docs/tracking.md."
)
KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"
_RACES = ("UNIQUE constraint failed", "UniqueViolation", "duplicate key value", "deadlock detected")
"""In what MLflow says when its database, SQLite or PostgreSQL, took another writer's rows first."""
_ADVISORY_LOCK = 0x65737061
"""Any number, as long as nobody else locks it in that database."""
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def workspace() -> Path:
    """The folder with dvc.yaml that holds the working directory; the working directory if there is none.

    In `dvc exp run --temp` this is the temporary copy.
    """
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "dvc.yaml").is_file()), here)


def project() -> Path:
    """The project that the workspace belongs to: itself, or what `dvc exp run --temp` copied it from."""
    if (root := os.environ.get("DVC_ROOT")) and (Path(root) / ".dvc").is_dir():
        return Path(root)
    folder = workspace()
    copies = next((f for f in folder.parents if f.parts[-3:] == (".dvc", "tmp", "exps")), None)
    if copies is not None:
        return copies.parents[2]
    if (folder / "dvc.yaml").is_file():
        return folder
    return Path(git("rev-parse", "--show-toplevel", folder=folder) or folder)


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, else the SQLite database in the project's root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project() / DATABASE}"


def git(*arguments: str, folder: Path) -> str:
    """What a git command prints; nothing if it fails."""
    try:
        answer = subprocess.run(
            ("git", *arguments), cwd=folder, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def connect(uri: str, *, timeout_s: int, retries: int) -> MlflowClient:
    """A client that prints nothing and gives up soon.

    A database that does not exist yet is made, by one process at a time (see `exclusive`); a server makes its own.

    Args:
        uri: of a server or database.
        timeout_s: seconds to wait for a server's answer, unless MLflow's own variable says otherwise.
        retries: of a request to a server, likewise.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(timeout_s))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(retries))
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "psycopg", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with exclusive(uri):
        path = _database(uri)
        if path is not None and not (path.exists() and path.stat().st_size):
            _make(path)
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    return client


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """Id of an experiment, which is made if it is missing, and whose view of levels is brought up to date.

    Raises:
        UserError: it was deleted in MLflow.
    """
    from mlflow.exceptions import MlflowException

    view = state()
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # A database has no say in where artifacts go, and MLflow would put them in the working directory.
        artifacts = None if is_server(uri) else (project() / "mlartifacts").as_uri()
        with suppress(MlflowException):  # another writer was faster, or it is in the trash
            client.create_experiment(name, artifacts, {"mlflow.note.content": ABOUT, KIND_TAG: KIND, VIEW_TAG: view})
        experiment = client.get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage != "active":
        raise UserError(
            f"MLflow experiment {name} is in the trash: restore it, or change tracking.experiment in params.yaml"
        )
    if experiment.tags.get(VIEW_TAG) != view:
        try:
            client.set_experiment_tag(experiment.experiment_id, VIEW_TAG, view)
        except MlflowException as error:
            if not is_race(error):
                raise
    return experiment.experiment_id


def is_race(error: Exception) -> bool:
    """Whether another writer wrote the same at the same time, so that it is there, or can be tried again."""
    return any(sign in str(error) for sign in _RACES)


def _make(path: Path) -> None:
    """Make a database beside, and give it its name once it is whole: it takes seconds, and migrations cannot go on."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    partial = path.with_name(f"{path.name}.partial")
    for left in (partial, Path(f"{partial}-journal"), Path(f"{path}-journal")):
        left.unlink(missing_ok=True)
    SqlAlchemyStore(f"sqlite:///{partial}", (project() / "mlartifacts").as_uri()).engine.dispose()
    partial.replace(path)


def is_server(uri: str) -> bool:
    """Whether a tracking URI is a server's, not a database's."""
    return urlsplit(uri).scheme in ("http", "https")


@contextmanager
def exclusive(uri: str) -> Iterator[None]:
    """Let one process at a time into a block that makes what a database lacks.

    MLflow's own migrations fail when two first users of a database run them at once. Of SQLite, processes of this
    machine take turns, by a file beside it; of PostgreSQL, all that write to the database, by a lock of its own.
    """
    from filelock import FileLock

    if path := _database(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=60):
            yield
    elif urlsplit(uri).scheme.partition("+")[0] == "postgresql":
        from sqlalchemy import NullPool, create_engine, text

        with create_engine(uri, poolclass=NullPool).connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _ADVISORY_LOCK})
            yield  # the lock goes with the connection
    else:
        yield


def _database(uri: str) -> Path | None:
    """The file of a SQLite database; None for anything else."""
    parts = urlsplit(uri)
    path = parts.path.removeprefix("/")
    return Path(path) if parts.scheme == "sqlite" and path and not path.startswith(":") else None
