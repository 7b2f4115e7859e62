"""The sample of training pairs that importance is measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import torch

from stages.models.anatomy import Matrix
from stages.models.checkpoint import Generator
from stages.params.prune import Calibration, Prune
from stages.pruning.criterion import Batches, Context


def context(
    generator: Generator,
    matrices: Mapping[str, Matrix],
    pairs: tuple[Sequence[str], Sequence[str]],
    rules: Prune,
    method: str,
    seed: int,
) -> Context:
    """What a method may look at: the model, a sample of the sources and targets it was trained on, its own params."""
    return Context(
        model=generator.model,
        matrices=matrices,
        batches=sample(generator, *pairs, rules.calibration, seed),
        seed=seed,
        settings=getattr(rules, method),
    )


def sample(
    generator: Generator, sources: Sequence[str], targets: Sequence[str], calibration: Calibration, seed: int
) -> Batches:
    """Draw calibration batches from the training split, through the collator that training uses.

    They are drawn at the first call of what is returned: most criteria need none.

    Args:
        generator: encodes and collates; its padding is masked and so left out of every score.
        sources: inputs of the training split.
        targets: texts they should become.
        calibration: how many pairs, and how many a batch. Fewer are used if the split is smaller.
        seed: of the draw, which is without replacement.
    """

    @cache
    def drawn() -> list[dict[str, torch.Tensor]]:
        order = torch.randperm(len(sources), generator=torch.Generator().manual_seed(seed))
        chosen = order[: calibration.samples].tolist()
        examples = generator.encode([sources[i] for i in chosen], [targets[i] for i in chosen])
        size = calibration.batch_size
        return [generator.collate(examples[i : i + size]) for i in range(0, len(examples), size)]

    def on_device() -> list[dict[str, torch.Tensor]]:
        return [{name: t.to(generator.device) for name, t in batch.items()} for batch in drawn()]

    return on_device
