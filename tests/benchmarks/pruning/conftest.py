"""Folders of small models with their texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.pruning import subjects

VOCABULARY = 64
SMALL = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    """`folder(family)`: a small `llama` or `bart` at random, and texts of 16 tokens: 8 a draw, and 4."""
    from safetensors.torch import save_file
    from transformers import BartConfig, BartForConditionalGeneration, LlamaConfig, LlamaForCausalLM

    def make(family: str) -> Path:
        torch.manual_seed(0)
        if family == "llama":
            sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
            model = LlamaForCausalLM(LlamaConfig(**SMALL, **sizes))
        else:
            layers = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 32}
            widths = {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 32}
            heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_start_token_id": 2}
            model = BartForConditionalGeneration(BartConfig(**SMALL, **layers, **widths, **heads))
        model.save_pretrained(tmp_path)
        draws = torch.Generator().manual_seed(0)
        texts = {
            name: torch.randint(3, VOCABULARY, (*count, 16), generator=draws)
            for name, count in (("calibration", (subjects.DRAWS, 8)), ("held", (4,)))
        }
        save_file(texts, tmp_path / subjects.TEXTS)
        return tmp_path

    return make
