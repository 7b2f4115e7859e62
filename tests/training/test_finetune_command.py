"""`python -m stages.prune` and `stages.finetune` on a tiny baseline, in a folder of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from shared import SOURCES

from stages import export, finetune, generate, layout, prune
from stages.bitmasks import MASKS_FILE, Masks
from stages.models import anatomy, checkpoint
from stages.pruning import changes, masks
from stages.pruning.structure.compact import compact
from stages.runtimes import folder as folders


def level(key: str) -> tuple[Masks, Masks]:
    """Masks of the prune stage, and of the fine-tuned level, which hold."""
    folder = layout.model_folder(key)
    after = Masks.load(folder / MASKS_FILE)
    masks.check_held(anatomy.describe(checkpoint.load(folder).model).weights, after)
    return Masks.load(layout.pruned_folder(key) / MASKS_FILE), after


@pytest.mark.parametrize("family", ["bert", "t5", "gpt2"])
@pytest.mark.parametrize("method", ["grasp", "fisher", "movement"])
def test_methods_by_gradients(method, family, project):
    project(family)
    prune.main([f"{method}-0.6"])
    finetune.main([f"{method}-0.6"])
    before, after = level(f"{method}-0.6")
    assert before.pruned == after.pruned == round(0.6 * before.numel)
    assert not (layout.pruned_folder(f"{method}-0.6") / changes.WEIGHTS_FILE).exists()
    metrics = json.loads(layout.metrics_file("finetune", f"{method}-0.6").read_text())
    assert metrics["sparsity"] >= after.sparsity
    # What training has learnt by then is not what the baseline's first step says.
    assert any(not torch.equal(before[name], after[name]) for name in after)


@pytest.mark.parametrize("method", ["taylor", "movement", "l1"])
def test_units_are_held_in_training_and_left_out_of_the_export(method, project, capsys):
    project("bert", prune={"pattern": "units"})
    key = f"{method}-0.4"
    prune.main([key])
    finetune.main([key])
    before, after = level(key)
    head = 4 * 8 * 16  # weights, of width 16 and two heads
    assert all(abs(found.pruned - 0.4 * found.numel) <= head / 2 for found in (before, after))
    assert compact(checkpoint.load(layout.model_folder(key)).model) >= after.pruned
    export.main([key, "--to", "onnx", "--output", "cut"])
    folders.save(checkpoint.load(layout.model_folder(key)), Path("whole"), "onnx", source=key)
    assert folders.size_bytes(Path("cut")) < folders.size_bytes(Path("whole")) - 3 * after.pruned
    written = {}
    for model in (key, "cut"):
        capsys.readouterr()
        generate.main(["--model", model, *(part for text in SOURCES for part in ("--text", text))])
        written[model] = capsys.readouterr().out
    assert written[key] == written["cut"] != ""


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
@pytest.mark.parametrize("schedule", ["cubic", "rounds"])
def test_outliers_are_those_of_the_dense_model(schedule, method, project):
    """With zeros about, what is left seems to have more of them: the most pruned matrix would get the least."""
    owl = {"scope": "layer", "allocation": "owl", "owl": {"threshold": 2.0}}
    project(finetune={"schedule": schedule, "refresh_steps": 1}, prune=owl)
    prune.main([f"{method}-0.7"])
    finetune.main([f"{method}-0.7"])
    one_shot, gradual = ([float((~mask).float().mean()) for mask in found.values()] for found in level(f"{method}-0.7"))
    assert gradual == one_shot
    assert max(one_shot) - min(one_shot) > 0.05, "blocks differ"


@pytest.mark.parametrize("rewind", ["weights", "learning_rate"])
def test_rounds_that_rewind(rewind, project):
    project(finetune={"schedule": "rounds", "rewind": rewind})
    prune.main(["magnitude-0.6"])
    for key in ("magnitude-0.6", "dense"):
        finetune.main([key])
    _, after = level("magnitude-0.6")
    assert after.pruned == round(0.6 * after.numel)
    rates = layout.METRICS / "finetune" / "dense.curve.csv"
    assert rates.is_file()


def test_a_baseline_that_is_not_numbers_is_refused_by_methods_that_do_not_look_at_it(project, capsys):
    project()
    baseline = checkpoint.load(layout.model_folder("baseline"))
    with torch.no_grad():
        next(iter(anatomy.describe(baseline.model).weights.values()))[0] = torch.nan
    checkpoint.save(baseline, layout.model_folder("baseline"))
    with pytest.raises(SystemExit):
        prune.main(["random-0.5"])
    assert "validation loss is not finite: train the baseline" in capsys.readouterr().err
    assert not layout.metrics_file("prune", "random-0.5").exists()


@pytest.mark.parametrize(("weight", "teachers"), [(0.0, 0), (0.5, 1)])
def test_a_teacher_is_loaded_if_there_is_something_to_learn(weight, teachers, project, monkeypatch):
    project(finetune={"schedule": "one_shot", "distillation": {"weight": weight, "hidden_weight": weight}})
    prune.main(["magnitude-0.6"])
    loaded = []
    load = checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda folder: loaded.append(Path(folder)) or load(folder))
    finetune.main(["magnitude-0.6"])
    assert loaded == [layout.model_folder("baseline")] * (1 + teachers)
    monkeypatch.undo()


def test_only_changed_weights_are_kept(project):
    project(prune={"l1": {"epochs": 1.0}})
    prune.main(["l1-0.6"])
    kept = load_file(layout.pruned_folder("l1-0.6") / changes.WEIGHTS_FILE)
    model = checkpoint.load(layout.model_folder("baseline")).model
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    assert all(not torch.equal(tensor, before[name]) for name, tensor in kept.items())
    # BERT's pooler takes no part in the loss, and so is not trained.
    assert before.keys() - kept.keys() == {name for name in before if ".pooler." in name or name.startswith("pooler.")}
