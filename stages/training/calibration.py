"""The sample of training pairs that importance is measured on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stages.models.checkpoint import Generator
from stages.params import Calibration
from stages.pruning.criterion import Batches


def sample(
    generator: Generator, sources: Sequence[str], targets: Sequence[str], calibration: Calibration, seed: int
) -> Batches:
    """Draw calibration batches from the training split, through the collator that training uses.

    Args:
        generator: encodes and collates; its padding is masked and so left out of every score.
        sources: inputs of the training split.
        targets: texts they should become.
        calibration: how many pairs, and how many a batch. Fewer are used if the split is smaller.
        seed: of the draw, which is without replacement.
    """
    order = torch.randperm(len(sources), generator=torch.Generator().manual_seed(seed))
    drawn = order[: calibration.samples].tolist()
    examples = generator.encode([sources[i] for i in drawn], [targets[i] for i in drawn])
    size = calibration.batch_size
    batches = [generator.collate(examples[i : i + size]) for i in range(0, len(examples), size)]

    def on_device() -> list[dict[str, torch.Tensor]]:
        return [{name: t.to(generator.device) for name, t in batch.items()} for batch in batches]

    return on_device
