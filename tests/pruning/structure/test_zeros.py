"""How much structure leaves for zeros, and which weights are zero, by the dense model's names."""

from __future__ import annotations

import pytest
import torch

from stages.models import anatomy
from stages.pruning.criterion import Context
from stages.pruning.structure import zeros
from stages.pruning.structure.axes import describe
from stages.pruning.structure.plan import Plan
from stages.pruning.structure.removal import names_after, remove

PROTECTED = "decoder.bert.encoder.layer.1.crossattention.*"
SIDES = "encoder", "decoder"


@pytest.fixture
def rules(settings):
    def make(structured, **changes):
        return settings(prune={"structured": structured, **changes}, sweep={"sparsity": [0.5]}).prune

    return make


def test_what_structure_has_to_remove(rules):
    assert zeros.shares(0.6, rules({"zeros": 0})) == (0.6, 0)
    assert zeros.shares(0.6, rules({"zeros": 0.4})) == pytest.approx((1 / 3, 0.4))  # of two thirds, 0.4 is not there
    assert zeros.shares(0.3, rules({"zeros": 0.4})) == pytest.approx((0, 0.3)), "no more than the level's"
    assert zeros.shares(0.6, rules({"zeros": 0.5, "budget": "flops"})) == (0.6, 0.5), "zeros save no operations"
    assert zeros.shares(0, rules({"zeros": 0.5, "budget": "flops"})) == (0, 0), "nothing is pruned of the dense model"


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "2x4"])
@pytest.mark.parametrize("progress", [0.5, 1.0])
def test_the_smallest_weights_that_are_left(pattern, progress, built, rules):
    dense = built("bert").model
    plan = Plan({"encoder": (0, 1), "decoder": (1,)}, {f"encoder.{b}.neurons": tuple(range(8)) for b in (0, 1)})
    model = remove(dense, plan)
    there = anatomy.describe(dense).matrices
    names = {name: now for name, now in names_after(describe(dense), plan).items() if name in there}
    left = anatomy.describe(model)
    # A layer of the dense model that is gone may be named as well.
    gone, own, share = (0.9, 0.25, 0.4) if pattern != "2:4" else (0, 0.5, 0.0)
    layers = {PROTECTED: 0, "decoder.bert.encoder.layer.0.*": gone, "encoder.*.intermediate.*": own}
    if not share:  # all that is left has the pattern, but for what is protected
        protected = sum(left.weights[now].numel() for name, now in names.items() if name.startswith(PROTECTED[:-1]))
        share = 0.5 * (1 - protected / left.eligible)
    made = rules({"zeros": share}, pattern=pattern, scope="layer", layers=layers)
    context = Context(model, left.matrices, list, 0, made.structured)
    masks = zeros.choose(context, names, made, share, progress)
    assert masks.shapes == {name: tuple(weight.shape) for name, weight in left.weights.items()}
    assert abs(masks.pruned - progress * share * left.eligible) <= (8 if pattern == "2x4" else 0.5)
    for name, now in names.items():
        pruned = ~masks[now]
        if name.startswith(PROTECTED[:-1]):
            assert not pruned.any() and now.startswith("decoder.bert.encoder.layer.0.")
        elif "encoder.encoder" in name and "intermediate" in name:
            assert int(pruned.sum()) == round(own * progress * pruned.numel() / 8) * 8 or pattern != "2x4"
            assert int(pruned.sum()) == pytest.approx(own * progress * pruned.numel(), abs=4)
        elif pattern == "unstructured":
            weight = left.weights[now].detach().abs()
            assert pruned.any() and float(weight[pruned].max()) <= float(weight[~pruned].min())
        if pattern == "2:4":
            assert int(pruned.reshape(-1, 4).sum(dim=1).max()) <= 2
    assert all(bool(torch.isfinite(weight).all()) for weight in left.weights.values())


def test_outliers_are_those_of_the_dense_model_by_its_names(built, rules):
    """0.2 apart: least where most outliers are; a layer that is gone has no say."""
    dense = built("bert").model
    plan = Plan({"encoder": (0, 1), "decoder": (1,)}, {})
    model = remove(dense, plan)
    there = anatomy.describe(dense).matrices
    names = {name: now for name, now in names_after(describe(dense), plan).items() if name in there}
    outliers = {name: 0.0 if name.startswith("encoder.") else 0.5 for name in there}
    outliers |= {name: 9.0 for name in there if name not in names}
    made = rules({"zeros": 0.5}, scope="layer", allocation="owl", owl={"threshold": 5, "spread": 0.1})
    left = anatomy.describe(model)
    masks = zeros.choose(Context(model, left.matrices, list, 0, made.structured), names, made, 0.5, outliers=outliers)
    assert masks.pruned == round(0.5 * left.eligible)
    lost = {side: [1 - float(masks[now].float().mean()) for now in masks if now.startswith(side)] for side in SIDES}
    assert max(map(max, lost.values())) - min(map(min, lost.values())) == pytest.approx(0.2, abs=0.01)
    assert min(lost["encoder"]) > 0.5 > max(lost["decoder"])
    assert all(max(shares) - min(shares) < 0.01 for shares in lost.values())
