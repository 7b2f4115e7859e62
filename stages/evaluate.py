"""Evaluate one generator: quality, fluency and size.

    python -m stages.evaluate KEY
    python -m stages.evaluate FOLDER

KEY is `baseline`, `dense` or a level such as `magnitude-0.5`. Of any other checkpoint, and of what stages.export wrote,
the scores on the test split are printed, and nothing is written.

In: outputs/data/{train,validation,test}.parquet, the checkpoint of KEY and, for what could be pruned, of the
baseline; for every KEY but `dense`, outputs/predictions/dense.parquet for the paired tests.
Out: outputs/metrics/evaluate/KEY.json and outputs/predictions/KEY.parquet.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stages import layout, params
from stages.errors import UserError, command
from stages.files import write_json
from stages.startup import UNUSED, leave_out
from stages.tracking.live import track

if TYPE_CHECKING:
    from stages.evaluation.inputs import Inputs
    from stages.models.checkpoint import Generator


FIGURES = {
    "perplexity": ".2f",
    "fluency_perplexity": ".2f",
    "sparsity": ".2%",
    "nonzero_parameters": ",",
    "compressed_bytes": ",",
}
"""What the table has below scores, and how it is written."""


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate the generator named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m stages.evaluate", description="Evaluate one generator.")
    parser.add_argument("key", metavar="KEY", help="baseline, dense, a level such as magnitude-0.5, or a folder")
    name = parser.parse_args(arguments).key
    if Path(name).is_dir():
        _print(Path(name))
        return
    key = _known(name)
    settings = params.load("runtime", "data", "evaluate", "tracking")

    # Missing inputs are found before torch is imported.
    from stages.evaluation.inputs import read_inputs, read_predictions

    test = read_inputs(layout.DATA / "test.parquet")
    validation = read_inputs(layout.DATA / "validation.parquet")
    dense = layout.predictions_file(layout.DENSE)
    control = None if key == layout.DENSE else read_predictions(dense, "test", test)

    from stages.runtime import prepare

    prepare(settings.runtime)

    from stages.models import anatomy, checkpoint
    from stages.training.checkpoints import remove_recorded

    remove_recorded()
    with track("evaluate", key, settings) as run:
        generator = checkpoint.load(layout.model_folder(key))
        baseline = generator if key == layout.BASELINE else checkpoint.load(layout.model_folder(layout.BASELINE))

        eligible = anatomy.describe(baseline.model).eligible
        splits = {"test": test, "validation": validation}
        figures = _evaluate(key, generator, settings, splits=splits, control=control, eligible=eligible)
        write_json(layout.metrics_file("evaluate", key), figures)
        run.log_metrics(figures)
    _show(key, figures, settings.evaluate.confidence)


def _print(folder: Path) -> None:
    """Print the scores of a checkpoint or export that is no output of the pipeline, beside dense if that is there."""
    settings = params.load("runtime", "data", "evaluate")

    from stages.evaluation.inputs import read_inputs, read_predictions

    test = read_inputs(layout.DATA / "test.parquet")
    dense = layout.predictions_file(layout.DENSE)
    control = read_predictions(dense, "test", test) if dense.is_file() else None

    from stages.runtime import prepare

    prepare(settings.runtime)

    from stages.evaluation.figures import fluency, quality, rounded
    from stages.evaluation.generation import decoding, generate
    from stages.evaluation.quality import metrics
    from stages.runtimes import folder as runtimes

    evaluate, data, seed = settings.evaluate, settings.data, settings.runtime.seed
    generator = runtimes.load(folder)
    outputs = generate(generator, test.sources, batch_size=evaluate.batch_size, seed=seed, options=decoding(evaluate))
    measured = metrics(data.language, data.placeholder, test.references)
    figures = quality(measured, outputs, test.references, control=control, evaluate=evaluate, seed=seed)
    figures |= fluency(outputs, layout.DATA / "train.parquet", data=data, order=evaluate.fluency_order)
    _show(str(folder), rounded(figures), evaluate.confidence)


def _known(key: str) -> str:
    """A key as files are named by it.

    Raises:
        UserError: it is neither `baseline`, `dense` nor a level of a known method.
    """
    if key in (layout.BASELINE, layout.DENSE):
        return key
    level = layout.Level.parse(key)
    params.check_method(level.method)
    return level.key


def _evaluate(
    key: str,
    generator: Generator,
    settings: params.Params,
    *,
    splits: dict[str, Inputs],
    control: list[str] | None,
    eligible: int,
) -> dict[str, float]:
    """Write the predictions of both splits and return the figures."""
    from stages.evaluation.figures import fluency, quality, rounded, scores
    from stages.evaluation.generation import decoding, generate
    from stages.evaluation.inputs import write_predictions
    from stages.evaluation.loss import mean_loss
    from stages.evaluation.quality import metrics
    from stages.evaluation.size import sizes

    evaluate, data, seed = settings.evaluate, settings.data, settings.runtime.seed
    test, validation = splits["test"], splits["validation"]
    predicted = {}
    losses = {}
    for name, inputs in splits.items():
        outputs = generate(
            generator, inputs.sources, batch_size=evaluate.batch_size, seed=seed, options=decoding(evaluate)
        )
        predicted[name] = (inputs, outputs)
        losses[name] = mean_loss(generator, *inputs.pairs, batch_size=evaluate.batch_size)
        if not math.isfinite(losses[name]):
            raise UserError(f"{layout.model_folder(key)}: the loss is not finite: train with a lower learning rate")

    measured = metrics(data.language, data.placeholder, test.references)
    signatures = {metric.name: metric.signature(test.references) for metric in measured}
    write_predictions(layout.predictions_file(key), predicted, signatures)

    predictions = predicted["test"][1]
    figures = {"loss": losses["test"], "perplexity": math.exp(losses["test"])}
    figures |= quality(measured, predictions, test.references, control=control, evaluate=evaluate, seed=seed)
    figures |= fluency(predictions, layout.DATA / "train.parquet", data=data, order=evaluate.fluency_order)
    figures["validation_loss"] = losses["validation"]
    for name, score in scores(measured, predicted["validation"][1], validation.references).items():
        figures[f"validation_{name}"] = score
    return rounded(figures | sizes(generator.model, layout.model_folder(key), eligible))


def _show(key: str, figures: dict[str, float], confidence: float) -> None:
    """Print a short table: score, interval, and difference from dense."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{key}: test split", title_justify="left")
    paired = "bleu_delta" in figures
    columns = ["", "score", f"{confidence:.0%} interval"] + ["less dense", "p"] * paired
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for name in ("bleu", "chrf", "rougeL", "slot_error_rate"):
        if name not in figures:
            continue
        digits = 3 if name == "slot_error_rate" else 1
        row = [
            f"{figures[name]:.{digits}f}",
            f"{figures[f'{name}_low']:.{digits}f} to {figures[f'{name}_high']:.{digits}f}",
        ]
        if paired:
            row += [f"{figures[f'{name}_delta']:+.{digits}f}", f"{figures[f'{name}_p']:.3f}"]
        table.add_row(name, *row)
    for name, form in FIGURES.items():
        if name in figures:
            table.add_row(name, format(figures[name], form))
    Console().print(table)


if __name__ == "__main__":
    leave_out(*UNUSED)
    main()
