"""Stages of the real pipeline, made again in a scratch clone."""

from __future__ import annotations

import json
import shutil

from project import Project
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def test_an_altered_weight_and_an_altered_figure_are_found_and_named(finished, tmp_path):
    copy = Project(tmp_path / "copy")
    shutil.copytree(finished.root, copy.root, symlinks=True)
    path = copy.root / "outputs/models/finetuned/magnitude-0.6/model.safetensors"
    weights = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    name = "encoder.encoder.layer.0.output.dense.weight"
    place = tuple(int(index) for index in weights[name].nonzero()[5])
    weights[name][place] += 0.25
    save_file(weights, path, metadata)
    metrics = "outputs/metrics/prune/l1-0.6.json"
    figures = json.loads((copy.root / metrics).read_text())
    loss, figures["validation_loss"] = figures["validation_loss"], 0.125
    (copy.root / metrics).write_text(json.dumps(figures))
    copy.run("dvc", "commit", "--force", "finetune@magnitude-0.6", "prune@l1-0.6")
    assert copy.repro("evaluate@magnitude-0.6") == ["evaluate@magnitude-0.6"]
    copy.commit("altered")

    done = copy.run("python", "-m", "stages.verify", "magnitude-0.6", "prune@l1-0.6", "clean", check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 1, done.stderr
    for stage in ("clean", "prune@magnitude-0.6"):
        assert any(line.split()[:2] == [stage, "identical"] for line in lines), done.stdout
    assert f"    {metrics}: validation_loss: 0.125 became {loss}" in lines
    said = f"model.safetensors: tensor {name}: 1 of 512 elements differ, by 0.25 at most"
    assert f"    outputs/models/finetuned/magnitude-0.6: {said}" in lines
    assert any("evaluate@magnitude-0.6" in line and "as finetune@magnitude-0.6 does" in line for line in lines)
