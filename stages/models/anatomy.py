"""What of a generator may be pruned.

Eligible are the weight matrices of the linear maps inside the repeated blocks: attention and feed-forward of
every encoder and decoder layer. Embeddings, the language-model head (tied or not), poolers, norms, biases and
relative position tables lie outside the blocks or are no linear maps, and are never touched. The rule reads
the model, not a list of architectures, so it holds for BERT, RoBERTa, BART, T5, Marian, GPT-2 (whose
`Conv1D` is a linear map with the transposed weight) and the Llama family alike.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from stages.errors import UserError


@dataclass(frozen=True)
class Anatomy:
    """The eligible weight matrices of a model, and the counts every sparsity refers to."""

    weights: dict[str, nn.Parameter]
    """Eligible matrices by parameter name, in model order; a shared one once."""
    parameters: int
    """All parameters of the model, shared ones counted once."""

    @property
    def eligible(self) -> int:
        """Number of eligible weights."""
        return sum(weight.numel() for weight in self.weights.values())


def describe(model: nn.Module) -> Anatomy:
    """Find the eligible weights of a generator.

    Raises:
        UserError: no repeated blocks with linear maps were found, so nothing would be pruned.
    """
    weights: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for blocks_name, blocks in _repeated_blocks(model):
        for name, module in blocks.named_modules(prefix=blocks_name):
            weight = module.weight if isinstance(module, nn.Linear | Conv1D) else None
            if isinstance(weight, nn.Parameter) and id(weight) not in seen:
                seen.add(id(weight))
                weights[f"{name}.weight"] = weight
    if not weights:
        raise UserError(f"found no layers to prune in a {type(model).__name__}: its architecture is not supported")
    return Anatomy(weights, parameters=sum(p.numel() for p in model.parameters()))


def nonzero(model: nn.Module) -> int:
    """Parameters that are not zero, shared ones counted once."""
    return sum(count_nonzero(parameter) for parameter in model.parameters())


def count_nonzero(tensor: Tensor) -> int:
    """Elements that are not zero."""
    return int(tensor.detach().count_nonzero())


def _repeated_blocks(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """Outermost module lists whose items are all of one class: the stacks of layers."""
    found: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len({type(block) for block in module}) != 1:
            continue
        if not any(name.startswith(f"{outer}.") for outer, _ in found):
            found.append((name, module))
    return found
