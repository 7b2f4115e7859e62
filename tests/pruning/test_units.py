"""Pattern `units`: whole heads and neurons, scored by hand; and the same masks whatever the family's layout."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from shared import FAMILIES, SOURCES, TARGETS

from stages.errors import UserError
from stages.models import anatomy
from stages.pruning import criterion, engine, masks
from stages.pruning.criterion import Context, Criterion
from stages.pruning.structure.axes import describe
from stages.pruning.structure.masking import masked
from stages.pruning.structure.plan import Plan, whole

BERT = "encoder.encoder.layer.{}.{}.weight"


def context_of(generator, settings) -> Context:
    generator.model.eval()
    matrices = anatomy.describe(generator.model).matrices
    batches = [generator.collate(generator.encode(SOURCES, TARGETS))]
    return Context(generator.model, matrices, lambda: batches, 0, settings().prune.taylor)


def scored(scores) -> Criterion:
    return Criterion(importance=lambda context: scores)


def gone(chosen, model) -> dict[str, set[int]]:
    """Units by axis whose weights are all masked in every matrix; proves that of no other unit any is."""
    structure = describe(model)
    found: dict[str, set[int]] = {}
    for name, mask in chosen.items():
        for place, dimension in enumerate(structure.tensors[name]):
            axis = structure.axes[dimension.axis]
            if axis.kind == "width":
                continue
            other = mask.movedim(place, 0).reshape(dimension.parts, axis.units, -1)
            assert bool((other.all(-1) | ~other.any(-1)).all()), "a unit is masked in part"
            units = set((~other.any(-1)).all(0).nonzero().flatten().tolist())
            assert units == set((~other.any(-1)).any(0).nonzero().flatten().tolist())
            assert found.setdefault(axis.name, units) == units, "matrices of an axis disagree"
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_count_is_exact_to_half_a_unit_and_the_model_is_the_masked_one(family, scope, built, settings):
    generator = built(family)
    context = context_of(generator, settings)
    rules = settings(prune={"pattern": "units", "scope": scope}).prune
    chosen = engine.choose(context, criterion.find("taylor"), 0.5, rules)
    structure, units = describe(generator.model), gone(chosen, generator.model)
    largest = max(
        sum(m.weight.numel() for n, m in context.matrices.items() if any(d.axis == axis for d in structure.tensors[n]))
        / structure.axes[axis].units
        for axis in units
    )
    assert abs(chosen.pruned - 0.5 * chosen.numel) <= largest / 2
    for axis, lost in units.items():
        assert len(lost) < structure.axes[axis].units
        assert scope == "global" or abs(len(lost) - 0.5 * structure.axes[axis].units) <= 1
    plan = Plan(
        whole(structure).layers,
        {axis: tuple(u for u in range(structure.axes[axis].units) if u not in lost) for axis, lost in units.items()},
    )
    batch = context.batches()[0]
    kept = {name: weight.detach().clone() for name, weight in context.weights.items()}
    with torch.no_grad():
        with masked(generator.model, plan):
            expected = generator.model(**batch, use_cache=False).logits
        masks.apply(context.weights, chosen)
        found = generator.model(**batch, use_cache=False).logits
        for name, weight in context.weights.items():
            weight.copy_(kept[name])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_by_hand(built, settings):
    """Mean scores of units, ties to the first, the last unit of an axis stays, protected layers stay."""
    generator = built("bert")
    context = context_of(generator, settings)
    scores = {name: torch.full_like(weight, 9.0) for name, weight in context.weights.items()}
    up, down = BERT.format(0, "intermediate.dense"), BERT.format(0, "output.dense")
    neurons = len(scores[up])
    scores[up][3], scores[down][:, 3] = 1.0, 2.0  # mean 1.5
    scores[up][5], scores[down][:, 5] = 1.4, 1.4
    scores[up][4], scores[down][:, 4] = 1.5, 1.5  # ties with 3, and comes after it
    size = 2 * scores[up].shape[1]
    total = sum(weight.numel() for weight in scores.values())
    for count, expected in ((0, set()), (1, {5}), (2, {3, 5}), (3, {3, 4, 5})):
        rules = settings(prune={"pattern": "units"}).prune
        chosen = engine.choose(context, scored(scores), count * size / total, rules)
        assert gone(chosen, generator.model)["encoder.0.neurons"] == expected and chosen.pruned == count * size
    rules = settings(prune={"pattern": "units", "layers": {up: 0}}).prune
    assert not gone(engine.choose(context, scored(scores), 0.5, rules), generator.model)["encoder.0.neurons"]
    rules = settings(prune={"pattern": "units"}).prune
    scores[up][:], scores[down][:] = -1.0, -1.0
    lowest = gone(engine.choose(context, scored(scores), neurons * size / total, rules), generator.model)
    assert len(lowest["encoder.0.neurons"]) == neurons - 1
    with pytest.raises(UserError, match="one head or neuron of each layer stays"):
        engine.choose(context, scored(scores), 0.999, rules)
    with pytest.raises(UserError, match="one head or neuron of each layer stays"):
        engine.check(generator.model, context.matrices, 0.999, rules)
    scores[down][0, 0] = torch.nan
    with pytest.raises(UserError, match="not numbers"):
        engine.choose(context, scored(scores), 0.5, rules)


def test_what_is_gone_stays_so_as_the_sparsity_rises(built, settings):
    generator = built("t5")
    context, rules = context_of(generator, settings), settings(prune={"pattern": "units"}).prune
    held = None
    generator_of = torch.Generator().manual_seed(0)
    for sparsity in (0.2, 0.4, 0.6):
        noise = {name: torch.rand(w.shape, generator=generator_of) for name, w in context.weights.items()}
        chosen = engine.choose(context, scored(noise), sparsity, rules, held=held)
        for name, mask in (held or {}).items():
            assert not bool((chosen[name] & ~mask).any())
        held = chosen


def test_neurons_that_are_gone_stay_so_after_a_head_that_was_more_than_was_to_go(built, settings):
    """0.6 of a head was left to prune, and one went; as much again is no reason to take neurons back."""
    generator = built("bart")
    context, rules = context_of(generator, settings), settings(prune={"pattern": "units"}).prune
    neurons = [name for name in context.weights if ".fc" in name]
    scores = {name: torch.full(w.shape, 1.0 - (name in neurons)) for name, w in context.weights.items()}
    all_but_one = sum(context.weights[name].numel() for name in neurons) * 31 // 32
    head = next(w for name, w in context.weights.items() if "self_attn" in name).numel() * 2  # of two, in four matrices
    eligible = sum(w.numel() for w in context.weights.values())
    held = engine.choose(context, scored(scores), (all_but_one + 0.6 * head) / eligible, rules)
    assert held.pruned == all_but_one + head
    chosen = engine.choose(context, scored(scores), (all_but_one + 0.61 * head) / eligible, rules, held=held)
    assert all(torch.equal(chosen[name], held[name]) for name in held)


@pytest.mark.parametrize("floor, kept", [(0.0, 1), (0.3, 10)])
def test_a_floor_is_of_whole_units(floor, kept, built, settings):
    """The lowest units of all are the 32 neurons of one layer, of which the highest stay, and others go for them."""
    generator = built("bart")
    context = replace(context_of(generator, settings), settings=SimpleNamespace(floor=floor))
    up, down = "model.encoder.layers.0.fc1.weight", "model.encoder.layers.0.fc2.weight"
    scores = {name: torch.full(w.shape, 2.0) for name, w in context.weights.items()}
    rising = torch.arange(32) / 32
    scores[up] = rising[:, None].expand(context.weights[up].shape)
    scores[down] = rising.expand(context.weights[down].shape)
    neuron = (scores[up].numel() + scores[down].numel()) // 32
    rules = settings(prune={"pattern": "units"}).prune
    eligible = sum(w.numel() for w in context.weights.values())
    chosen = engine.choose(context, scored(scores), 31 * neuron / eligible, rules)
    assert chosen[up].all(1).tolist() == chosen[down].all(0).tolist() == [False] * (32 - kept) + [True] * kept


def test_params_refuse_what_units_cannot_be(settings):
    wrong = [
        ({"prune": {"scope": "row"}}, "scope row"),
        ({"prune": {"scope": "layer", "allocation": "owl"}}, "allocation owl"),
        ({"prune": {"layers": {"encoder.*": 0.5}}}, "only be 0"),
        *(({"sweep": {"method": [m]}}, f"method {m}") for m in ("wanda", "ria", "sparsegpt", "alps", "dsnot")),
    ]
    for values, said in wrong:
        with pytest.raises(UserError, match=said):
            settings(**(values | {"prune": {"pattern": "units"} | values.get("prune", {})}))
    for method, scope in itertools.product(("magnitude", "movement", "l1", "structured"), ("global", "layer")):
        settings(sweep={"method": [method]}, prune={"pattern": "units", "scope": scope})
