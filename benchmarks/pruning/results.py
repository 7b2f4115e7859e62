"""What is measured, and a row for each time it has been."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path

from benchmarks.pruning import subjects, ways
from stages.files import digest

DENSE = "dense"
"""The method and library of a model as it is."""
ORDER = ("0.5", ways.GROUP, "0.7", "0.6", "0.8")
"""Of levels: so that a run that is cut short has been everywhere."""
LIBRARIES = ("torch", "transformers", "llmcompressor", "compressed-tensors", "numpy")


@dataclass(frozen=True)
class Cell:
    """One measurement."""

    model: str
    method: str
    level: str
    library: str
    repeat: int

    def __str__(self) -> str:
        return f"{self.model}, {self.method} {self.level}, {self.library}, repeat {self.repeat}"


@dataclass(frozen=True)
class Row:
    """A cell and what was measured."""

    model: str
    method: str
    level: str
    library: str
    repeat: int
    seconds: float
    """On the clock, to prune."""
    cpu_seconds: float
    """Of the processor, all threads together: far less changed by what else the machine does."""
    extra_bytes: int | None
    """Most resident memory above the loaded model's; None where it was not measured."""
    model_bytes: int
    zeros: int
    """Eligible weights that are zero afterwards."""
    eligible: int
    losses: str
    """Of each held text the mean loss of a token in nats, with blanks between; empty where it was not looked at."""
    machine: str
    versions: str
    code: str
    """Digest of what prunes and measures."""

    @property
    def cell(self) -> Cell:
        """Which cell this is of."""
        return Cell(self.model, self.method, self.level, self.library, self.repeat)

    @property
    def setup(self) -> tuple[str, str, str]:
        """What rows that are compared have in common."""
        return self.machine, self.versions, self.code

    @property
    def nats(self) -> list[float]:
        """`losses` as numbers."""
        return [float(loss) for loss in self.losses.split()]


def cells(repeats: int) -> Iterator[Cell]:
    """All cells in the order they are made: both sides of a comparison one after the other, in turns first.

    Each repeat has calibration texts of its own.
    """
    for repeat, level, model in product(range(repeats), ORDER, subjects.SUBJECTS):
        if repeat == 0 and level == ORDER[0] and subjects.SUBJECTS[model].trained:
            yield Cell(model, DENSE, "0", DENSE, 0)
        for method in ways.WAYS:
            library = ways.other(method, level)
            if library is not None:
                sides = (ways.OURS, library)
                for side in sides if repeat % 2 == 0 else reversed(sides):
                    yield Cell(model, method, level, side, repeat)


def latest(rows: Iterable[Row]) -> dict[Cell, Row]:
    """The row of each cell, leaving out those of another setup than the last one of its model, method and level."""
    rows = list(rows)
    current = {_compared(row): row.setup for row in rows}
    return {row.cell: row for row in rows if row.setup == current[_compared(row)]}


def _compared(row: Row) -> tuple[str, str, str]:
    return row.model, row.method, row.level


def setup() -> tuple[str, str, str]:
    """Machine, versions, and digest of the code, of this process."""
    names = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    project = Path(__file__).parents[2]
    own = [f"benchmarks/pruning/{name}.py" for name in ("cell", "measure", "ways", "subjects")]
    parts = [project / name for name in (*own, "stages/bitmasks.py", "stages/memory.py")]
    parts += sorted((project / "stages" / "pruning").glob("*.py")) + sorted(
        project / "stages" / "pruning" / "criteria" / f"{name}.py" for name in ("magnitude", "wanda", "sparsegpt")
    )
    return _machine(), f"Python {platform.python_version()}, {names}", digest(*parts)[:12]


def _machine() -> str:
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(": ")[2] for line in info if line.startswith("model name")), platform.machine())
    return f"{model}, {sum(line.startswith('processor') for line in info)} cores"
