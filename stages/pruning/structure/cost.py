"""What a structure costs: what a budget is a share of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stages.models.anatomy import Matrix
from stages.models.checkpoint import IGNORED
from stages.pruning.criterion import Context
from stages.pruning.structure.axes import Structure
from stages.pruning.structure.latency import head, latency
from stages.pruning.structure.plan import Plan

Cost = Callable[[Plan], float]
"""Of a plan, in the budget's unit."""


def parameters(context: Context, structure: Structure) -> Cost:
    """Eligible weights that are left, which a level's sparsity is counted over whatever its method."""
    sizes = {name: matrix.weight.shape for name, matrix in context.matrices.items()}
    return lambda plan: sum(plan.elements(name, size, structure) for name, size in sizes.items())


def flops(context: Context, structure: Structure) -> Cost:
    """Floating-point operations of one reply of mean length, with a cache of keys and values.

    Two for every weight and token, of the matrices in the blocks and of the language-model head: the encoder, and
    keys and values of cross-attention, take a text's source tokens once, the decoder its target tokens, of a causal
    model both, and the head target tokens. What is not a product with a matrix, softmax and norms among it, is a few
    per cent and left out.
    """
    model: Any = context.model
    source, target = _lengths(context)
    decoded = target if model.config.is_encoder_decoder else source + target
    tokens = {name: source if _reads_source(matrix) else decoded for name, matrix in context.matrices.items()}
    tokens[head(model)] = target
    named = dict(model.named_parameters(remove_duplicate=False))
    sizes = {name: named[name].shape for name in tokens}
    return lambda plan: 2 * sum(tokens[name] * plan.elements(name, size, structure) for name, size in sizes.items())


BUDGETS: Mapping[str, Callable[[Context, Structure], Cost]] = {
    "parameters": parameters,
    "flops": flops,
    "latency": latency,
}
"""By name in params `prune.structured.budget`."""


def _reads_source(matrix: Matrix) -> bool:
    part = matrix.name.removesuffix(".weight").rpartition(".")[2]
    keys = part in ("key", "value", "k_proj", "v_proj", "k", "v")
    return matrix.side == "encoder" or (matrix.role == "cross_attention" and keys)


def _lengths(context: Context) -> tuple[float, float]:
    """Mean source and target tokens of the calibration texts."""
    model: Any = context.model
    texts = source = target = 0
    for batch in context.batches():
        texts += len(batch["labels"])
        labels = int((batch["labels"] != IGNORED).sum())
        target += labels
        # A causal generator reads prompt and completion as one.
        source += int(batch["attention_mask"].sum()) - (0 if model.config.is_encoder_decoder else labels)
    return source / max(texts, 1), target / max(texts, 1)
