"""What is left of a model that parts were removed of, beside what there was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

SIZES = {
    "layers": ("{side}_layers", "num_{side}_layers", "num_hidden_layers"),
    "heads": ("{side}_attention_heads", "num_attention_heads"),
    "neurons": ("{side}_ffn_dim", "intermediate_size", "d_ff", "n_inner"),
    "width": ("hidden_size",),
}
"""What configs call the sizes of a side, beside the names that `transformers` gives all of them."""


def left(before: Path, after: Path) -> Iterator[str]:
    """A line for each side of the model, and one for the vocabulary.

    Args:
        before: checkpoint folder of the whole model.
        after: that of the model without some of its parts.
    """
    from transformers import AutoConfig

    whole, less = (AutoConfig.from_pretrained(folder, local_files_only=True) for folder in (before, after))
    for side in ("encoder", "decoder") if whole.is_encoder_decoder else ("model",):
        had, has = _sizes(whole, side), _sizes(less, side)
        yield f"Left of the {side}: {', '.join(f'{kind} {has[kind]} of {had[kind]}' for kind in SIZES)}."
    had_tokens, has_tokens = (getattr(config, "decoder", config).vocab_size for config in (whole, less))
    cut = "trimmed to what the data use" if has_tokens < had_tokens else "not trimmed"
    yield f"Vocabulary: {has_tokens:,} of {had_tokens:,} tokens, {cut}."


def _sizes(config: Any, side: str) -> dict[str, int]:
    of = getattr(config, side, config)
    sizes = {kind: _first(of, [name.format(side=side) for name in names]) for kind, names in SIZES.items()}
    return sizes | {"neurons": sizes["neurons"] or 4 * of.hidden_size}  # as GPT-2 has it where its config has none


def _first(config: Any, names: list[str]) -> Any:
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)
