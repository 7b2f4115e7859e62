"""What the benchmark stage measured of a level, of what was exported from it, and of dense."""

from __future__ import annotations

import re
from collections.abc import Mapping

from stages import layout
from stages.evaluation.comparison import NAMES, read_csv, with_interval
from stages.files import read_json
from stages.registry.level import Figures, Finished

STAGE = "benchmark"
THROUGHPUT = re.compile(r"batch(\d+)(?:_beams(\d+))?_tokens_per_second_p50")
COLUMNS = ("key", "level", "runtime", "speedup", "load_seconds", "peak_memory_bytes")
SCORE = "bleu"
"""The metric that stands beside timings."""
Row = Mapping[str, str]


def read(finished: Finished) -> tuple[list[Row], Figures]:
    """Rows of speed.csv, and what they were measured on; none if dvc.lock has no benchmark.

    Raises:
        UserError: the files are not those that dvc.lock has.
    """
    entry = next((entry for entry in finished.pipeline.current_entries() if entry.name == STAGE), None)
    if entry is None:
        return [], {}
    files = [finished.proved(entry, layout.BENCHMARK / name) for name in ("speed.csv", "machine.json")]
    rows = read_csv(files[0], *COLUMNS)
    return [row for row in rows if row["level"] == finished.key or row["key"] == layout.DENSE], read_json(files[1])


def scores(finished: Finished, rows: list[Row]) -> dict[str, str]:
    """By key of a row, what that runtime scores on the test split, with its interval; none where nothing is known.

    Raises:
        UserError: a file is not the one that dvc.lock has.
    """
    found: dict[str, Figures] = {**finished.controls, finished.key: finished.figures}
    entry = next((entry for entry in finished.pipeline.current_entries() if entry.name == "export"), None)
    if entry is not None:
        exported = read_json(finished.proved(entry, layout.metrics_file("export")))
        for name, value in exported.items():
            format, _, figure = name.partition("/")
            found[format] = {**found.get(format, {}), figure: value}
    return {row["key"]: with_interval(found[row["key"]], SCORE) for row in rows if row["key"] in found}


def table(rows: list[Row], scored: Mapping[str, str]) -> tuple[list[str], list[list[str]]]:
    """Header and cells: latency with quartiles, times faster than dense, throughputs, load time, memory, a score.

    Args:
        rows: as `read` gives them.
        scored: as `scores` gives it.
    """
    throughputs = {name: found for name in rows[0] if (found := THROUGHPUT.fullmatch(name))}
    header = ["", "runtime", "ms a text", "times faster"]
    for found in throughputs.values():
        header.append(f"tokens/s of {found[1]}" + (f", {found[2]} beams" if found[2] else ""))
    header += ["load, s", "memory, MB", NAMES[SCORE]]
    cells = []
    for row in rows:
        low, middle, high = (float(row[f"latency_ms_p{share}"]) for share in (25, 50, 75))
        speeds = [f"{float(row[name]):,.0f}" for name in throughputs]
        timed = [f"{middle:.1f} ({low:.1f}–{high:.1f})", f"{float(row['speedup']):.2f}"]
        taken = [f"{float(row['load_seconds']):.2f}", f"{float(row['peak_memory_bytes']) / 1e6:.0f}"]
        # A level and its export of format safetensors both run in PyTorch.
        runtime = row["runtime"] if row["key"] in (row["level"], row["runtime"]) else f"{row['runtime']} ({row['key']})"
        cells.append([row["level"], runtime, *timed, *speeds, *taken, scored.get(row["key"], "")])
    return header, cells
