"""Build a generator: from scratch by sizes, or warm-started from checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GenerationConfig,
)

from stages.errors import UserError
from stages.models.checkpoint import (
    Generator,
    auto_class,
    load_config,
    load_model,
    load_tokenizer,
    sides,
    vocabulary_size,
)
from stages.models.sharing import share_sides
from stages.models.tokenizers import keep_placeholders, train_tokenizer
from stages.params import Model, Side

NEW_IN_ENCODER = ("pooler",)
NEW_IN_DECODER = ("crossattention", "cls.predictions", "lm_head")
"""Parts that a BERT-type encoder checkpoint may lack and training has to make."""


def build(model: Model, texts: Sequence[str], placeholder: str | None = None) -> Generator:
    """Build the generator that `params.model` describes.

    Args:
        model: the `model` section of params.yaml.
        texts: sources and targets of the training split, for the tokenizer.
        placeholder: regular expression of slots, which a checkpoint's tokenizer has to be able to give back.

    Raises:
        UserError: a checkpoint cannot be read, or sizes do not fit together.
    """
    tokenizer = _tokenizer(model, texts)
    size = vocabulary_size(tokenizer)
    if placeholder:
        tokenizer = keep_placeholders(tokenizer, texts, placeholder)
    built = (
        _encoder_decoder(model, tokenizer, size) if model.kind == "encoder_decoder" else _auto(model, tokenizer, size)
    )
    if (grown := vocabulary_size(tokenizer)) > size:
        _resize(built, grown)
    built.generation_config.max_length = None
    built.generation_config.max_new_tokens = model.max_target_tokens
    _check_positions(model, built)
    return Generator(built, tokenizer, model.max_source_tokens, model.max_target_tokens)


def _tokenizer(model: Model, texts: Iterable[str]) -> Any:
    origins = [model.tokenizer.checkpoint, model.checkpoint, model.encoder.checkpoint, model.decoder.checkpoint]
    origin = next((origin for origin in origins if origin), None)
    if origin is None:
        return train_tokenizer(texts, model.tokenizer.vocab_size, model.tokenizer.lowercase)
    tokenizer = load_tokenizer(origin)
    if _end(tokenizer) is None:
        raise UserError(f"{origin}: the tokenizer has no end token: name its `eos_token` in tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        # GPT-2 has no padding token. Batches are masked by length, so any token may fill them.
        tokenizer.pad_token_id = _end(tokenizer)
    return tokenizer


def _start(tokenizer: Any) -> int:
    """The token that a decoder begins with: as T5 does, the padding token where there is none for it."""
    ids = (tokenizer.cls_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
    return next(token for token in ids if token is not None)


def _end(tokenizer: Any) -> int | None:
    """The token that a decoder ends with."""
    return tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id


def _encoder_decoder(model: Model, tokenizer: Any, size: int) -> Any:
    encoder_config = _side_config(model.encoder, tokenizer, size, is_decoder=False)
    decoder_config = _side_config(model.decoder, tokenizer, size, is_decoder=True)
    if model.encoder.checkpoint:
        encoder = load_model(model.encoder.checkpoint, AutoModel, config=encoder_config, new_weights=NEW_IN_ENCODER)
    else:
        encoder = AutoModel.from_config(encoder_config)
    if model.decoder.checkpoint:
        decoder = load_model(
            model.decoder.checkpoint, AutoModelForCausalLM, config=decoder_config, new_weights=NEW_IN_DECODER
        )
    else:
        decoder = AutoModelForCausalLM.from_config(decoder_config)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder.config, decoder.config)
    built = EncoderDecoderModel(config=config, encoder=encoder, decoder=decoder)
    start, end = _start(tokenizer), _end(tokenizer)
    built.config.decoder_start_token_id = start
    built.config.eos_token_id = end
    built.config.pad_token_id = tokenizer.pad_token_id
    built.config.vocab_size = decoder_config.vocab_size
    built.generation_config = GenerationConfig(
        decoder_start_token_id=start, eos_token_id=end, pad_token_id=tokenizer.pad_token_id
    )
    if model.share_weights:
        share_sides(built)
    return built


def _side_config(side: Side, tokenizer: Any, size: int, is_decoder: bool) -> Any:
    changes = dict(side.config)
    if is_decoder:
        changes |= {"is_decoder": True, "add_cross_attention": True}
    if side.checkpoint:
        config = load_config(side.checkpoint, **changes)
        if config.model_type not in ("bert", "roberta"):
            raise UserError(f"{side.checkpoint} is a {config.model_type}, not a BERT or RoBERTa: see model.kind")
        if size > config.vocab_size:
            raise UserError(
                f"the tokenizer has {size} entries, {side.checkpoint} only {config.vocab_size}: "
                "both sides need one tokenizer; set model.tokenizer.checkpoint"
            )
        return config
    return _scratch_config(side.architecture, changes, tokenizer, size)


def _auto(model: Model, tokenizer: Any, size: int) -> Any:
    if model.checkpoint:
        config = load_config(model.checkpoint, **model.config)
        if size > getattr(config, "vocab_size", size):
            raise UserError(
                f"the tokenizer has {size} entries, {model.checkpoint} only {config.vocab_size}: "
                "set model.tokenizer.checkpoint to the one that it was trained with"
            )
        built = load_model(model.checkpoint, auto_class(config), config=config)
    else:
        assert model.architecture is not None  # the params model has checked it
        config = _scratch_config(model.architecture, dict(model.config), tokenizer, size)
        built = auto_class(config).from_config(config)
        built.generation_config.pad_token_id = tokenizer.pad_token_id
        built.generation_config.eos_token_id = _end(tokenizer)
    if (model.kind == "seq2seq") != config.is_encoder_decoder:
        name = model.checkpoint or model.architecture
        raise UserError(f"{name} is not of kind {model.kind}: set model.kind to match it")
    if built.generation_config.pad_token_id is None:
        built.generation_config.pad_token_id = tokenizer.pad_token_id
    return built


def _resize(built: Any, size: int) -> None:
    """Make room for added tokens, on both sides of an encoder-decoder of two models."""
    for side in sides(built):
        if side.get_input_embeddings().num_embeddings < size:
            side.resize_token_embeddings(size)
    built.config.vocab_size = size


def _scratch_config(architecture: str, changes: dict[str, Any], tokenizer: Any, size: int) -> Any:
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": _end(tokenizer),
    }
    if architecture not in ("bert", "roberta", "gpt2", "llama"):
        ids["decoder_start_token_id"] = _start(tokenizer)
    if architecture == "bart":
        ids["forced_eos_token_id"] = _end(tokenizer)
    try:
        known = AutoConfig.for_model(architecture)
        unknown = [name for name in changes if not hasattr(known, name)]
        if unknown:
            raise UserError(f"model config: {architecture} has no field {unknown[0]}")
        return AutoConfig.for_model(architecture, vocab_size=size, **{**ids, **changes})
    except (ValueError, TypeError) as error:
        raise UserError(f"model config of {architecture}: {' '.join(str(error).split())[:300]}") from None


def _check_positions(model: Model, built: Any) -> None:
    for side, needed in (("encoder", model.max_source_tokens), ("decoder", model.max_target_tokens)):
        config = getattr(built.config, side, built.config)
        if model.kind == "causal":
            needed = model.max_source_tokens + model.max_target_tokens
        limit = getattr(config, "max_position_embeddings", None)
        # RoBERTa counts positions from its padding index, so two of them are never used.
        offset = 2 if config.model_type == "roberta" else 0
        if isinstance(limit, int) and needed > limit - offset:
            raise UserError(
                f"model.max_source_tokens / max_target_tokens need {needed} positions, the {side} has {limit - offset}"
            )
