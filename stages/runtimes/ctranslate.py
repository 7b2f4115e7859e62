"""CTranslate2: an engine with kernels of its own, for the families that its converter knows."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import torch
from ctranslate2.converters import TransformersConverter
from ctranslate2.specs.attention_spec import MultiHeadAttentionSpec
from ctranslate2.specs.model_spec import visit_spec
from torch import Tensor
from transformers import GenerationConfig

from stages.errors import UserError
from stages.models.checkpoint import Generator, one_line
from stages.runtimes.model import Parts, RuntimeModel

FOLDER = "ctranslate2"
"""Of the engine's own files, in an exported folder; its config.json would take the place of that of `transformers`."""
FORGOTTEN = {"bart": {"normalize_before": False, "normalize_embedding": True}}
"""Config fields that `transformers` has dropped, since they never change, and the converter still reads."""
OBEYED = {
    "bos_token_id",
    "decoder_start_token_id",
    "do_sample",
    "early_stopping",
    "eos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "num_beams",
    "pad_token_id",
    "temperature",
    "top_k",
    "top_p",
    "transformers_version",
    "_from_model_config",
}
"""Settings of a generation config that are passed on, or say nothing where there is no sampling.

Penalties of repetition are not among them: CTranslate2 gives other tokens with them than `transformers`.
"""
PROBE: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8}
"""How many tokens an export writes for each probe, before it is trusted."""
ROUNDING = 1e-3
"""Of the spread of logits: engines sum in other orders, so that of two tokens as near as that each may be best."""


class _Converter(TransformersConverter):
    """The engine's converter, which takes heads for as wide as hidden size by number; those of a cut model are not.

    Args:
        source: checkpoint folder.
        width: of a head, or None where the converter is right.
    """

    def __init__(self, source: Path, width: int | None) -> None:
        super().__init__(str(source))
        self._width = width

    def _load(self) -> Any:
        spec = super()._load()

        def widen(layer: Any, *_: object) -> None:
            if isinstance(layer, MultiHeadAttentionSpec):
                vars(layer)["head_dim"] = np.int32(self._width or 0)  # a spec takes no attribute once it is made

        if self._width is not None:
            visit_spec(spec, widen)
        return spec


def export(folder: Path, quantization: str | None) -> None:
    """Convert a plain `transformers` folder; what comes out lies in it, in `FOLDER`.

    Args:
        folder: what to convert.
        quantization: `int8`, or None to keep float.

    Raises:
        UserError: the converter does not know this family, or this model of it.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".float-") as between:
        source = Path(between) / "checkpoint"
        shutil.copytree(folder, source, ignore=shutil.ignore_patterns(Path(between).name))
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        family = config["model_type"]
        heads = {config.get(f"{side}_attention_heads") for side in ("encoder", "decoder")}
        if len(heads) > 1:  # the converter takes those of one side for both
            raise UserError("CTranslate2 has one number of heads for encoder and decoder, and this model two: use onnx")
        (source / "config.json").write_text(json.dumps(FORGOTTEN.get(family, {}) | config), encoding="utf-8")
        try:
            _Converter(source, _head_width(config)).convert(str(folder / FOLDER), quantization=quantization)
        except Exception as error:  # of the converter, each family's loader having its own kinds
            why = one_line(error).partition(" (supported configurations")[0]  # of which there are dozens
            raise UserError(f"a model of type {family} cannot be exported to CTranslate2: {why}; use onnx") from error


def check(generator: Generator, folder: Path, *, exact: bool, name: Path) -> None:
    """Let an export write some tokens, since the converter accepts models that the engine then runs wrongly or not.

    Each token has to be the source model's best after those before it, up to rounding.

    Args:
        generator: what was exported.
        folder: what `export` wrote.
        exact: whether tokens have to be those of the generator, which those of int8 need not.
        name: what the user calls the folder.

    Raises:
        UserError: the engine fails, or writes something else.
    """
    prompts = [generator.prompts([text]) for text in _probes(generator.tokenizer)]
    try:
        parts = Parts.load(folder)
        ids = ("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id")
        plain = GenerationConfig(**{name: getattr(parts.generation_config, name) for name in ids})
        model = CTranslateModel(dataclasses.replace(parts, generation_config=plain), folder)
        written = [model.generate(**{key: rows.cpu() for key, rows in prompt.items()}, **PROBE) for prompt in prompts]
    except Exception as error:  # of the engine, of several kinds
        raise UserError(
            f"{name}: CTranslate2 cannot run this model of type {generator.model.config.model_type}: "
            f"{one_line(error)}; use onnx"
        ) from error
    if exact and not all(_is_best(generator, *pair) for pair in zip(prompts, written, strict=True)):
        raise UserError(
            f"{name}: CTranslate2 writes other tokens than PyTorch for this model of type "
            f"{generator.model.config.model_type}; use onnx"
        )


def load(folder: Path) -> Generator:
    """A generator that runs what `export` wrote, on the CPU, with as many threads as torch has.

    Raises:
        UserError: the engine cannot read it.
    """
    parts = Parts.load(folder)
    return parts.generator(CTranslateModel(parts, folder))


class CTranslateModel(RuntimeModel):
    """A converted model; beam search and its end are CTranslate2's own, so that beams may differ from PyTorch's.

    Args:
        parts: config, settings and tokenizer of the model that was exported; CTranslate2 speaks in tokens, not in ids.
        folder: what `export` wrote.

    Raises:
        UserError: the engine cannot read it.
    """

    def __init__(self, parts: Parts, folder: Path) -> None:
        super().__init__(parts)
        self._tokenizer = parts.tokenizer
        engine = ctranslate2.Translator if parts.config.is_encoder_decoder else ctranslate2.Generator
        try:
            self._engine = engine(
                str(folder / FOLDER), device="cpu", inter_threads=1, intra_threads=torch.get_num_threads()
            )
        except Exception as error:  # of several kinds
            raise UserError(f"cannot read {folder / FOLDER}: {one_line(error)}: run stages.export again") from error

    def generate(self, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Tensor:
        """Tokens [batch, length] as `transformers` gives them, with the start token or the prompt.

        Args:
            input_ids: tokens, [batch, source].
            attention_mask: 0 where padding is, [batch, source].
            options: settings of generation, over those of the generation config.

        Raises:
            UserError: a setting has no counterpart.
        """
        wanted = self.asked(options)
        _check(wanted)
        ends = wanted.eos_token_id if isinstance(wanted.eos_token_id, list) else [wanted.eos_token_id]
        names = self._tokenizer.convert_ids_to_tokens
        texts = [names(row[mask.bool()].tolist()) for row, mask in zip(input_ids, attention_mask, strict=True)]
        common = {
            "beam_size": wanted.num_beams,
            "length_penalty": wanted.length_penalty,
            "end_token": names(ends),
        }
        forced = wanted.forced_eos_token_id
        longest = wanted.max_new_tokens - (forced is not None)  # a token that is forced at the end counts as new
        begun = 1 if self.config.is_encoder_decoder else input_ids.shape[1]
        # What is new alone, or with the start token or the padded prompt.
        shortest = min(max(wanted.min_new_tokens or 0, (wanted.min_length or 0) - begun), longest)
        if self.config.is_encoder_decoder:
            begin = torch.full((len(texts), 1), wanted.decoder_start_token_id)
        else:
            begin = input_ids
        if not longest:
            new: list[list[int]] = [[] for _ in texts]  # the engine refuses to write nothing
        elif self.config.is_encoder_decoder:
            found = self._engine.translate_batch(
                texts, max_input_length=0, max_decoding_length=longest, min_decoding_length=shortest, **common
            )
            new = [self._tokenizer.convert_tokens_to_ids(result.hypotheses[0]) for result in found]
        else:
            found = self._engine.generate_batch(
                texts, max_length=longest, min_length=shortest, include_prompt_in_result=False, **common
            )
            new = [result.sequences_ids[0] for result in found]
        last = [forced if forced is not None and len(ids) == longest else ends[0] for ids in new]
        rows = [torch.tensor([*ids, end][: wanted.max_new_tokens]) for ids, end in zip(new, last, strict=True)]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=wanted.pad_token_id)
        return torch.cat([begin, padded], dim=1)


def _head_width(config: dict[str, Any]) -> int | None:
    """Width of a head where it is not what the converter takes it for: hidden size by number of heads."""
    width = config.get("head_dim", config.get("d_kv"))
    hidden = config.get("hidden_size", config.get("d_model"))
    heads = config.get("num_attention_heads", config.get("num_heads"))
    return None if width is None or width * heads == hidden else width


def _probes(tokenizer: Any) -> list[str]:
    """Short texts of different lengths, from all over the vocabulary."""
    ids = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    return [tokenizer.decode(ids[:: max(1, len(ids) // count)][:count]) for count in (1, 4, 8)]


def _is_best(generator: Generator, prompt: dict[str, Tensor], written: Tensor) -> bool:
    """Whether every new token [1, length] is the model's best after those before it, ends left out."""
    config = generator.model.generation_config
    written = written.to(generator.device)
    asked = {"input_ids": written}
    if generator.kind != "causal":
        asked = {**prompt, "decoder_input_ids": written}
    with torch.no_grad():
        logits = generator.model(**asked).logits[0, -PROBE["max_new_tokens"] - 1 : -1].float()
    picked = logits.gather(1, written[0, -PROBE["max_new_tokens"] :, None])[:, 0]
    slack = ROUNDING * logits.std(dim=1)
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    logits[:, [*ends, config.pad_token_id]] = -torch.inf  # that Marian never writes padding is in no logits
    return bool((picked >= logits.amax(dim=1) - slack).all())


def _check(wanted: Any) -> None:
    if wanted.do_sample or wanted.max_new_tokens is None:
        raise UserError("CTranslate2 exports do greedy and beam search, up to max_new_tokens: use onnx for more")
    defaults = wanted._get_default_generation_params()
    for name, value in wanted.to_diff_dict().items():
        if name not in OBEYED and value not in (None, False, defaults.get(name)):
            raise UserError(f"CTranslate2 exports do not know {name} of the generation config: use onnx")
