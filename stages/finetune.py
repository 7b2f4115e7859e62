"""Fine-tune a level with its sparsity held; or the dense control, for as many steps.

    dvc repro finetune@magnitude-0.5          (or: python -m stages.finetune magnitude-0.5)
    dvc repro finetune_dense                  (or: python -m stages.finetune dense)

In:  outputs/models/baseline, outputs/models/pruned/KEY, outputs/data/{train,validation}.parquet; params
     `finetune`, `prune`, `runtime`.
Out: outputs/models/finetuned/KEY, a plain transformers folder with masks.safetensors beside the weights;
     outputs/metrics/finetune/KEY.json, KEY.layers.csv and KEY.curve.csv.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from stages import layout, params
from stages.errors import command
from stages.files import write_json
from stages.runtime import prepare, writes_outputs
from stages.text.pairs import read_pairs
from stages.tracking.live import track


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stage for one level."""
    parser = argparse.ArgumentParser(description="Fine-tune a level with its sparsity held.")
    parser.add_argument("level", help="method and sparsity, as in magnitude-0.5; or dense, the control")
    key = parser.parse_args(arguments).level
    level = layout.Level("magnitude", 0) if key == layout.DENSE else layout.Level.parse(key)
    settings = params.load("finetune", "prune", "runtime", "tracking")
    params.check_method(level.method)
    prepare(settings.runtime)

    from stages.bitmasks import MASKS_FILE, Masks
    from stages.models import anatomy, checkpoint
    from stages.pruning import changes, criterion, engine, masks, report, schedules
    from stages.training.calibration import sample
    from stages.training.loop import total_steps, train
    from stages.training.report import write_curve
    from stages.training.sparsity import HoldMasks

    training = read_pairs(layout.DATA / "train.parquet")
    validation = read_pairs(layout.DATA / "validation.parquet")
    generator = checkpoint.load(layout.model_folder(layout.BASELINE))
    described = anatomy.describe(generator.model)
    examples = generator.encode(training.sources, training.targets)

    plan = schedules.plan(settings.finetune, level.sparsity, total_steps(len(examples), settings.finetune))
    chosen = criterion.find(level.method)
    first_masks = masks.keep_all(described.weights)
    if key != layout.DENSE:
        pruned = layout.pruned_folder(key)
        if chosen.shrink or not plan:
            changes.load(generator.model, pruned / changes.WEIGHTS_FILE, missing_ok=True)
        if not plan:
            first_masks = Masks.load(pruned / MASKS_FILE)
            masks.check_fits(first_masks, described.weights, pruned)
    seed, rules = settings.runtime.seed, settings.prune
    context = criterion.Context(
        model=generator.model,
        matrices=described.matrices,
        batches=sample(generator, training.sources, training.targets, rules.calibration, seed),
        seed=seed,
        settings=getattr(rules, level.method),
    )

    def choose(sparsity: float, held: Masks) -> Masks:
        return engine.choose(context, chosen, sparsity, rules, held=held, progress=sparsity / level.sparsity)

    holder = HoldMasks(described.weights, first_masks, plan, choose)

    with track("finetune", key, settings) as run:
        outcome = train(
            generator,
            examples,
            generator.encode(validation.sources, validation.targets),
            settings.finetune,
            settings.runtime,
            layout.SCRATCH / f"finetune-{key}",
            callbacks=[holder, *run.callbacks()],
        )
        masks.check_held(described.weights, holder.masks)
        if not writes_outputs():
            return
        checkpoint.save(
            generator,
            layout.model_folder(key),
            masks=holder.masks,
            storage=settings.finetune.storage,
        )
        metrics = report.counts(generator.model, described) | {
            "loss": outcome.validation_loss,
            "steps": outcome.steps,
            "epochs": outcome.epochs,
        }
        report.write_layers(layout.METRICS / "finetune" / f"{key}.layers.csv", described)
        write_curve(layout.METRICS / "finetune" / f"{key}.curve.csv", outcome.curve)
        write_json(layout.metrics_file("finetune", key), metrics)
        run.log_metrics(metrics)


if __name__ == "__main__":
    main()
