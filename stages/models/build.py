"""Build a generator: from scratch by sizes, or warm-started from checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
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
from stages.models.origins import check_weights, one_line
from stages.models.sharing import share_sides
from stages.models.tokenizers import as_loaded, keep_placeholders, train_tokenizer
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
    for origin in dict.fromkeys((model.checkpoint, model.encoder.checkpoint, model.decoder.checkpoint)):
        if origin:
            # Before a tokenizer is missed, or trained.
            check_weights(origin, load_config(origin))
    tokenizer = _tokenizer(model, texts)
    size = vocabulary_size(tokenizer)
    if placeholder:
        tokenizer = keep_placeholders(tokenizer, texts, placeholder)
    make = _encoder_decoder if model.kind == "encoder_decoder" else _auto
    built = make(model, tokenizer, size)
    if model.architecture and not model.tokenizer.checkpoint:
        with _blaming("model.config"):
            tokenizer = as_loaded(tokenizer, built.config)
    if (grown := vocabulary_size(tokenizer)) > size:
        _resize(built, grown)
    built.generation_config.max_length = None
    built.generation_config.max_new_tokens = model.max_target_tokens
    _check_positions(model, built)
    generator = Generator(built, tokenizer, model.max_source_tokens, model.max_target_tokens)
    _check_runs(generator, model)
    return generator


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
    encoder = _side(model.encoder, "model.encoder.config", tokenizer, size, is_decoder=False)
    decoder = _side(model.decoder, "model.decoder.config", tokenizer, size, is_decoder=True)
    with _blaming(_where(model)):
        config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder.config, decoder.config)
        built = EncoderDecoderModel(config=config, encoder=encoder, decoder=decoder)
    start, end = _start(tokenizer), _end(tokenizer)
    built.config.decoder_start_token_id = start
    built.config.eos_token_id = end
    built.config.pad_token_id = tokenizer.pad_token_id
    built.config.vocab_size = decoder.config.vocab_size
    built.generation_config = GenerationConfig(
        decoder_start_token_id=start, eos_token_id=end, pad_token_id=tokenizer.pad_token_id
    )
    if model.share_weights:
        share_sides(built)
    return built


def _side(side: Side, key: str, tokenizer: Any, size: int, *, is_decoder: bool) -> Any:
    if side.checkpoint:
        config = load_config(side.checkpoint)
        if config.model_type not in ("bert", "roberta"):
            raise UserError(f"{side.checkpoint} is a {config.model_type}, not a BERT or RoBERTa: see model.kind")
        if size > config.vocab_size:
            raise UserError(
                f"the tokenizer has {size} entries, {side.checkpoint} only {config.vocab_size}: "
                "both sides need one tokenizer; set model.tokenizer.checkpoint"
            )
    else:
        config = _scratch_config(side.architecture, side.config, key, tokenizer, size)
    config.is_decoder = config.add_cross_attention = is_decoder
    auto, new_weights = (AutoModelForCausalLM, NEW_IN_DECODER) if is_decoder else (AutoModel, NEW_IN_ENCODER)
    if side.checkpoint:
        return _from_checkpoint(side.checkpoint, auto, config, side.config, key, new_weights)
    return _from_scratch(config, auto, key)


def _auto(model: Model, tokenizer: Any, size: int) -> Any:
    key = "model.config"
    if model.checkpoint:
        config = load_config(model.checkpoint)
        if size > getattr(config, "vocab_size", size):
            raise UserError(
                f"the tokenizer has {size} entries, {model.checkpoint} only {config.vocab_size}: "
                "set model.tokenizer.checkpoint to the one that it was trained with"
            )
        built = _from_checkpoint(model.checkpoint, auto_class(config), config, model.config, key)
    else:
        assert model.architecture is not None  # the params model has checked it
        config = _scratch_config(model.architecture, model.config, key, tokenizer, size)
        built = _from_scratch(config, auto_class(config), key)
        built.generation_config.pad_token_id = tokenizer.pad_token_id
        built.generation_config.eos_token_id = _end(tokenizer)
    if (getattr(config, "num_decoder_layers", 0) or 0) > getattr(config, "num_layers", 0):
        # transformers sizes the cache of a T5 by its encoder.
        raise UserError(f"{key}.num_decoder_layers must be at most num_layers: no text could be generated")
    if (model.kind == "seq2seq") != config.is_encoder_decoder:
        name = model.checkpoint or model.architecture
        raise UserError(f"{name} is not of kind {model.kind}: set model.kind to match it")
    if built.generation_config.pad_token_id is None:
        built.generation_config.pad_token_id = tokenizer.pad_token_id
    return built


def _from_checkpoint(
    origin: str, auto: Any, config: Any, changes: Mapping[str, Any], key: str, new_weights: Sequence[str] = ()
) -> Any:
    _check_fields(config, changes, key)
    with _blaming(key):
        for name, value in changes.items():
            setattr(config, name, value)
    _check_ids(config, changes, key)
    try:
        return load_model(origin, auto, config=config, new_weights=new_weights, changed=bool(changes))
    except UserError as error:
        raise UserError(f"{key}: {error}" if changes else str(error)) from error


def _from_scratch(config: Any, auto: Any, key: str) -> Any:
    with _blaming(key):
        return auto.from_config(config)


def _resize(built: Any, size: int) -> None:
    """Make room for added tokens, on both sides of an encoder-decoder of two models."""
    for side in sides(built):
        if side.get_input_embeddings().num_embeddings < size:
            side.resize_token_embeddings(size)
    built.config.vocab_size = size


def _scratch_config(architecture: str, changes: Mapping[str, Any], key: str, tokenizer: Any, size: int) -> Any:
    fields: dict[str, Any] = {
        "vocab_size": size,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": _end(tokenizer),
    }
    if architecture not in ("bert", "roberta", "gpt2", "llama"):
        fields["decoder_start_token_id"] = _start(tokenizer)
    if architecture == "bart":
        fields["forced_eos_token_id"] = _end(tokenizer)
    with _blaming(key):
        _check_fields(AutoConfig.for_model(architecture), changes, key)
        config = AutoConfig.for_model(architecture, **{**fields, **changes})
    if config.vocab_size < size:
        raise UserError(f"{key}.vocab_size is {config.vocab_size}, the tokenizer has {size} entries: leave it away")
    _check_ids(config, changes, key)
    return config


@contextmanager
def _blaming(key: str) -> Iterator[None]:
    """Say of what the libraries raise which key of params.yaml is to change.

    They check a config in many places (its types, the layers as they are made, tensors as they meet), each with
    errors of its own kind.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{key}: {one_line(error)}") from error


def _where(model: Model) -> str:
    """The key of params.yaml that decides whether the whole fits together."""
    if model.kind == "encoder_decoder":
        return "model.encoder.config and model.decoder.config"
    return "model.config" if model.config or not model.checkpoint else f"model.checkpoint {model.checkpoint}"


def _check_fields(known: Any, changes: Mapping[str, Any], key: str) -> None:
    """Check that a config has these fields, and that sizes are above 0: a stack of no layers is made in silence."""
    for name, value in changes.items():
        if not hasattr(known, name):
            raise UserError(f"{key}: {known.model_type} has no field {name}")
        usual = getattr(known, name)
        is_size = (usual is None or (type(usual) is int and usual > 0)) and not name.endswith("_id")
        if is_size and type(value) is int and value < 1:
            raise UserError(f"{key}.{name} must be above 0, not {value}")


def _check_ids(config: Any, changes: Mapping[str, Any], key: str) -> None:
    """Check that tokens which the params name are in the vocabulary."""
    for name in changes:
        value = getattr(config, name)
        for token in value if isinstance(value, list) else [value]:
            if name.endswith("_token_id") and isinstance(token, int) and not 0 <= token < config.vocab_size:
                raise UserError(f"{key}.{name}: {token} is not in the vocabulary, of {config.vocab_size} entries")


def _check_runs(generator: Generator, model: Model) -> None:
    """Compute logits and generate, since what does not fit together often shows only then.

    The logits are those of training, where dropout is; the state of the random numbers stays as it was.
    """
    built: Any = generator.model
    was_training = built.training
    with _blaming(_where(model)), torch.random.fork_rng(devices=[]), torch.no_grad():
        if hasattr(built.config, "validate"):  # as saving will
            built.config.validate()
        built.train()
        logits = built(**generator.collate(generator.encode(["a"], ["b"]))).logits
        built.eval()
        built.generate(**generator.prompts(["a"]), max_new_tokens=min(2, model.max_target_tokens))
    built.train(was_training)
    if not logits.isfinite().all():
        raise UserError(f"{_where(model)}: the logits are not finite, before any training")


def _check_positions(model: Model, built: Any) -> None:
    for side, needed in (("encoder", model.max_source_tokens), ("decoder", model.max_target_tokens)):
        config = getattr(built.config, side, built.config)
        if model.kind == "causal":
            needed = model.max_source_tokens + model.max_target_tokens
        limit = getattr(config, "max_position_embeddings", None)
        if not isinstance(limit, int):
            continue
        if config.model_type == "roberta":  # it counts positions from the padding token's id
            limit -= (config.pad_token_id or 0) + 1
        if needed > limit:
            field = config.attribute_map.get("max_position_embeddings", "max_position_embeddings")
            raise UserError(
                f"model.max_source_tokens / max_target_tokens need {needed} positions, the {config.model_type} has "
                f"{limit}: lower them, or set {field} of its config"
            )
