"""Compare every level with the dense control, and choose the one that meets the target.

    dvc repro compare                         (or: python -m stages.compare)
    python -m stages.compare --show           prints the table again

Files of levels that are not in `sweep` are taken out of the folders below, and their models out of
outputs/models/finetuned, to .scratch: this stage and the next depend on these folders, and a clone that never had the
levels should find the same there. DVC restores them if they join again.

In:  for dense, baseline and every level of params `sweep`: outputs/metrics/evaluate/KEY.json,
     outputs/predictions/KEY.parquet; for every level outputs/metrics/prune/KEY.json,
     outputs/metrics/finetune/KEY.layers.csv; KEY.curve.csv of levels and dense; outputs/metrics/references.json.
Out: outputs/compare/ (levels.csv, levels.md, quality.csv, layers.csv, losses.csv, quality.png, layers.png,
     samples.md, chosen.json) and outputs/metrics/compare.json.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING

from stages import layout, params
from stages.errors import UserError, command
from stages.files import read_json, replacing, write_json

if TYPE_CHECKING:
    from stages.evaluation.comparison import Choice, Entry

ENDINGS = (".json", ".parquet", ".layers.csv", ".curve.csv")
"""Of the files that stages leave for a level, after its key."""
LEFT = layout.SCRATCH / "left"
"""Models of levels that are not in the sweep."""
SAMPLES = 12
TABLE_COLUMNS = 100


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Write the comparison and print it."""
    parser = argparse.ArgumentParser(prog="python -m stages.compare", description="Compare all levels.")
    parser.add_argument("--show", action="store_true", help="print the comparison that is there, write nothing")
    show_only = parser.parse_args(arguments).show
    settings = params.load("data", "sweep", "evaluate", "target")
    target = settings.target

    from stages.evaluation import comparison

    keys = [level.key for level in settings.sweep.levels]
    entries = comparison.read_entries(settings.sweep.levels)
    references = read_json(layout.metrics_file("references"))
    choice = comparison.choose(entries, target.metric, target.max_drop)
    if show_only:
        _show(entries, choice, references, _exports(), _speedups())
        return
    _remove_leftovers({layout.DENSE, layout.BASELINE, *keys})
    layers = comparison.layer_table(keys)

    folder = layout.COMPARE
    comparison.write_csv(folder / "levels.csv", comparison.quality_table(entries))
    comparison.write_csv(folder / "quality.csv", comparison.curve_table(entries))
    comparison.write_csv(folder / "layers.csv", layers)
    comparison.write_csv(folder / "losses.csv", comparison.loss_table([layout.DENSE, *keys]))
    chosen = None if choice.entry is None else choice.entry.key
    write_json(folder / layout.CHOSEN_FILE.name, {"key": chosen, "why": choice.why})
    write_json(layout.metrics_file("compare"), comparison.summary(entries, choice))

    from stages.evaluation.plots import draw_layers, draw_quality

    draw_quality(folder / "quality.png", entries, choice, references, target.max_drop, settings.evaluate.confidence)
    draw_layers(folder / "layers.png", layers)
    from stages.evaluation.samples import read_signatures, side_by_side

    shown = [layout.DENSE, *comparison.samples_keys(entries, choice)]
    files = {key: layout.predictions_file(key) for key in shown}
    _write_text(folder / "samples.md", side_by_side(files, settings.data.language, SAMPLES))
    signatures = read_signatures(files[layout.DENSE])
    _write_text(folder / "levels.md", comparison.markdown(entries, choice, references, signatures))
    _show(entries, choice, references)


def _remove_leftovers(keys: Set[str]) -> None:
    """Remove what this stage and the next depend on of levels that are not in the sweep."""
    stages = [layout.METRICS / stage for stage in ("prune", "finetune", "evaluate")]
    left = sorted(
        path
        for folder in (*stages, layout.PREDICTIONS)
        for path in folder.glob("*.*")
        if path.is_file() and (key := _key(path.name)) and key not in keys
    )
    for path in left:
        path.unlink()
    if left:
        print(f"removed {len(left)} files of levels that are not in the sweep; DVC has those that `dvc repro` made")
    models = [path for path in layout.model_folder(layout.DENSE).parent.glob("*") if path.is_dir()]
    if strangers := [path for path in models if path.name not in keys]:
        # Not deleted: one that was made by hand, DVC does not have.
        LEFT.mkdir(parents=True, exist_ok=True)
        for path in strangers:
            shutil.rmtree(LEFT / path.name, ignore_errors=True)
            path.rename(LEFT / path.name)
        print(f"moved {len(strangers)} models of levels that are not in the sweep to {LEFT}")


def _key(name: str) -> str | None:
    """The level that a file such as `magnitude-0.5.layers.csv` is of; None for a file that no stage leaves."""
    ending = next((ending for ending in ENDINGS if name.endswith(ending)), "")
    try:
        return layout.Level.parse(name.removesuffix(ending)).key if ending else None
    except UserError:
        return None


def _write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _exports() -> dict[str, dict[str, float]]:
    """By format, the figures of what was exported; none before the export stage has run."""
    path = layout.metrics_file("export")
    found: dict[str, dict[str, float]] = {}
    for name, value in (read_json(path) if path.is_file() else {}).items():
        format, _, figure = name.partition("/")
        found.setdefault(format, {})[figure] = value
    return found


def _speedups() -> dict[str, str]:
    """How many times faster than dense what the benchmark stage measured is; none before it has run."""
    from stages.evaluation.comparison import read_csv

    path = layout.BENCHMARK / "speed.csv"
    rows = read_csv(path, "key", "speedup") if path.is_file() else []
    return {row["key"]: f"{float(row['speedup']):.2f}×" for row in rows}


def _show(
    entries: Sequence[Entry],
    choice: Choice,
    references: Mapping[str, float],
    exports: Mapping[str, Mapping[str, float]] | None = None,
    speedups: Mapping[str, str] | None = None,
) -> None:
    """Print the table, the choice, and where to look next."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from stages.evaluation import comparison

    scores = [name for name in comparison.NAMES if name in entries[0].figures]
    names = {name: comparison.NAMES[name].replace(" ", "\n") for name in scores}
    headers = ["level", *names.values(), f"Δ\n{comparison.NAMES[choice.metric]}", "p"]
    headers += ["weights\n≠ 0", "MB", *(["times\nfaster"] if speedups else [])]
    table = Table(box=box.SIMPLE_HEAD, title="Levels on the test split", padding=(0, 0, 0, 1))
    table.title_justify = "left"
    for header in headers:
        table.add_column(header, justify="left" if header == "level" else "right", no_wrap=True, vertical="bottom")
    previous = entries[0].method
    for entry in entries:
        if entry.method != previous and entry.is_level:
            table.add_section()
        previous = entry.method
        figures, chosen = entry.figures, entry is choice.entry
        cells = [f"{'▶ ' if chosen else '  '}{entry.key}"]
        cells += [
            comparison.with_interval(figures, name) if name == choice.metric else comparison.number(figures[name], name)
            for name in scores
        ]
        cells += comparison.difference(figures, choice.metric)
        cells += [f"{figures['nonzero_parameters'] / 1e6:.3g}M", f"{figures['compressed_bytes'] / 1e6:.2f}"]
        cells += [speedups.get(entry.key, "")] if speedups else []
        table.add_row(*cells, style="bold green" if chosen else None)
    table.add_section()
    for format, figures in (exports or {}).items():
        cells = [f"  {format}"] + [comparison.number(figures[name], name) for name in scores]
        size = figures.get("compressed_bytes")  # not in exports of earlier commits
        cells += [*comparison.difference(figures, choice.metric), "", "" if size is None else f"{size / 1e6:.2f}"]
        table.add_row(*cells, *([speedups.get(format, "")] if speedups else []))
    for line in comparison.reference_lines(references):
        values = ["" if line[name] is None else comparison.number(line[name], name) for name in scores]
        table.add_row(f"  {line['key']}", *values, *[""] * (len(headers) - 1 - len(scores)), style="dim")
    console = Console()
    # A file or a narrow window gets whole figures all the same.
    console.width = max(console.width, TABLE_COLUMNS)
    console.print(table)
    console.print(f"{'▶ ' if choice.entry else 'No level chosen: '}{choice.why}", highlight=False)
    if warned := comparison.warning(entries, choice, references):
        console.print(warned, style="yellow", highlight=False)
    said = "Δ and p: against dense, paired bootstrap. MB: compressed by zstd."
    console.print(said + " Times faster than dense: one text, in turns." * bool(speedups), style="dim")
    console.print(
        f"\nPictures  {layout.COMPARE / 'quality.png'}, {layout.COMPARE / 'layers.png'}\n"
        f"Tables    {layout.COMPARE / 'levels.md'}, {layout.COMPARE / 'levels.csv'}\n"
        f"Samples   {layout.COMPARE / 'samples.md'}\n"
        "MLflow    make ui",
        highlight=False,
    )


if __name__ == "__main__":
    main()
