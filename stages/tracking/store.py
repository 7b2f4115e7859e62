"""Writing runs to MLflow so that writing them again changes nothing."""

from __future__ import annotations

import getpass
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from stages.errors import UserError
from stages.tracking.client import connect, exclusive, experiment_id, tracking_uri
from stages.tracking.content import IDENTITY, Content, Dataset

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

PARENT = "mlflow.parentRunId"
COMMIT = "mlflow.source.git.commit"
COMMIT_IS = "espalier.git_commit_is"
WRITER = "espalier.stage"
Outcome = Literal["made", "updated", "up to date"]
HALF_MADE = (" already exists", "no such table", "no such column", "duplicate column")
"""In what SQLite says of a database whose tables are not all there, or not as its migrations left them."""
_PAGE = 1000
_METRICS, _PARAMS, _TAGS = 800, 100, 100
"""At most in one request: MLflow takes 100 params, 100 tags and 1,000 of all together."""


class Store:
    """The runs of one experiment."""

    def __init__(self, experiment: str, *, commit: str, commit_is: str, timeout_s: int, retries: int) -> None:
        """Connect, and make database and experiment if they are missing.

        Args:
            experiment: name of the MLflow experiment.
            commit: git commit that new runs are tagged with; may be empty.
            commit_is: what that commit is to a new run.
            timeout_s: seconds to wait for a server's answer.
            retries: of a request to a server.

        Raises:
            UserError: the experiment was deleted.
            MlflowException, OSError: MLflow cannot be reached or written to.
        """
        self.uri = tracking_uri()
        self.client = connect(self.uri, timeout_s=timeout_s, retries=retries)
        self.experiment_id = experiment_id(self.client, self.uri, experiment)
        self._commit_is = commit_is
        self._commit = commit

    def runs(self, identity: str | None = None) -> dict[str, Run]:
        """Runs by identity: all there are, or the one asked for. Of two with one identity, the older."""
        wanted = f"tags.`{IDENTITY}` = '{identity}'" if identity else f"tags.`{IDENTITY}` != ''"
        found: dict[str, Run] = {}
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id], wanted, max_results=_PAGE, order_by=["start_time ASC"], page_token=token
            )
            for run in page:
                found.setdefault(run.data.tags[IDENTITY], run)
            if not (token := page.token):
                return found

    def open(self, content: Content) -> str:
        """Id of the run with the content's identity, brought up to the content; a new one if there is none."""
        known = self.runs(content.identity)
        if content.parent:
            known |= self.runs(content.parent)
        self.upsert(content, known)
        return known[content.identity].info.run_id

    def upsert(self, content: Content, known: dict[str, Run]) -> Outcome:
        """Make the run of a content, or add what it lacks.

        Args:
            content: what the run is to hold.
            known: runs by identity, the parent's among them; a new one is added.
        """
        if content.identity not in known:
            with exclusive(self.uri):
                found = self.runs(content.identity)  # another process may have made it since
                known |= found or {content.identity: self._make(content, known)}
            if not found:
                return "made"
        run = known[content.identity]
        data = run.data
        params = {name: value for name, value in content.params.items() if name not in data.params}
        wanted = content.tags | self._parent_tag(content, known)
        tags = {name: value for name, value in wanted.items() if data.tags.get(name) != value}
        metrics = {n: v for n, v in content.metrics.items() if not _same(data.metrics.get(n), v)}
        complete = not any(name.endswith(".lock") for name in tags)
        curves = {n: p for n, p in content.curves.items() if not complete or n not in data.metrics}
        points = self._missing_points(run.info.run_id, curves, set(data.metrics))
        held = {(dataset.dataset.name, dataset.dataset.digest) for dataset in run.inputs.dataset_inputs}
        datasets = [d for d in content.datasets if (d.name, d.md5) not in held]
        unsaid = run.info.status == "RUNNING" and WRITER not in data.tags  # its maker was killed before it said so
        if not (params or tags or metrics or points or datasets or unsaid):
            return "up to date"
        self._write(run.info.run_id, params, tags, [*self._finals(metrics), *points], datasets)
        if unsaid or not complete:  # a stage has finished since; its own process may have been killed likewise
            self.client.set_terminated(run.info.run_id, "FINISHED")
        return "updated"

    def begin(self, run_id: str, stage: str) -> None:
        """Say that a stage is writing to a run."""
        self.client.set_tag(run_id, WRITER, stage)
        self.client.update_run(run_id, status="RUNNING")

    def points(self, run_id: str, stage: str) -> set[tuple[str, int, str]]:
        """What `point` says of all metrics that a run has of a stage."""
        names = [name for name in self.client.get_run(run_id).data.metrics if name.startswith(f"{stage}/")]
        return {point(metric) for name in names for metric in self.client.get_metric_history(run_id, name)}

    def log(self, run_id: str, metrics: Sequence[Metric]) -> None:
        """Add metrics to a run."""
        self._write(run_id, {}, {}, metrics, [])

    def end(self, run_id: str, stage: str, status: str) -> None:
        """Say how a stage ended, unless the level's next stage is writing already."""
        if self.client.get_run(run_id).data.tags.get(WRITER) == stage:
            self.client.set_terminated(run_id, status)

    def metric(self, name: str, value: float, step: int = 0, time_ms: int | None = None) -> Metric:
        """A metric as the client takes it."""
        from mlflow.entities import Metric

        return Metric(name, value, time_ms or _now(), step)

    def _make(self, content: Content, known: dict[str, Run]) -> Run:
        tags = {"mlflow.user": _user(), "mlflow.source.type": "LOCAL", "mlflow.source.name": "dvc.yaml"}
        tags |= content.tags
        if self._commit:
            tags |= {COMMIT: self._commit, COMMIT_IS: self._commit_is}
        tags |= self._parent_tag(content, known)
        run = self.client.create_run(self.experiment_id, _now(), tags, content.name)
        points = [
            self.metric(name, value, step) for name, curve in content.curves.items() for step, value in curve.items()
        ]
        metrics = [*self._finals(content.metrics), *points]
        self._write(run.info.run_id, content.params, {}, metrics, content.datasets)
        self.client.set_terminated(run.info.run_id, "FINISHED")
        return run

    def _parent_tag(self, content: Content, known: dict[str, Run]) -> dict[str, str]:
        return {PARENT: known[content.parent].info.run_id} if content.parent else {}

    def _finals(self, metrics: dict[str, float]) -> list[Metric]:
        return [self.metric(name, value) for name, value in metrics.items()]

    def _missing_points(self, run_id: str, curves: dict[str, dict[int, float]], present: set[str]) -> list[Metric]:
        """Points of curves at steps that the run has no value for; a live run has logged its own."""
        points = []
        for name, curve in curves.items():
            steps = {p.step for p in self.client.get_metric_history(run_id, name)} if name in present else set()
            points += [self.metric(name, value, step) for step, value in curve.items() if step not in steps]
        return points

    def _write(
        self,
        run_id: str,
        params: dict[str, str],
        tags: dict[str, str],
        metrics: Sequence[Metric],
        datasets: Sequence[Dataset],
    ) -> None:
        """Send all of it in as few requests as MLflow's limits allow."""
        from mlflow.entities import Param, RunTag

        values = [Param(*item) for item in params.items()]
        labels = [RunTag(*item) for item in tags.items()]
        requests = max(-(-len(metrics) // _METRICS), -(-len(values) // _PARAMS), -(-len(labels) // _TAGS))
        for i in range(requests):
            self.client.log_batch(
                run_id,
                metrics[i * _METRICS : (i + 1) * _METRICS],
                values[i * _PARAMS : (i + 1) * _PARAMS],
                labels[i * _TAGS : (i + 1) * _TAGS],
                synchronous=True,
            )
        if datasets:
            self.client.log_inputs(run_id, [_dataset_input(dataset) for dataset in datasets])


def point(metric: Metric) -> tuple[str, int, str]:
    """Name, step and value to the digits that curve files keep, to tell whether two points are the same."""
    return metric.key, metric.step, f"{metric.value:.6g}"


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn failures of MLflow, its database or the network into a `UserError`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise UserError(reason(error, uri)) from None


def reason(error: Exception, uri: str) -> str:
    """Why MLflow does not work, in one line."""
    if isinstance(error, UserError):
        return str(error)
    text = " ".join(str(error).split()) or type(error).__name__
    if text.startswith("(sqlite3.OperationalError)") and any(sign in text for sign in HALF_MADE):
        file = uri.removeprefix("sqlite:///")
        return f"{file} is not whole ({text:.80}): delete it, then `python -m stages.sync` makes it again"
    return f"MLflow at {uri} " + ("does not answer" if "Max retries exceeded" in text else f"failed: {text:.160}")


def _dataset_input(dataset: Dataset) -> Any:
    from mlflow.entities import Dataset as MlflowDataset
    from mlflow.entities import DatasetInput, InputTag

    source = json.dumps({"uri": dataset.path})
    return DatasetInput(
        MlflowDataset(dataset.name, dataset.md5, "local", source), [InputTag("mlflow.data.context", dataset.context)]
    )


def _same(a: float | None, b: float) -> bool:
    return a is not None and (a == b or (math.isnan(a) and math.isnan(b)))


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's nameless user
        return ""


def _now() -> int:
    return int(time.time() * 1000)
