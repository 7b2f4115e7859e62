"""Which tensors of each model family get narrower when a unit is removed, and where its config keeps the sizes.

A pattern is matched with the name that a tensor has in the state dict; its value names the axis that each dimension of
the tensor lies on, in order:

- `width`: the residual stream of the tensor's own side; `source`: what cross-attention reads, the encoder's;
- `self`, `cross`: the heads of a block's attention, each as many rows as a head has; with grouped queries a unit is a
  group of key and value heads, and the query heads that read it;
- `neurons`: of a block's feed-forward network;
- `-`: nothing that is ever removed. `self*3` is three such axes one after another in one dimension.

Adding a family is one entry here and its line in tests/pruning/structure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Family:
    """How the models of a family are laid out."""

    block: Mapping[str, str]
    """Tensors of a block, by pattern of the name within it."""
    outside: Mapping[str, str]
    """All others, by pattern of the full name."""
    sizes: Mapping[str, str]
    """Config fields of `width`, `heads`, `neurons` and `layers`; `{side}` stands for encoder or decoder."""
    free_heads: str | None = None
    """Config field of a head's size, where it need not be width / heads."""
    queries: str | None = None
    """Config field of the query heads, where heads are counted by their keys and values."""
    divisible: bool = False
    """Whether the config wants a width that the heads divide, though a head's size is given."""
    shared_heads: bool = False
    """Whether all blocks of a stack lose the same heads, since they share a table of position biases."""
    first: str | None = None
    """Pattern of tensors that only the first block has, whichever that is."""


BERT = Family(
    block={
        r"attention\.self\.(query|key|value)\.weight": "self width",
        r"attention\.self\.(query|key|value)\.bias": "self",
        r"attention\.output\.dense\.weight": "width self",
        r"crossattention\.self\.query\.weight": "cross width",
        r"crossattention\.self\.(key|value)\.weight": "cross source",
        r"crossattention\.self\.(query|key|value)\.bias": "cross",
        r"crossattention\.output\.dense\.weight": "width cross",
        r"intermediate\.dense\.weight": "neurons width",
        r"intermediate\.dense\.bias": "neurons",
        r"output\.dense\.weight": "width neurons",
        r"((cross)?attention\.)?output\.(dense\.bias|LayerNorm\.(weight|bias))": "width",
    },
    outside={
        r".*embeddings\.(word|position|token_type)_embeddings\.weight": "- width",
        r".*embeddings\.LayerNorm\.(weight|bias)": "width",
        r"encoder\.pooler\.dense\.weight": "width width",
        r"encoder\.pooler\.dense\.bias": "width",
        r"decoder\.(cls\.predictions|lm_head)\.bias": "-",
        r"decoder\.(cls\.predictions|lm_head)\.decoder\.weight": "- width",
        r"decoder\.(cls\.predictions|lm_head)\.decoder\.bias": "-",
        r"decoder\.(cls\.predictions\.transform|lm_head)\.dense\.weight": "width width",
        r"decoder\.(cls\.predictions\.transform|lm_head)\.(dense\.bias|(LayerNorm|layer_norm)\.(weight|bias))": "width",
        r"enc_to_dec_proj\.weight": "width source",
        r"enc_to_dec_proj\.bias": "width",
    },
    sizes={
        "width": "hidden_size",
        "heads": "num_attention_heads",
        "neurons": "intermediate_size",
        "layers": "num_hidden_layers",
    },
)
BART = Family(
    block={
        r"self_attn\.[qkv]_proj\.weight": "self width",
        r"self_attn\.[qkv]_proj\.bias": "self",
        r"self_attn\.out_proj\.weight": "width self",
        r"encoder_attn\.q_proj\.weight": "cross width",
        r"encoder_attn\.[kv]_proj\.weight": "cross source",
        r"encoder_attn\.[qkv]_proj\.bias": "cross",
        r"encoder_attn\.out_proj\.weight": "width cross",
        r"fc1\.weight": "neurons width",
        r"fc1\.bias": "neurons",
        r"fc2\.weight": "width neurons",
        r"(.*out_proj\.bias|fc2\.bias|.*layer_norm\.(weight|bias))": "width",
    },
    outside={
        r"final_logits_bias": "- -",
        r"(model\..*(shared|embed_tokens|embed_positions)|lm_head)\.weight": "- width",
        r"model\.(encoder|decoder)\.(layernorm_embedding|layer_norm)\.(weight|bias)": "width",
    },
    sizes={
        "width": "d_model",
        "heads": "{side}_attention_heads",
        "neurons": "{side}_ffn_dim",
        "layers": "{side}_layers",
    },
)
T5 = Family(
    block={
        r"layer\.0\.SelfAttention\.[qkv]\.weight": "self width",
        r"layer\.0\.SelfAttention\.o\.weight": "width self",
        r"layer\.0\.SelfAttention\.relative_attention_bias\.weight": "- self",
        r"layer\.1\.EncDecAttention\.q\.weight": "cross width",
        r"layer\.1\.EncDecAttention\.[kv]\.weight": "cross source",
        r"layer\.1\.EncDecAttention\.o\.weight": "width cross",
        r"layer\.\d\.DenseReluDense\.wi(_[01])?\.weight": "neurons width",
        r"layer\.\d\.DenseReluDense\.wo\.weight": "width neurons",
        r"layer\.\d\.layer_norm\.weight": "width",
    },
    outside={
        r"(shared|(encoder|decoder)\.embed_tokens|lm_head)\.weight": "- width",
        r"(encoder|decoder)\.final_layer_norm\.weight": "width",
    },
    sizes={"width": "d_model", "heads": "num_heads", "neurons": "d_ff", "layers": "num_{side}_layers"},
    free_heads="d_kv",
    shared_heads=True,
    first=r"layer\.0\.SelfAttention\.relative_attention_bias\.weight",
)
GPT2 = Family(
    # Its Conv1D keeps a weight as [in, out], and queries, keys and values in one.
    block={
        r"attn\.c_attn\.weight": "width self*3",
        r"attn\.c_attn\.bias": "self*3",
        r"attn\.c_proj\.weight": "self width",
        r"mlp\.c_fc\.weight": "width neurons",
        r"mlp\.c_fc\.bias": "neurons",
        r"mlp\.c_proj\.weight": "neurons width",
        r"((attn|mlp)\.c_proj\.bias|ln_[12]\.(weight|bias))": "width",
    },
    outside={
        r"(transformer\.w[tp]e|lm_head)\.weight": "- width",
        r"transformer\.ln_f\.(weight|bias)": "width",
    },
    sizes={"width": "n_embd", "heads": "n_head", "neurons": "n_inner", "layers": "n_layer"},
)
LLAMA = Family(
    block={
        r"self_attn\.[qkv]_proj\.weight": "self width",
        r"self_attn\.[qkv]_proj\.bias": "self",
        r"self_attn\.o_proj\.weight": "width self",
        r"self_attn\.[qk]_norm\.weight": "-",
        r"mlp\.(gate|up)_proj\.weight": "neurons width",
        r"mlp\.(gate|up)_proj\.bias": "neurons",
        r"mlp\.down_proj\.weight": "width neurons",
        r"(self_attn\.o_proj\.bias|mlp\.down_proj\.bias|(input|post_attention)_layernorm\.weight)": "width",
    },
    outside={r"(model\.embed_tokens|lm_head)\.weight": "- width", r"model\.norm\.weight": "width"},
    sizes={
        "width": "hidden_size",
        "heads": "num_key_value_heads",
        "neurons": "intermediate_size",
        "layers": "num_hidden_layers",
    },
    free_heads="head_dim",
    queries="num_attention_heads",
)
FAMILIES: dict[str, Family] = {
    "bert": BERT,
    "roberta": BERT,
    "bart": BART,
    "mbart": BART,
    "marian": BART,
    "t5": T5,
    "mt5": T5,
    "gpt2": GPT2,
    "llama": replace(LLAMA, divisible=True),
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
}
"""By `model_type` of the config."""


def width_locked(config: Any) -> str | None:
    """Why the width of a model with this config has to stay, or None if it may be cut."""
    if config.model_type == "marian":
        return "Marian computes its sinusoidal positions from the width, so that a narrower model gets other ones"
    return None


def layers_locked(config: Any) -> str | None:
    """Why the layers of a model with this config have to stay, or None if they may be removed."""
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        return "scale_attn_by_inverse_layer_idx scales attention by a layer's number, which removal changes"
    return None


def rescaled(config: Any, ratio: float, last_norm: str) -> dict[str, float]:
    """What a tensor is multiplied by where the model itself scales by a power of its width.

    Args:
        config: of the whole model.
        ratio: width kept of the width there was.
        last_norm: prefix of the norm whose output the language-model head reads.

    Returns:
        Factors by pattern of the tensor's name.
    """
    tied = getattr(config, "tie_word_embeddings", True)
    if getattr(config, "scale_embedding", False):
        # Embeddings are multiplied by sqrt(width); a head that is tied to them gives the factor back to its input.
        heads = "|lm_head" if tied else ""
        factors = {rf"(model\..*(shared|embed_tokens){heads})\.weight": ratio**-0.5}
        return factors | ({rf"{last_norm}\.(weight|bias)": ratio**0.5} if tied else {})
    if getattr(config, "scale_decoder_outputs", False):  # of T5
        return {r"decoder\.final_layer_norm\.weight": ratio**0.5}  # its output is divided by sqrt(width)
    return {}
