"""Fine-tune a level with its sparsity held; or the dense control, for as many steps.

    dvc repro finetune@magnitude-0.5          (or: python -m stages.finetune magnitude-0.5)
    dvc repro finetune_dense                  (or: python -m stages.finetune dense)

In:  outputs/models/baseline, outputs/models/pruned/KEY, outputs/data/{train,validation}.parquet; params
     `finetune`, `prune`, `runtime`.
Out: outputs/models/finetuned/KEY, a plain transformers folder with masks.safetensors beside the weights, or one
     without the zeros (`finetune.storage`); outputs/metrics/finetune/KEY.json, KEY.layers.csv and KEY.curve.csv.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from stages import layout, params
from stages.errors import command
from stages.files import write_json
from stages.runtime import prepare, run_together, writes_outputs
from stages.startup import UNUSED, leave_out
from stages.text.pairs import Pairs, read_pairs
from stages.tracking.live import track

if TYPE_CHECKING:
    from torch import Tensor

    from stages.bitmasks import Masks
    from stages.models.anatomy import Anatomy
    from stages.models.checkpoint import Generator
    from stages.training.checkpoints import Checkpoints
    from stages.training.distillation import Teacher
    from stages.training.loop import Outcome
    from stages.training.sparsity import HoldMasks


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stage for one level."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.finetune", description="Fine-tune a level with its sparsity held."
    )
    parser.add_argument("level", help="method and sparsity, as in magnitude-0.5; or dense, the control")
    key = parser.parse_args(arguments).level
    level = layout.Level("magnitude", 0) if key == layout.DENSE else layout.Level.parse(key)
    settings = params.load("finetune", "prune", "runtime", "tracking")
    if key != layout.DENSE:
        params.check_level(level.method, level.sparsity)
    if run_together(settings.runtime, "stages.finetune", key):
        return
    prepare(settings.runtime)

    from stages.models import anatomy, checkpoint
    from stages.pruning import criterion, masks, schedules
    from stages.training.loop import total_steps, train
    from stages.training.lora import adapted
    from stages.training.rewinding import Rewind
    from stages.training.tokenised import encoded

    training = read_pairs(layout.DATA / "train.parquet")
    validation = read_pairs(layout.DATA / "validation.parquet")
    generator = checkpoint.load(layout.model_folder(layout.BASELINE))
    if criterion.find(level.method).structure:
        _cut(level, generator, training, validation, settings)
        return
    described = anatomy.describe(generator.model)
    examples = encoded(generator, training.sources, training.targets)

    steps = total_steps(len(examples), settings.finetune)
    pace = settings.finetune
    if criterion.find(level.method).learn:
        # Its scores are at hand at every step, and what it prunes too early comes back the sooner.
        pace = pace.model_copy(update={"refresh_steps": 1})
    plan = schedules.plan(pace, level.sparsity, steps)
    holder = _holder(key, level, generator, described, training, plan, settings)
    callbacks, starts = [holder], [0]
    if settings.finetune.rewind != "none":
        starts = schedules.round_starts(settings.finetune, steps)
        callbacks.append(Rewind(generator.model, holder, starts, weights=settings.finetune.rewind == "weights"))

    checkpoints = _checkpoints(key, settings.prune)

    with track("finetune", key, settings) as run:
        with adapted(generator.model, described.matrices, holder.masks, settings.finetune.lora):
            outcome = train(
                generator,
                examples,
                encoded(generator, validation.sources, validation.targets),
                settings.finetune,
                settings.runtime,
                layout.SCRATCH / f"finetune-{key}",
                callbacks=[*callbacks, *run.callbacks()],
                starts=starts,
                teacher=_teacher(settings.finetune.distillation),
                checkpoints=checkpoints,
            )
        masks.check_held(described.weights, holder.masks)
        if writes_outputs():
            checkpoint.save(generator, layout.model_folder(key), masks=holder.masks, storage=settings.finetune.storage)
            run.log_metrics(_report(key, generator, described, outcome))
            checkpoints.keep_until_recorded(layout.metrics_file("finetune", key))


def _cut(
    level: layout.Level, generator: Generator, training: Pairs, validation: Pairs, settings: params.Params
) -> None:
    """Fine-tune a level that parts of the baseline are removed of, and write it."""
    from stages.bitmasks import MASKS_FILE, Masks
    from stages.models import anatomy, checkpoint
    from stages.pruning import changes, engine
    from stages.pruning.masks import check_fits
    from stages.pruning.structure import choice, zeros
    from stages.pruning.structure.axes import describe
    from stages.pruning.structure.plan import PLAN_FILE, Plan
    from stages.pruning.structure.vocabulary import seen, trim
    from stages.training.calibration import context
    from stages.training.cutting import cut_and_train, rounds
    from stages.training.loop import total_steps
    from stages.training.tokenised import encoded

    pairs = (training.sources, training.targets)
    seed, rules = settings.runtime.seed, settings.prune
    dense = anatomy.describe(generator.model)
    looked_at = context(generator, dense.matrices, pairs, rules, level.method, seed)
    whole = choice.Dense(describe(generator.model), choice.cost(looked_at))
    if rules.structured.trains_first:
        changes.load(generator.model, layout.pruned_folder(level.key) / changes.WEIGHTS_FILE)
    outliers = engine.outliers(looked_at, rules) if rules.structured.zeros else None
    read = None
    if rules.structured.vocabulary:
        read = seen(generator, training.sources + validation.sources, training.targets + validation.targets)
        generator = trim(generator, read)
    examples = encoded(generator, *pairs)
    gone, zero = zeros.shares(level.sparsity, rules)
    parts = rounds(settings.finetune, gone, total_steps(len(examples), settings.finetune))

    def choose(smaller: Generator, share: float) -> Plan:
        if len(parts) == 1 or not gone:
            path = layout.pruned_folder(level.key) / PLAN_FILE
            plan = Plan.load(path)
            plan.check(whole.structure, str(path))
            return plan
        matrices = anatomy.describe(smaller.model).matrices
        looked_at = context(smaller, matrices, pairs, rules, level.method, seed)
        return choice.choose(looked_at, whole.cost * share, whole)

    def hold(smaller: Generator, names: Mapping[str, str], progress: float) -> Masks:
        left = anatomy.describe(smaller.model)
        if len(parts) == 1:
            folder = layout.pruned_folder(level.key)
            masks = Masks.load(folder / MASKS_FILE)
            check_fits(masks, left.weights, folder)
            return masks
        looked_at = context(smaller, left.matrices, pairs, rules, level.method, seed)
        return zeros.choose(looked_at, names, rules, zero, progress, outliers)

    checkpoints = _checkpoints(level.key, rules)

    with track("finetune", level.key, settings) as run:
        cut = cut_and_train(
            generator,
            examples,
            encoded(generator, validation.sources, validation.targets),
            parts,
            choose,
            settings.finetune,
            settings.runtime,
            layout.SCRATCH / f"finetune-{level.key}",
            callbacks=run.callbacks,
            teacher=_teacher(settings.finetune.distillation, read),
            checkpoints=checkpoints,
            zeros=hold if zero else None,
        )
        if writes_outputs():
            folder, storage = layout.model_folder(level.key), settings.finetune.storage
            checkpoint.save(cut.generator, folder, masks=cut.masks, storage=storage)
            left = anatomy.describe(cut.generator.model)
            run.log_metrics(_report(level.key, cut.generator, dense, cut.outcome, left, cut.names))
            checkpoints.keep_until_recorded(layout.metrics_file("finetune", level.key))


def _holder(
    key: str,
    level: layout.Level,
    generator: Generator,
    described: Anatomy,
    training: Pairs,
    plan: Mapping[int, float],
    settings: params.Params,
) -> HoldMasks:
    """What holds the sparsity: with the masks of the prune stage, or such as the plan has it choose."""
    from stages.bitmasks import MASKS_FILE, Masks
    from stages.pruning import changes, criterion, engine, masks
    from stages.training.calibration import context
    from stages.training.movement import LearnMasks
    from stages.training.sparsity import HoldMasks

    chosen = criterion.find(level.method)
    first_masks = masks.keep_all(described.weights)
    if key != layout.DENSE:
        pruned = layout.pruned_folder(key)
        if chosen.shrink or not plan:
            changes.load(generator.model, pruned / changes.WEIGHTS_FILE, missing_ok=True)
        if not plan:
            first_masks = Masks.load(pruned / MASKS_FILE)
            masks.check_fits(first_masks, described.weights, pruned)
    rules = settings.prune
    pairs = (training.sources, training.targets)
    looked_at = context(generator, described.matrices, pairs, rules, level.method, settings.runtime.seed)
    dense = engine.outliers(looked_at, rules) if plan else None

    def choose(sparsity: float, held: Masks) -> Masks:
        progress = sparsity / level.sparsity
        return engine.choose(looked_at, chosen, sparsity, rules, held=held, progress=progress, outliers=dense)

    def choose_by(sparsity: float, scores: Mapping[str, Tensor] | None) -> Masks:
        learning, progress = replace(looked_at, learnt=scores), sparsity / level.sparsity
        return engine.choose(learning, chosen, sparsity, rules, progress=progress, outliers=dense)

    if chosen.learn:
        return LearnMasks(described.weights, first_masks, plan, choose_by, chosen.learn)
    return HoldMasks(described.weights, first_masks, plan, choose)


def _checkpoints(key: str, rules: params.Prune) -> Checkpoints:
    """Where a level's training is kept as it goes."""
    from stages.training.checkpoints import Checkpoints

    decisive = (layout.model_folder(layout.BASELINE), rules.model_dump_json())
    return Checkpoints(f"finetune-{key}", params.checkpoint_every(), decisive)


def _teacher(distillation: params.Distillation, tokens: set[int] | None = None) -> Teacher | None:
    """The baseline as it was before, if it is to be learnt from; with some tokens only, if they are given."""
    from stages.models import checkpoint
    from stages.pruning.structure.vocabulary import trim
    from stages.training.distillation import Teacher

    if not distillation.needs_teacher:
        return None
    baseline = checkpoint.load(layout.model_folder(layout.BASELINE))
    return Teacher(trim(baseline, tokens) if tokens else baseline, distillation)


def _report(
    key: str,
    generator: Generator,
    dense: Anatomy,
    outcome: Outcome,
    left: Anatomy | None = None,
    names: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Write the tables and metrics of a level, and return the metrics; `left` is what parts have been removed of."""
    from stages.pruning import report
    from stages.training.report import write_curve

    metrics = report.counts(generator.model, left or dense, dense) | {
        "loss": outcome.validation_loss,
        "steps": outcome.steps,
        "epochs": outcome.epochs,
        "bf16": int(outcome.bf16),
    }
    report.write_layers(layout.METRICS / "finetune" / f"{key}.layers.csv", dense, left, names)
    write_curve(layout.METRICS / "finetune" / f"{key}.curve.csv", outcome.curve)
    write_json(layout.metrics_file("finetune", key), metrics)
    return metrics


if __name__ == "__main__":
    leave_out(*UNUSED)
    main()
