"""Any `config` of params.yaml: refused in one line that names the key, or good for training and saving."""

from __future__ import annotations

import re
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck, given, strategies
from shared import FAMILIES, SMALL, SOURCES, TARGETS
from transformers import AutoConfig

from stages.errors import UserError
from stages.models import checkpoint


def with_config(family: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Changes to the `model` section that change the config of a small generator, of the encoder if it has two."""
    config = SMALL[family] | changes
    if family in ("bert", "roberta"):
        return {"encoder": {"architecture": family, "config": config}}
    return {"config": config}


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("bert", {"hiden_size": 3}, "model.encoder.config: bert has no field hiden_size"),
        ("bert", {"hidden_size": 15}, "model.encoder.config: The hidden size (15) is not a multiple"),
        ("bert", {"hidden_size": 0}, "model.encoder.config.hidden_size must be above 0, not 0"),
        ("roberta", {"num_hidden_layers": -1}, "model.encoder.config.num_hidden_layers must be above 0, not -1"),
        ("bert", {"hidden_size": "16"}, "model.encoder.config: Validation error for field 'hidden_size'"),
        ("bert", {"hidden_act": "nope"}, "model.encoder.config: 'nope' is not known"),
        ("bert", {"vocab_size": 299}, "model.encoder.config.vocab_size is 299, the tokenizer has 300 entries"),
        ("bert", {"hidden_dropout_prob": 1.5}, "model.encoder.config: dropout probability has to be between 0 and 1"),
        ("roberta", {"max_position_embeddings": 24}, "need 24 positions, the roberta has 23: lower them"),
        ("gpt2", {"n_positions": 4}, "the gpt2 has 4: lower them, or set n_positions of its config"),
        ("bart", {"pad_token_id": 300}, "model.config.pad_token_id: 300 is not in the vocabulary, of 300 entries"),
        ("bart", {"attention_dropout": 2.0}, "model.config: dropout probability has to be between 0 and 1"),
        ("bart", {"decoder_attention_heads": 3}, "model.config: embed_dim must be divisible by num_heads"),
        ("bart", {"output_attentions": True}, "model.config: Class validation error"),
        ("marian", {"encoder_layers": 0}, "model.config.encoder_layers must be above 0, not 0"),
        ("t5", {"num_layers": 1}, "model.config.num_decoder_layers must be at most num_layers"),
        ("t5", {"feed_forward_proj": "gated"}, "model.config: "),
        ("gpt2", {"chunk_size_feed_forward": "1"}, "model.config: Validation error for field"),
        ("gpt2", {"initializer_range": -1.0}, "model.config: normal expects std >= 0.0"),
        ("llama", {"num_key_value_heads": 3}, "model.config: "),
        ("llama", {"rms_norm_eps": float("nan")}, "model.config: the logits are not finite, before any training"),
    ],
)
def test_sizes_that_do_not_fit_name_their_key(family, changes, message, build_family):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        build_family(family, **with_config(family, changes))
    assert "\n" not in str(caught.value)


@hypothesis.settings(
    max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    family=strategies.sampled_from(FAMILIES),
    number=strategies.integers(0, 1000),
    value=strategies.sampled_from([-1, 0, 1.5, 3, None, True, 99, "gelu", float("nan"), [], 10**12]),
)
def test_what_is_built_trains_and_is_saved(family, number, value, build_family, tmp_path):
    """Any field, any value: refused in one line that names a key, or good for all that follows."""
    fields = sorted(AutoConfig.for_model(family).to_dict())
    field = fields[number % len(fields)]
    hypothesis.assume(not ("layers" in field and value in (99, 10**12)))  # right, and slow
    try:
        generator = build_family(family, **with_config(family, {field: value}))
    except UserError as error:
        assert "model." in str(error) and "\n" not in str(error)
        return
    generator.model.train()(**generator.collate(generator.encode(SOURCES, TARGETS))).loss.backward()
    checkpoint.save(generator, tmp_path / "m")


def test_trying_out_what_was_built_draws_no_random_number(build_family, monkeypatch):
    """The bits of a training must not depend on it."""
    built = build_family("bert", **with_config("bert", {"hidden_dropout_prob": 0.5}))
    state = torch.get_rng_state()
    monkeypatch.setattr("stages.models.build._check_runs", lambda *arguments: None)
    untried = build_family("bert", **with_config("bert", {"hidden_dropout_prob": 0.5}))
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(built.model.state_dict(), untried.model.state_dict(), rtol=0, atol=0)
