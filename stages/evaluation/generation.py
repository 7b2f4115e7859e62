"""Generate texts in batches of like length, results in the order of the inputs.

Inputs are sorted by length so that little of a batch is padding. A text's output may differ in rare ties with
the texts it shares a batch with, since padding changes the last bits of a sum; the same texts, batch size and
thread count always give the same output.

Sampling is seeded anew for each batch, from the seed and the number of the batch. So an output depends on the
seed, on where the text stands and on the texts beside it, not on what was generated for others before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice
from typing import Any

import torch

from stages.files import digest
from stages.models.checkpoint import Generator
from stages.params import Evaluate

WINDOW = 16
"""Batches that are held, sorted by length and returned together when texts are streamed."""


def decoding(evaluate: Evaluate) -> dict[str, Any]:
    """Arguments of `model.generate` for greedy search, beam search or sampling, as the params say."""
    options: dict[str, Any] = {
        "num_beams": evaluate.num_beams,
        "do_sample": evaluate.do_sample,
        "repetition_penalty": evaluate.repetition_penalty,
    }
    if evaluate.num_beams > 1:
        options["length_penalty"] = evaluate.length_penalty
    if evaluate.do_sample:
        options |= {"temperature": evaluate.temperature, "top_k": evaluate.top_k, "top_p": evaluate.top_p}
    return options


def generate(
    generator: Generator,
    texts: Sequence[str],
    *,
    batch_size: int,
    seed: int,
    options: dict[str, Any],
    done: Callable[[int], object] = lambda texts: None,
    first_batch: int = 0,
) -> list[str]:
    """Generate an output for each text; a blank text has a blank output.

    Args:
        generator: model and tokenizer.
        texts: inputs; longer ones are cut at `generator.max_source_tokens`.
        batch_size: texts generated at a time.
        seed: of sampling.
        options: arguments of `model.generate`, see `decoding`.
        done: called with the number of texts after each batch.
        first_batch: number of the first batch, where these texts are part of more.
    """
    outputs = [""] * len(texts)
    # Longest first: if a batch does not fit the memory, that shows at once.
    order = sorted((i for i, text in enumerate(texts) if text.strip()), key=lambda i: -len(texts[i]))
    done(len(texts) - len(order))
    for number, start in enumerate(range(0, len(order), batch_size), start=first_batch):
        rows = order[start : start + batch_size]
        batch = [texts[i] for i in rows]
        torch.manual_seed(int(digest(str(seed), str(number))[:15], 16))
        for i, output in zip(rows, generate_batch(generator, batch, options), strict=True):
            outputs[i] = output
        done(len(rows))
    return outputs


def stream(
    generator: Generator,
    texts: Iterable[str],
    *,
    batch_size: int,
    seed: int,
    options: dict[str, Any],
    done: Callable[[int], object] = lambda texts: None,
) -> Iterator[tuple[str, str]]:
    """Yield (text, output) in order for any number of texts, holding `WINDOW` batches of them at a time.

    Arguments are those of `generate`.
    """
    remaining = iter(texts)
    for first_batch in count(step=WINDOW):
        window = list(islice(remaining, WINDOW * batch_size))
        if not window:
            return
        outputs = generate(
            generator,
            window,
            batch_size=batch_size,
            seed=seed,
            options=options,
            done=done,
            first_batch=first_batch,
        )
        yield from zip(window, outputs, strict=True)


def generate_batch(generator: Generator, texts: Sequence[str], options: dict[str, Any]) -> list[str]:
    """Generate one batch; up to `generator.max_target_tokens` tokens, unless `options` say otherwise."""
    prompts = generator.prompts(texts)
    prompt_length = prompts["input_ids"].shape[1] if generator.kind == "causal" else 0
    options = {"max_new_tokens": generator.max_target_tokens, **options}
    with torch.inference_mode():
        sequences = generator.model.generate(**prompts, **options)
    return generator.decode(sequences, prompt_length)
