"""Stages that train, by several processes that params ask for; and what a method's penalised weights are kept under."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from shared import ROOT, SOURCES

from stages import finetune, layout, prune
from stages.bitmasks import MASKS_FILE, Masks
from stages.runtime import processes
from stages.training import checkpoints

KEPT = layout.SCRATCH / "penalised"


def stores() -> list[str]:
    return sorted(path.name for path in KEPT.iterdir())


def test_as_many_processes_as_params_say(project, monkeypatch, capfd):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # where they find this checkout
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    project("bert", runtime={"processes": 2, "precision": "fp32"})
    prune.main(["l1-0.6"])
    kept = {file: file.stat().st_mtime_ns for file in KEPT.rglob("*.safetensors")}
    assert len(kept) == 1
    prune.main(["l1-0.4"])
    assert {file: file.stat().st_mtime_ns for file in KEPT.rglob("*.safetensors")} == kept
    finetune.main(["l1-0.6"])
    found = Masks.load(layout.model_folder("l1-0.6") / MASKS_FILE)
    assert found.pruned == round(0.6 * found.numel)
    metrics = json.loads(layout.metrics_file("finetune", "l1-0.6").read_text())
    assert metrics["steps"] == 3 * math.ceil(6 * len(SOURCES) / (8 * 2)) and metrics["bf16"] == 0
    assert processes() == 1  # this one
    said = capfd.readouterr().err
    assert "Traceback" not in said and "OMP_NUM_THREADS" not in said


def test_another_number_of_processes_is_refused(project, monkeypatch, capsys):
    project("bert")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(SystemExit):
        finetune.main(["dense"])
    assert "torchrun started 3 processes, runtime.processes is 1: make it as many" in capsys.readouterr().err


def test_a_failure_of_one_is_a_failure(project, monkeypatch, capfd):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    project("bert", runtime={"processes": 2})
    layout.model_folder("baseline").joinpath("config.json").unlink()
    with pytest.raises(SystemExit) as stopped:
        finetune.main(["dense"])
    assert stopped.value.code == 1
    said = capfd.readouterr().err
    assert "holds no checkpoint" in said and "error: one of 2 processes failed: what went wrong is said above" in said


@pytest.mark.parametrize("changed", ["code", "torch", "processes", "precision"])
def test_penalised_weights_are_taken_from_the_same_training_alone(changed, project, monkeypatch):
    """Kept under params and data alone, those of before would be recorded as what an edited criterion makes."""
    project("bert", runtime={"precision": "fp32"})
    prune.main(["l1-0.6"])
    prune.main(["l1-0.4"])
    assert len(stores()) == 1
    if changed == "code":
        Path("edited.py").touch()
        monkeypatch.setattr(checkpoints, "code", lambda: [Path("edited.py")])
    elif changed == "torch":
        monkeypatch.setattr("torch.__version__", "2.0.0")
    elif changed == "processes":
        monkeypatch.setattr(prune, "processes", lambda: 2)
    else:
        monkeypatch.setattr(prune, "autocast_bf16", lambda runtime: True)
    prune.main(["l1-0.4"])
    assert len(stores()) == 2


def test_an_empty_checkpoint_is_none(tmp_path, capsys):
    folder = tmp_path / "step-000000000"
    folder.mkdir()
    folder.joinpath(checkpoints.MANIFEST).write_text("{}")
    assert checkpoints.Store(tmp_path).latest() is None
    assert "is damaged (it is empty): it is not used" in capsys.readouterr().err
