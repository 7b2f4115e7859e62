"""Removing entries of the vocabulary: tokenizer, embeddings and language-model head lose the same ones together.

Whatever the tokenizer makes of a text whose tokens are all kept stays what it was, but for the numbers of the tokens:
WordPiece takes the longest piece there is, a unigram model the likeliest sequence of pieces, and neither gets longer or
likelier when others go. Byte-pair merges go by steps, so that what a kept token is merged from is kept as well. Of
WordPiece and unigram models the letters of kept pieces are kept, so that other words of those letters can be spelled.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from torch import Tensor
from transformers import MarianTokenizer, PreTrainedTokenizerFast

from stages.errors import UserError
from stages.models.checkpoint import IGNORED, Generator, sides
from stages.pruning.structure import sentence_pieces

TENSORS = re.compile(
    r".*(word_embeddings\.weight|embed_tokens\.weight|shared\.weight|wte\.weight|embed_out\.weight"
    r"|lm_head\.(weight|bias|decoder\.(weight|bias))|cls\.predictions\.(bias|decoder\.(weight|bias))|final_logits_bias)"
)
"""With a row (or column) for each entry, by name in the state dict."""
UNCUT = 10**6
"""Tokens: more than any text has."""
BYTES = re.compile(r"<0x[0-9A-F]{2}>")
"""Pieces that unknown characters fall back to."""


def seen(generator: Generator, sources: Iterable[str], targets: Iterable[str]) -> set[int]:
    """Tokens of texts, and those that are never removed: special and added tokens, and bytes.

    Args:
        generator: whose tokenizer reads the texts; whole, since a word that is cut at a limit is split as a whole.
        sources: inputs.
        targets: what they should become.
    """
    found: set[int] = set()
    whole = replace(generator, max_source_tokens=UNCUT, max_target_tokens=UNCUT)
    for example in whole.encode(list(sources), list(targets)):
        found.update(example["input_ids"])
        found.update(label for label in example["labels"] if label != IGNORED)
    return found | _always(generator)


def trim(generator: Generator, keep: Iterable[int]) -> Generator:
    """A generator that knows some tokens only, numbered anew in their old order.

    Args:
        generator: which is left as it is.
        keep: tokens, by their numbers; what they are merged from, special tokens and bytes are kept besides.

    Raises:
        UserError: its tokenizer is of a kind that cannot be trimmed.
    """
    tokenizer = generator.tokenizer
    kept = set(keep) | _always(generator)
    rebuild: Callable[[Any, Mapping[int, int]], Any]
    if isinstance(tokenizer, MarianTokenizer):
        rebuild = sentence_pieces.rebuilt
    elif getattr(tokenizer, "is_fast", False):
        spelled = json.loads(tokenizer.backend_tokenizer.to_str())
        kept = _closed(kept, spelled["model"])
        rebuild = partial(_rebuilt, spelled)
    else:
        raise UserError(f"the vocabulary of a {type(tokenizer).__name__} cannot be trimmed: set vocabulary to false")
    renumbered = {old: new for new, old in enumerate(sorted(kept))}
    return replace(
        generator,
        model=_narrowed(generator.model, sorted(kept), renumbered),
        tokenizer=rebuild(tokenizer, renumbered),
    )


def _always(generator: Generator) -> set[int]:
    tokenizer = generator.tokenizer
    found = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    for holder in _holders(generator.model.config, generator.model.generation_config):
        for name, numbers in _numbers(holder).items():
            if name.endswith("_token_id"):
                found |= set(numbers) if isinstance(numbers, list) else {numbers}
    if getattr(tokenizer, "is_fast", False):
        single = isinstance(tokenizer.backend_tokenizer.model, BPE)  # the alphabet: bytes, or characters
        for piece, number in tokenizer.get_vocab().items():
            if BYTES.fullmatch(piece) or (single and len(piece) == 1):
                found.add(number)
    return found


def _closed(keep: set[int], model: Mapping[str, Any]) -> set[int]:
    """Tokens, with those that they are merged from, or that spell them."""
    if model["type"] != "BPE":
        return keep | _letters(keep, model)
    numbers = model["vocab"]
    parts: dict[int, set[int]] = {}
    for left, right in map(_parts, model["merges"]):
        if (made := numbers.get(left + right)) is not None:
            parts.setdefault(made, set()).update((numbers[left], numbers[right]))
    waiting = list(keep)
    while waiting:
        new = parts.get(waiting.pop(), set()) - keep
        keep |= new
        waiting.extend(new)
    return keep


def _letters(keep: set[int], model: Mapping[str, Any]) -> set[int]:
    """Pieces of one letter, at the start of a word and within one, of all letters that some pieces have."""
    if model["type"] == "Unigram":
        numbers = {piece: number for number, (piece, _) in enumerate(model["vocab"])}
        inner = ""
    else:
        numbers, inner = model["vocab"], model.get("continuing_subword_prefix", "")
    letters = {letter for piece, number in numbers.items() if number in keep for letter in piece.removeprefix(inner)}
    spelled = letters | {inner + letter for letter in letters}
    return {numbers[piece] for piece in spelled if piece in numbers}


def _rebuilt(spelled: dict[str, Any], tokenizer: Any, renumbered: Mapping[int, int]) -> Any:
    """The tokenizer with the entries that have a new number, in its general class: its own would add others again."""
    model = spelled["model"]
    if model["type"] == "Unigram":
        kept = [entry for number, entry in enumerate(model["vocab"]) if number in renumbered]
        model["vocab"], model["unk_id"] = kept, renumbered.get(model["unk_id"])
    elif model["type"] in ("BPE", "WordPiece", "WordLevel"):
        old = model["vocab"]
        model["vocab"] = {piece: renumbered[number] for piece, number in old.items() if number in renumbered}
        if model["type"] == "BPE":
            model["merges"] = [
                merge
                for merge in model["merges"]
                if {*(parts := _parts(merge)), "".join(parts)} <= model["vocab"].keys()
            ]
    else:
        raise UserError(f"a vocabulary of type {model['type']} cannot be trimmed: set vocabulary to false")
    for token in spelled["added_tokens"]:
        token["id"] = renumbered[token["id"]]
    _renumber(spelled.get("post_processor"), renumbered)
    settings = {name: getattr(tokenizer, name) for name in ("padding_side", "truncation_side", "model_max_length")}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(spelled)),
        clean_up_tokenization_spaces=False,
        **settings,
        **tokenizer.special_tokens_map,
    )


def _parts(merge: Any) -> tuple[str, str]:
    """The two tokens of a merge, which older files have as one text."""
    left, right = merge if isinstance(merge, list) else merge.split(" ")
    return left, right


def _renumber(processor: Any, renumbered: Mapping[int, int]) -> None:
    """Put new numbers into what adds special tokens, in place."""
    if isinstance(processor, list):
        for item in processor:
            _renumber(item, renumbered)
    elif isinstance(processor, dict):
        for name in ("sep", "cls"):  # [token, number]
            if isinstance(processor.get(name), list):
                processor[name][1] = renumbered[processor[name][1]]
        for special in processor.get("special_tokens", {}).values():
            special["ids"] = [renumbered[number] for number in special["ids"]]
        _renumber(processor.get("processors"), renumbered)


def _narrowed(model: Any, kept: list[int], renumbered: Mapping[int, int]) -> Any:
    config = copy.deepcopy(model.config)
    generation = copy.deepcopy(model.generation_config)
    for holder in _holders(config, generation):
        for name, numbers in _numbers(holder).items():
            setattr(holder, name, _mapped(numbers, renumbered))
        for field in ("vocab_size", "decoder_vocab_size"):
            if getattr(holder, field, None):
                setattr(holder, field, len(kept))
    rows = {side.get_input_embeddings().num_embeddings for side in sides(model)}
    index = torch.tensor(kept, device=model.device)
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if TENSORS.fullmatch(name):
            place = next(place for place, size in enumerate(tensor.shape) if size in rows)
            tensor = tensor.index_select(place, index)
        state[name] = tensor
    with torch.random.fork_rng(devices=[]):  # the weights that are drawn here are replaced
        smaller: Any = type(model)(config)
    smaller.load_state_dict(state, strict=True)
    smaller.to(dtype=model.dtype, device=model.device)
    smaller.generation_config = generation
    return smaller.eval()


def _holders(config: Any, generation: Any) -> list[Any]:
    parts = [getattr(config, side, None) for side in ("encoder", "decoder")]
    return [config, *(part for part in parts if part is not None), generation]


def _numbers(holder: Any) -> dict[str, Any]:
    """Tokens that a config names by their numbers: one, a list, or lists of them."""
    named = (name for name in vars(holder) if name.endswith(("_token_id", "suppress_tokens", "bad_words_ids")))
    values = {name: getattr(holder, name) for name in named}
    return {name: v for name, v in values.items() if isinstance(v, list) or (isinstance(v, int) and v >= 0)}


def _mapped(numbers: Any, renumbered: Mapping[int, int]) -> Any:
    """New numbers; of lists, without what names a token that is gone, which cannot come up any more."""
    if not isinstance(numbers, list):
        return renumbered[numbers]
    if any(isinstance(item, list) for item in numbers):
        return [_mapped(item, renumbered) for item in numbers if all(number in renumbered for number in item)] or None
    return [renumbered[number] for number in numbers if number in renumbered] or None
