"""Scores that are made piece by piece: the masks of a stable sort of them all, ties and pieces wherever they fall."""

from __future__ import annotations

import pytest
import torch

from stages.pruning import criterion, engine, selection
from stages.pruning.scores import Scores


def of_a_sort(matrices, share, *, together):
    """Masks [out, in] that prune the lowest magnitudes, of equal ones the first, over all matrices or of each."""
    flat = {name: matrix.oriented(matrix.weight).detach().abs().flatten() for name, matrix in matrices.items()}
    groups = [list(flat)] if together else [[name] for name in flat]
    found = {}
    for names in groups:
        scores = torch.cat([flat[name] for name in names])
        kept = torch.ones(len(scores), dtype=torch.bool)
        kept[scores.argsort(stable=True)[: round(share * len(scores))]] = False
        parts = kept.split([len(flat[name]) for name in names])
        found |= {
            name: part.view(matrices[name].oriented(matrices[name].weight).shape)
            for name, part in zip(names, parts, strict=True)
        }
    return found


@pytest.mark.parametrize("family", ["bert", "gpt2"])  # the second keeps its matrices the other way round
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("share", [0.25, 0.5, 1 - 2**-7])
def test_masks_of_magnitude_are_those_of_a_sort(family, scope, share, built, settings, monkeypatch):
    monkeypatch.setattr(selection, "CHUNK", 100)
    from stages.models import anatomy

    generator = built(family)
    matrices = anatomy.describe(generator.model).matrices
    with torch.no_grad():
        for matrix in matrices.values():
            matrix.weight.copy_((matrix.weight * 50).round() / 50)  # a dozen values, so that most weights are ties
    context = criterion.Context(generator.model, matrices, list, 0, settings().prune.magnitude)
    rules = settings(prune={"scope": scope}).prune
    masks = engine.choose(context, criterion.find("magnitude"), share, rules)
    for name, kept in of_a_sort(matrices, share, together=scope == "global").items():
        assert torch.equal(matrices[name].oriented(masks[name]), kept), name


def test_no_more_is_made_than_is_looked_at(monkeypatch):
    monkeypatch.setattr(selection, "CHUNK", 4)
    sizes = []
    weights = {"a": torch.arange(10.0).view(2, 5)}
    scores = Scores(weights, weights.__getitem__, lambda part: sizes.append(part.numel()) or -part)
    assert torch.cat(list(scores.pieces("a"))).tolist() == scores["a"].flatten().tolist() == [-x for x in range(10)]
    assert sizes == [4, 4, 2, 10]
    turned = scores.moved(lambda _, weight: weight.T)
    assert (
        torch.cat(list(turned.pieces("a"))).tolist()
        == turned["a"].flatten().tolist()
        == [0, -5, -1, -6, -2, -7, -3, -8, -4, -9]
    )
