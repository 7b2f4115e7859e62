"""Criteria that prune matrix by matrix, on every family: exact counts, patterns, own sparsities, held weights."""

from __future__ import annotations

import copy
import itertools
from typing import Any, get_args

import pytest
import torch
from shared import FAMILIES, SOURCES, TARGETS

from stages import params
from stages.errors import UserError
from stages.models import anatomy
from stages.pruning import criterion, engine

METHODS = [method for method in get_args(params.Method) if criterion.find(method).layerwise]
SMALL = {"sparsegpt": {"block_columns": 8}, "alps": {"steps": 6}}  # several windows; few steps
PATTERNS = {"unstructured": 0.5, "2:4": 0.5, "1:4": 0.75, "4x1": 0.5, "2x8": 0.5}
RULES = [
    *itertools.product(PATTERNS, ["layer", "row"], ["uniform"]),
    ("unstructured", "row", "owl"),
    ("4x1", "layer", "owl"),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_exact_and_what_is_pruned_stays(family, method, built, settings):
    for pattern, scope, allocation in RULES:
        if method == "dsnot" and "x" in pattern:
            continue
        knobs = {"scope": scope, **SMALL.get(method, {})}
        rules = {"pattern": pattern, "scope": "layer", "allocation": allocation, method: knobs}
        made = settings(sweep={"sparsity": [PATTERNS[pattern]]}, prune=rules)
        _prune_in_steps(copy.deepcopy(built(family)), method, made.prune)


def _prune_in_steps(generator: Any, method: str, rules: params.Prune) -> None:
    """Prune to a fifth, then further, and check the masks each time."""
    generator.model.eval()
    batches = [generator.collate(generator.encode(SOURCES, TARGETS))]
    matrices = anatomy.describe(generator.model).matrices
    names = list(matrices)
    kept_of, group = rules.group or (3, 4)
    last = 1 - kept_of / group
    rules = rules.model_copy(update={"layers": {names[0]: 0, names[-1]: last}})
    size = engine.patterns.parse(rules.pattern).size
    total = sum(matrix.weight.numel() for matrix in matrices.values())
    context = criterion.Context(generator.model, matrices, lambda: batches, 0, getattr(rules, method))
    held = None
    # The others make up for the protected matrix, but of N:M, where they lose what they can.
    target = last * (1 - matrices[names[0]].weight.numel() / total) if rules.group else 1 / 3
    for sparsity in (0.2, target):
        progress = sparsity / target
        masks = engine.choose(context, criterion.find(method), sparsity, rules, held=held, progress=progress)
        assert masks.pruned == round(sparsity * (total // size)) * size
        for name, matrix in matrices.items():
            kept = matrix.oriented(masks[name])
            weight = matrix.oriented(matrix.weight)
            assert torch.equal(weight[kept] != 0, torch.ones_like(weight[kept], dtype=torch.bool))
            assert not weight[~kept].any()
            assert held is None or not (kept & ~matrix.oriented(held[name])).any()
            if rules.group:
                of_groups = kept.reshape(len(kept), -1, group).sum(-1)
                assert int(of_groups.min()) >= kept_of
                assert progress < 1 or name == names[0] or int(of_groups.max()) == kept_of
            elif getattr(rules, method).scope == "row" and method != "dsnot":
                lost = (~kept).sum(1)
                assert int(lost.max() - lost.min()) <= max(size // 2, 1)
        assert masks[names[0]].all()
        assert (
            int((~masks[names[-1]]).sum()) == round(last * progress * matrices[names[-1]].weight.numel() / size) * size
        )
        held = masks


@pytest.mark.parametrize("method", METHODS)
def test_updates_change_the_matrices_others_change_nothing(method, build_family, settings):
    generator = build_family("gpt2")
    before = {name: weight.clone() for name, weight in generator.model.named_parameters()}
    batches = [generator.collate(generator.encode(SOURCES, TARGETS))]
    generator.model.eval()
    matrices = anatomy.describe(generator.model).matrices
    rules, found = settings().prune, criterion.find(method)
    context = criterion.Context(generator.model, matrices, lambda: batches, 0, getattr(rules, method))
    masks = engine.choose(context, found, 0.5, rules)
    changed = {
        name
        for name, weight in generator.model.named_parameters()
        if not torch.equal(weight, before[name] * masks[name] if name in masks else before[name])
    }
    assert changed == (set(matrices) if found.changes_weights else set())


def test_a_group_pattern_fixes_the_sparsity_unless_matrices_are_left_out(settings):
    for sparsity in (0.4, 0.6):
        with pytest.raises(UserError, match=r"pattern 2:4 is sparsity 0\.5"):
            settings(sweep={"sparsity": [sparsity]}, prune={"pattern": "2:4"})
    settings(sweep={"sparsity": [0.4]}, prune={"pattern": "2:4", "layers": {"encoder.*": 0, "decoder.*": 0.5}})
    with pytest.raises(
        UserError, match=r"keeps 2 weights of every 4, .* only be 0, which protects, or 0\.5, not 0\.25"
    ):
        settings(sweep={"sparsity": [0.4]}, prune={"pattern": "2:4", "layers": {"encoder.*": 0.25}})


@pytest.mark.parametrize(("pattern", "share", "asked"), [("2:4", 0.5, 0.4), ("1:3", 2 / 3, 0.533)])
def test_with_matrices_left_out_a_group_pattern_is_met_by_all_others(pattern, share, asked, settings):
    """Of 60 weights 12 are protected: what is asked for has to be the share of the other 48, in three digits."""
    weights = {"a": torch.nn.Parameter(torch.randn(1, 12)), "b": torch.nn.Parameter(torch.randn(4, 12))}
    matrices = {
        name: anatomy.Matrix(name, weight, transposed=False, role="unknown", side="decoder", block="")
        for name, weight in weights.items()
    }
    context = criterion.Context(torch.nn.Module(), matrices, list, 0, None)
    for layers in ({"a": 0}, {"a": 0, "b": round(share, 3)}):
        rules = settings(sweep={"sparsity": [asked]}, prune={"pattern": pattern, "layers": layers}).prune
        for progress in (0.5, 0.9999, 1.0):
            masks = engine.choose(context, criterion.find("magnitude"), asked * progress, rules, progress=progress)
            assert masks.pruned == round(share * 48 * progress) and bool(masks["a"].all())
        of_groups = masks["b"].reshape(-1, rules.group[1]).sum(-1)
        assert bool((of_groups == rules.group[0]).all())
        for wrong in (asked - 0.01, asked + 0.01):
            with pytest.raises(
                UserError, match=f"does not protect is a sparsity of {asked:.3f} over all, not {wrong:g}"
            ):
                engine.check(context.model, matrices, wrong, rules)


def test_dsnot_and_blocks_are_refused_with_the_reason(settings):
    for named in ({"sweep": {"method": ["magnitude", "dsnot"]}}, {"search": {"method": "dsnot"}}):
        settings(**named)
        with pytest.raises(UserError, match=r"dsnot swaps single weights, prune\.pattern 4x1 prunes blocks"):
            settings(prune={"pattern": "4x1"}, **named)
