"""What a run shows in MLflow, from dvc.lock and the metrics files alone."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages import layout
from stages.files import md5_of
from stages.tracking.identity import Run, is_split
from stages.tracking.pipeline import CONTROLS, Entry, Pipeline
from stages.tracking.view import COLOR_TAG, color

IDENTITY = "espalier.identity"
REVISION = "espalier.revision"
KEY = "espalier.key"
STAGES = "dvc.stages"
PLAIN_STAGES = ("evaluate",)
"""Stages whose figures need no prefix: they are what levels are compared by."""
BENCHMARK, EXPORT = "benchmark", "export"
"""Stages that measure all levels, or one, at once."""
COUNTS = ("sparsity", "parameters", "nonzero_parameters", "eligible_parameters")
"""Figures that need none in any stage: they say of the level's model what the last stage counted."""
CURVES = ("loss", "validation_loss", "learning_rate", "sparsity")
"""Columns of a curve file that are drawn."""
TEXTS = ("key", "level", "runtime")
"""Columns of speed.csv that are no figures."""
SIZE = "size_bytes"
LARGEST = 1.7976931348623157e308
"""What MLflow stores for an infinite metric."""
LONGEST_TAG = 8000
"""Characters of a tag that MLflow keeps."""
_CONTEXTS = {"train": "training", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class Dataset:
    """A cleaned split that a run read."""

    name: str
    path: str
    md5: str
    context: str


@dataclass
class Content:
    """All that one MLflow run is to hold."""

    identity: str
    parent: str | None
    """Identity of the parent run."""
    name: str
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    """Final figures, without steps."""
    curves: dict[str, dict[int, float]] = field(default_factory=dict)
    """Metric → step → value."""
    tags: dict[str, str] = field(default_factory=dict)
    datasets: list[Dataset] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Metrics files that are not there, or not as dvc.lock has them."""


def describe(pipeline: Pipeline, run: Run) -> Content:
    """Gather what a run is to hold: its params, and for every stage in dvc.lock its figures, curves and tags."""
    revision = run.revision.identity
    content = Content(
        identity=run.identity,
        parent=None if run.key is None else revision,
        name=run.key or _revision_name(pipeline, run),
        params=_params(run),
        tags={IDENTITY: run.identity, REVISION: revision},
        datasets=_datasets(run),
    )
    if run.key is not None:
        content.tags |= {KEY: run.key, COLOR_TAG: color(run.key)}
    for entry in run.entries:
        _add_entry(content, pipeline.root, entry)
    if run.key is not None and run.entries:
        _add_speed(content, pipeline, run.key)
    if run.entries:
        content.tags[STAGES] = " ".join(entry.name for entry in run.entries)
    return content


def final_name(stage: str, name: str) -> str:
    """Name in MLflow of a figure of a stage's metrics file.

    Figures of `evaluate` and counts keep their plain names; others carry their stage, and `final_` where a curve
    of that stage has the name already.
    """
    if stage in PLAIN_STAGES or name in COUNTS:
        return name
    return f"{stage}/final_{name}" if name in CURVES else f"{stage}/{name}"


def curve_name(stage: str, name: str) -> str:
    """Name in MLflow of a figure with steps."""
    return f"{stage}/{name}"


def stored(value: float) -> float:
    """The number MLflow keeps for a metric: infinities become the largest ones."""
    return math.copysign(LARGEST, value) if math.isinf(value) else float(value)


def as_text(value: Any) -> str:
    """A value of params.yaml as MLflow shows it: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def lock_tag(stage: str) -> str:
    """Tag with the hash of a stage's entry in dvc.lock."""
    return f"dvc.{stage}.lock"


def _add_entry(content: Content, root: Path, entry: Entry) -> None:
    content.tags |= {
        lock_tag(entry.stage): entry.digest,
        f"dvc.{entry.stage}.deps": json.dumps(entry.deps)[:LONGEST_TAG],
        f"dvc.{entry.stage}.outs": json.dumps(entry.outs)[:LONGEST_TAG],
    }
    for path, md5 in entry.figures.items():
        data = _read(root / path, md5)
        if data is None:
            content.missing.append(path)
        elif path.endswith(".json"):
            content.metrics |= {final_name(entry.stage, name): stored(v) for name, v in _figures(data).items()}
        else:
            content.curves |= {curve_name(entry.stage, name): points for name, points in _curves(data)}


def _add_speed(content: Content, pipeline: Pipeline, key: str) -> None:
    """Timings of a level under their plain names; those of its exports, and their scores, as `onnx/bleu`."""
    entries = {entry.name: entry for entry in pipeline.current_entries()}
    files = {BENCHMARK: layout.BENCHMARK / "speed.csv", EXPORT: layout.metrics_file(EXPORT)}
    found: dict[str, str] = {}
    for stage, file in files.items():
        if md5 := entries[stage].outs.get(file.as_posix()) if stage in entries else None:
            data = _read(pipeline.root / file, md5)
            if data is None:
                content.missing.append(file.as_posix())
            else:
                found[stage] = data
    exported = json.loads(found.get(EXPORT, "{}"))
    for row in csv.DictReader(found.get(BENCHMARK, "").splitlines()):
        if row["level"] != key:
            continue
        prefix = "" if row["key"] == key else f"{row['key']}/"
        for name, value in row.items():
            if name not in TEXTS and not (name == SIZE and not prefix):  # which `evaluate` has of levels
                content.metrics[prefix + name] = stored(float(value))
        content.metrics |= {
            name: stored(value) for name, value in exported.items() if prefix and name.startswith(prefix)
        }


def _read(path: Path, md5: str) -> str | None:
    """The text of an output, None if it is not the one dvc.lock speaks of."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data.decode("utf-8") if md5_of(data) == md5 else None


def _figures(data: str) -> dict[str, float]:
    values = json.loads(data)
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def _curves(data: str) -> Iterator[tuple[str, dict[int, float]]]:
    rows = list(csv.DictReader(data.splitlines()))
    for name in CURVES:
        points = {int(float(row["step"])): stored(float(row[name])) for row in rows if row.get(name)}
        if points:
            yield name, points


def _params(run: Run) -> dict[str, str]:
    values: dict[str, Any] = {}
    if run.key is None:
        for inputs in run.revision.shared.values():
            values |= inputs.params
    elif run.key in CONTROLS:
        values |= {"method": run.key, "sparsity": 0}
    else:
        level = layout.Level.parse(run.key)
        values |= {"method": level.method, "sparsity": level.sparsity}
    for entry in run.entries:
        values |= entry.params
    return {name: as_text(value) for name, value in values.items()}


def _datasets(run: Run) -> list[Dataset]:
    """The splits a run's stages read; for a revision, the ones it is made on."""
    read: Mapping[str, str] = dict(run.revision.data) if run.key is None else {}
    for entry in run.entries if run.key else ():
        read = {**read, **entry.deps}
    return [
        Dataset(Path(path).stem, path, md5, _CONTEXTS[Path(path).stem])
        for path, md5 in sorted(read.items())
        if is_split(path)
    ]


def _revision_name(pipeline: Pipeline, run: Run) -> str:
    """Data set and the first digits of the identity, as in `multiwoz-3f2a1c9`."""
    entry = next((entry for entry in run.entries if entry.stage == "clean"), None)
    values = pipeline.inputs("clean", None, entry)
    origin = values.params.get("data.hub") or values.params.get("data.path") or next(iter(values.files), "")
    stem = Path(str(origin)).name.split(".")[0] or "revision"
    return f"{stem}-{run.identity[:7]}"
