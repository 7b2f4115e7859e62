"""Criteria made of derivatives: GraSP and Fisher by hand, and on every family against finite differences and loops."""

from __future__ import annotations

import types
from functools import partial
from typing import Any

import pytest
import torch
from shared import FAMILIES, SMALL, SOURCES, TARGETS
from torch import nn

from stages.errors import UserError
from stages.models import anatomy
from stages.models.anatomy import Matrix
from stages.pruning import criterion, engine
from stages.pruning.criteria import grasp
from stages.pruning.gradients import total_loss


def context_of(generator: Any, batch: int = 4, **knobs: Any) -> criterion.Context:
    examples = generator.encode(SOURCES, TARGETS)
    batches = [generator.collate(examples[i : i + batch]) for i in range(0, len(examples), batch)]
    matrices = anatomy.describe(generator.model).matrices
    return criterion.Context(generator.model, matrices, lambda: batches, 0, types.SimpleNamespace(**knobs))


def of_one_weight(model: nn.Module, batches: list[Any], **knobs: Any) -> criterion.Context:
    matrix = Matrix("weight", model.weight, transposed=False, role="unknown", side="decoder", block="")
    return criterion.Context(model, {"weight": matrix}, lambda: batches, 0, types.SimpleNamespace(**knobs))


class Parabola(nn.Module):
    """loss = w A w / 2 with A = [[1, 2], [2, 1]]: the gradient is A w, the Hessian A."""

    def __init__(self, weight: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight]))

    def forward(self) -> torch.Tensor:
        return (self.weight @ torch.tensor([[1.0, 2.0], [2.0, 1.0]]) @ self.weight.T).sum() / 2


def test_grasp_by_hand(settings):
    # g = A w = (0, 3), H g = A g = (6, 3).
    context = of_one_weight(Parabola([2.0, -1.0]), [{}, {}])
    scores = grasp.of_loss(context, lambda model, batch: model())
    assert scores["weight"].tolist() == [[12.0, -3.0]]
    # Without the second weight, the gradient's squared norm is predicted to change by -2 * -3, without the first by
    # -2 * 12. The first carries the gradient: it stays. The wrong sign would prune it, as Taylor's |w*g| = (0, 3) does.
    chosen = engine.choose(context, criterion.Criterion(lambda context: scores), 0.5, settings().prune)
    assert chosen["weight"].tolist() == [[True, False]]


class Experts(nn.Module):
    """Two parabolas, of which a batch reaches the one that it names."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([Parabola([2.0, -1.0]), Parabola([1.0, 1.0])])

    def forward(self, expert: int) -> torch.Tensor:
        return self.experts[expert]()


def test_experts_that_no_token_is_sent_to_count_as_they_do_to_the_others():
    model = Experts()
    matrices = {
        name: Matrix(name, weight, transposed=False, role="unknown", side="decoder", block="")
        for name, weight in model.named_parameters()
    }
    context = criterion.Context(model, matrices, lambda: [{"expert": 0}, {"expert": 0}], 0, None)
    scores = grasp.of_loss(context, lambda model, batch: model(**batch))
    assert [score.tolist() for score in scores.values()] == [[[12.0, -3.0]], [[0.0, 0.0]]]


@pytest.mark.parametrize("method", ["gradient", "taylor", "fisher", "movement", "grasp"])
def test_scores_that_are_all_zero_are_refused(method, built_flat):
    """A head of zeros gives every token the same probability, whatever the weights: nothing says which matter."""
    with pytest.raises(UserError, match="zero for every weight"):
        criterion.find(method).importance(built_flat)


@pytest.fixture
def built_flat(build_family):
    generator = build_family("llama")
    with torch.no_grad():
        generator.model.get_output_embeddings().weight.zero_()
    return context_of(generator, temperature=2.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_grasp_is_the_change_of_the_gradients_norm(family, build_family):
    """Summed, scores are -1/2 the derivative of |g|^2 as weights shrink; also if every other one grows instead."""
    # At the kinks of T5's ReLU the gradient jumps, and differences say nothing of its derivative.
    smooth = {"config": {**SMALL["t5"], "feed_forward_proj": "gated-gelu"}} if family == "t5" else {}
    generator = build_family(family, **smooth)
    generator.model.double().eval()
    context = context_of(generator, temperature=2.0)
    before = generator.model.config._attn_implementation
    scores = criterion.find("grasp").importance(context)
    assert generator.model.config._attn_implementation == before

    loss = partial(total_loss, temperature=2.0)

    def squared_norm() -> float:
        batch = next(iter(context.batches()))
        gradients = torch.autograd.grad(loss(generator.model, batch), list(context.weights.values()))
        return sum(float(g.square().sum()) for g in gradients)

    def slope(signs: dict[str, torch.Tensor], step: float = 1e-3) -> float:
        norms = []
        for by in (step, -step):
            for name, weight in context.weights.items():
                weight.data = kept[name] * (1 - by * signs[name])
            norms.append(squared_norm())
        return (norms[0] - norms[1]) / (2 * step)

    kept = {name: weight.detach().clone() for name, weight in context.weights.items()}
    alike = {name: torch.ones_like(weight) for name, weight in kept.items()}
    torch.manual_seed(1)
    mixed = {name: torch.randn_like(weight).sign() for name, weight in kept.items()}
    for signs in (alike, mixed):
        wanted = -slope(signs) / 2
        for name, weight in context.weights.items():
            weight.data = kept[name]
        assert sum(float((scores[name] * signs[name]).sum()) for name in scores) == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("method", ["grasp", "fisher"])
def test_batch_size_changes_nothing(method, build_family):
    """Padding, and where batches end, leave the order as it is."""
    generator = build_family("bart")
    one, four = (criterion.find(method).importance(context_of(generator, batch, temperature=200.0)) for batch in (1, 4))
    unit = {"grasp": 16.0, "fisher": 1.0}[method]  # g and H are means over batches of sums over tokens
    for name in one:
        largest = float(four[name].abs().max())
        torch.testing.assert_close(one[name] * unit, four[name], rtol=1e-3, atol=1e-4 * largest)


class Logistic(nn.Module):
    """Two tokens: the first one's logit is w . x, the second one's zero."""

    def __init__(self, weight: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight]))
        self.config = types.SimpleNamespace(is_encoder_decoder=True)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> Any:
        first = x @ self.weight.T
        return types.SimpleNamespace(logits=torch.stack([first, torch.zeros_like(first)], dim=-1))


def test_fisher_by_hand():
    # w . x = 0 in both texts, so either token has p = 1/2: g = (p - 1) x = (-1, -1/2, 0) if the first is right, and
    # p x = (0, 1/2, 2) if the second is. The mean of g^2 is (1/2, 1/4, 2), and w^2/2 = (1/2, 2, 1/8).
    batch = {"x": torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 4.0]]), "labels": torch.tensor([[0], [1]])}
    context = of_one_weight(Logistic([1.0, -2.0, 0.5]), [batch])
    # Squared, the batch's mean gradient (-1/2, 0, 1) would say that the second weight does not matter.
    assert criterion.find("fisher").importance(context)["weight"].tolist() == [[0.25, 0.5, 0.25]]


@pytest.mark.parametrize("family", ["bert", "t5", "gpt2"])
def test_fisher_is_of_whole_texts(family, build_family):
    """Against the model's own loss on one unpadded text after the other, times its tokens."""
    generator = build_family(family)
    generator.model.eval()
    scores = criterion.find("fisher").importance(context_of(generator))
    context = context_of(generator, batch=1)
    wanted = {name: torch.zeros_like(weight) for name, weight in context.weights.items()}
    for batch in context.batches():
        loss = generator.model(**batch).loss * (batch["labels"] != -100).sum()
        gradients = torch.autograd.grad(loss, list(context.weights.values()))
        for (name, weight), gradient in zip(context.weights.items(), gradients, strict=True):
            wanted[name] += weight.detach() ** 2 / 2 * gradient**2 / len(SOURCES)
    for name, score in scores.items():
        torch.testing.assert_close(score, wanted[name], rtol=1e-3, atol=1e-9)
