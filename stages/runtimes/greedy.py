"""Greedy search over the steps of a graph, without the cost of `transformers`' own loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Step = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""The next tokens [batch, new] to the logits of the tokens after them [batch, vocabulary], which it may change."""

OBEYED = {
    "bad_words_ids",
    "decoder_start_token_id",
    "eos_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "pad_token_id",
}
"""Settings of a generation config that `Settings` stands for."""
WITHOUT_EFFECT = {
    "_from_model_config",
    "bos_token_id",
    "early_stopping",
    "length_penalty",
    "max_length",  # `max_new_tokens` goes before it
    "temperature",
    "top_k",
    "top_p",
    "transformers_version",
}
"""Settings that say nothing on greedy search."""


@dataclass(frozen=True)
class Settings:
    """Of greedy search, as a generation config has them; lengths are in tokens, a start token or prompt included."""

    start: int | None
    ends: tuple[int, ...]
    padding: int
    min_length: int
    max_length: int
    forced_first: int | None
    forced_last: tuple[int, ...]
    suppressed: tuple[int, ...]


def settings(config: Any, length: int) -> Settings | None:
    """What a generation config says on greedy search, or None if it asks for more than `search` does.

    Args:
        config: with the defaults of `generate` filled in.
        length: tokens there are before the first new one.
    """
    if config.num_beams != 1 or config.do_sample or config.max_new_tokens is None or not config.use_cache:
        return None
    defaults = config._get_default_generation_params()
    for name, value in config.to_diff_dict().items():
        if name not in OBEYED | WITHOUT_EFFECT and value not in (None, False, defaults.get(name)):
            return None
    ends = _tokens(config.eos_token_id)
    bad = config.bad_words_ids or []
    if any(len(word) > 1 for word in bad):
        return None
    start = config.decoder_start_token_id
    shortest = config.min_length or 0
    return Settings(
        start=start if start is not None else config.bos_token_id,
        ends=ends,
        padding=config.pad_token_id if config.pad_token_id is not None else next(iter(ends), 0),
        min_length=shortest if config.min_new_tokens is None else length + config.min_new_tokens,
        max_length=length + config.max_new_tokens,
        forced_first=config.forced_bos_token_id,
        forced_last=_tokens(config.forced_eos_token_id),
        suppressed=tuple(word[0] for word in bad if word[0] not in ends),
    )


def search(step: Step, prompt: NDArray[np.int64], wanted: Settings) -> NDArray[np.int64]:
    """The likeliest token at every step, until every text has ended.

    Args:
        step: called with the prompt, then with each token.
        prompt: tokens to begin with, [batch, length].
        wanted: settings.

    Returns:
        Prompt and new tokens, [batch, length]; after its end a text has padding.
    """
    sequences = np.full((len(prompt), wanted.max_length), wanted.padding, dtype=np.int64)
    length = prompt.shape[1]
    sequences[:, :length] = prompt
    going = np.ones(len(prompt), dtype=bool)
    new = prompt
    ends = np.array(wanted.ends, dtype=np.int64)
    while length < wanted.max_length:
        logits = step(new)
        allowed = _allowed(wanted, length)
        if wanted.suppressed:
            logits[:, list(wanted.suppressed)] = -np.inf
        if length < wanted.min_length:
            logits[:, ends] = -np.inf
        if allowed:
            others = np.ones(logits.shape[1], dtype=bool)
            others[list(allowed)] = False
            logits[:, others] = -np.inf
            logits[:, ~others] = 0
        new = np.where(going, logits.argmax(axis=1), wanted.padding)[:, None]
        sequences[:, length] = new[:, 0]
        length += 1
        going &= (new != ends).all(axis=1)
        if not going.any():
            break
    return sequences[:, :length]


def _allowed(wanted: Settings, length: int) -> tuple[int, ...]:
    """The only tokens that may stand at this place, or nothing."""
    if length == wanted.max_length - 1 and wanted.forced_last:
        return wanted.forced_last
    return (wanted.forced_first,) if length == 1 and wanted.forced_first is not None else ()


def _tokens(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (value,)
