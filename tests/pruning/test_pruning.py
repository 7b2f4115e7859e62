"""Selection against torch's pruner, criteria by hand, masks on disk, schedules."""

from __future__ import annotations

import types
from typing import get_args

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import prune as oracle

from stages import params
from stages.bitmasks import MASKS_FILE, Masks
from stages.errors import UserError
from stages.models import anatomy
from stages.models.anatomy import Matrix
from stages.pruning import budget, changes, criterion, engine, masks, schedules


def two_layers(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))


def weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.ndim == 2}


def matrices_of(weights: dict[str, torch.Tensor]) -> dict[str, Matrix]:
    return {
        name: Matrix(name, nn.Parameter(w), transposed=False, role="unknown", side="decoder", block="")
        for name, w in weights.items()
    }


@pytest.fixture
def select(settings):
    """`select(scores, sparsity, scope, **rules)`: masks by given scores, through the engine."""

    def run(scores: dict[str, torch.Tensor], sparsity: float, scope: str = "global", **rules: object) -> Masks:
        by_scores = criterion.Criterion(lambda context: scores)
        matrices = matrices_of({name: score.reshape(len(score), -1) for name, score in scores.items()})
        scores = {name: score.reshape(len(score), -1) for name, score in scores.items()}
        context = criterion.Context(nn.Module(), matrices, list, 0, None)
        made = settings(prune={"scope": scope, **rules}, **({"sweep": {"sparsity": [sparsity]}} if rules else {}))
        return engine.choose(context, by_scores, sparsity, made.prune)

    return run


def floored(scores: dict[str, torch.Tensor], floor: float, sparsity: float, rules: params.Prune) -> Masks:
    """Masks by given scores of a criterion that always keeps a share of each matrix."""
    context = criterion.Context(nn.Module(), matrices_of(scores), list, 0, types.SimpleNamespace(floor=floor))
    return engine.choose(context, criterion.Criterion(lambda _: scores), sparsity, rules)


def test_a_floor_keeps_the_highest_of_each_matrix(settings):
    """Of four weights, 0.3 are two: those of the second matrix stay, though all of the first are higher."""
    scores = {"a": torch.tensor([[5.0, 6.0, 7.0, 8.0]]), "b": torch.tensor([[-2.0, 2.0, 2.0, 0.0]])}
    chosen = floored(scores, 0.3, 0.5, settings().prune)
    assert chosen["a"].tolist() == [[False, False, True, True]]
    assert chosen["b"].tolist() == [[False, True, True, False]]


def test_a_floor_of_blocks_is_of_whole_blocks_and_these_are_ranked_by_score(settings):
    """One kept weight does not decide for the block that it is in: the highest mean does."""
    scores = {"a": torch.tensor([[9.0, -9.0, 1.0, 1.0, 2.0, 2.0, -1.0, -1.0]]), "b": torch.full((1, 8), -3.0)}
    chosen = floored(scores, 0.25, 0.625, settings(prune={"pattern": "1x2"}).prune)
    assert chosen["a"].tolist() == [[False, False, True, True, True, True, False, False]]
    assert chosen["b"].tolist() == [[False] * 6 + [True] * 2]


@pytest.mark.parametrize(
    "scope, layers, said",
    [
        ("layer", {"a": 0.9}, "floor keeps 0.2 of each matrix, but a is to lose 18 of 20"),
        ("global", {"a": 0.0}, "those without a share in prune.layers are to lose 36 of 40"),
    ],
)
def test_what_a_floor_does_not_leave_is_refused(scope, layers, said, settings):
    scores = {name: torch.rand(1, 20) for name in "abc"}
    with pytest.raises(UserError, match=said):
        floored(scores, 0.2, 0.6, settings(prune={"scope": scope, "layers": layers}).prune)


@pytest.mark.parametrize("sparsity", [0, 0.1, 0.5, 0.77, 0.99])
def test_global_magnitude_equals_torch(select, sparsity):
    model = two_layers()
    scores = {name: w.detach().abs() for name, w in weights_of(model).items()}
    ours = select(scores, sparsity)
    oracle.global_unstructured(
        [(model[0], "weight"), (model[1], "weight")], pruning_method=oracle.L1Unstructured, amount=round(sparsity * 50)
    )
    assert torch.equal(ours["0.weight"], model[0].weight_mask.bool())
    assert torch.equal(ours["1.weight"], model[1].weight_mask.bool())


def test_layer_scope_equals_torch_per_tensor(select):
    model = two_layers(1)
    ours = select({n: w.detach().abs() for n, w in weights_of(model).items()}, 0.4, "layer")
    for i, layer in enumerate(model):
        oracle.l1_unstructured(layer, "weight", amount=round(0.4 * layer.weight.numel()))
        assert torch.equal(ours[f"{i}.weight"], layer.weight_mask.bool())


@given(
    values=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    sparsity=st.floats(0, 1, exclude_max=True),
    split=st.integers(1, 5),
)
@settings_of_hypothesis(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_count_is_exact_even_when_all_tie_and_sparser_masks_nest(select, values, sparsity, split):
    scores = {str(i): part for i, part in enumerate(torch.tensor(values, dtype=torch.float32).chunk(split))}
    chosen = select(scores, sparsity)
    assert sum(int((~m).sum()) for m in chosen.values()) == round(sparsity * len(values))
    denser = select(scores, sparsity / 2)
    assert all(bool((denser[name] | ~chosen[name]).all()) for name in chosen)


def test_outliers_divide_sparsity_by_hand():
    """Ratios 0, 1 and 0.5 of one size: spread 0.1 is 0.1 off the mean on either side, 0.03 where 0.015 is half-way."""
    ratios, sizes = {"few": 0.0, "many": 0.04, "some": 0.02}, dict.fromkeys(("few", "many", "some"), 8)
    found = budget.outlier_shares(ratios, sizes, 0.6, 0.1)
    assert found == pytest.approx({"few": 0.7, "many": 0.5, "some": 0.6})
    assert budget.outlier_shares(ratios, sizes, 0.97, 0.1) == pytest.approx({"few": 0.985, "many": 0.955, "some": 0.97})
    assert budget.outlier_shares(ratios, sizes, 0.04, 0.1) == pytest.approx({"few": 0.06, "many": 0.02, "some": 0.04})
    assert budget.outlier_shares(dict.fromkeys(ratios, 0.5), sizes, 0.97, 0.1) == dict.fromkeys(ratios, 0.97)


@pytest.mark.parametrize("pattern, sparsity", [("1:3", 0.667), ("2:3", 0.333), ("1:6", 0.833), ("1:3", 2 / 3)])
def test_a_pattern_s_sparsity_is_meant_in_three_digits(pattern, sparsity, select):
    scores = {"a": torch.rand(6, 12), "b": torch.rand(5, 6)}
    kept, group = map(int, pattern.split(":"))
    for mask in select(scores, sparsity, pattern=pattern).values():
        assert bool((mask.reshape(-1, group).sum(1) == kept).all())


def test_ties_go_in_model_order(select):
    chosen = select({"a": torch.ones(2, 2), "b": torch.ones(1, 2)}, 0.5)
    assert chosen["a"].tolist() == [[False, False], [False, True]] and bool(chosen["b"].all())


@pytest.mark.parametrize("scope", ["global", "layer", "row"])
def test_nan_scores_are_refused(select, scope):
    with pytest.raises(UserError, match="not numbers"):
        select({"a": torch.tensor([1.0, float("nan")])}, 0.5, scope)


def test_nan_scores_are_refused_where_nothing_is_pruned(select):
    with pytest.raises(UserError, match="not numbers"):
        select({"a": torch.tensor([1.0, float("nan")])}, 0, "global")


class Quadratic(nn.Module):
    """loss = mean over the batch of (w . x)^2 / 2, whose gradient is known."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, -2.0, 0.5]]))

    def forward(self, x: torch.Tensor) -> types.SimpleNamespace:
        return types.SimpleNamespace(loss=((x @ self.weight.T) ** 2).mean() / 2)


def quadratic_matrix(model: Quadratic) -> Matrix:
    return Matrix("weight", model.weight, transposed=False, role="unknown", side="decoder", block="")


def score(method: str, seed: int = 0) -> torch.Tensor:
    model = Quadratic().train()
    batches = [{"x": torch.tensor([[1.0, 1.0, 0.0]])}, {"x": torch.tensor([[2.0, 0.0, 4.0]])}]
    context = criterion.Context(model, {"weight": quadratic_matrix(model)}, lambda: batches, seed, None)
    result = criterion.find(method).importance(context)["weight"]
    assert model.training and model.weight.grad is None
    return result


def test_criteria_by_hand():
    # w.x = -1 on the first batch, 4 on the second: gradients (-1, -1, 0) and (8, 0, 16).
    torch.testing.assert_close(score("magnitude"), torch.tensor([[1.0, 2.0, 0.5]]))
    torch.testing.assert_close(score("gradient"), torch.tensor([[4.5, 0.5, 8.0]]))
    # |w*g| per batch, then the mean: taken of the mean gradient, the first would be 3.5.
    torch.testing.assert_close(score("taylor"), torch.tensor([[4.5, 1.0, 4.0]]))
    assert torch.equal(score("random", 3), score("random", 3))
    assert not torch.equal(score("random", 3), score("random", 4))


def test_gradient_criteria_refuse_no_batches_and_divergence():
    model = Quadratic()
    weights = {"weight": quadratic_matrix(model)}
    with pytest.raises(UserError, match="no calibration"):
        criterion.find("gradient").importance(criterion.Context(model, weights, list, 0, None))
    bad = [{"x": torch.tensor([[float("inf"), 1.0, 1.0]])}]
    with pytest.raises(UserError, match="not finite"):
        criterion.find("taylor").importance(criterion.Context(model, weights, lambda: bad, 0, None))


def test_penalties_by_hand():
    l1, l2 = criterion.find("l1").shrink, criterion.find("l2").shrink
    assert l1 and l2
    weight = torch.tensor([0.3, -0.3, 0.05, -0.05, 0.1])
    l1(weight, 0.5, 0.2)
    torch.testing.assert_close(weight, torch.tensor([0.2, -0.2, 0.0, 0.0, 0.0]))
    weight = torch.tensor([0.3, -0.1])
    l2(weight, 0.5, 0.2)
    torch.testing.assert_close(weight, torch.tensor([0.27, -0.09]))
    l2(weight, 1.0, 5.0)
    assert weight.count_nonzero() == 0


def test_every_method_has_a_criterion_and_knobs():
    for name in get_args(params.Method):
        found = criterion.find(name)
        ways = (found.importance is not None, found.layerwise is not None, found.structure)
        assert sum(ways) == 1
        assert name in params.Prune.model_fields


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 99))
def test_masks_round_trip_at_one_bit_a_weight(rows, columns, seed, tmp_path_factory):
    path = tmp_path_factory.mktemp("masks") / MASKS_FILE
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) > 0.5
    Masks({"a.weight": mask, "b": ~mask}).save(path)
    loaded = Masks.load(path)
    assert loaded.pruned == mask.numel() and loaded.sparsity == 0.5
    assert torch.equal(loaded["a.weight"], mask) and torch.equal(loaded["b"], ~mask)


def test_mask_file_is_small(tmp_path):
    Masks({"w": torch.rand(512, 512) > 0.5}).save(tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").stat().st_size < 512 * 512 / 8 + 300


@pytest.mark.parametrize(
    "spoil", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-1]), lambda p: p.write_bytes(b"")]
)
def test_bad_mask_files_end_in_one_clear_line(spoil, tmp_path):
    path = tmp_path / MASKS_FILE
    Masks({"w": torch.rand(5, 5) > 0.5}).save(path)
    spoil(path)
    with pytest.raises(UserError, match=r"is missing|is damaged"):
        Masks.load(path)


def test_masks_of_another_model_are_refused(tmp_path):
    with pytest.raises(UserError, match="not of this model"):
        masks.check_fits(Masks({"w": torch.ones(2, 2).bool()}), {"w": nn.Parameter(torch.ones(2, 3))}, tmp_path)


def test_apply_zeroes_nan_and_check_held_counts():
    weight = torch.tensor([[float("nan"), 1.0]])
    mask = {"w": torch.tensor([[False, True]])}
    with pytest.raises(RuntimeError, match="1 masked weights of w"):
        masks.check_held({"w": weight}, mask)
    masks.apply({"w": weight}, mask)
    assert weight.tolist() == [[0.0, 1.0]]


def test_changed_weights_round_trip_alone(tmp_path):
    model, other = two_layers(1), two_layers(1)
    before = changes.fingerprints(model)
    with torch.no_grad():
        model[1].weight[0, 0] += 1
    changes.save(model, tmp_path / "w.safetensors", before)
    assert list(load_file(tmp_path / "w.safetensors")) == ["1.weight"]
    changes.load(other, tmp_path / "w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    changes.load(other, tmp_path / "none", missing_ok=True)
    with pytest.raises(UserError, match="missing"):
        changes.load(other, tmp_path / "none")
    for stranger in (nn.Linear(5, 3), nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 1))):
        with pytest.raises(UserError, match="another model"):
            changes.load(stranger, tmp_path / "w.safetensors")


def test_a_method_may_change_nothing(tmp_path):
    model = two_layers(1)
    changes.save(model, tmp_path / "w.safetensors", changes.fingerprints(model))
    changes.load(model, tmp_path / "w.safetensors")


def test_schedules(settings):
    def plan(total: int, **finetune: object) -> dict[int, float]:
        return schedules.plan(settings(finetune=finetune).finetune, 0.8, total)

    assert plan(100, schedule="one_shot") == {}
    assert schedules.plan(settings(finetune={"schedule": "cubic"}).finetune, 0, 100) == {}  # the dense control
    assert plan(90, schedule="rounds", rounds=3) == pytest.approx({0: 0.8 / 3, 30: 1.6 / 3, 60: 0.8})
    # 1 - (1 - 20/60)^3 = 19/27 and 1 - (1 - 40/60)^3 = 26/27 of the target.
    cubic = plan(100, schedule="cubic", ramp=0.6, refresh_steps=20)
    assert cubic == pytest.approx({20: 0.8 * 19 / 27, 40: 0.8 * 26 / 27, 60: 0.8})
    assert cubic[60] == 0.8
    # However few the steps, the target is reached before the last one.
    assert plan(1, schedule="cubic", ramp=1.0) == {0: 0.8}
    assert plan(2, schedule="rounds", rounds=5)[1] == 0.8


def test_outliers_have_no_say_where_every_matrix_has_a_share_of_its_own(build_family, settings):
    generator = build_family("llama")
    matrices = anatomy.describe(generator.model).matrices
    rules = settings(prune={"scope": "layer", "allocation": "owl", "layers": {"*": 0.5}}).prune
    context = criterion.Context(generator.model, matrices, list, 0, rules.magnitude)
    assert engine.outliers(context, rules) == {}
    masks = engine.choose(context, criterion.find("magnitude"), 0.5, rules, outliers={})
    assert masks.pruned == round(0.5 * masks.numel)
