"""Removing what a plan does not keep: a smaller model of the same class, which a plain config describes.

It works on the state dict: every tensor is cut along the axes it lies on, blocks are renumbered, and a model of the new
config loads the result strictly. Nothing of the old model is changed or kept.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages.errors import UserError
from stages.models.checkpoint import Generator, one_line, sides
from stages.pruning.structure.axes import Dimension, Structure, describe
from stages.pruning.structure.families import rescaled
from stages.pruning.structure.plan import Plan, counts

PER_LAYER = ("layer_types",)
"""Config fields with an item for each layer."""


def shrink(generator: Generator, plan: Plan, factor: float = 1.0) -> Generator:
    """A generator with what the plan keeps; tokenizer and limits are the same. See `remove`.

    Raises:
        UserError: the plan is not of this model, or its family cannot do without a part.
    """
    model = remove(generator.model, plan, factor)
    return Generator(model, generator.tokenizer, generator.max_source_tokens, generator.max_target_tokens)


def remove(model: PreTrainedModel, plan: Plan, factor: float = 1.0) -> PreTrainedModel:
    """A model with what the plan keeps of another: same class, device and weights, in evaluation mode.

    Its logits are those of the other with the rest masked (`masking.masked`).

    Args:
        model: the other.
        plan: what is kept of it.
        factor: what earlier removals have multiplied its last state by (`state_factor`). Where that is in the norm of
            the last block, and this goes, the new last block gets it.

    Raises:
        UserError: the plan is not of this model, or its family cannot do without a part.
    """
    structure = describe(model)
    plan.check(structure)
    config = _config(model.config, structure, plan)
    factors = _factors(model.config, structure, plan, factor)
    state = {}
    for name, tensor in model.state_dict().items():
        if (renamed := _renamed(name, structure, plan)) is not None:
            times = next((f for pattern, f in factors.items() if re.fullmatch(pattern, name)), 1.0)
            cut = _cut(tensor, structure.tensors[name], structure, plan)
            state[renamed] = cut if times == 1 else cut * times
    with torch.random.fork_rng(devices=[]):  # the weights that are drawn here are replaced
        smaller: Any = type(model)(config)
    smaller.load_state_dict(state, strict=True)
    smaller.to(dtype=model.dtype, device=model.device)
    _check_tied(model, smaller)
    smaller.generation_config = copy.deepcopy(model.generation_config)
    return smaller.eval()


def names_after(structure: Structure, plan: Plan) -> dict[str, str]:
    """Names of the tensors that are left: before removal, and after it."""
    renamed = {name: _renamed(name, structure, plan) for name in structure.tensors}
    return {before: after for before, after in renamed.items() if after is not None}


def state_factor(model: PreTrainedModel, plan: Plan) -> float:
    """What `remove` multiplies the last hidden state of the decoder by, beside what it leaves out of it."""
    factors = _factors(model.config, describe(model), plan)
    return next((factor for pattern, factor in factors.items() if "norm" in pattern), 1.0)


def _cut(tensor: Tensor, dimensions: tuple[Dimension | None, ...], structure: Structure, plan: Plan) -> Tensor:
    for place, dimension in enumerate(dimensions):
        if dimension and dimension.axis in plan.units:
            kept = torch.tensor(plan.units[dimension.axis])
            rows = dimension.indices(kept, structure.axes[dimension.axis].units)
            tensor = tensor.index_select(place, rows.to(tensor.device))
    return tensor


def _renamed(name: str, structure: Structure, plan: Plan) -> str | None:
    """The name of a tensor in the smaller model, or None if it is removed."""
    placed = structure.placed(name)
    if placed is None:
        return name
    side, block, within = placed
    stack = structure.stacks[side]
    if block == 0 and stack.family.first and re.fullmatch(stack.family.first, within):
        return name
    if block not in plan.layers[side]:
        return None
    return f"{stack.prefix}.{plan.layers[side].index(block)}.{within}"


def _config(old: Any, structure: Structure, plan: Plan) -> Any:
    config = copy.deepcopy(old)
    for path, number in counts(plan, structure).items():
        part, _, field = path.rpartition(".")
        of = getattr(config, part) if part else config
        setattr(of, field, number)
    for side, stack in structure.stacks.items():
        of = getattr(config, side, config)
        family = stack.family
        for field in PER_LAYER:
            if items := getattr(of, field, None):
                setattr(of, field, [items[block] for block in plan.layers[side]])
        if family.free_heads:
            setattr(of, family.free_heads, _head_size(getattr(old, side, old), structure, family))
        if family.queries:
            setattr(of, family.queries, getattr(of, family.sizes["heads"]) * structure.queries)
    if hasattr(config, "encoder_layers"):  # BART's second name for it
        config.num_hidden_layers = config.encoder_layers
    try:
        config.validate()
    except Exception as error:  # each library raises its own kinds
        raise UserError(f"no {config.model_type} has the sizes of this plan: {one_line(error)}") from error
    return config


def _head_size(config: Any, structure: Structure, family: Any) -> int:
    heads = getattr(config, family.queries or family.sizes["heads"])
    return getattr(config, family.free_heads, None) or structure.width("decoder").units // heads


def _factors(config: Any, structure: Structure, plan: Plan, earlier: float = 1.0) -> dict[str, float]:
    width = structure.width("decoder")
    ratio = len(plan.kept(width)) / width.units
    stack, last = structure.stacks["decoder"], plan.layers["decoder"][-1]
    inside = f"{stack.prefix}.{last}.final_layer_norm"
    outside = "model.decoder.layer_norm"
    norm = outside if f"{outside}.weight" in structure.tensors else inside
    factors = {} if ratio == 1 else rescaled(config, ratio, norm)
    if earlier != 1 and norm == inside and last < stack.blocks - 1:
        own = rf"{norm}\.(weight|bias)"
        factors[own] = factors.get(own, 1.0) * earlier
    return factors


def _check_tied(old: Any, new: Any) -> None:
    """Prove that a head tied to the embedding is so again; a bug if not."""
    for before, after in zip(sides(old), sides(new), strict=True):
        head, embedding = before.get_output_embeddings(), before.get_input_embeddings()
        if head is None or head.weight is not embedding.weight:
            continue
        if after.get_output_embeddings().weight is not after.get_input_embeddings().weight:
            raise RuntimeError("the language-model head is no longer tied to the embedding")
