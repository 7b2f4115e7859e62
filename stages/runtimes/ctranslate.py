"""CTranslate2: an engine with kernels of its own, for the families that its converter knows."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import ctranslate2
import torch
from ctranslate2.converters import TransformersConverter
from torch import Tensor

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


def export(folder: Path, quantization: str | None) -> None:
    """Convert a plain `transformers` folder; what comes out lies in it, in `FOLDER`.

    Args:
        folder: what to convert.
        quantization: `int8`, or None to keep float.

    Raises:
        UserError: the converter does not know this family, or this model of it.
    """
    with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=".float-") as between:
        source = Path(between) / "checkpoint"
        shutil.copytree(folder, source)
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        family = config["model_type"]
        (source / "config.json").write_text(json.dumps(FORGOTTEN.get(family, {}) | config), encoding="utf-8")
        try:
            TransformersConverter(str(source)).convert(str(folder / FOLDER), quantization=quantization)
        except Exception as error:  # of the converter, each family's loader having its own kinds
            raise UserError(
                f"a model of type {family} cannot be exported to CTranslate2: {one_line(error)}; use onnx"
            ) from error


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
        shortest = min(wanted.min_new_tokens or 0, longest)
        if self.config.is_encoder_decoder:
            found = self._engine.translate_batch(
                texts, max_input_length=0, max_decoding_length=longest, min_decoding_length=shortest, **common
            )
            new = [self._tokenizer.convert_tokens_to_ids(result.hypotheses[0]) for result in found]
            begin = torch.full((len(texts), 1), wanted.decoder_start_token_id)
        else:
            found = self._engine.generate_batch(
                texts, max_length=longest, min_length=shortest, include_prompt_in_result=False, **common
            )
            new = [result.sequences_ids[0] for result in found]
            begin = input_ids
        last = [forced if forced is not None and len(ids) == longest else ends[0] for ids in new]
        rows = [torch.tensor([*ids, end][: wanted.max_new_tokens]) for ids, end in zip(new, last, strict=True)]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=wanted.pad_token_id)
        return torch.cat([begin, padded], dim=1)


def _check(wanted: Any) -> None:
    if wanted.do_sample or wanted.max_new_tokens is None:
        raise UserError("CTranslate2 exports do greedy and beam search, up to max_new_tokens: use onnx for more")
    defaults = wanted._get_default_generation_params()
    for name, value in wanted.to_diff_dict().items():
        if name not in OBEYED and value not in (None, False, defaults.get(name)):
            raise UserError(f"CTranslate2 exports do not know {name} of the generation config: use onnx")
