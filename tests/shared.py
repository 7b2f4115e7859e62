"""What several rooms' tests share: small generators of every family, a few pairs, changing nested values."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SMALL = {
    "bert": {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
    },
    "bart": {
        "encoder_layers": 1,
        "decoder_layers": 2,
        "d_model": 16,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "max_position_embeddings": 64,
    },
    "t5": {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 2},
    "gpt2": {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 64},
    "llama": {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    },
}
SMALL["roberta"] = SMALL["bert"]
SMALL["marian"] = SMALL["mbart"] = SMALL["bart"]
SMALL["qwen2"] = SMALL["llama"]
FAMILIES = tuple(SMALL)
RELATIVES = ("mt5", "qwen3", "mistral")
"""Of other `model_type`, with the anatomy of one of the families."""
SMALL["mt5"], SMALL["mistral"] = SMALL["t5"], SMALL["llama"]
SMALL["qwen3"] = {**SMALL["llama"], "head_dim": 4}
SMALL_RUN: dict[str, Any] = {
    "runtime": {"threads": 1, "precision": "fp32"},
    "data": {"path": "data/raw/small.csv"},
    "clean": {"workers": 1},
    "model": {
        "encoder": {"config": SMALL["bert"]},
        "decoder": {"config": SMALL["bert"]},
        "tokenizer": {"vocab_size": 320},
        "max_source_tokens": 24,
    },
}
"""Changes to params.yaml for a pipeline that takes seconds."""
SOURCES = ["inform ( name , area )", "request ( food )", "bye", "你好 ( 名称 )"]
TARGETS = ["The #NAME# is in the #AREA# .", "What food would you like ?", "Goodbye !", "推荐您去 [名称] 。"]


def copy_of(project: Any, folder: Path, log: Path) -> Any:
    """A test project copied to another folder, to change; its log is another one, empty."""
    other = copy.copy(project)
    other.folder, other.log = folder, log
    shutil.copytree(project.folder, folder, symlinks=True)
    return other


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with nested `changes`; free-form configs, and what was null, are replaced whole."""
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(base[key], dict) and key != "config"
        merged[key] = merge(base[key], value) if nested else value
    return merged


def family_section(family: str) -> dict[str, Any]:
    """Changes to the `model` section that make a small generator of a family, from scratch."""
    common = {"tokenizer": {"vocab_size": 300}, "max_source_tokens": 24, "max_target_tokens": 30}
    if family in ("bert", "roberta"):
        side = {"architecture": family, "config": SMALL[family]}
        return {"kind": "encoder_decoder", "encoder": side, "decoder": side, **common}
    kind = "causal" if family in ("gpt2", "llama", "qwen2", "qwen3", "mistral") else "seq2seq"
    return {"kind": kind, "architecture": family, "config": SMALL[family], **common}
