"""`python -m stages.clean` on made-up rows: how fast, and how much memory as they become more."""

from __future__ import annotations

import csv
import gzip
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.overhead.processes import Cost, cost
from stages import params
from stages.errors import UserError

CHUNK = 100_000
"""Rows that are made at a time."""
WORDS = 12
"""Of an utterance, about as many as in the bundled data."""
INPUTS = 0.2
"""Different inputs, as a share of the rows."""
NEAR = 0.9
"""`clean.near_duplicates` where it is on."""


def show_rates(sizes: Sequence[int]) -> None:
    """Print rows a second of a core, with near-duplicates and without."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "rows", "near-duplicates", "rows a second of a core", "seconds", "peak MB", title="python -m stages.clean"
    )
    for rows in sizes:
        for near in (None, NEAR):
            taken = clean(rows, near)
            rate = f"{rows / taken.cpu_s:,.0f}"
            table.add_row(
                f"{rows:,}",
                "off" if near is None else f"{near}",
                rate,
                f"{taken.wall_s:.1f}",
                f"{taken.peak_bytes / 1e6:.0f}",
            )
    Console().print(table)


def show_memory(sizes: Sequence[int], picture: Path) -> None:
    """Print the peak memory of cleaning so many rows, and draw it."""
    from rich.console import Console
    from rich.table import Table

    table = Table("rows", "peak MB", "rows a second of a core", title="python -m stages.clean")
    peaks = []
    for rows in sorted(sizes):
        taken = clean(rows, None)
        peaks.append((rows, taken.peak_bytes))
        table.add_row(f"{rows:,}", f"{taken.peak_bytes / 1e6:.0f}", f"{rows / taken.cpu_s:,.0f}")
    Console().print(table)
    draw(peaks, picture)


def clean(rows: int, near: float | None) -> Cost:
    """What cleaning so many rows with one process takes."""
    with tempfile.TemporaryDirectory(prefix="cleaning-") as name:
        folder = Path(name)
        write_rows(folder / "rows.csv", rows)
        write_params(folder, near)
        return cost([sys.executable, "-m", "stages.clean"], folder)


def write_params(folder: Path, near: float | None) -> None:
    """The project's params with the default steps of cleaning, for the data in `rows.csv`."""
    from ruamel.yaml import YAML

    values: dict[str, Any] = params.read_yaml(params.PARAMS_FILE)
    values["data"] |= {"path": "rows.csv", "source": "act", "target": "utterance", "split": None, "hub": None}
    values["clean"] |= {"workers": 1, "near_duplicates": near}
    with (folder / params.PARAMS_FILE).open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(values, file)


def write_rows(path: Path, count: int) -> None:
    """Rows whose words are drawn as the bundled utterances have them; some inputs come several times."""
    import numpy as np

    words = _words()
    draw = np.random.default_rng(0)
    inputs = max(1, int(count * INPUTS))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["act", "utterance"])
        for first in range(0, count, CHUNK):
            rows = min(CHUNK, count - first)
            acts = draw.integers(0, inputs, rows)
            texts = words[draw.integers(0, len(words), (rows, WORDS))]
            writer.writerows(
                (f"Hotel-Inform (Name, {words[act % len(words)]} {act})", " ".join(text))
                for act, text in zip(acts, texts, strict=True)
            )


def draw(peaks: Sequence[tuple[int, int]], picture: Path) -> None:
    """A curve of (rows, bytes)."""
    from stages.evaluation.plots import figure_of, save

    with figure_of(6.4, 3.6) as figure:
        axes = figure.subplots()
        axes.plot([rows / 1e6 for rows, _ in peaks], [peak / 1e6 for _, peak in peaks], marker="o")
        top = 1.2 * max(peak for _, peak in peaks) / 1e6
        axes.set(xlabel="million rows", ylabel="peak memory, MB", xlim=(0, None), ylim=(0, top))
        axes.set_title("Cleaning: memory of its largest process")
        axes.grid(alpha=0.3)
        save(figure, picture)


def _words() -> Any:
    import numpy as np

    path = Path("data/raw/multiwoz.csv.gz")
    if not path.is_file():
        raise UserError(f"{path} is missing: run this in the project's root folder")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        text = "".join(row["utterance"] + " " for row, _ in zip(csv.DictReader(file), range(5000), strict=False))
    return np.array(re.findall(r"\S+", text))
