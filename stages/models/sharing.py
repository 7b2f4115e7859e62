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


def copies(model: Any) -> dict[str, str]:
    """Names of the decoder under which `unshared_state` repeats a parameter, each with the encoder's name for it."""
    if not getattr(model.config, "share_weights", False):
        return {}
    named = dict(model.named_parameters(remove_duplicate=False))
    first = {id(parameter): name for name, parameter in reversed(named.items()) if name.startswith("encoder.")}
    return {name: first[id(p)] for name, p in named.items() if name.startswith("decoder.") and id(p) in first}


def unshared_state(model: nn.Module) -> dict[str, Tensor] | None:
    """A state dict in which shared sides are copied apart, or None if they are not shared."""
    repeated = copies(model)
    if not repeated:
        return None
    state = model.state_dict()
    # What the decoder ties in itself, as embeddings and head, stays tied: one copy each.
    apart = {state[name].data_ptr(): state[name].clone() for name in repeated}
    return {name: apart[tensor.data_ptr()] if name in repeated else tensor for name, tensor in state.items()}
