"""One run an identity, whoever is first: an agreement of machines that share nothing but MLflow.

MLflow names runs itself, so two writers that find no run of an identity both make one. What it does keep as it was
first written is a param. So each run made is a candidate, and its param `identity` decides it for good: its identity,
it is the run; `twin`, it is not. Whoever finds candidates, its own or not, first makes all but the oldest of those it
sees twins, then gives the oldest its identity.

There is never a second one: of two candidates that are to be the run, whoever decides for the one made later lists
both, and makes a twin of the other or learns that it is the run already. A writer killed at any point leaves candidates
that the next one decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from stages.tracking.content import IDENTITY

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DECISION, TWIN = "identity", "twin"
_DECIDED = ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS")
"""How MLflow says that a param has another value, or that its run was deleted."""


def is_kept(run: Run) -> bool:
    """Whether it was agreed that this is the run of its identity."""
    return bool(run.data.params.get(DECISION) == run.data.tags[IDENTITY])


def is_twin(run: Run) -> bool:
    """Whether it was agreed that another one is."""
    return bool(run.data.params.get(DECISION) == TWIN)


def agree(client: MlflowClient, candidates: Callable[[], Sequence[Run]]) -> Run | None:
    """The run of an identity, as all others see it too.

    Args:
        client: of the store that has them.
        candidates: lists all active runs of the identity as they are now.

    Returns:
        None if there is none; then make a candidate, and call this again.
    """
    while True:
        found = sorted(candidates(), key=_order)
        for run in filter(is_twin, found):
            _remove(client, run)
        found = [run for run in found if not is_twin(run)]
        if not found:
            return None
        run, *others = found
        if is_kept(run):
            others = [other for other in others if not is_kept(other)]  # a person took one out of the trash
        lost = [_decide(client, other, TWIN) for other in others]
        if all(lost) and (is_kept(run) or _decide(client, run, run.data.tags[IDENTITY])):
            for other in others:
                _remove(client, other)
            return client.get_run(run.info.run_id)


def _order(run: Run) -> tuple[bool, int, str]:
    return not is_kept(run), run.info.start_time, run.info.run_id


def _decide(client: MlflowClient, run: Run, value: str) -> bool:
    """Whether the run is decided as asked; not if somebody decided otherwise, or deleted it."""
    from mlflow.exceptions import MlflowException

    try:
        client.log_param(run.info.run_id, DECISION, value)
    except MlflowException as error:
        if error.error_code not in _DECIDED:
            raise
        return False
    return True


def _remove(client: MlflowClient, twin: Run) -> None:
    """Put a twin, which is empty, into the trash; without the right to, take its identity off it."""
    from mlflow.exceptions import MlflowException

    run_id = twin.info.run_id
    try:
        client.delete_run(run_id)
    except MlflowException as error:
        if error.error_code == "PERMISSION_DENIED":
            client.update_run(run_id, status="KILLED", name=TWIN)
            with suppress(MlflowException):  # another writer was faster
                client.delete_tag(run_id, IDENTITY)
        elif error.error_code not in _DECIDED:
            raise
