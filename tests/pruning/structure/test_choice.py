"""Budgets: costs by hand, and structures that keep within them on every family."""

from __future__ import annotations

import copy
import itertools
import re
from dataclasses import replace

import pytest
import torch
from shared import FAMILIES, SMALL, SOURCES, TARGETS

from stages.errors import UserError
from stages.models import anatomy
from stages.pruning.criterion import Context
from stages.pruning.structure import choice, cost
from stages.pruning.structure.axes import describe
from stages.pruning.structure.plan import Plan, whole
from stages.pruning.structure.removal import remove


@pytest.fixture
def context(built, settings, latency_table):
    def get(family: str, **rules) -> Context:
        generator = copy.deepcopy(built(family))
        if rules.get("budget") == "latency":
            rules = {"latency": latency_table(generator.model), **rules}
        generator.model.eval()
        batch = generator.collate(generator.encode(SOURCES, TARGETS))
        matrices = anatomy.describe(generator.model).matrices
        chosen = settings(prune={"structured": rules}).prune.structured
        return Context(generator.model, matrices, lambda: [batch], 0, chosen)

    return get


@pytest.mark.parametrize("width", [0, "auto"])
@pytest.mark.parametrize("budget", cost.BUDGETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_left_is_within_the_budget_and_no_less_than_need_be(family, budget, width, context):
    looked_at = context(family, budget=budget, width=width, allocation="uniform")
    model = looked_at.model
    structure = describe(model)
    cost_of = cost.BUDGETS[budget](looked_at, structure)
    dense = cost_of(whole(structure))
    assert dense == choice.cost(looked_at)
    least = choice._cost(structure, cost_of, dict.fromkeys(choice.find_knobs(structure, looked_at.settings), 1))
    for sparsity in (0.2, 0.4, 0.6):
        if dense * (1 - sparsity) < least:
            continue
        plan = choice.choose(looked_at, dense * (1 - sparsity))
        smaller = remove(model, plan)
        left = Context(smaller, anatomy.describe(smaller).matrices, looked_at.batches, 0, looked_at.settings)
        assert choice.cost(left) == pytest.approx(cost_of(plan))
        assert dense * (1 - sparsity - 0.3) < cost_of(plan) <= dense * (1 - sparsity)


def test_parameters_are_the_eligible_weights(context):
    looked_at = context("t5")
    cost_of = cost.parameters(looked_at, describe(looked_at.model))
    assert cost_of(whole(describe(looked_at.model))) == anatomy.describe(looked_at.model).eligible


def test_operations_by_hand(context, built):
    """BERT2BERT, 2 + 2 layers of width 16 with 32 neurons: 2 a weight and token, and a head of vocabulary x 16."""
    looked_at = context("bert", budget="flops")
    generator = built("bert")
    batch = generator.collate(generator.encode(SOURCES, TARGETS))
    source = int(batch["attention_mask"].sum()) / len(SOURCES)
    target = int((batch["labels"] != -100).sum()) / len(SOURCES)
    square, feed_forward = 16 * 16, 2 * 16 * 32
    encoder = 2 * (4 * square + feed_forward) * source
    decoder = 2 * ((6 * square + feed_forward) * target + 2 * square * source)
    head = looked_at.model.config.decoder.vocab_size * 16 * target
    assert choice.cost(looked_at) == pytest.approx(2 * (encoder + decoder + head))


def test_a_sparsity_of_zero_removes_nothing(context):
    looked_at = context("bert")
    assert choice.choose(looked_at, choice.cost(looked_at)) == whole(describe(looked_at.model))


def test_shares_of_their_own(context):
    looked_at = context("bart", encoder_layers=0, decoder_layers=0.5, neurons=0.25, heads=0)
    plan = choice.choose(looked_at, choice.cost(looked_at) * 0.9)
    structure = describe(looked_at.model)
    assert {side: len(kept) for side, kept in plan.layers.items()} == {"encoder": 1, "decoder": 1}
    for axis in structure.axes.values():
        if plan.has(axis):
            assert len(plan.kept(axis)) == (24 if axis.kind == "neurons" else axis.units)


@pytest.mark.parametrize(
    ("family", "shares", "left"),
    [
        ("t5", {"heads": 0.5, "neurons": 0.25}, {"num_heads": 4, "d_ff": 24}),
        (
            "llama",
            {"width": 0.5, "heads": 0.5},
            {"hidden_size": 16, "num_key_value_heads": 4, "num_attention_heads": 8},
        ),
    ],
)
def test_shares_are_of_the_dense_model_however_often_parts_are_removed(family, shares, left, build_family, settings):
    """The second of two removals, of a model that the first has left eight heads or fewer of, goes no further."""
    heads = {
        "t5": {"num_heads": 8, "d_kv": 2},
        "llama": {"hidden_size": 32, "num_attention_heads": 16, "num_key_value_heads": 8},
    }
    generator = build_family(family, config=SMALL[family] | heads[family])
    model, dense = generator.model.eval(), describe(generator.model)
    batch = generator.collate(generator.encode(SOURCES, TARGETS))
    rules = settings(prune={"structured": {"allocation": "uniform", "decoder_layers": 0, **shares}}).prune.structured
    whole_cost = None
    for share in (0.95, 0.9):
        looked_at = Context(model, anatomy.describe(model).matrices, lambda: [batch], 0, rules)
        whole_cost = whole_cost or choice.cost(looked_at)
        model = remove(model, choice.choose(looked_at, whole_cost * share, choice.Dense(dense, whole_cost)))
        for field, size in left.items():
            assert getattr(model.config, field) == size


def test_the_units_with_the_highest_scores_stay(context):
    strong = (1, 4, 30)
    share = 1 - len(strong) / (4 * SMALL["gpt2"]["n_embd"])
    looked_at = context("gpt2", score="norm", encoder_layers=0, decoder_layers=0, heads=0, neurons=share)
    with torch.no_grad():
        for block in looked_at.model.transformer.h:
            block.mlp.c_fc.weight[:, list(strong)] += 10
    plan = choice.choose(looked_at, choice.cost(looked_at) * 0.9)
    assert plan.units["decoder.0.neurons"] == plan.units["decoder.1.neurons"] == strong


@pytest.mark.parametrize("family", ["bart", "t5", "llama"])
def test_many_heads_and_a_width_leave_structures_to_try(family, context, monkeypatch):
    """More heads than steps are tried, and more structures than their loss is measured of."""
    monkeypatch.setattr(choice, "STEPS", 2)
    monkeypatch.setattr(choice, "MOST_TRIED", 3)
    looked_at = context(family, allocation="loss", width="auto" if family != "bart" else 0)
    limit = choice.cost(looked_at) * 0.55
    plan = choice.choose(looked_at, limit)
    assert cost.parameters(looked_at, describe(looked_at.model))(plan) <= limit


@pytest.mark.parametrize("allocation", ["uniform", "loss"])
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_fewer_heads_and_less_width_than_a_quarter_where_the_budget_asks_for_it(family, allocation, context):
    """Just above and just below the least that can be left."""
    looked_at = context(family, allocation=allocation, width="auto", budget="flops")
    structure = describe(looked_at.model)
    cost_of = cost.BUDGETS["flops"](looked_at, structure)
    least = choice._cost(structure, cost_of, dict.fromkeys(choice.find_knobs(structure, looked_at.settings), 1))
    assert cost_of(choice.choose(looked_at, least * 1.001)) == least
    with pytest.raises(UserError, match=r"the least that can be left is \d+% of the budget"):
        choice.choose(looked_at, least * 0.99)


def test_of_equal_units_the_first_stay():
    assert choice._best(torch.tensor([1.0, 2.0, 1.0, 1.0, 2.0]), 3) == (0, 1, 4)


def test_the_least_loss_is_no_more_than_that_of_the_even_structure(context):
    from stages.pruning.structure import scores
    from stages.pruning.structure.masking import masked

    found = {}
    for allocation in ("uniform", "loss"):
        looked_at = context("bert", allocation=allocation)
        plan = choice.choose(looked_at, choice.cost(looked_at) * 0.5)
        with masked(looked_at.model, plan):
            found[allocation] = scores.mean_loss(looked_at)
    assert found["loss"] <= found["uniform"] + 1e-6


@pytest.mark.parametrize("allocation", ["uniform", "loss"])
def test_more_than_can_be_removed(allocation, context):
    looked_at = context("bert", allocation=allocation, decoder_layers=0, encoder_layers=0, width=0)
    with pytest.raises(UserError, match=r"the least that can be left is \d+% of the budget"):
        choice.choose(looked_at, choice.cost(looked_at) * 0.1)


def test_heads_that_fill_the_width_go_with_it(context):
    with pytest.raises(UserError, match=r"prune.structured.heads cannot be 0.5: .* set prune.structured.width"):
        choice.choose(context("bert", heads=0.5), 1.0)
    looked_at = context("bert", width=0.5, encoder_layers=0, decoder_layers=0)
    plan = choice.choose(looked_at, choice.cost(looked_at) * 0.6)
    smaller = remove(looked_at.model, plan)
    assert smaller.config.decoder.hidden_size == smaller.config.encoder.hidden_size == 8
    assert smaller.config.decoder.num_attention_heads == 1


@pytest.mark.parametrize(("share", "left"), [(0, 8), (0.5, 4), (0.6, 4), (0.25, None), (0.1, None)])
def test_a_share_of_heads_of_which_nothing_can_go_is_refused(share, left, settings):
    rules = settings(prune={"structured": {"heads": share}}).prune.structured
    knob = choice.Knob("heads", 8, {"decoder.heads": 1}, allowed=(1, 2, 4, 8))
    if left is None:
        with pytest.raises(UserError, match=rf"heads is {share}, of which nothing would go: of 8 .* 1, 2, 4, 8"):
            choice.fixed([knob], [knob], rules)
    else:
        assert choice.fixed([knob], [knob], rules) == {knob: left}


@pytest.mark.parametrize(
    ("family", "kind", "share", "message"),
    [
        ("bert", "width", 0.2, r"width is 0.2, of which nothing would go: set it to 0.5 at least, which is 8 of 16"),
        ("bert", "encoder_layers", 0.4, r"encoder_layers is 0.4, .*: set it to 0.5 at least, which is 1 of 2, or to 0"),
        ("bert", "neurons", 0.02, r"neurons is 0.02, .*: set it to 0.0313 at least, which is 1 of 32, or to 0"),
        ("bart", "encoder_layers", 0.5, r"encoder_layers is 0.5, .* since one has to stay: set it to 0"),
        ("gpt2", "encoder_layers", 0.5, r"encoder_layers is 0.5, but the model has none: set it to 0"),
    ],
)
def test_a_share_of_which_nothing_can_go_is_refused_of_every_kind(family, kind, share, message, context):
    looked_at = context(family, allocation="uniform", **{kind: share})
    limit = choice.cost(looked_at) * 0.7
    with pytest.raises(UserError, match=rf"prune\.structured\.{message}"):
        choice.choose(looked_at, limit)
    if found := re.search("to ([0-9.]+) at least", message):
        least = looked_at.settings.model_copy(update={kind: float(found[1])})
        assert choice.choose(replace(looked_at, settings=least), limit) != whole(describe(looked_at.model))


def test_a_share_that_one_side_is_too_small_for_is_none_in_vain(settings):
    rules = settings(prune={"structured": {"neurons": 0.1}}).prune.structured
    large, small = (choice.Knob("neurons", size, {f"{size}": 1}) for size in (32, 8))
    assert choice.fixed([large, small], [large, small], rules) == {large: 29, small: 8}


def test_a_width_that_has_to_stay(context):
    with pytest.raises(UserError, match=r"prune.structured.heads cannot be 0.5: .* has to stay \(Marian"):
        choice.choose(context("marian", heads=0.5), 1)
    with pytest.raises(UserError, match=r"prune.structured.width cannot be 0.5: Marian"):
        choice.choose(context("marian", width=0.5), 1.0)


@pytest.mark.parametrize(("width", "heads"), itertools.product([0, "auto"], ["auto", 0.5]))
def test_grouped_heads_keep_dividing_the_width(width, heads, context):
    looked_at = context("llama", width=width, heads=heads, decoder_layers=0)
    plan = choice.choose(looked_at, choice.cost(looked_at) * 0.55)
    config = remove(looked_at.model, plan).config
    assert config.hidden_size % config.num_attention_heads == 0
    assert config.num_attention_heads == 2 * config.num_key_value_heads


def test_the_same_structure_every_time(context):
    plans = {repr(choice.choose(c, choice.cost(c) * 0.5)) for c in (context("t5"), context("t5"))}
    assert len(plans) == 1
    assert isinstance(plan := choice.choose(context("t5"), 1e9), Plan) and plan.units == {}


FREE = dict.fromkeys(("encoder_layers", "encoder_attention", "encoder_feed_forward"), 0.0)
"""Milliseconds of an encoder that takes no time."""


@pytest.mark.parametrize(("decoder_layers", "sparsities"), [("auto", (0.1, 0.2, 0.3)), (0, (0.05, 0.1))])
@pytest.mark.parametrize("family", ["bert", "bart"])
@pytest.mark.parametrize("allocation", ["uniform", "loss"])
def test_what_saves_nothing_stays(allocation, family, decoder_layers, sparsities, context, latency_table, built):
    """Where an encoder takes no time, its layers and neurons are left, however much of the decoder goes."""
    table = latency_table(built(family).model, **FREE)
    rules = {"allocation": allocation, "decoder_layers": decoder_layers}
    looked_at = context(family, budget="latency", latency=table, **rules)
    structure, limit = describe(looked_at.model), choice.cost(looked_at)
    for sparsity in sparsities:
        plan = choice.choose(looked_at, limit * (1 - sparsity))
        assert plan.layers["encoder"] == whole(structure).layers["encoder"]
        assert len(plan.layers["decoder"]) < 2 or any(name.startswith("decoder.") for name in plan.units)
        for axis in structure.axes.values():
            assert axis.side != "encoder" or len(plan.kept(axis)) == axis.units


def test_a_share_of_what_saves_nothing_goes_all_the_same(context, latency_table, built):
    table = latency_table(built("bert").model, **FREE)
    looked_at = context("bert", budget="latency", latency=table, allocation="uniform", encoder_layers=0.5)
    assert len(choice.choose(looked_at, choice.cost(looked_at) * 0.8).layers["encoder"]) == 1


def test_neurons_of_the_sides_go_apart_where_that_is_better(context, monkeypatch):
    """As if every neuron of the encoder that goes cost much, and those of the decoder little."""
    looked_at = context("bert", encoder_layers=0, decoder_layers=0, score="norm")
    weights = {name: w for name, w in looked_at.weights.items() if name.endswith("intermediate.dense.weight")}
    measured = []

    def loss(context):
        gone = {name: int((weight == 0).all(dim=1).sum()) for name, weight in weights.items()}
        measured.append(sum(count * (10 if name.startswith("encoder") else 1) for name, count in gone.items()))
        return float(measured[-1])

    monkeypatch.setattr(choice.scores, "mean_loss", loss)
    limit = choice.cost(looked_at) * 0.9
    plan = choice.choose(looked_at, limit)
    assert cost.parameters(looked_at, describe(looked_at.model))(plan) <= limit
    assert {name for name in plan.units if len(plan.units[name]) < 32} == {"decoder.0.neurons", "decoder.1.neurons"}
    assert 1 < len(measured) <= 1 + 2 * choice.STEPS


@pytest.fixture
def deep_t5(build_family, settings):
    """`deep_t5(**rules)`: as `context`, of a T5 of 3 + 3 layers."""
    generator = build_family("t5", config=SMALL["t5"] | {"num_layers": 3, "num_decoder_layers": 3})
    batch = generator.collate(generator.encode(SOURCES, TARGETS))
    matrices = anatomy.describe(generator.model.eval()).matrices

    def get(**rules) -> Context:
        chosen = settings(prune={"structured": {"width": "auto", "score": "norm", **rules}}).prune.structured
        return Context(generator.model, matrices, lambda: [batch], 0, chosen)

    return get


@pytest.mark.parametrize("budget", ["parameters", "flops"])
@pytest.mark.parametrize("allocation", ["uniform", "loss"])
@pytest.mark.parametrize("shares", [{"decoder_layers": 0}, {"decoder_layers": 0.34}, {}])
def test_a_t5_never_keeps_more_decoder_than_encoder_layers(shares, allocation, budget, deep_t5):
    """Whatever the budget, down to the least that such a model can be."""
    looked_at = deep_t5(allocation=allocation, budget=budget, layer_score="output", **shares)
    structure, dense = describe(looked_at.model), choice.cost(looked_at)
    cost_of = cost.BUDGETS[budget](looked_at, structure)
    least = choice.least(structure, cost_of, looked_at.settings)
    for limit in (dense * 0.8, dense * 0.4, least):
        plan = choice.choose(looked_at, limit)
        layers = {side: len(kept) for side, kept in plan.layers.items()}
        assert layers["encoder"] >= layers["decoder"] and cost_of(plan) <= limit
        assert layers["decoder"] == {0: 3, 0.34: 2}.get(shares.get("decoder_layers"), layers["decoder"])
    with pytest.raises(UserError, match=rf"the least that can be left is {least / dense:.0%} of the budget"):
        choice.choose(looked_at, least * 0.99)


def test_shares_that_no_t5_can_have_name_what_to_change(deep_t5):
    looked_at = deep_t5(encoder_layers=0.7, decoder_layers=0.34)
    with pytest.raises(
        UserError, match=r"2 would stay of the decoder, 1 of the encoder: raise decoder_layers, .* or lo"
    ):
        choice.choose(looked_at, choice.cost(looked_at) * 0.5)


def test_what_can_be_left_is_said_of_the_dense_model(context):
    """Of a model that has half of its costs already gone, not of that model."""
    looked_at = context("bert", encoder_layers=0, decoder_layers=0, allocation="uniform")
    there = choice.cost(looked_at)
    dense = choice.Dense(describe(looked_at.model), 2 * there)
    with pytest.raises(UserError) as alone:
        choice.choose(looked_at, 0.01 * there)
    with pytest.raises(UserError) as before:
        choice.choose(looked_at, 0.01 * there, dense)
    whole_share, half = (int(re.search(r"is (\d+)%", str(error.value))[1]) for error in (alone, before))
    assert half == pytest.approx(whole_share / 2, abs=1)
