"""What of a generator may be pruned, and what each part of it is for.

Eligible are the weight matrices of the linear maps inside the repeated blocks: attention and feed-forward of
every encoder and decoder layer. Embeddings, the language-model head (tied or not), poolers, norms, biases and
relative position tables lie outside the blocks or are no linear maps, and are never touched. Which matrices those
are is read off the model; what each is called and does is one line a family in `FAMILIES`. A family without a line
works too, by the same rule, but its matrices have no role, and a warning says so.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from stages.errors import UserError

Role = Literal["self_attention", "cross_attention", "feed_forward", "unknown"]
Side = Literal["encoder", "decoder"]

FAMILIES: dict[tuple[str, ...], dict[Role, str]] = {
    ("bert", "roberta"): {
        "self_attention": r"attention\.(self\.(query|key|value)|output\.dense)",
        "cross_attention": r"crossattention\.(self\.(query|key|value)|output\.dense)",
        "feed_forward": r"(intermediate|output)\.dense",
    },
    ("bart", "mbart", "marian"): {
        "self_attention": r"self_attn\.(q|k|v|out)_proj",
        "cross_attention": r"encoder_attn\.(q|k|v|out)_proj",
        "feed_forward": r"fc[12]",
    },
    ("t5", "mt5"): {
        "self_attention": r"layer\.\d+\.SelfAttention\.[qkvo]",
        "cross_attention": r"layer\.\d+\.EncDecAttention\.[qkvo]",
        "feed_forward": r"layer\.\d+\.DenseReluDense\.w[io](_[01])?",
    },
    ("gpt2",): {
        "self_attention": r"attn\.c_(attn|proj)",
        "cross_attention": r"crossattention\.(q_attn|c_attn|c_proj)",
        "feed_forward": r"mlp\.c_(fc|proj)",
    },
    ("llama", "qwen2", "qwen3", "mistral"): {
        "self_attention": r"self_attn\.[qkvo]_proj",
        "feed_forward": r"mlp\.(gate|up|down)_proj",
    },
}
"""By `model_type` of the config: patterns of the names that linear maps have within a block, by what they are for."""


@dataclass(frozen=True)
class Matrix:
    """One eligible weight matrix."""

    name: str
    """Of the parameter, as in the state dict."""
    weight: nn.Parameter
    transposed: bool
    """Whether it is kept as [in, out], as GPT-2's `Conv1D` does, not as [out, in]."""
    role: Role
    side: Side
    block: str
    """Name of the repeated block it belongs to, such as `decoder.bert.encoder.layer.0`."""

    def oriented(self, tensor: Tensor) -> Tensor:
        """A tensor of the weight's shape as [out, in], or one of that shape as the weight's: a view."""
        return tensor.T if self.transposed else tensor


@dataclass(frozen=True)
class Anatomy:
    """The eligible weight matrices of a model, and the counts every sparsity refers to."""

    matrices: dict[str, Matrix]
    """By parameter name, in model order; a shared one once."""
    parameters: int
    """All parameters of the model, shared ones counted once."""

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The eligible matrices themselves."""
        return {name: matrix.weight for name, matrix in self.matrices.items()}

    @property
    def eligible(self) -> int:
        """Number of eligible weights."""
        return sum(matrix.weight.numel() for matrix in self.matrices.values())


def describe(model: nn.Module) -> Anatomy:
    """Find the eligible weights of a generator.

    Raises:
        UserError: no repeated blocks with linear maps were found, or such that most maps are outside of them, so that
            next to nothing would be pruned.
    """
    matrices: dict[str, Matrix] = {}
    seen: set[int] = set()
    for stack_name, stack in _stacks(model):
        side = _side(model, stack_name)
        for index, block in enumerate(stack):
            for name, module, weight in _linear_maps(block):
                if id(weight) in seen:
                    continue
                seen.add(id(weight))
                prefix = f"{stack_name}.{index}"
                full = f"{prefix}.{name}.weight"
                role = _role(_family(model, side), name)
                matrices[full] = Matrix(full, weight, isinstance(module, Conv1D), role, side, prefix)
    if not matrices:
        raise UserError(f"found no layers to prune in a {type(model).__name__}: its architecture is not supported")
    _warn_of_what_stays(model, matrices)
    unknown = [name for name, matrix in matrices.items() if matrix.role == "unknown"]
    if unknown:
        _refuse_what_is_hardly_found(model, matrices)
        print(
            f"warning: {type(model).__name__} is pruned by the general rule, {len(matrices)} matrices inside its "
            f"repeated blocks; what {len(unknown)} of them do is not known, such as {unknown[0]}",
            file=sys.stderr,
        )
    return Anatomy(matrices, parameters=sum(p.numel() for p in model.parameters()))


def nonzero(model: nn.Module) -> int:
    """Parameters that are not zero, shared ones counted once."""
    return sum(count_nonzero(parameter) for parameter in model.parameters())


def count_nonzero(tensor: Tensor) -> int:
    """Elements that are not zero."""
    return int(tensor.detach().count_nonzero())


MOST = 0.1
"""Share of the weights in repeated blocks that may be of no linear map without a word: tables of positions, gates."""
LEAST = 0.5
"""Share of the weights of a model's linear maps, but for embeddings and head, that its repeated blocks have."""


def _refuse_what_is_hardly_found(model: Any, matrices: dict[str, Matrix]) -> None:
    """Refuse a model whose layers are not all alike, of which repeated parts within one were taken for the blocks."""
    ends = [getattr(model, f"get_{end}_embeddings", lambda: None)() for end in ("input", "output")]
    outside = {id(getattr(end, "weight", None)) for end in ends}
    maps = {id(weight): weight.numel() for _, _, weight in _linear_maps(model) if id(weight) not in outside}
    eligible, there = sum(matrix.weight.numel() for matrix in matrices.values()), sum(maps.values())
    if eligible < LEAST * there:
        raise UserError(
            f"found {eligible / there:.1%} of the weights of a {type(model).__name__}'s linear maps inside repeated "
            f"blocks, such as {next(iter(matrices))}, and not its layers: its architecture is not supported"
        )


def _linear_maps(module: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """Linear maps by name, and their weights."""
    for name, part in module.named_modules():
        weight = part.weight if isinstance(part, nn.Linear | Conv1D) else None
        if isinstance(weight, nn.Parameter):
            yield name, part, weight


def _warn_of_what_stays(model: nn.Module, matrices: dict[str, Matrix]) -> None:
    """Say so where much of the blocks is never pruned, as fused experts, which are parameters of three dimensions."""
    blocks = {f"{matrix.block}." for matrix in matrices.values()}
    inside = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and any(name.startswith(block) for block in blocks)
    }
    staying = {name: numel for name, numel in inside.items() if name not in matrices}
    share = sum(staying.values()) / sum(inside.values())
    if share > MOST:
        print(
            f"warning: {share:.0%} of the weights in the repeated blocks of a {type(model).__name__} are no linear "
            f"maps and stay as they are, such as {max(staying, key=lambda name: staying[name])}",
            file=sys.stderr,
        )


def _side(model: Any, stack: str) -> Side:
    """Where a stack of layers is: by the first part of its name that says so, where a model has two sides."""
    two = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    named = re.search(r"(?:^|\.)(encoder|decoder)(?:\.|$)", stack) if two else None
    return "encoder" if named and named[1] == "encoder" else "decoder"


def _family(model: Any, side: Side) -> str:
    config = getattr(model, "config", None)
    return getattr(getattr(config, side, config), "model_type", "")


def _role(family: str, name: str) -> Role:
    for names, roles in FAMILIES.items():
        if family in names:
            return next((role for role, pattern in roles.items() if re.fullmatch(pattern, name)), "unknown")
    return "unknown"


def _stacks(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """Outermost module lists whose items are all of one class: the stacks of layers."""
    found: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len({type(block) for block in module}) != 1:
            continue
        if not any(name.startswith(f"{outer}.") for outer, _ in found):
            found.append((name, module))
    return found
