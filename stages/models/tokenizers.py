"""A tokenizer trained on the training split, or a checkpoint's fitted to it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stages.errors import UserError

PAD, START, END, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What merges stay within: a word with the space before it, a digit, a run of punctuation (after GPT-2's)."""


def train_tokenizer(texts: Iterable[str], vocab_size: int, lowercase: bool) -> Any:
    """Train a byte-level BPE tokenizer.

    Bytes leave no text unknown, Chinese included, and decoding gives back every space as it was; digits are
    kept apart so that numbers are spelt. Source: Sennrich et al. 2016 (BPE), Radford et al. 2019 (bytes).

    Args:
        texts: what to train on.
        vocab_size: entries, special tokens and the 256 bytes included.
        lowercase: fold case before splitting.
    """
    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, START, END, UNKNOWN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        pair=f"{START} $A {END} $B {END}",
        special_tokens=[(START, start), (END, end)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        unk_token=UNKNOWN,
        cls_token=START,
        sep_token=END,
        clean_up_tokenization_spaces=False,
    )


def as_loaded(tokenizer: Any, config: Any) -> Any:
    """A trained tokenizer as `AutoTokenizer` loads it from the folder of a model of this config.

    For some model types (Qwen2 is one) transformers takes its own class whatever tokenizer is saved, which splits words
    by other rules than those that the tokenizer was trained with. The model has to be trained with what users will get.

    Raises:
        UserError: what is loaded does not fold case, though the tokenizer does.
    """
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if loaded.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str():
        return tokenizer
    if isinstance(tokenizer.backend_tokenizer.normalizer, normalizers.Lowercase):
        raise UserError(
            f"model.tokenizer.lowercase: transformers loads the tokenizer of a {config.model_type} by rules of its "
            "own, which keep case: set it to false"
        )
    return loaded


def keep_placeholders(tokenizer: Any, texts: Iterable[str], pattern: str) -> Any:
    """A tokenizer that gives back all placeholders of the texts: the given one if it does already.

    WordPiece folds case and drops spaces: `#HOTEL-NAME#` would come out as `# hotel - name #`, a slot lost whatever
    the model learns. Each placeholder that is lost becomes a token of its own. Tokenizers that work on bytes lose none.
    """
    found = sorted({match.group() for text in texts for match in re.finditer(pattern, text)})
    spelt = tokenizer(found, add_special_tokens=False)["input_ids"] if found else []
    lost = [
        placeholder
        for placeholder, ids in zip(found, spelt, strict=True)
        if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != placeholder
    ]
    if not lost:
        return tokenizer
    tokenizer.add_tokens([AddedToken(placeholder, normalized=False) for placeholder in lost])
    if not tokenizer.is_fast or not isinstance(tokenizer.backend_tokenizer.decoder, decoders.WordPiece):
        return tokenizer
    # The decoder would join punctuation to words, and `#NAME# .` come out without its space. BertTokenizer puts
    # that decoder back whenever it is loaded, so the tokenizer goes on under the general class.
    tokenizer.backend_tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        clean_up_tokenization_spaces=False,
        **tokenizer.special_tokens_map,
    )
