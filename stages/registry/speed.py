"""What the benchmark stage measured of a level, of what was exported from it, and of dense."""

from __future__ import annotations

import re
from collections.abc import Mapping

from stages import layout
from stages.evaluation.comparison import read_csv
from stages.files import read_json
from stages.registry.level import Figures, Finished

STAGE = "benchmark"
THROUGHPUT = re.compile(r"batch(\d+)(?:_beams(\d+))?_tokens_per_second_p50")
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
    rows = read_csv(files[0], "key", "level", "runtime", "speedup", *(f"latency_ms_p{q}" for q in (25, 50, 75)))
    return [row for row in rows if row["level"] == finished.key or row["key"] == layout.DENSE], read_json(files[1])


def table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells: latency with quartiles, how many times faster than dense, throughputs."""
    throughputs = {name: found for name in rows[0] if (found := THROUGHPUT.fullmatch(name))}
    header = ["", "runtime", "ms a text", "times faster"]
    for found in throughputs.values():
        header.append(f"tokens/s of {found[1]}" + (f", {found[2]} beams" if found[2] else ""))
    cells = []
    for row in rows:
        low, middle, high = (float(row[f"latency_ms_p{share}"]) for share in (25, 50, 75))
        speeds = [f"{float(row[name]):,.0f}" for name in throughputs]
        timed = [f"{middle:.1f} ({low:.1f}–{high:.1f})", f"{float(row['speedup']):.2f}"]
        cells.append([row["level"], row["runtime"], *timed, *speeds])
    return header, cells
