"""Choose which weights of the baseline a level sets to zero.

    dvc repro prune@magnitude-0.5          (or: python -m stages.prune magnitude-0.5)

In:  outputs/models/baseline, outputs/data/{train,validation}.parquet; params `prune`, `runtime` and, for
     methods that train first (l1, l2, structured by group_lasso), `train`.
Out: outputs/models/pruned/KEY with masks.safetensors (one bit a weight) and, if the method changed weights,
     those in weights.safetensors; if it removes parts, what stays in structure.json; outputs/metrics/prune/KEY.json
     and KEY.layers.csv.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from stages import layout, params
from stages.errors import UserError, command
from stages.files import digest, replacing, write_json
from stages.params.prune import Penalty
from stages.runtime import autocast_bf16, prepare, processes, run_together, writes_outputs
from stages.startup import UNUSED, leave_out
from stages.text.pairs import Pairs, read_pairs

if TYPE_CHECKING:
    from stages.models.checkpoint import Generator

DIGITS = 6
"""After the point, of the loss: it is computed in fp32, of which further ones differ between processors."""
PENALTY_KNOBS = {*Penalty.model_fields, "group_lasso", "heads", "neurons", "width"}
"""Those of a method's params that decide what its penalised training comes to."""


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stage for one level."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.prune", description="Choose which weights of the baseline a level sets to zero."
    )
    parser.add_argument("level", help="method and sparsity, as in magnitude-0.5")
    level = layout.Level.parse(parser.parse_args(arguments).level)
    settings = params.load("prune", "train", "runtime")
    params.check_level(level.method, level.sparsity)
    knobs = getattr(settings.prune, level.method)
    trains = isinstance(knobs, Penalty) or getattr(knobs, "trains_first", False)
    if trains and run_together(settings.runtime, "stages.prune", level.key):
        return
    prepare(settings.runtime)

    from stages.bitmasks import MASKS_FILE
    from stages.models import anatomy, checkpoint
    from stages.pruning import changes, criterion, engine, masks, report
    from stages.training.calibration import context

    training = read_pairs(layout.DATA / "train.parquet")
    validation = read_pairs(layout.DATA / "validation.parquet")
    generator = checkpoint.load(layout.model_folder(layout.BASELINE))
    described = anatomy.describe(generator.model)
    chosen = criterion.find(level.method)
    before = changes.fingerprints(generator.model) if chosen.changes_weights else {}

    rules = settings.prune
    if chosen.structure:
        _remove(level, generator, settings, training, validation)
        return
    engine.check(generator.model, described.matrices, level.sparsity, rules)
    if shrink := chosen.shrink:
        penalty = getattr(rules, level.method)
        weights = described.weights.values()

        def step(rate: float) -> None:
            for weight in weights:
                shrink(weight, rate, penalty.strength)

        _penalise(generator, step, penalty, level, settings, training, validation, before)
    pairs = (training.sources, training.targets)
    looked_at = context(generator, described.matrices, pairs, rules, level.method, settings.runtime.seed)
    chosen_masks = engine.choose(looked_at, chosen, level.sparsity, rules)
    if not writes_outputs():
        return
    with replacing(layout.pruned_folder(level.key)) as folder:
        folder.mkdir()
        chosen_masks.save(folder / MASKS_FILE)
        if chosen.changes_weights:
            changes.save(generator.model, folder / changes.WEIGHTS_FILE, before)
    masks.apply(described.weights, chosen_masks)
    metrics = report.counts(generator.model, described) | {
        "validation_loss": _loss(generator, validation),
    }
    report.write_layers(layout.METRICS / "prune" / f"{level.key}.layers.csv", described)
    write_json(layout.metrics_file("prune", level.key), metrics)


def _remove(
    level: layout.Level,
    generator: Generator,
    settings: params.Params,
    training: Pairs,
    validation: Pairs,
) -> None:
    """Choose which parts stay, and say what they come to."""
    from stages.bitmasks import MASKS_FILE
    from stages.models import anatomy
    from stages.pruning import changes, engine, masks, report
    from stages.pruning.budget import check_patterns
    from stages.pruning.structure import choice, zeros
    from stages.pruning.structure.axes import describe
    from stages.pruning.structure.group_lasso import GroupLasso
    from stages.pruning.structure.latency import check_measured
    from stages.pruning.structure.plan import PLAN_FILE
    from stages.pruning.structure.removal import names_after, shrink
    from stages.pruning.structure.vocabulary import seen, trim
    from stages.training.calibration import context

    rules, structured, seed = settings.prune, settings.prune.structured, settings.runtime.seed
    if structured.budget == "latency" and structured.latency:
        check_measured(structured.latency, generator.model, describe(generator.model))
    dense = anatomy.describe(generator.model)
    before = changes.fingerprints(generator.model) if structured.trains_first else {}
    if structured.trains_first:
        step = GroupLasso(generator.model, structured).shrink
        _penalise(generator, step, structured.group_lasso, level, settings, training, validation, before)
    pairs = (training.sources, training.targets)
    looked_at = context(generator, dense.matrices, pairs, rules, level.method, seed)
    gone, zero = zeros.shares(level.sparsity, rules)
    there = choice.Dense(describe(generator.model), choice.cost(looked_at))
    outliers = engine.outliers(looked_at, rules) if zero else None
    trimmed = generator
    if structured.vocabulary:  # before anything is chosen, since it counts towards the budget
        read = seen(generator, training.sources + validation.sources, training.targets + validation.targets)
        trimmed = trim(generator, read)
        looked_at = context(trimmed, anatomy.describe(trimmed.model).matrices, pairs, rules, level.method, seed)
    # Shares of a kind go even where trimming meets the budget, but not at a level of which all is zeros.
    plan = choice.choose(looked_at, there.cost * (1 - gone), there if gone else None)
    smaller = shrink(trimmed, plan)
    left = anatomy.describe(smaller.model)
    names = names_after(there.structure, plan)
    chosen = None
    if zero:
        check_patterns(dense.matrices, rules.layers)
        renamed = {name: names[name] for name in dense.matrices if name in names}
        looked_at = context(smaller, left.matrices, pairs, rules, level.method, seed)
        chosen = zeros.choose(looked_at, renamed, rules, zero, outliers=outliers)
        masks.apply(left.weights, chosen)
    if not writes_outputs():
        return
    with replacing(layout.pruned_folder(level.key)) as folder:
        folder.mkdir()
        plan.save(folder / PLAN_FILE)
        if structured.trains_first:
            changes.save(generator.model, folder / changes.WEIGHTS_FILE, before)
        if chosen:
            chosen.save(folder / MASKS_FILE)
    metrics = report.counts(smaller.model, left, dense) | {
        "validation_loss": _loss(smaller, validation),
    }
    report.write_layers(layout.METRICS / "prune" / f"{level.key}.layers.csv", dense, left, names)
    write_json(layout.metrics_file("prune", level.key), metrics)


def _loss(generator: Generator, validation: Pairs) -> float:
    """Of the level as it is before fine-tuning.

    Raises:
        UserError: it is not finite.
    """
    from stages.evaluation.loss import mean_loss

    loss = mean_loss(generator, validation.sources, validation.targets, batch_size=64)
    if not math.isfinite(loss):
        raise UserError("the validation loss is not finite: train the baseline with a lower learning rate")
    return round(loss, DIGITS)


def _penalise(
    generator: Generator,
    step: Callable[[float], None],
    penalty: Penalty,
    level: layout.Level,
    settings: params.Params,
    training: Pairs,
    validation: Pairs,
    before: Mapping[str, str],
) -> None:
    """Train with a penalty, in place; `step` applies it to the weights at a learning rate.

    All sparsities of a method rank the same penalised weights, so the first level keeps them in the scratch
    folder under a hash of all that decides them, and the next ones read them there.
    """
    import torch
    import transformers

    from stages.pruning import changes
    from stages.training.checkpoints import Checkpoints, Store, code
    from stages.training.loop import train
    from stages.training.sparsity import Shrink
    from stages.training.tokenised import encoded

    optimization = settings.train.model_copy(update={"epochs": penalty.epochs, "learning_rate": penalty.learning_rate})
    name = digest(
        *code(),
        *(str(part) for part in (torch.__version__, transformers.__version__, processes())),
        str(autocast_bf16(settings.runtime)),
        layout.model_folder(layout.BASELINE),
        layout.DATA / "train.parquet",
        optimization.model_dump_json(exclude={"checkpoint_every"}),
        getattr(settings.prune, level.method).model_dump_json(include=PENALTY_KNOBS),
        settings.runtime.model_dump_json(),
        level.method,
    )
    store = Store(layout.SCRATCH / "penalised" / name)
    kept = store.latest()
    if kept is None:
        checkpoints = Checkpoints(f"prune-{level.key}", settings.train.checkpoint_every, (name,))
        train(
            generator,
            encoded(generator, training.sources, training.targets),
            encoded(generator, validation.sources, validation.targets),
            optimization,
            settings.runtime,
            layout.SCRATCH / f"prune-{name}",
            callbacks=[Shrink(step)],
            checkpoints=checkpoints,
        )
        if writes_outputs():
            with store.writing(0) as folder:
                changes.save(generator.model, folder / changes.WEIGHTS_FILE, before)
            checkpoints.remove()
    else:
        changes.load(generator.model, kept / changes.WEIGHTS_FILE)


if __name__ == "__main__":
    leave_out(*UNUSED)
    main()
