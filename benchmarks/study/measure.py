"""Figures of one cell: quality on test and validation, and the losses that overfitting shows in.

The evaluate stage's own functions, without its timings and resamples: intervals here are over training seeds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.study.plan import ONE_SHOT, Cell
from stages import layout
from stages.params import Params
from stages.runtime import prepare

if TYPE_CHECKING:
    from stages.models.checkpoint import Generator

TRAINING_PAIRS = 1000
"""Of the training split, evenly spaced, for its loss."""


def figures(settings: Params, cell: Cell) -> dict[str, float]:
    """Figures of the cell whose stages have run in the working directory, by the names that a row has."""
    from stages.evaluation.figures import scores
    from stages.evaluation.generation import decoding, generate
    from stages.evaluation.inputs import read_inputs
    from stages.evaluation.loss import mean_loss
    from stages.evaluation.quality import metrics
    from stages.text.pairs import read_pairs

    prepare(settings.runtime)
    evaluate, found = settings.evaluate, {}
    generator = _generator(cell)
    for split, prefix in (("test", ""), ("validation", "validation_")):
        inputs = read_inputs(layout.DATA / f"{split}.parquet")
        outputs = generate(
            generator,
            inputs.sources,
            batch_size=evaluate.batch_size,
            seed=settings.runtime.seed,
            options=decoding(evaluate),
        )
        measured = metrics(settings.data.language, settings.data.placeholder, inputs.references)
        wanted = [metric for metric in measured if metric.name in ("bleu", "slot_error_rate")]
        for name, score in scores(wanted, outputs, inputs.references).items():
            found[f"{prefix}{name}"] = score
        found[f"{prefix}loss"] = mean_loss(generator, *inputs.pairs, batch_size=evaluate.batch_size)
    training = read_pairs(layout.DATA / "train.parquet")
    step = max(1, len(training) // TRAINING_PAIRS)
    found["train_loss"] = mean_loss(
        generator, training.sources[::step], training.targets[::step], batch_size=evaluate.batch_size
    )
    del found["validation_slot_error_rate"]
    return {name: round(value, 6) for name, value in found.items()}


def _generator(cell: Cell) -> Generator:
    """What the finetune stage left; one shot, the baseline with what the prune stage left put on it."""
    from stages.bitmasks import MASKS_FILE, Masks
    from stages.models import anatomy, checkpoint
    from stages.pruning import changes, masks

    if cell.regime != ONE_SHOT:
        return checkpoint.load(layout.model_folder(cell.key))
    generator = checkpoint.load(layout.model_folder(layout.BASELINE))
    if cell.method == layout.DENSE:
        return generator
    weights = anatomy.describe(generator.model).weights
    pruned = layout.pruned_folder(cell.key)
    changes.load(generator.model, pruned / changes.WEIGHTS_FILE, missing_ok=True)
    chosen = Masks.load(pruned / MASKS_FILE)
    masks.check_fits(chosen, weights, pruned)
    masks.apply(weights, chosen)
    return generator
