"""The time of a reply by its parts: sums by hand, fits that give the parts back, and tables of other models."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from scipy.optimize import nnls
from shared import FAMILIES, SMALL

from stages.errors import UserError
from stages.params.prune import Latency
from stages.pruning.criterion import Context
from stages.pruning.structure import choice, grid
from stages.pruning.structure.axes import describe
from stages.pruning.structure.latency import amounts, latency, predicted
from stages.pruning.structure.plan import Plan, whole
from stages.pruning.structure.removal import remove


@pytest.fixture
def rules(settings, latency_table):
    """`rules(model, **changes)`: params `prune.structured` with a table of that model."""

    def make(model, milliseconds=None, **changes):
        table = latency_table(model, **(milliseconds or {}))
        return settings(prune={"structured": {"budget": "latency", "latency": table, **changes}}).prune.structured

    return make


def test_amounts_by_hand(built):
    """BERT2BERT, 2 + 2 layers of width 16 with 32 neurons: weights by the million."""
    model = built("bert").model
    structure = describe(model)
    square, feed_forward, vocabulary = 16 * 16 / 1e6, 2 * 16 * 32 / 1e6, model.config.decoder.vocab_size
    amount_of = amounts(model, structure)
    assert amount_of(whole(structure)) == pytest.approx(
        {
            "reply": 1,
            "head": vocabulary * 16 / 1e6,
            "encoder_layers": 2,
            "encoder_attention": 2 * 4 * square,
            "encoder_feed_forward": 2 * feed_forward,
            "decoder_layers": 2,
            "decoder_attention": 2 * 8 * square,
            "decoder_feed_forward": 2 * feed_forward,
        }
    )
    left = amount_of(Plan({"encoder": (0, 1), "decoder": (1,)}, {"decoder.1.neurons": tuple(range(8))}))
    assert left["decoder_layers"] == 1 and left["encoder_layers"] == 2
    assert left["decoder_attention"] == pytest.approx(8 * square)
    assert left["decoder_feed_forward"] == pytest.approx(feed_forward / 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_table_says_the_same_of_a_plan_and_of_the_model_that_it_leaves(family, built, rules):
    model = built(family).model
    structure = describe(model)
    table = rules(model).latency
    points = grid.grid(structure, rules(model))
    assert points[0].plan == whole(structure) and len(points) == len({point.label for point in points})
    for point in points[1::4]:
        smaller = remove(model, point.plan)
        left = predicted(table, smaller, describe(smaller))(whole(describe(smaller)))
        assert left == pytest.approx(predicted(table, model, structure)(point.plan))
        assert left < predicted(table, model, structure)(whole(structure))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fit_foretells_structures_that_were_not_measured(family, built, rules):
    """From times that are a sum of parts; which of them have to be told apart, the structures say."""
    model = built(family).model
    structure = describe(model)
    cost_of = predicted(rules(model).latency, model, structure)
    points = grid.grid(structure, rules(model))
    fitted = [point.plan for point in points if point.fitted]
    checked = [point.plan for point in points if not point.fitted]
    assert checked
    amount_of = amounts(model, structure)
    found = grid.fit([amount_of(plan) for plan in fitted], [cost_of(plan) for plan in fitted])
    assert all(value >= 0 for value in found.values())
    for plan in checked:
        again = sum(found[part] * amount for part, amount in amount_of(plan).items())
        assert again == pytest.approx(cost_of(plan), rel=2e-3)  # parts are rounded to four digits


def test_no_part_takes_less_than_nothing(built, rules):
    """A machine that is slower with one layer than with two would have it so."""
    model = built("bert").model
    structure = describe(model)
    points = [point.plan for point in grid.grid(structure, rules(model)) if point.fitted]
    amount_of = amounts(model, structure)
    times = [10.0 - len(plan.layers["encoder"]) + len(plan.layers["decoder"]) for plan in points]
    found = grid.fit([amount_of(plan) for plan in points], times)
    assert found["encoder_layers"] == 0 and found["decoder_layers"] > 0.5


@pytest.mark.parametrize("seed", range(5))
def test_nonnegative_least_squares_as_scipy_has_them(seed):
    random = np.random.default_rng(seed)
    rows, wanted = random.normal(size=(12, 6)), random.normal(size=12)
    expected, _ = nnls(rows, wanted)
    assert 0 < (expected == 0).sum() < 6
    np.testing.assert_allclose(grid.nonnegative(rows, wanted), expected, atol=1e-10)


def context(model, chosen, batch):
    from stages.models import anatomy

    return Context(model, anatomy.describe(model).matrices, lambda: [batch], 0, chosen)


@pytest.mark.parametrize(
    ("parts", "left"),
    [
        # 2 + 2 layers take 2 + 2*1 + 2*4 = 12: two thirds of that leave no decoder layer but one.
        ({"encoder_layers": 1, "decoder_layers": 4}, {"encoder": 2, "decoder": 1}),
        # 2 + 2*4 + 2*1: now it is the encoder's.
        ({"encoder_layers": 4, "decoder_layers": 1}, {"encoder": 1, "decoder": 2}),
    ],
)
def test_the_slow_side_loses_its_layer(parts, left, built, rules):
    model = copy.deepcopy(built("bert").model)
    nothing = dict.fromkeys(("head", "encoder_attention", "encoder_feed_forward"), 0.0)
    nothing |= dict.fromkeys(("decoder_attention", "decoder_feed_forward"), 0.0)
    chosen = rules(model, {**nothing, **parts}, allocation="loss", layer_score="output", neurons=0)
    generator = built("bert")
    looked_at = context(model, chosen, generator.collate(generator.encode(["bye"], ["Goodbye !"])))
    assert choice.cost(looked_at) == 12
    plan = choice.choose(looked_at, 12 * 2 / 3)
    assert {side: len(kept) for side, kept in plan.layers.items()} == left
    assert latency(looked_at, describe(model))(plan) == 8


def test_where_neurons_take_the_time_they_go_and_layers_stay(built, rules):
    model = copy.deepcopy(built("bert").model)
    parts = dict.fromkeys(("head", "encoder_layers", "encoder_attention", "decoder_layers", "decoder_attention"), 0.0)
    parts |= {"reply": 1.0, "encoder_feed_forward": 0.0, "decoder_feed_forward": 1e6 / (2 * 2 * 16 * 32)}
    chosen = rules(model, parts, allocation="uniform", score="norm", layer_score="output")
    generator = built("bert")
    looked_at = context(model, chosen, generator.collate(generator.encode(["bye"], ["Goodbye !"])))
    assert choice.cost(looked_at) == pytest.approx(2)  # one of them the reply's own
    plan = choice.choose(looked_at, 1.5)
    assert {side: len(kept) for side, kept in plan.layers.items()} == {"encoder": 2, "decoder": 2}
    assert len(plan.units["decoder.0.neurons"]) == len(plan.units["decoder.1.neurons"]) == 16


def test_tables_of_other_models_are_refused(built, build_family, rules):
    model = built("bert").model
    table = rules(model).latency
    wider = {"architecture": "bert", "config": {**SMALL["bert"], "intermediate_size": 40}}
    other = build_family("bert", decoder=wider).model
    with pytest.raises(UserError, match=r"decoder.intermediate_size 32, this one has 40: .* python -m stages.latency"):
        predicted(table, other, describe(other))
    with pytest.raises(UserError, match="of a model of another family"):
        predicted(table, built("t5").model, describe(built("t5").model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latency": None}, r"prune\.structured: budget latency goes by what was measured: run `python -m stages"),
        ({"threads": 2}, r"measured with 2 threads, runtime.threads is 1: run `python -m stages.latency`"),
        ({"milliseconds": {"reply": 1.0, "head": 1.0}}, "milliseconds has no decoder_attention"),
        ({"milliseconds": {"decoder_layer": 1.0}}, "milliseconds.decoder_layer"),
        ({"milliseconds": {"head": -1.0}}, "milliseconds.head: input should be greater than or equal to 0"),
    ],
)
def test_params_that_make_no_sense(change, message, built, latency_table, settings):
    table = None if "latency" in change else latency_table(built("bert").model) | change
    with pytest.raises(UserError, match=message):
        settings(prune={"structured": {"budget": "latency", "latency": table}})


def test_all_parts_for_nothing(built, latency_table, settings):
    table = latency_table(built("bert").model)
    table["milliseconds"] = dict.fromkeys(table["milliseconds"], 0.0)
    with pytest.raises(UserError, match="milliseconds are all 0"):
        settings(prune={"structured": {"latency": table}})


def test_a_table_is_read_as_it_is_written(built, latency_table):
    table = Latency.model_validate(latency_table(built("gpt2").model))
    assert Latency.model_validate(table.model_dump()) == table
    assert not any(part.startswith("encoder") for part in table.milliseconds)
