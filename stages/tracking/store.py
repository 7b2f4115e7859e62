"""Writing runs to MLflow so that writing them again changes nothing."""

from __future__ import annotations

import getpass
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from stages.errors import UserError
from stages.tracking.claim import agree, is_kept, is_twin
from stages.tracking.client import connect, experiment_id, is_race, tracking_uri
from stages.tracking.content import IDENTITY, KEY, REVISION, Content, Dataset
from stages.tracking.secrets import hidden, refusal

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
_ATTEMPTS = 5
"""To write what another writer of the same run writes at the same time."""
_METRICS, _PARAMS = 800, 100
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
        uri = tracking_uri()
        self.client = connect(uri, timeout_s=timeout_s, retries=retries)
        self.experiment_id = experiment_id(self.client, uri, experiment)
        self._commit_is = commit_is
        self._commit = commit

    def runs(self, identity: str | None = None) -> dict[str, Run]:
        """Runs by identity: all there are, or the one asked for; of several, the one that writers agree on."""
        candidates: dict[str, list[Run]] = {}
        for run in self._candidates(identity):
            candidates.setdefault(run.data.tags[IDENTITY], []).append(run)
        found = {
            name: self._agreed(name) if runs[1:] or is_twin(runs[0]) else runs[0] for name, runs in candidates.items()
        }
        return {name: run for name, run in found.items() if run is not None}

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
        from mlflow.exceptions import MlflowException

        made = None
        run = known.get(content.identity)
        while run is None or not is_kept(run):
            if run is None:
                made = self._make(content, known)
            run = self._agreed(content.identity)
        known[content.identity] = run
        for attempt in range(_ATTEMPTS):
            try:
                outcome = self._complete(content, known)
                break
            except MlflowException as error:
                if attempt + 1 == _ATTEMPTS or not is_race(error):
                    raise
            time.sleep(random.random() * attempt)
            known[content.identity] = self.client.get_run(run.info.run_id)
        return "made" if run.info.run_id == made else outcome

    def _complete(self, content: Content, known: dict[str, Run]) -> Outcome:
        """Add what a run lacks. Points get its own time, so that two who add the same one add one."""
        run = known[content.identity]
        data = run.data
        params = {name: value for name, value in content.params.items() if name not in data.params}
        wanted = content.tags | self._parent_tag(content, known)
        tags = {name: value for name, value in wanted.items() if data.tags.get(name) != value}
        metrics = {n: v for n, v in content.metrics.items() if not _same(data.metrics.get(n), v)}
        complete = not any(name.endswith(".lock") for name in tags)
        curves = {n: p for n, p in content.curves.items() if not complete or n not in data.metrics}
        points = self._missing_points(run, curves)
        held = {(dataset.dataset.name, dataset.dataset.digest) for dataset in run.inputs.dataset_inputs}
        datasets = [d for d in content.datasets if (d.name, d.md5) not in held]
        unsaid = run.info.status == "RUNNING" and WRITER not in data.tags  # its maker was killed before it said so
        if not (params or tags or metrics or points or datasets or unsaid):
            return "up to date"
        finals = [
            self.metric(name, value, time_ms=None if name in data.metrics else run.info.start_time)
            for name, value in metrics.items()
        ]
        self._write(run.info.run_id, params, tags, [*finals, *points], datasets)
        if unsaid or not complete:  # a stage has finished since; its own process may have been killed likewise
            self.client.set_terminated(run.info.run_id, "FINISHED")
        return "updated"

    def begin(self, run_id: str, stage: str) -> None:
        """Say that a stage is writing to a run."""
        self._write(run_id, {}, {WRITER: stage}, [], [])
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

    def _candidates(self, identity: str | None) -> list[Run]:
        """Active runs of an identity, or of all."""
        wanted = f"tags.`{IDENTITY}` = '{identity}'" if identity else f"tags.`{IDENTITY}` != ''"
        found: list[Run] = []
        token: str | None = None
        while True:
            page = self.client.search_runs([self.experiment_id], wanted, max_results=_PAGE, page_token=token)
            found += page
            if not (token := page.token):
                return found

    def _agreed(self, identity: str) -> Run | None:
        return agree(self.client, partial(self._candidates, identity))

    def _make(self, content: Content, known: dict[str, Run]) -> str:
        """Id of a new run that says whose it is, and holds nothing yet."""
        tags = {"mlflow.user": _user(), "mlflow.source.type": "LOCAL", "mlflow.source.name": "dvc.yaml"}
        tags |= {name: content.tags[name] for name in (IDENTITY, REVISION, KEY) if name in content.tags}
        if self._commit:
            tags |= {COMMIT: self._commit, COMMIT_IS: self._commit_is}
        tags |= self._parent_tag(content, known)
        return str(self.client.create_run(self.experiment_id, _now(), tags, content.name).info.run_id)

    def _parent_tag(self, content: Content, known: dict[str, Run]) -> dict[str, str]:
        return {PARENT: known[content.parent].info.run_id} if content.parent else {}

    def _missing_points(self, run: Run, curves: dict[str, dict[int, float]]) -> list[Metric]:
        """Points of curves at steps that the run has no value for; a live run has logged its own."""
        points = []
        for name, curve in curves.items():
            history = self.client.get_metric_history(run.info.run_id, name) if name in run.data.metrics else ()
            steps = {point.step for point in history}
            points += [
                self.metric(name, value, step, run.info.start_time)
                for step, value in curve.items()
                if step not in steps
            ]
        return points

    def _write(
        self,
        run_id: str,
        params: dict[str, str],
        tags: dict[str, str],
        metrics: Sequence[Metric],
        datasets: Sequence[Dataset],
    ) -> None:
        """Send all of it in as few requests as MLflow's limits allow; the tags, which say that it is there, last."""
        from mlflow.entities import Param, RunTag

        values = [Param(*item) for item in params.items()]
        requests = max(-(-len(metrics) // _METRICS), -(-len(values) // _PARAMS), 1 if tags else 0)
        for i in range(requests):
            self.client.log_batch(
                run_id,
                metrics[i * _METRICS : (i + 1) * _METRICS],
                values[i * _PARAMS : (i + 1) * _PARAMS],
                [RunTag(*item) for item in tags.items()] if i + 1 == requests else [],
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
    """Why MLflow does not work, in one line without passwords."""
    if isinstance(error, UserError):
        return str(error)
    text = hidden(" ".join(str(error).split()) or type(error).__name__)
    if text.startswith("(sqlite3.OperationalError)") and any(sign in text for sign in HALF_MADE):
        file = uri.removeprefix("sqlite:///")
        return f"{file} is not whole ({text:.80}): delete it, then `python -m stages.sync` makes it again"
    said = refusal(text) or ("does not answer" if "Max retries exceeded" in text else f"failed: {text:.160}")
    return f"MLflow at {hidden(uri)} {said}"


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
