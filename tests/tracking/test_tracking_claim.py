"""Writers of one run at once, in orders that chance finds: each call to MLflow is a step, and any may be the last."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from greenlet import getcurrent, greenlet

from stages.tracking.claim import TWIN, agree, is_kept
from stages.tracking.content import IDENTITY

ME = "3f2a1c9"


@dataclass
class Runs:
    """As much of MLflow as an agreement needs: params are write-once, and a deleted run is written to no more."""

    step: Callable[[], None] = lambda: None
    may_delete: bool = True
    made: list[Any] = field(default_factory=list)
    deleted: set[str] = field(default_factory=set)

    def create(self, start_time: int) -> str:
        self.step()
        run_id = f"{len(self.made):03d}"
        info = SimpleNamespace(run_id=run_id, start_time=start_time, run_name="dense")
        self.made.append(SimpleNamespace(info=info, data=SimpleNamespace(params={}, tags={IDENTITY: ME})))
        return run_id

    def active(self) -> list[Any]:
        self.step()
        return [
            SimpleNamespace(info=run.info, data=SimpleNamespace(params=dict(run.data.params), tags={IDENTITY: ME}))
            for run in self.made
            if run.info.run_id not in self.deleted and IDENTITY in run.data.tags
        ]

    def get_run(self, run_id: str) -> Any:
        self.step()
        return self.made[int(run_id)]

    def log_param(self, run_id: str, key: str, value: str) -> None:
        self.step()
        held = self.made[int(run_id)].data.params.setdefault(key, value)
        self._refuse(run_id in self.deleted or held != value, "INVALID_PARAMETER_VALUE")

    def delete_run(self, run_id: str) -> None:
        self.step()
        self._refuse(not self.may_delete, "PERMISSION_DENIED")
        self.deleted.add(run_id)

    def delete_tag(self, run_id: str, key: str) -> None:
        self.step()
        self._refuse(self.made[int(run_id)].data.tags.pop(key, None) is None, "RESOURCE_DOES_NOT_EXIST")

    def update_run(self, run_id: str, status: str, name: str) -> None:
        self.step()
        self.made[int(run_id)].info.run_name = name

    def _refuse(self, wrong: bool, code: str) -> None:
        from mlflow.exceptions import MlflowException
        from mlflow.protos import databricks_pb2

        if wrong:
            raise MlflowException("no", getattr(databricks_pb2, code))


def write(runs: Runs, clock: int) -> str:
    """What every writer does: look, make a run if there is none, agree."""
    while (run := agree(runs, runs.active)) is None:  # type: ignore[arg-type]
        runs.create(clock)
    return str(run.info.run_id)


@pytest.mark.parametrize("may_delete", [True, False])
def test_all_writers_get_the_same_run(may_delete: bool) -> None:
    for seed in range(300):
        chance = random.Random(seed)
        runs = Runs(may_delete=may_delete)
        answers: dict[int, str] = {}

        def writer(number: int, clock: int, runs: Runs = runs, answers: dict[int, str] = answers) -> None:
            answers[number] = write(runs, clock)

        # Clocks of other machines are wrong by more than it takes to write.
        clocks = [chance.randrange(9) for _ in range(6)]
        writers = [greenlet(partial(writer, n, clocks[n])) for n in range(6)]
        main = getcurrent()
        runs.step = lambda main=main: main.switch() if getcurrent() is not main else None
        killed = chance.sample(range(6), chance.randrange(4))
        left = {n: chance.randrange(1, 12) if n in killed else 10_000 for n in range(6)}
        while alive := [n for n, one in enumerate(writers) if not one.dead and left[n]]:
            n = chance.choice(alive)
            left[n] -= 1
            writers[n].switch()
        last = write(runs, 0)  # the next writer clears up after those that were killed
        assert set(answers.values()) <= {last}, f"seed {seed}"
        assert len(answers) >= 6 - len(killed)
        assert [run.info.run_id for run in runs.active()] == [last]
        assert is_kept(runs.get_run(last))
        assert {run.data.params.get("identity") for run in runs.made} <= {ME, TWIN}, "each is decided"


def test_a_run_out_of_the_trash_is_left_alone() -> None:
    runs = Runs()
    first = write(runs, 2)
    runs.deleted.add(first)
    second = write(runs, 1)
    assert second != first
    runs.deleted.clear()
    assert write(runs, 0) == second  # the older
    assert len(runs.active()) == 2


def test_runs_of_before_there_was_a_decision_are_decided() -> None:
    runs = Runs()
    older, younger = runs.create(5), runs.create(6)
    assert write(runs, 0) == older
    assert runs.deleted == {younger}
