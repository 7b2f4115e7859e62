"""Greedy search, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import GenerationConfig

from stages.runtimes.greedy import Settings, search, settings

PLAIN = Settings(
    start=1, ends=(2,), padding=0, min_length=0, max_length=6, forced_first=None, forced_last=(), suppressed=()
)


def counter(tokens):
    """Likes the token after the last best, then the one after that; two rows end at different steps."""
    logits = np.zeros((len(tokens), 10), dtype=np.float32)
    last = tokens[:, -1]
    rows = np.arange(len(tokens))
    logits[rows, np.where(last == 5, 2, (last + 1) % 10)] = 2
    logits[rows, (last + 2) % 10] = 1
    return logits


def changed(**changes) -> Settings:
    return Settings(**(PLAIN.__dict__ | changes))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (PLAIN, [[3, 4, 5, 2, 0, 0], [6, 7, 8, 9, 0, 1]]),
        (changed(padding=9), [[3, 4, 5, 2, 9, 9], [6, 7, 8, 9, 0, 1]]),
        (changed(max_length=3), [[3, 4, 5], [6, 7, 8]]),
        (changed(min_length=5), [[3, 4, 5, 7, 8, 9], [6, 7, 8, 9, 0, 1]]),
        (changed(suppressed=(4, 7)), [[3, 5, 2, 0, 0, 0], [6, 8, 9, 0, 1, 2]]),
        (changed(forced_last=(2,)), [[3, 4, 5, 2, 0, 0], [6, 7, 8, 9, 0, 2]]),
        (changed(forced_first=4, ends=()), [[3, 4, 5, 2, 3, 4], [6, 4, 5, 2, 3, 4]]),
        (changed(ends=(2, 7)), [[3, 4, 5, 2], [6, 7, 0, 0]]),
    ],
)
def test_tokens(wanted, expected):
    prompt = np.array([[3], [6]])
    assert search(counter, prompt, wanted).tolist() == expected


def test_a_prompt_is_read_at_once_and_kept():
    seen = []

    def step(tokens):
        seen.append(tokens.tolist())
        return counter(tokens)

    found = search(step, np.array([[0, 8, 4], [7, 7, 7]]), changed(max_length=5))
    assert found.tolist() == [[0, 8, 4, 5, 2], [7, 7, 7, 8, 9]]
    assert seen == [[[0, 8, 4], [7, 7, 7]], [[5], [8]]]


def filled(**values) -> GenerationConfig:
    config = GenerationConfig(**values)
    config.update(**config._get_default_generation_params(), defaults_only=True)
    return config


def test_settings_of_a_config():
    config = filled(
        max_new_tokens=20,
        min_new_tokens=3,
        eos_token_id=[2, 4],
        pad_token_id=0,
        decoder_start_token_id=1,
        forced_eos_token_id=2,
        bad_words_ids=[[0], [4]],
        length_penalty=2.0,
        top_k=7,
        max_length=100,
        output_attentions=False,
        no_repeat_ngram_size=0,
    )
    config._from_model_config = True
    assert settings(config, 1) == Settings(
        start=1,
        ends=(2, 4),
        padding=0,
        min_length=4,
        max_length=21,
        forced_first=None,
        forced_last=(2,),
        suppressed=(0,),
    )


@pytest.mark.parametrize(
    "more",
    [
        {"num_beams": 2},
        {"do_sample": True},
        {"repetition_penalty": 1.1},
        {"no_repeat_ngram_size": 3},
        {"bad_words_ids": [[3, 4]]},
        {"suppress_tokens": [3]},
        {"use_cache": False},
        {"stop_strings": ["a"]},
        {"max_time": 1.0},
        {"return_dict_in_generate": True},
        {"max_new_tokens": None, "max_length": 9},
    ],
)
def test_what_the_search_does_not_do_is_not_taken_for_greedy(more):
    assert settings(filled(max_new_tokens=5), 1) is not None
    assert settings(filled(**({"max_new_tokens": 5} | more)), 1) is None
