"""Measure how fast, how large and how good generators are, side by side in one process.

    python -m stages.benchmark                                            the stage: dense, baseline, levels, exports
    python -m stages.benchmark dense magnitude-0.7 exported/onnx          some of them, or any folders; prints a table

The stage
In:  the checkpoints of dense, baseline and every level of params `sweep`, outputs/export, outputs/data/test.parquet;
     their scores, in outputs/compare/levels.csv and outputs/metrics/export.json; outputs/compare/chosen.json.
Out: outputs/benchmark/speed.csv, a row each; pareto.png, quality against latency and size; machine.json, what they
     were measured on. All of it differs from run to run.

The command
In:  keys of levels, folders of checkpoints or exports; the first is what the others are compared with. The test split.
Out: the same figures as a table, and the quality of what each writes for the test inputs by greedy search.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import layout, params
from stages.errors import UserError, command
from stages.files import read_json, write_json

if TYPE_CHECKING:
    from stages.evaluation.inputs import Inputs
    from stages.models.checkpoint import Generator

GREEDY = {"num_beams": 1, "do_sample": False}
IN_TORCH = "pytorch"


@dataclass(frozen=True)
class Subject:
    """A generator to measure."""

    key: str
    """What it is called in tables."""
    folder: Path

    @property
    def origin(self) -> dict[str, str]:
        """The level it is, or was exported from, and what runs it."""
        from stages.runtimes.description import Description, is_exported

        if not is_exported(self.folder):
            return {"level": self.key, "runtime": IN_TORCH}
        description = Description.load(self.folder)
        runtime = IN_TORCH if description.format == "safetensors" else description.format
        return {"level": description.source, "runtime": runtime}


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line names, or what the pipeline has."""
    parser = argparse.ArgumentParser(prog="python -m stages.benchmark", description="Measure generators side by side.")
    parser.add_argument("models", nargs="*", help="baseline, dense, magnitude-0.5, …, a checkpoint folder or an export")
    parser.add_argument("--rounds", type=int, help="timed batches of each kind (default: params)")
    args = parser.parse_args(arguments)
    settings = params.load("benchmark", "data", "evaluate", "export", "runtime", "sweep", "target")
    asked = settings.benchmark
    if args.rounds is not None:
        if args.rounds < 1:
            raise UserError(f"--rounds {args.rounds}: give 1 or more")
        asked = asked.model_copy(update={"rounds": args.rounds, "throughput_rounds": args.rounds})
    subjects = [Subject(name, layout.named_folder(name)) for name in args.models] or _of_pipeline(settings)

    from stages.evaluation.inputs import read_inputs

    test = read_inputs(layout.DATA / "test.parquet")

    from stages.runtime import prepare

    prepare(settings.runtime)
    rows, generators = _measure(subjects, test.sources, asked)
    if args.models:
        _show(rows, asked, _quality(generators, test, settings))
        return
    from stages.evaluation.comparison import write_csv
    from stages.machine import describe, features

    write_csv(layout.BENCHMARK / "speed.csv", rows)
    write_json(layout.BENCHMARK / "machine.json", describe(settings.runtime) | features() | asked.model_dump())
    _draw(rows, settings)
    _show(rows, asked, [])


def _of_pipeline(settings: params.Params) -> list[Subject]:
    """Dense first, then baseline, levels and exports."""
    keys = [layout.DENSE, layout.BASELINE, *(level.key for level in settings.sweep.levels)]
    exports = [Subject(format, layout.EXPORT / format) for format in settings.export.formats]
    return [*(Subject(key, layout.model_folder(key)) for key in keys), *exports]


def _measure(
    subjects: Sequence[Subject], texts: Sequence[str], asked: params.Benchmark
) -> tuple[list[dict[str, Any]], list[Generator]]:
    """A row of figures for each, and the generators."""
    import transformers.generation  # noqa: F401  before the forks of `footprint`, so that none has to do it

    from stages.evaluation.footprint import footprint
    from stages.evaluation.size import weight_files
    from stages.evaluation.timing import settings, spread, timings
    from stages.runtimes import folder
    from stages.runtimes.description import is_exported

    batch = spread(texts, max(asked.batch_sizes))
    rows: list[dict[str, Any]] = []
    for subject in subjects:
        if is_exported(subject.folder):
            size = folder.size_bytes(subject.folder)
        else:
            size = sum(file.stat().st_size for file in weight_files(subject.folder))
        found = footprint(partial(folder.load, subject.folder), batch, GREEDY)
        rows.append({"key": subject.key} | subject.origin | {"size_bytes": size} | found)
    generators = [folder.load(subject.folder) for subject in subjects]
    figures = timings(generators, texts, settings(asked))
    for row, own in zip(rows, figures, strict=True):
        row |= {name: float(f"{value:.5g}") for name, value in own.items()}
    return rows, generators


def _draw(rows: Sequence[Mapping[str, Any]], settings: params.Params) -> None:
    """Draw the Pareto picture of the rows and the scores that earlier stages measured."""
    from stages.evaluation.comparison import read_csv
    from stages.evaluation.pareto import Point, draw

    metric = settings.target.metric
    names = [metric, f"{metric}_low", f"{metric}_high"]
    levels = read_csv(layout.COMPARE / "levels.csv", "key", "compressed_bytes", *names)
    figures: dict[str, Mapping[str, Any]] = {row["key"]: row for row in levels}
    exported = read_json(layout.metrics_file("export"))
    for format in settings.export.formats:
        figures[format] = {name: exported[f"{format}/{name}"] for name in (*names, "compressed_bytes")}
    points = []
    for row in rows:
        own = figures[row["key"]]
        score, low, high = (float(own[name]) for name in names)
        first, median, third = (float(row[f"latency_ms_{share}"]) for share in ("p25", "p50", "p75"))
        size = float(own["compressed_bytes"]) / 1e6  # of all, since on disk the zeros of a level save nothing
        points.append(Point(row["key"], (score, low, high), (first, median, third), size))
    chosen = read_json(layout.CHOSEN_FILE)["key"]
    draw(layout.BENCHMARK / "pareto.png", points, metric, settings.evaluate.confidence, chosen)


def _quality(generators: Sequence[Generator], test: Inputs, settings: params.Params) -> list[dict[str, float]]:
    """Scores with intervals of what each writes by greedy search, and the share that is as the first one's."""
    from stages.evaluation.figures import quality, same_share
    from stages.evaluation.generation import generate
    from stages.evaluation.quality import metrics

    data, evaluate, seed = settings.data, settings.evaluate, settings.runtime.seed
    measured = metrics(data.language, data.placeholder, test.references)
    found: list[dict[str, float]] = []
    first: list[str] = []
    for generator in generators:
        outputs = generate(generator, test.sources, batch_size=evaluate.batch_size, seed=seed, options=GREEDY)
        first = first or outputs
        figures = quality(measured, outputs, test.references, control=first, evaluate=evaluate, seed=seed)
        found.append(figures | {"same_outputs": same_share(outputs, first)})
    return found


def _show(rows: Sequence[Mapping[str, Any]], asked: params.Benchmark, qualities: Sequence[Mapping[str, float]]) -> None:
    """Print the table: latency with quartiles, throughputs, what it takes, and scores if they were measured."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from stages.evaluation.comparison import NAMES, number, with_interval
    from stages.evaluation.timing import settings

    throughputs = settings(asked)[1:]
    table = Table(box=box.SIMPLE_HEAD, title=f"Speed, {rows[0]['key']} first", padding=(0, 0, 0, 1))
    table.title_justify = "left"
    headers = ["", "ms a text", "times\nfaster"]
    for setting in throughputs:
        beams = f"\n{setting.num_beams} beams" if setting.num_beams > 1 else ""
        headers.append(f"tokens/s\nof {setting.batch_size}{beams}")
    headers += ["load\ns", "memory\nMB", "on disk\nMB"]
    scores = [name for name in NAMES if qualities and name in qualities[0]]
    headers += [NAMES[name] for name in scores] + ["same\noutputs"] * bool(qualities)
    for header in headers:
        table.add_column(header, justify="right" if header else "left", no_wrap=True, vertical="bottom")
    for i, row in enumerate(rows):
        low, middle, high = (row[f"latency_ms_{share}"] for share in ("p25", "p50", "p75"))
        cells = [row["key"], f"{middle:.1f} ({low:.1f}–{high:.1f})", f"{row['speedup']:.2f}"]
        cells += [f"{row[f'{setting.name}_p50']:.0f}" for setting in throughputs]
        cells += [
            f"{row['load_seconds']:.2f}",
            f"{row['peak_memory_bytes'] / 1e6:.0f}",
            f"{row['size_bytes'] / 1e6:.2f}",
        ]
        if qualities:
            found = qualities[i]
            cells += [with_interval(found, name) if name == "bleu" else number(found[name], name) for name in scores]
            cells.append(f"{found['same_outputs']:.1%}")
        table.add_row(*cells)
    console = Console()
    console.width = max(console.width, 40 + 10 * len(headers) + 12 * bool(qualities))
    console.print(table)
    console.print(
        f"Medians (quartiles) of batches in turns, one process. Latency: one text, greedy, as long as it comes. "
        f"Tokens a second: {asked.tokens} tokens a text. Memory: at most, libraries among it.",
        style="dim",
    )


if __name__ == "__main__":
    main()
