"""`python -m stages.prune` and `stages.finetune` of structured levels, on a tiny baseline in a folder of their own."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from stages import finetune, layout, prune
from stages.models import anatomy, checkpoint
from stages.pruning import changes
from stages.pruning.structure.axes import describe
from stages.pruning.structure.plan import PLAN_FILE, Plan
from stages.pruning.structure.removal import remove

KEY = "structured-0.4"


def figures(stage: str) -> dict[str, float]:
    return json.loads(layout.metrics_file(stage, KEY).read_text())


@pytest.mark.parametrize("schedule", ["one_shot", "rounds"])
def test_group_lasso_trains_before_units_are_ranked(schedule, project):
    """The level is cut out of the penalised weights, in which the units that go are small."""
    lasso = {
        "score": "group_lasso",
        "group_lasso": {"strength": 15.0, "epochs": 4.0, "learning_rate": 0.01},
        "decoder_layers": 0,
    }
    rules = {**lasso, "encoder_layers": 0, "allocation": "uniform"}
    project(
        "t5",
        prune={"structured": rules},
        finetune={"schedule": schedule, "rounds": 2, "epochs": 0.01, "learning_rate": 1e-9},
    )
    prune.main([KEY])
    dense = checkpoint.load(layout.model_folder("baseline")).model
    structure = describe(dense)
    plan = Plan.load(layout.pruned_folder(KEY) / PLAN_FILE)
    trained = load_file(layout.pruned_folder(KEY) / changes.WEIGHTS_FILE)
    name, axis = "decoder.block.0.layer.2.DenseReluDense.wi.weight", "decoder.0.neurons"
    rows = trained[name].square().mean(dim=1) + trained[name.replace("wi", "wo")].square().mean(dim=0)
    kept = torch.zeros(structure.axes[axis].units, dtype=torch.bool)
    kept[list(plan.units[axis])] = True
    assert 0 < int(kept.sum()) < len(kept)
    assert float(rows[~kept].max()) <= float(rows[kept].min())
    assert not rows.min(), "driven to zero"

    finetune.main([KEY])
    smaller = checkpoint.load(layout.model_folder(KEY)).model
    changes.load(dense, layout.pruned_folder(KEY) / changes.WEIGHTS_FILE)
    expected = dict(remove(dense, plan).named_parameters())
    for name, weight in smaller.named_parameters():
        if schedule == "one_shot":
            torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)
    assert figures("finetune")["sparsity"] >= 0.4
    assert anatomy.describe(smaller).eligible <= 0.6 * anatomy.describe(dense).eligible


def test_other_scores_keep_no_weights(project):
    project("bert")
    prune.main([KEY])
    assert [file.name for file in layout.pruned_folder(KEY).iterdir()] == [PLAN_FILE]
