"""Loss of a generator over all pairs of a split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from stages.models.checkpoint import IGNORED, Generator
from stages.models.likelihood import aligned


def mean_loss(generator: Generator, sources: Sequence[str], targets: Sequence[str], *, batch_size: int) -> float:
    """Mean negative log-likelihood of a target token, in nats; its exponential is the perplexity.

    The mean is over the tokens of all pairs (end tokens included), not over batches or pairs, so it does not
    depend on the batch size. Batches are of like length; label smoothing and autocast are off. Targets are
    cut as in training.

    Args:
        generator: model and tokenizer.
        sources: inputs.
        targets: a target for each.
        batch_size: pairs at a time.
    """
    model: Any = generator.model
    examples = generator.encode(sources, targets)
    examples.sort(key=lambda example: (len(example["labels"]), len(example["input_ids"])))
    total, tokens = 0.0, 0
    for start in range(0, len(examples), batch_size):
        batch = generator.collate(examples[start : start + batch_size])
        batch = {name: tensor.to(generator.device) for name, tensor in batch.items()}
        labels = batch.pop("labels")  # given them, the model would compute a loss as well
        if generator.kind != "causal":
            batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=labels)
        with torch.inference_mode():
            logits = model(**batch).logits
        logits, labels = aligned(logits, labels, causal=generator.kind == "causal")
        losses = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
        )
        total += losses.double().sum().item()
        tokens += int((labels != IGNORED).sum())
    return total / tokens
