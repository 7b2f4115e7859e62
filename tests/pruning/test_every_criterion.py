"""Criteria that score weights, on every family, with every pattern and scope: exact counts, where they may be."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
import torch
from shared import FAMILIES, RELATIVES, SOURCES, TARGETS

from stages import params
from stages.models import anatomy
from stages.pruning import criterion, engine, patterns

METHODS = [method for method in get_args(params.Method) if criterion.find(method).importance]
PATTERNS = ["unstructured", "2:4", "1:4", "4x1", "2x8"]
SCOPES = ["global", "layer", "row"]
SPARSITY = {"2:4": 0.5, "1:4": 0.75}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_patterns_and_scopes(family, method, built, settings):
    generator = built(family)  # not copied: scoring leaves it as it is
    generator.model.eval()
    batches = [generator.collate(generator.encode(SOURCES, TARGETS))]
    matrices = anatomy.describe(generator.model).matrices
    before = {name: parameter.detach().clone() for name, parameter in generator.model.named_parameters()}
    for pattern, scope in itertools.product(PATTERNS, SCOPES):
        sparsity = SPARSITY.get(pattern, 0.6)
        rules = settings(sweep={"sparsity": [sparsity]}, prune={"pattern": pattern, "scope": scope}).prune
        context = criterion.Context(generator.model, matrices, lambda: batches, 0, getattr(rules, method))
        masks = engine.choose(context, criterion.find(method), sparsity, rules)
        _check(masks, matrices, patterns.parse(pattern), sparsity, getattr(context.settings, "scope", scope))
    assert all(torch.equal(parameter, before[name]) for name, parameter in generator.model.named_parameters())


@pytest.mark.parametrize("family", RELATIVES)
def test_relatives_have_the_same_anatomy(family, build_family, settings, capsys):
    generator = build_family(family)
    generator.model.eval()
    batches = [generator.collate(generator.encode(SOURCES, TARGETS))]
    matrices = anatomy.describe(generator.model).matrices
    assert "unknown" not in {matrix.role for matrix in matrices.values()} and not capsys.readouterr().err
    for method, pattern in itertools.product(["magnitude", "taylor", "grasp", "wanda", "sparsegpt"], ["2:4", "4x1"]):
        rules = settings(sweep={"sparsity": [0.5]}, prune={"pattern": pattern, "scope": "layer"}).prune
        context = criterion.Context(generator.model, matrices, lambda: batches, 0, getattr(rules, method))
        masks = engine.choose(context, criterion.find(method), 0.5, rules)
        _check(masks, matrices, patterns.parse(pattern), 0.5, "layer")


def _check(masks, matrices, pattern, sparsity, scope) -> None:
    assert set(masks) == set(matrices)
    units = {name: matrix.weight.numel() // pattern.size for name, matrix in matrices.items()}
    assert masks.pruned == round(sparsity * sum(units.values())) * pattern.size
    for name, matrix in matrices.items():
        kept = matrix.oriented(masks[name])
        lost = int((~kept).sum()) / pattern.size
        assert scope == "global" or abs(lost - sparsity * units[name]) < 1
        if isinstance(pattern, patterns.Grouped):
            assert bool((kept.reshape(len(kept), -1, pattern.group).sum(-1) == pattern.kept).all())
        else:
            assert torch.equal(pattern.expand(kept[:: getattr(pattern, "rows", 1), :: pattern.columns]), kept)
            if scope == "row":
                of_rows = (~kept).sum(1)
                assert int(of_rows.max() - of_rows.min()) <= pattern.columns
