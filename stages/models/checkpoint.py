"""A generator with its tokenizer: load, save, encode, decode.

A checkpoint is a plain `transformers` folder; what encoding needs beside it (how long an input may be, how
many tokens to generate) is kept where `transformers` keeps it: `model_max_length` of the tokenizer and
`max_new_tokens` of the generation config.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    EncoderDecoderModel,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.tokenization_utils_base import LARGE_INTEGER

from stages.bitmasks import MASKS_FILE, Masks
from stages.errors import UserError
from stages.files import replacing
from stages.models import sparse
from stages.models.origins import check_safe, check_there, reading
from stages.models.origins import one_line as one_line
from stages.models.sharing import copies, share_sides, unshared_state

Kind = Literal["encoder_decoder", "seq2seq", "causal"]
IGNORED = -100
"""Label of positions that the loss leaves out."""
SEPARATOR = "\n"
"""Between prompt and completion of a causal generator."""
VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model", "*.spm")
"""Files that a tokenizer's vocabulary may be in."""


@dataclass
class Generator:
    """A model and tokenizer that turn an input text into an output text."""

    model: PreTrainedModel
    tokenizer: Any
    max_source_tokens: int
    max_target_tokens: int

    @property
    def kind(self) -> Kind:
        """Which of the three shapes of generator this is."""
        if self.model.config.model_type == "encoder-decoder":
            return "encoder_decoder"
        return "seq2seq" if self.model.config.is_encoder_decoder else "causal"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def encode(self, sources: Sequence[str], targets: Sequence[str]) -> list[dict[str, list[int]]]:
        """Training examples: token ids and labels, unpadded.

        A causal generator sees prompt and completion as one sequence; its labels are -100 on the prompt, so
        that the loss is of the completion alone.
        """
        inputs = self._source_ids(sources)
        labels = self._target_ids(targets)
        if self.kind != "causal":
            return [{"input_ids": i, "labels": t} for i, t in zip(inputs, labels, strict=True)]
        return [{"input_ids": i + t, "labels": [IGNORED] * len(i) + t} for i, t in zip(inputs, labels, strict=True)]

    def collate(self, examples: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        """Pad examples on the right to a batch: `input_ids`, `attention_mask`, `labels`, each [batch, length]."""
        batch = self._pad([example["input_ids"] for example in examples], side="right")
        labels = [torch.tensor(example["labels"]) for example in examples]
        batch["labels"] = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        return batch

    def prompts(self, sources: Sequence[str]) -> dict[str, Tensor]:
        """Inputs of `model.generate` on the model's device, each [batch, length]; causal ones padded on the left."""
        side = "left" if self.kind == "causal" else "right"
        batch = self._pad(self._source_ids(sources), side=side)
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def decode(self, sequences: Tensor, prompt_length: int = 0) -> list[str]:
        """Texts of generated token ids [batch, length], without special tokens and without the prompt."""
        return self.tokenizer.batch_decode(
            sequences[:, prompt_length:], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _source_ids(self, sources: Sequence[str]) -> list[list[int]]:
        if self.kind == "causal":
            # The separator is never cut off: without it the model would go on with the prompt.
            separator = self.tokenizer(SEPARATOR, add_special_tokens=False)["input_ids"]
            cut = self._tokenize(sources, self.max_source_tokens - len(separator))
            return [ids + separator for ids in cut]
        return self._tokenize(sources, self.max_source_tokens)

    def _target_ids(self, targets: Sequence[str]) -> list[list[int]]:
        if self.kind == "seq2seq":
            return self._tokenize(targets, self.max_target_tokens, as_target=True)
        end = self.model.generation_config.eos_token_id
        end = end[0] if isinstance(end, list) else end
        bare = self._tokenize(targets, self.max_target_tokens - 1, special=False)
        return [[*ids, end] for ids in bare]

    def _tokenize(
        self, texts: Sequence[str], limit: int, special: bool = True, as_target: bool = False
    ) -> list[list[int]]:
        if not texts:
            return []
        key = "text_target" if as_target else "text"
        return self.tokenizer(**{key: list(texts)}, truncation=True, max_length=limit, add_special_tokens=special)[
            "input_ids"
        ]

    def _pad(self, sequences: list[list[int]], side: str) -> dict[str, Tensor]:
        longest = max(len(ids) for ids in sequences)
        padding = self.tokenizer.pad_token_id
        ids = torch.full((len(sequences), longest), padding, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            where = slice(longest - len(sequence), longest) if side == "left" else slice(len(sequence))
            ids[row, where] = torch.tensor(sequence)
            mask[row, where] = 1
        return {"input_ids": ids, "attention_mask": mask}


def load(folder: Path | str) -> Generator:
    """Load a generator from a folder this pipeline saved, in evaluation mode, on the GPU if there is one.

    Raises:
        UserError: the folder is missing, damaged, not a generator, or holds pickled weights only.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no checkpoint (config.json is missing): run `dvc repro` or `dvc pull`")
    config = load_config(str(folder))
    model = load_model(str(folder), auto_class(config), config=config)
    tokenizer = load_tokenizer(str(folder))
    read, generated = limits(tokenizer, model.generation_config, folder)
    _check_belongs(tokenizer, model, folder)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return Generator(model.eval(), tokenizer, read, generated)


def limits(tokenizer: Any, generation_config: GenerationConfig, folder: Path) -> tuple[int, int]:
    """How many tokens a generator reads, and how many it generates.

    Raises:
        UserError: its folder does not say so.
    """
    generated = generation_config.max_new_tokens
    if generated is None:
        raise UserError(f"{folder}/generation_config.json: max_new_tokens is missing: add how many to generate")
    read = tokenizer.model_max_length
    if not isinstance(read, int) or read >= LARGE_INTEGER:
        raise UserError(f"{folder}/tokenizer_config.json: model_max_length is missing: add how many tokens are read")
    return read, generated


def save(
    generator: Generator,
    folder: Path | str,
    *,
    masks: Masks | None = None,
    storage: Literal["dense", "sparse"] = "dense",
) -> None:
    """Write a generator as a plain `transformers` folder, replacing `folder` only once all is written.

    The bytes depend on the weights and settings alone: where a model was loaded from is left out.

    Args:
        generator: what to save.
        folder: to write to.
        masks: of its pruned weights, written beside the checkpoint.
        storage: `sparse` leaves out the zeros of the masks, see `stages.models.sparse`; `load` reads both.
    """
    model, tokenizer = generator.model, generator.tokenizer
    for config in (model.config, *(getattr(model.config, side, None) for side in ("encoder", "decoder"))):
        if config is not None:
            config._name_or_path = ""
            config.dtype = model.dtype
    model.generation_config.max_new_tokens = generator.max_target_tokens
    tokenizer.model_max_length = generator.max_source_tokens
    tokenizer.name_or_path = ""
    # Left by how the tokenizer was loaded and last called, not settings of it.
    for passing in ("name_or_path", "is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(passing, None)
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
    with replacing(folder) as partial:
        model.save_pretrained(partial, state_dict=unshared_state(model))
        tokenizer.save_pretrained(partial)
        if masks:
            masks.save(partial / MASKS_FILE)
            if storage == "sparse":
                sparse.compress(partial, masks, copies(model))


def auto_class(config: Any) -> Any:
    """The `transformers` class that loads a generator with this config.

    Raises:
        UserError: it is the config of something that does not generate text.
    """
    if config.model_type == "encoder-decoder":
        return EncoderDecoderModel
    for auto in (AutoModelForSeq2SeqLM, AutoModelForCausalLM):
        if type(config) in auto._model_mapping:
            return auto
    raise UserError(f"a model of type {config.model_type} does not generate text: use BART, T5, Marian, GPT-2, …")


def load_config(origin: str) -> Any:
    """The config at a local folder or hub id.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    check_there(origin)
    config = reading(origin, lambda: PreTrainedConfig.get_config_dict(origin)[0])
    kind = config.get("model_type")
    if kind is not None and kind not in CONFIG_MAPPING:
        raise UserError(f"{origin}: transformers {transformers.__version__} knows no model_type {kind}")
    return reading(origin, lambda: AutoConfig.from_pretrained(origin, trust_remote_code=False))


def load_tokenizer(origin: str) -> Any:
    """The tokenizer at a local folder or hub id.

    Raises:
        UserError: there is none, it has no vocabulary, or it cannot be read.
    """
    check_there(origin)
    folder = Path(origin)
    try:
        tokenizer = reading(origin, lambda: AutoTokenizer.from_pretrained(origin, trust_remote_code=False))
    except UserError:
        if not folder.is_dir() or any(file for pattern in VOCABULARIES for file in folder.glob(pattern)):
            raise
        tokenizer = None
    # Where there are no files, transformers makes a tokenizer of special tokens alone (T5's has a space as well).
    if tokenizer is None or len(tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys()) <= 1:
        raise UserError(
            f"{origin} holds no vocabulary: put its tokenizer there (tokenizer.json, vocab.txt, vocab.json with "
            "merges.txt, or a .model or .spm file)"
        )
    return tokenizer


def load_model(
    origin: str, auto: Any, *, config: Any, new_weights: Sequence[str] = (), changed: bool = False
) -> PreTrainedModel:
    """The model at a local folder or hub id, from safetensors only, in fp32; with its sides shared if they were.

    A local folder may also be one without zeros, see `stages.models.sparse`.

    Args:
        origin: local folder or hub id.
        auto: `transformers` class to load it with.
        config: its config, perhaps changed.
        new_weights: parts of parameter names that the checkpoint need not have (they start at random).
        changed: whether the config was, so that layers may be left out.

    Raises:
        UserError: there are no safetensors, they are damaged, or they are not the weights of this config.
    """
    check_safe(origin, config)
    model, report = reading(
        origin,
        lambda: _from_pretrained(
            origin,
            auto,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
        ),
    )
    for name, found, wanted in sorted(report["mismatched_keys"]):
        raise UserError(f"{origin}: {name} is {by(found)}, its config asks for {by(wanted)}: they must agree")
    missing = sorted(k for k in report["missing_keys"] if not any(part in k for part in new_weights))
    if missing:
        raise UserError(f"{origin} lacks {len(missing)} weights of the model, such as {missing[0]}")
    beyond = [] if changed else sorted(_of_more_layers(report["unexpected_keys"], model))
    if beyond:
        raise UserError(f"{origin}: its config asks for fewer layers than it has weights of, such as {beyond[0]}")
    if getattr(config, "share_weights", False):
        share_sides(model)
    return model


def skeleton(auto: Any, config: Any) -> PreTrainedModel:
    """The model that a config describes, as its class is and with its shapes, without weights."""
    with torch.device("meta"):
        return auto.from_config(config) if hasattr(auto, "from_config") else auto(config)


def vocabulary_size(tokenizer: Any) -> int:
    """Embeddings that a tokenizer needs: one more than its highest id, since ids may have gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def sides(model: Any) -> tuple[Any, ...]:
    """The models with embeddings of their own: encoder and decoder of an encoder-decoder of two, else the model."""
    return (model.encoder, model.decoder) if isinstance(model, EncoderDecoderModel) else (model,)


def _of_more_layers(names: Iterable[str], model: PreTrainedModel) -> Iterator[str]:
    """Those of some names that a model would have if one of its lists of layers was longer."""
    lists = {name: len(module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    for name in names:
        for match in re.finditer(r"\.(\d+)\.", name):
            if int(match[1]) >= lists.get(name[: match.start()], int(match[1]) + 1):
                yield name


def _from_pretrained(origin: str, auto: Any, *, config: Any, **options: Any) -> Any:
    folder = Path(origin)
    if not sparse.is_sparse(folder):
        return auto.from_pretrained(origin, config=config, use_safetensors=True, trust_remote_code=False, **options)
    cls: Any = type(skeleton(auto, config))
    generation = GenerationConfig.from_pretrained(origin) if cls.can_generate() else None
    return cls.from_pretrained(
        None, config=config, state_dict=sparse.state(folder), generation_config=generation, **options
    )


def _check_belongs(tokenizer: Any, model: Any, folder: Path) -> None:
    entries = vocabulary_size(tokenizer)
    rows = min(side.get_input_embeddings().num_embeddings for side in sides(model))
    if entries > rows:
        raise UserError(
            f"{folder}: the tokenizer has {entries} entries, the model only {rows}: put the model's own there"
        )


def by(shape: Sequence[int]) -> str:
    """A shape as an error spells it."""
    return " x ".join(map(str, shape))
