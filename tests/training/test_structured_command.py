"""`python -m stages.prune` and `stages.finetune` of structured levels, on a tiny baseline in a folder of their own."""

from __future__ import annotations

import csv
import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from shared import SOURCES, TARGETS

from stages import finetune, layout, prune
from stages.bitmasks import MASKS_FILE, Masks
from stages.evaluation.size import sizes
from stages.models import anatomy, checkpoint
from stages.pruning import changes
from stages.pruning.criterion import Context
from stages.pruning.masks import check_fits, check_held
from stages.pruning.structure import choice
from stages.pruning.structure.axes import describe
from stages.pruning.structure.plan import PLAN_FILE, Plan, counts, whole
from stages.pruning.structure.removal import remove
from stages.training.distillation import Teacher

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


def proved() -> tuple[Masks, anatomy.Anatomy]:
    """Masks of the fine-tuned level, which hold, and what is left."""
    folder = layout.model_folder(KEY)
    masks = Masks.load(folder / MASKS_FILE)
    left = anatomy.describe(checkpoint.load(folder).model)
    check_fits(masks, left.weights, folder)
    check_held(left.weights, masks)
    return masks, left


@pytest.mark.parametrize("family", ["bert", "t5", "gpt2"])
@pytest.mark.parametrize("schedule", ["one_shot", "rounds", "cubic"])
def test_zeros_on_top_of_structure(schedule, family, project):
    """Of 1 - 0.4 that is left, a quarter is zero: 0.8 of the weights stay, and 0.6 are not zero."""
    storage = "sparse" if family == "bert" else "dense"
    rules = {"zeros": 0.25, "allocation": "uniform"}
    project(family, prune={"structured": rules}, finetune={"schedule": schedule, "rounds": 2, "storage": storage})
    prune.main([KEY])
    finetune.main([KEY])
    dense = anatomy.describe(checkpoint.load(layout.model_folder("baseline")).model).eligible
    masks, left = proved()
    assert 0.75 * dense < left.eligible <= 0.8 * dense
    assert masks.pruned == round(0.25 * left.eligible)
    gone = dense - left.eligible + masks.pruned
    for stage in ("prune", "finetune"):
        assert figures(stage)["pruned_parameters"] == gone and figures(stage)["sparsity"] == gone / dense >= 0.4
    measured = sizes(checkpoint.load(layout.model_folder(KEY)).model, layout.model_folder(KEY), dense)
    assert measured["sparsity"] == pytest.approx(gone / dense, abs=1e-12)
    with (layout.METRICS / "finetune" / f"{KEY}.layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["nonzero"]) for row in rows) == dense - gone
    with (layout.METRICS / "finetune" / f"{KEY}.curve.csv").open() as file:
        assert float(list(csv.DictReader(file))[-1]["sparsity"]) == pytest.approx(gone / dense)
    if schedule == "one_shot":
        before = Masks.load(layout.pruned_folder(KEY) / MASKS_FILE)
        assert all(torch.equal(before[name], masks[name]) for name in masks)


def test_zeros_by_the_general_rules(project, monkeypatch):
    """Blocks, none in a layer that is protected; where the budget is of operations zeros do not count towards it."""
    monkeypatch.setattr(sys.modules[__name__], "KEY", "structured-0.1")
    project(
        "bert",
        prune={
            "pattern": "1x2",
            "layers": {"decoder.bert.encoder.layer.1.*": 0},
            "structured": {"zeros": 0.5, "budget": "flops", "neurons": 0.25, "decoder_layers": 0},
        },
        finetune={"schedule": "one_shot"},
    )
    prune.main([KEY])
    finetune.main([KEY])
    masks, left = proved()
    assert abs(masks.pruned - 0.5 * left.eligible) <= 1 and figures("finetune")["sparsity"] > 0.55
    for name in masks:
        assert torch.equal(masks[name][:, ::2], masks[name][:, 1::2])
        assert bool(masks[name].all()) == name.startswith("decoder.bert.encoder.layer.1.")


def test_a_pattern_of_layers_that_matches_nothing(project, capsys):
    project("bert", prune={"layers": {"encoder.blocks.*": 0}, "structured": {"zeros": 0.25}})
    with pytest.raises(SystemExit):
        prune.main([KEY])
    assert "prune.layers: encoder.blocks.* matches no eligible matrix" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("family", "schedule", "share"), [("bert", "rounds", 0.95), ("t5", "one_shot", 0.8), ("gpt2", "one_shot", 0.8)]
)
def test_a_smaller_level_learns_hidden_states(family, schedule, share, project, monkeypatch):
    """Of the dense baseline, those of what it is left: it starts from its share of them, and comes nearer."""
    distances = []
    distance = Teacher._distance

    def recorded(*args):
        found = distance(*args)
        distances.append(float(found.detach()))
        return found

    monkeypatch.setattr(Teacher, "_distance", recorded)
    project(
        family,
        prune={"structured": {"width": 0.5, "allocation": "uniform"}},
        finetune={
            "schedule": schedule,
            "rounds": 2,
            "epochs": 10.0,
            "bucket_by_length": False,
            "distillation": {"weight": 0.0, "temperature": 1.0, "hidden_weight": 50.0},
        },
    )
    prune.main([KEY])
    finetune.main([KEY])
    start = len(distances) // 2 if schedule == "rounds" else 0  # of the round that has the level's size
    before, after = sum(distances[start : start + 3]), sum(distances[-3:])
    assert after < share * before


@pytest.mark.parametrize("schedule", ["one_shot", "rounds", "cubic"])
@pytest.mark.parametrize("zeros", [0, 0.39])
def test_a_share_of_a_kind_is_one_of_the_dense_model(zeros, schedule, project):
    """Once, however many rounds there are, and however few of them leave something to remove beside the zeros."""
    shares = {"neurons": 0.5, "encoder_layers": 0, "decoder_layers": 0.5, "zeros": zeros}
    project("bert", prune={"structured": shares}, finetune={"schedule": schedule, "rounds": 3})
    prune.main([KEY])
    finetune.main([KEY])
    config = checkpoint.load(layout.model_folder(KEY)).model.config
    for side, layers in {"encoder": 2, "decoder": 1}.items():
        assert getattr(config, side).num_hidden_layers == layers
        assert getattr(config, side).intermediate_size == 16


@pytest.fixture
def wordy(project):
    """`wordy(family, **params)`: a project whose baseline has 4000 tokens, most of which no text uses."""

    def make(family: str, **changes) -> None:
        project(family, **changes)
        generator = checkpoint.load(layout.model_folder("baseline"))
        generator.model.resize_token_embeddings(4000, mean_resizing=False)
        checkpoint.save(generator, layout.model_folder("baseline"))

    return make


def operations(key: str, settings) -> float:
    """Of one reply of a finished level, or of the baseline."""
    generator = checkpoint.load(layout.model_folder(key))
    batch = generator.collate(generator.encode(SOURCES, TARGETS))
    rules = settings(prune={"structured": {"budget": "flops"}}).prune.structured
    matrices = anatomy.describe(generator.model).matrices
    return choice.cost(Context(generator.model, matrices, lambda: [batch], 0, rules))


@pytest.mark.parametrize("schedule", ["one_shot", "cubic"])
@pytest.mark.parametrize(("width", "key"), [(0, "structured-0.5"), ("auto", "structured-0.5"), (0, "structured-0.9")])
def test_trimming_counts_towards_a_budget_of_operations(width, key, schedule, wordy, settings):
    """It alone meets half of them, so that nothing else goes; of nine tenths it is a part, in both stages."""
    rules = {"vocabulary": True, "budget": "flops", "width": width, "allocation": "uniform", "score": "norm"}
    wordy("gpt2", prune={"structured": rules}, finetune={"schedule": schedule, "rounds": 2, "epochs": 1.0})
    prune.main([key])
    finetune.main([key])
    sparsity, dense = float(key.rpartition("-")[2]), checkpoint.load(layout.model_folder("baseline"))
    plan = Plan.load(layout.pruned_folder(key) / PLAN_FILE)
    level = checkpoint.load(layout.model_folder(key)).model
    share = operations(key, settings) / operations("baseline", settings)
    assert share <= 1 - sparsity
    said = {stage: json.loads(layout.metrics_file(stage, key).read_text()) for stage in ("prune", "finetune")}
    for name in ("parameters", "eligible_parameters", "pruned_parameters", "sparsity"):
        assert said["prune"][name] == said["finetune"][name]
    assert counts(plan, describe(dense.model)) == counts(whole(describe(level)), describe(level))
    assert (plan == whole(describe(dense.model))) == (sparsity == 0.5)
    assert share > 0.7 * (1 - sparsity) or sparsity == 0.5


@pytest.mark.parametrize("schedule", ["one_shot", "cubic"])
def test_a_share_goes_though_trimming_meets_the_budget(schedule, wordy, monkeypatch):
    rules = {"vocabulary": True, "budget": "flops", "neurons": 0.5, "allocation": "uniform", "score": "norm"}
    wordy("gpt2", prune={"structured": rules}, finetune={"schedule": schedule, "rounds": 2, "epochs": 1.0})
    prune.main([KEY])
    finetune.main([KEY])
    config = checkpoint.load(layout.model_folder(KEY)).model.config
    assert config.n_inner == 32 and config.n_layer == 2 and config.vocab_size < 1000
    assert figures("prune")["sparsity"] == figures("finetune")["sparsity"] > 0


def test_trimming_is_of_the_penalised_weights(wordy):
    """They are kept whole, as the baseline is, and trimmed alike by both stages."""
    lasso = {"strength": 1.0, "epochs": 0.5, "learning_rate": 0.01}
    rules = {"vocabulary": True, "budget": "flops", "score": "group_lasso", "group_lasso": lasso, "zeros": 0.25}
    wordy(
        "gpt2",
        prune={"structured": {**rules, "allocation": "uniform"}},
        finetune={"schedule": "one_shot", "epochs": 0.01, "learning_rate": 1e-9},
    )
    prune.main([KEY])
    finetune.main([KEY])
    dense = checkpoint.load(layout.model_folder("baseline"))
    changes.load(dense.model, layout.pruned_folder(KEY) / changes.WEIGHTS_FILE)
    masks, left = proved()
    assert masks.pruned == round(0.25 * left.eligible) and left.eligible == anatomy.describe(dense.model).eligible
    for name, weight in left.weights.items():
        expected = torch.where(masks[name], anatomy.describe(dense.model).weights[name], 0)
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)
