"""Low-rank adapters that are merged without losing sparsity (Hu et al. 2022, LoRA; here by peft).

    weight + mask * (alpha / rank) * B A

Plain LoRA adds B A whole: merged, it fills the zeros, and masked after merging it is not what was trained. Here the
mask is part of the forward pass, so that the merged weights are exactly those that the loss has seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from stages.errors import UserError
from stages.models.anatomy import Matrix
from stages.params import Lora
from stages.startup import UNUSED, let_in


@contextmanager
def adapted(
    model: PreTrainedModel, matrices: Mapping[str, Matrix], masks: Mapping[str, Tensor], settings: Lora
) -> Iterator[None]:
    """For the block, train adapters of the matrices alone; merge them at its end. Does nothing if the rank is 0.

    Args:
        model: all of whose parameters are frozen for the block.
        matrices: that get adapters, by the name of their weight.
        masks: of these weights, True is kept; they must not change within the block.
        settings: rank and scale.

    Raises:
        UserError: encoder and decoder share their weights.
    """
    if not settings.rank:
        yield
        return
    if getattr(model.config, "share_weights", False):
        raise UserError("finetune.lora cannot adapt sides that share their weights: set rank to 0")
    let_in(*UNUSED)
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    from stages.training.masked_linear import MaskedLinear

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    layers = [name.removesuffix(".weight") for name in matrices]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=layers,
        fan_in_fan_out=any(matrix.transposed for matrix in matrices.values()),
    )
    config._register_custom_module({nn.Linear: MaskedLinear, Conv1D: MaskedLinear})
    tuner = LoraModel(model, config, "default")
    for name, layer in zip(matrices, layers, strict=True):
        module = model.get_submodule(layer)
        assert isinstance(module, MaskedLinear)
        module.pruned = ~masks[name].to(module.weight.device)
    yield
    tuner.merge_and_unload()
    for parameter in trained:
        parameter.requires_grad_(True)
