"""Bring all levels together: the table, the level that meets the target, samples side by side."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages import layout
from stages.errors import UserError
from stages.files import read_json, replacing
from stages.layout import Level

NAMES = {"bleu": "BLEU", "chrf": "chrF", "rougeL": "ROUGE-L", "slot_error_rate": "slot errors"}
"""Metrics that carry an interval and a paired test, as people write them."""

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Entry:
    """One row of the comparison: the control, the baseline or a level.

    `figures` is its metrics file of the evaluate stage.
    """

    key: str
    method: str
    figures: Figures

    @property
    def is_level(self) -> bool:
        """Whether this was pruned (or could have been): neither control nor baseline."""
        return self.key not in (layout.DENSE, layout.BASELINE)

    @property
    def sparsity(self) -> float:
        """Share of eligible weights that are zero, as counted in the checkpoint."""
        return self.figures["sparsity"]


@dataclass(frozen=True)
class Choice:
    """The level that meets the target, or None, by which metric, and the reason in a sentence."""

    entry: Entry | None
    metric: str
    why: str


def read_entries(levels: Sequence[Level]) -> list[Entry]:
    """The control, the baseline, then the levels, as the evaluate stage measured them.

    Raises:
        UserError: a file is missing, damaged, or lacks a figure that the comparison needs.
    """
    methods = {layout.DENSE: layout.DENSE, layout.BASELINE: layout.BASELINE}
    methods |= {level.key: level.method for level in levels}
    entries = []
    for key, method in methods.items():
        needed = ["sparsity", "nonzero_parameters", "compressed_bytes"]
        for name in ("bleu", "chrf", "rougeL"):
            needed += [name, f"{name}_low", f"{name}_high", f"validation_{name}"]
            if key != layout.DENSE:
                needed += [f"{name}_delta", f"{name}_delta_low", f"{name}_delta_high", f"{name}_p"]
        figures = _read_figures(layout.metrics_file("evaluate", key), needed)
        if method not in (layout.DENSE, layout.BASELINE):
            # What pruning alone leaves, before the weights are tuned again.
            pruned = _read_figures(layout.metrics_file("prune", key), ["validation_loss"])
            figures["validation_loss_pruned"] = pruned["validation_loss"]
        entries.append(Entry(key, method, figures))
    return entries


def choose(entries: Sequence[Entry], metric: str, max_drop: float) -> Choice:
    """The sparsest level whose validation score is at most `max_drop` points below the control's.

    Two levels of one sparsity: the one with the better validation score; the test split has no say, so the
    test figures of the choice are not flattered by it.

    Args:
        entries: as `read_entries` gives them.
        metric: bleu, chrf or rougeL.
        max_drop: points.
    """
    name = f"validation_{metric}"
    dense = next(entry for entry in entries if entry.key == layout.DENSE).figures[name]
    levels = [entry for entry in entries if entry.is_level]
    title = NAMES[metric]
    good = [entry for entry in levels if holds(entry.figures[name], dense, max_drop)]
    if not good:
        best = max(levels, key=lambda entry: entry.figures[name])
        return Choice(
            None,
            metric,
            f"no level is within {max_drop:g} {title} of dense ({dense:.2f}) on validation; the closest is "
            f"{best.key} at {best.figures[name]:.2f}. Add a lower sparsity to sweep.sparsity, or raise "
            "target.max_drop.",
        )
    best = max(good, key=lambda entry: (entry.sparsity, entry.figures[name]))
    return Choice(
        best,
        metric,
        f"{best.key} is the sparsest level within {max_drop:g} {title} of dense on validation: "
        f"{best.figures[name]:.2f} against {dense:.2f}. On test: {best.figures[metric]:.2f}, "
        f"{best.figures[f'{metric}_delta']:+.2f} against dense (p = {best.figures[f'{metric}_p']:.3f}).",
    )


def holds(score: float, dense: float, max_drop: float) -> bool:
    """Whether a score is at most `max_drop` below the control's; sums of decimals may be off by a last bit."""
    return dense - score <= max_drop + 1e-9


def quality_table(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """A row an entry with every figure that is bit-exact, columns in the order of the metrics files."""
    columns = dict.fromkeys(name for entry in reversed(entries) for name in entry.figures)
    columns = dict.fromkeys(["sparsity", *columns])
    return [
        {"key": entry.key, "method": entry.method} | {name: entry.figures.get(name) for name in columns}
        for entry in entries
    ]


def curve_table(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Long form of the sparsity–quality curves: method, sparsity and each score with its interval.

    Every method starts at sparsity 0 with the control.
    """
    scores = [name for name in NAMES if name in entries[0].figures]
    columns = [name + end for name in scores for end in ("", "_low", "_high")]
    levels = [entry for entry in entries if entry.is_level]
    rows = []
    for method in dict.fromkeys(entry.method for entry in levels):
        for entry in [entries[0], *(entry for entry in levels if entry.method == method)]:
            rows.append(
                {"method": method, "key": entry.key, "sparsity": entry.sparsity}
                | {name: entry.figures[name] for name in columns}
            )
    return rows


def layer_table(keys: Iterable[str]) -> list[dict[str, Any]]:
    """Sparsity of each weight matrix of each level, after fine-tuning: layer, key, sparsity.

    Raises:
        UserError: a level's layers file is missing or is not one.
    """
    rows = []
    for key in keys:
        for row in read_csv(layout.METRICS / "finetune" / f"{key}.layers.csv", "layer", "sparsity"):
            rows.append({"layer": row["layer"], "key": key, "sparsity": float(row["sparsity"])})
    return rows


def loss_table(keys: Iterable[str]) -> list[dict[str, Any]]:
    """Fine-tuning curves of all keys in one: key, step, loss, validation_loss; a cell not measured is empty.

    Raises:
        UserError: a curve is missing or is not one.
    """
    columns = ("step", "loss", "validation_loss")
    rows = []
    for key in keys:
        curve = read_csv(layout.METRICS / "finetune" / f"{key}.curve.csv", *columns)
        rows += [{"key": key} | {name: row[name] for name in columns} for row in curve]
    return rows


def samples_keys(entries: Sequence[Entry], choice: Choice) -> list[str]:
    """Levels of the chosen method, sparser last; without a choice, of the method best on validation."""
    name = f"validation_{choice.metric}"
    levels = sorted((entry for entry in entries if entry.is_level), key=lambda entry: entry.sparsity)
    method = (choice.entry or max(levels, key=lambda entry: entry.figures[name])).method
    return [entry.key for entry in levels if entry.method == method]


def summary(entries: Sequence[Entry], choice: Choice) -> dict[str, float]:
    """Flat figures of the control and of the chosen level; without one, none of the latter."""
    result: dict[str, float] = {"levels": sum(entry.is_level for entry in entries)}
    for prefix, entry in (("chosen", choice.entry), ("dense", entries[0])):
        if entry is None:
            continue
        for name in ("sparsity", "nonzero_parameters", "compressed_bytes", "loss", *NAMES):
            if name in entry.figures and (prefix, name) != ("dense", "sparsity"):
                result[f"{prefix}_{name}"] = entry.figures[name]
        for name in ("bleu", "chrf", "rougeL"):
            result[f"{prefix}_validation_{name}"] = entry.figures[f"validation_{name}"]
            if f"{name}_delta" in entry.figures:
                result[f"{prefix}_{name}_delta"] = entry.figures[f"{name}_delta"]
    return result


def reference_lines(references: Figures) -> list[dict[str, Any]]:
    """The copy floor and, where inputs have several references, the human line, by metric."""
    lines = [
        {"key": key} | {name: references.get(f"{prefix}_{name}") for name in NAMES}
        for key, prefix in (("copy floor", "copy"), ("human line", "human"))
    ]
    return [line for line in lines if any(line[name] is not None for name in NAMES)]


def warning(entries: Sequence[Entry], choice: Choice, references: Figures) -> str | None:
    """A sentence if the control does worse than copying, so that no comparison of levels means anything."""
    floor, dense = references.get(f"copy_{choice.metric}"), entries[0].figures[choice.metric]
    if floor is None or dense >= floor:
        return None
    return (
        f"Dense ({dense:.1f} {NAMES[choice.metric]}) is below the copy floor ({floor:.1f}): the generator has not "
        "learnt the task, and a level close to it is no better. Train for longer, or with more data."
    )


def markdown(entries: Sequence[Entry], choice: Choice, references: Figures, signatures: Mapping[str, str]) -> str:
    """The comparison as a Markdown page."""
    scores = [name for name in NAMES if name in entries[0].figures]
    header = [
        "level",
        "sparsity",
        *(NAMES[name] for name in scores),
        f"Δ {NAMES[choice.metric]}",
        "p",
        "parameters ≠ 0",
        "MB",
    ]
    lines = ["| " + " | ".join(header) + " |", "|:--" + "|--:" * (len(header) - 1) + "|"]
    for entry in entries:
        figures = entry.figures
        cells = [f"**{entry.key}**" if entry is choice.entry else entry.key, percent(entry.sparsity)]
        cells += [with_interval(figures, name) for name in scores]
        cells += difference(figures, choice.metric)
        cells += [f"{figures['nonzero_parameters']:,}", f"{figures['compressed_bytes'] / 1e6:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    for line in reference_lines(references):
        cells = [line["key"], ""] + ["" if line[name] is None else number(line[name], name) for name in scores]
        lines.append("| " + " | ".join(cells + [""] * 4) + " |")
    inputs = references.get("test_inputs", 0)
    return "\n".join(
        [
            "# Levels compared",
            "",
            f"Chosen: {choice.why}" if choice.entry else f"Chosen: none; {choice.why}",
            "",
            *([warned, ""] if (warned := warning(entries, choice, references)) else []),
            *lines,
            "",
            f"Test split: {inputs:.0f} inputs, {references.get('test_references', 0):.0f} references. In brackets "
            "bootstrap intervals; Δ and p are of the paired bootstrap against dense, the control fine-tuned for as "
            "many steps; MB is the checkpoint compressed by zstd. The copy floor gives the utterance of the most "
            "similar training input; the human line scores each reference against the others of its input "
            f"({references.get('human_inputs', 0):.0f} inputs have several).",
            "",
            *(f"- {NAMES.get(name, name)}: `{signature}`" for name, signature in signatures.items()),
            "",
        ]
    )


def with_interval(figures: Figures, name: str) -> str:
    """A score with its interval, as in `48.2 (46.9–49.5)`."""
    low, high = figures[f"{name}_low"], figures[f"{name}_high"]
    return f"{number(figures[name], name)} ({number(low, name)}–{number(high, name)})"


def number(value: float, name: str) -> str:
    """A score to the digits that its interval leaves any meaning."""
    return f"{value:.3f}" if name == "slot_error_rate" else f"{value:.1f}"


def difference(figures: Figures, name: str) -> list[str]:
    """A score less the control's, and p; blank for the control itself."""
    if f"{name}_delta" not in figures:
        return ["", ""]
    return [f"{figures[f'{name}_delta']:+.1f}", f"{figures[f'{name}_p']:.3f}"]


def percent(share: float) -> str:
    """A sparsity, as in `50 %` or `62.5 %`."""
    return f"{round(100 * share, 2):g} %"


def read_csv(path: Path, *columns: str) -> list[dict[str, str]]:
    """Rows of a CSV file.

    Raises:
        UserError: the file is missing or lacks a column.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if missing := [name for name in columns if name not in (reader.fieldnames or [])]:
                raise UserError(f"{path} lacks column {missing[0]}: run `dvc repro`")
            return list(reader)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `dvc repro`, or `dvc pull` to fetch it") from None


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows, the columns of the first; None is an empty cell."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _read_figures(path: Path, needed: Iterable[str]) -> dict[str, float]:
    figures = read_json(path)
    if missing := [name for name in needed if name not in figures]:
        raise UserError(f"{path} lacks {missing[0]}: run `dvc repro`")
    return figures
