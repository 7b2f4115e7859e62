"""Which MLflow run a result belongs to, told the same way before a stage has run and from dvc.lock after.

A *revision* is one state of everything that levels share: the cleaned data (md5s of the splits), and the code
and params that dvc.yaml lists for `train`, `prune`, `finetune` and `evaluate` without naming a level. It is one
parent run. `sweep` is not part of it, so a new level joins the revision it can be compared with, and any change
that re-runs shared stages starts another one.

A *run* is one level, `baseline` or `dense` in a revision. A level's run is also told apart by what dvc.yaml
lists for that level alone (`prune.${item.method}`): other knobs of one method give its levels new runs beside
the others. The same inputs, run again, are the same run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from stages import layout
from stages.files import digest
from stages.tracking.pipeline import CONTROLS, Entry, Inputs, Pipeline

TRAIN = "train"
LEVEL_STAGES = ("prune", "finetune", "evaluate")
SHARED_STAGES = (TRAIN, *LEVEL_STAGES)
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Revision:
    """One state of everything that levels share."""

    data: dict[str, str]
    """Path of a split → md5."""
    shared: dict[str, Inputs]
    """Stage → what it reads whatever the level."""

    @property
    def identity(self) -> str:
        """32 hex digits."""
        return _digest(self.data, {stage: vars(inputs) for stage, inputs in self.shared.items()})


@dataclass(frozen=True)
class Run:
    """What one MLflow run stands for."""

    revision: Revision
    key: str | None
    """A level, `baseline` or `dense`; None for the revision's own run, the parent of the others."""
    own: dict[str, Inputs]
    """Stage → what it reads for this level alone."""
    entries: tuple[Entry, ...]
    """What dvc.lock has of it, in the order of the stages."""

    @property
    def identity(self) -> str:
        """32 hex digits."""
        if self.key is None:
            return self.revision.identity
        return _digest(self.revision.identity, self.key, {stage: vars(inputs) for stage, inputs in self.own.items()})


def in_lock(pipeline: Pipeline) -> list[Run]:
    """The runs that dvc.lock holds results for: each revision, then its baseline, dense and levels.

    Nearly always that is one revision. After `dvc repro evaluate@KEY` with other params it is two, each with
    the levels made under it; baseline and dense are in every revision whose inputs they were made from.

    DVC keeps entries of levels that have left the sweep, whose files `compare` removes: those are passed over.
    """
    entries = pipeline.current_entries()
    by_key: dict[str | None, dict[str, Entry]] = {}
    for entry in entries:
        by_key.setdefault(entry.key, {})[entry.stage] = entry
    baseline = by_key.get(layout.BASELINE, {})
    if TRAIN not in baseline:
        return []
    asked = pipeline.sweep
    levels = [
        key
        for key, made in by_key.items()
        if key is not None
        and key not in CONTROLS
        and (key in asked or all(pipeline.has_figures(entry) for entry in made.values()))
    ]
    revisions: dict[str, Revision] = {}
    members: dict[str, list[Run]] = {}
    for key in levels or [layout.BASELINE]:
        revision = _revision(pipeline, {TRAIN: baseline[TRAIN], **by_key[key]})
        revisions.setdefault(revision.identity, revision)
        if key in levels:
            run = Run(revision, key, _own(pipeline, key, by_key[key]), _in_order(by_key[key]))
            members.setdefault(revision.identity, []).append(run)
    runs = []
    for identity, revision in revisions.items():
        shared = by_key.get(None, {})
        runs.append(Run(revision, None, {}, tuple(shared[s] for s in ("clean", "reference") if s in shared)))
        for key in CONTROLS:
            made = _in_order(by_key.get(key, {}))
            if fitting := tuple(takewhile(partial(_fits, revision), made)):
                runs.append(Run(revision, key, {}, fitting))
        runs.extend(members.get(identity, ()))
    return runs


def on_disk(pipeline: Pipeline, key: str) -> tuple[Run, Run]:
    """The revision and the run that a stage about to run, or running, belongs to.

    Everything is taken from the workspace but the md5s of the splits, which `clean` left in dvc.lock. What
    dvc.lock already holds of the same run comes along as `entries`.
    """
    revision = _revision(pipeline, {})
    found = {run.identity: run for run in in_lock(pipeline)}
    child = Run(revision, key, _own(pipeline, key, {}), ())
    shared = tuple(e for e in pipeline.current_entries() if e.name in ("clean", "reference"))
    return Run(revision, None, {}, shared), found.get(child.identity, child)


def _revision(pipeline: Pipeline, made: dict[str, Entry]) -> Revision:
    """The revision that the entries `made` belong to; stages not made yet are as the workspace has them."""
    cleaned = next((entry.outs for entry in pipeline.entries if entry.name == "clean"), {})
    return Revision(
        data={path: md5 for path, md5 in cleaned.items() if is_split(path)},
        shared={stage: pipeline.inputs(stage, None, made.get(stage)) for stage in SHARED_STAGES},
    )


def _own(pipeline: Pipeline, key: str, made: dict[str, Entry]) -> dict[str, Inputs]:
    """What the level alone reads; nothing for baseline and dense."""
    own = {}
    for stage in LEVEL_STAGES if key not in CONTROLS else ():
        shared = pipeline.inputs(stage)
        inputs = pipeline.inputs(stage, key, made.get(stage))
        own[stage] = Inputs(
            {name: value for name, value in inputs.params.items() if name not in shared.params},
            {path: md5 for path, md5 in inputs.files.items() if path not in shared.files},
        )
    return own


def _fits(revision: Revision, entry: Entry) -> bool:
    """Whether an entry of baseline or dense was made from the revision's inputs."""
    shared = revision.shared.get(entry.stage, Inputs({}, {}))
    return all(entry.params.get(name, value) == value for name, value in shared.params.items()) and all(
        entry.deps.get(path, md5) == md5 for path, md5 in shared.files.items()
    )


def _in_order(entries: dict[str, Entry]) -> tuple[Entry, ...]:
    order: Iterable[str] = (*SHARED_STAGES, *sorted(set(entries) - set(SHARED_STAGES)))
    return tuple(entries[stage] for stage in order if stage in entries)


def is_split(path: str) -> bool:
    """Whether a path is one of the cleaned data sets."""
    return Path(path).parent == layout.DATA and Path(path).stem in SPLITS


def _digest(*parts: Any) -> str:
    return digest(json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str))
