"""One set of weights for encoder and decoder of an EncoderDecoderModel.

`transformers` 5 has no option for it, so the parameters themselves are shared here. A checkpoint is written
with both copies, which keeps it loadable without this code; `share_weights` in its config says to share again.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stages.errors import UserError


def share_sides(model: Any) -> None:
    """Let the decoder use the encoder's parameters wherever both have one of the same name and shape.

    Cross-attention and the language-model head, which only the decoder has, stay its own.

    Raises:
        UserError: the two sides differ in architecture or size.
    """
    encoder = model.encoder
    decoder = getattr(model.decoder, model.decoder.base_model_prefix)
    own = dict(decoder.named_parameters())
    for name, parameter in encoder.named_parameters():
        if name.startswith("pooler."):
            continue
        if name not in own or own[name].shape != parameter.shape:
            raise UserError(f"model.share_weights needs two sides of the same sizes: {name} differs")
        module, _, leaf = name.rpartition(".")
        setattr(decoder.get_submodule(module), leaf, parameter)
    model.decoder.tie_weights()
    model.config.share_weights = True


def unshared_state(model: nn.Module) -> dict[str, Tensor] | None:
    """A state dict in which shared sides are copied apart, or None if they are not shared."""
    if not getattr(model.config, "share_weights", False):
        return None
    return {
        name: tensor.clone() if name.startswith("decoder.") else tensor for name, tensor in model.state_dict().items()
    }
