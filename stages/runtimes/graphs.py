"""A generator as functions of plain tensors, which is what a graph can be made of.

A decoder reads and returns keys and values block by block, as a flat list of key, value, key, value, …, each
[batch, heads, length, head size]. Nothing says that heads or sizes are the same in every block, so models whose blocks
differ (structural pruning leaves such) are exported like any other.

Cross-attention's keys and values depend on the input alone: the encoder's graph returns them, computed once, in place
of the encoder's states, which nothing else reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput


class Encoder(nn.Module):
    """Input tokens to the keys and values of cross-attention."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
        """Tokens and mask [batch, source] to two tensors a decoder block, [batch, heads, source, head size]."""
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        # What a decoder step computes beyond them is no output, so the exporter drops it.
        self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=input_ids[:, :1],
            past_key_values=cache,
            use_cache=True,
        )
        return flat(cache.cross_attention_cache)


class Decoder(nn.Module):
    """A step of an encoder-decoder's decoder."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, past: Sequence[Tensor], cross: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """A token [batch, 1] after `past`, and the input's mask [batch, source].

        Returns:
            Logits of the token after it [batch, vocabulary], and the keys and values of past and new tokens.
        """
        cache = EncoderDecoderCache(filled(past), filled(cross))
        cache.is_updated = dict.fromkeys(range(len(cross) // 2), True)
        # The decoder asks for the encoder's states though it has their keys and values; only their length is read.
        states = cross[0].new_zeros(input_ids.shape[0], attention_mask.shape[1], encoder_width(self.model))
        # Masks as attention adds them, which models take as they are: what they make of others is a fifth of a step's
        # operations. A single token sees all before it, unless attention has a window.
        padding = (1 - attention_mask[:, None, None]).to(states.dtype) * torch.finfo(states.dtype).min
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=padding,
            decoder_attention_mask=states.new_zeros(1, 1, 1, 1) if _sees_all(self.model.config) else None,
            decoder_input_ids=input_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return output.logits[:, -1], flat(cache.self_attention_cache)


class Causal(nn.Module):
    """A step of a causal generator: the prompt at first, a token from then on."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Tokens and positions [batch, new] after `past`, and the mask of past and new tokens [batch, length].

        Returns:
            Logits of the token after the last [batch, vocabulary], and the keys and values of past and new tokens.
        """
        cache = filled(past)
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1], flat(cache)


def _sees_all(config: Any) -> bool:
    """Whether a decoder's attention has no window."""
    decoder = config.get_text_config(decoder=True)
    kinds = {"full_attention", *(getattr(decoder, "layer_types", None) or ())}
    return getattr(decoder, "sliding_window", None) is None and kinds == {"full_attention"}


def filled(tensors: Sequence[Tensor]) -> DynamicCache:
    """A cache of these keys and values."""
    cache = DynamicCache()
    for keys, values in zip(tensors[::2], tensors[1::2], strict=True):
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def flat(cache: Cache) -> list[Tensor]:
    """Key, value, key, value, … of a cache."""
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def encoder_width(model: PreTrainedModel) -> int:
    """Size of the states that cross-attention reads."""
    config: Any = model.config
    return getattr(config, "encoder", config).hidden_size
