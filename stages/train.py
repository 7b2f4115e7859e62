"""Train the dense baseline.

    dvc repro train          (or: python -m stages.train)

In:  outputs/data/{train,validation}.parquet; checkpoints to start from in data/checkpoints, if any; params `model`,
     `data.placeholder`, `train`, `runtime`.
Out: outputs/models/baseline, a plain transformers folder; outputs/metrics/train.json and train.curve.csv.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from stages import layout, params
from stages.errors import command
from stages.files import write_json
from stages.runtime import prepare, run_together, writes_outputs
from stages.startup import UNUSED, leave_out
from stages.text.pairs import read_pairs
from stages.tracking.live import track


@command
def main() -> None:
    """Run the stage."""
    settings = params.load("data", "model", "train", "runtime", "tracking")
    if run_together(settings.runtime, "stages.train"):
        return
    prepare(settings.runtime)
    _warn_of_unseen(settings.model.checkpoints)

    from stages.models import anatomy, checkpoint
    from stages.models.build import build
    from stages.training.checkpoints import Checkpoints
    from stages.training.loop import train
    from stages.training.report import write_curve
    from stages.training.tokenised import encoded

    training = read_pairs(layout.DATA / "train.parquet")
    validation = read_pairs(layout.DATA / "validation.parquet")
    generator = build(settings.model, training.sources + training.targets, settings.data.placeholder)
    described = anatomy.describe(generator.model)
    checkpoints = Checkpoints("train", settings.train.checkpoint_every)

    with track("train", layout.BASELINE, settings) as run:
        outcome = train(
            generator,
            encoded(generator, training.sources, training.targets),
            encoded(generator, validation.sources, validation.targets),
            settings.train,
            settings.runtime,
            layout.SCRATCH / "train",
            callbacks=run.callbacks(),
            keep_best=True,
            patience=settings.train.early_stopping_patience,
            checkpoints=checkpoints,
        )
        if not writes_outputs():
            return
        checkpoint.save(generator, layout.model_folder(layout.BASELINE))
        metrics = {
            "loss": outcome.validation_loss,
            "steps": outcome.steps,
            "epochs": outcome.epochs,
            "bf16": int(outcome.bf16),
            "parameters": described.parameters,
            "eligible_parameters": described.eligible,
        }
        write_curve(layout.METRICS / "train.curve.csv", outcome.curve)
        write_json(layout.metrics_file("train"), metrics)
        checkpoints.keep_until_recorded(layout.metrics_file("train"))
        run.log_metrics(metrics)


def _warn_of_unseen(checkpoints: Sequence[str]) -> None:
    """Say which local checkpoints DVC does not see the files of."""
    for name in checkpoints:
        if Path(name).is_dir() and not Path(name).absolute().is_relative_to(layout.CHECKPOINTS.absolute()):
            print(
                f"warning: {name} is outside {layout.CHECKPOINTS}, so DVC does not see when it changes: move it there",
                file=sys.stderr,
            )


if __name__ == "__main__":
    leave_out(*UNUSED)
    main()
