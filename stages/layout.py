"""Where the pipeline keeps things, and what a level is called."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from stages.errors import UserError
from stages.files import read_json

CHECKPOINTS = Path("data/checkpoints")
"""Local checkpoints to start from; a dep of `train`."""
OUTPUTS = Path("outputs")
CODE = OUTPUTS / "code"
DATA = OUTPUTS / "data"
MODELS = OUTPUTS / "models"
METRICS = OUTPUTS / "metrics"
PREDICTIONS = OUTPUTS / "predictions"
BENCHMARK = OUTPUTS / "benchmark"
COMPARE = OUTPUTS / "compare"
EXPORT = OUTPUTS / "export"
CHOSEN_FILE = COMPARE / "chosen.json"
SCRATCH = Path(".scratch")
"""Caches and checkpoints that no DVC stage owns; safe to delete when nothing runs."""

BASELINE = "baseline"
"""Key of the trained model before any pruning or fine-tuning."""
DENSE = "dense"
"""Key of the control: the baseline fine-tuned, unpruned, for as many steps as every level."""
CHOSEN = "chosen"
"""Stands for the level that `compare` chooses, in params and where commands take a level."""


@dataclass(frozen=True)
class Level:
    """A sparsity level: how weights are chosen, and the share of eligible weights set to zero."""

    method: str
    sparsity: float

    @property
    def key(self) -> str:
        """`method-sparsity`, as DVC names it in `prune@magnitude-0.5`."""
        return f"{self.method}-{self.sparsity}"

    def __str__(self) -> str:
        return self.key

    @classmethod
    def parse(cls, key: str) -> Level:
        """The level that a key such as `magnitude-0.5` names.

        Raises:
            UserError: it names none.
        """
        method, _, share = key.rpartition("-")
        try:
            sparsity = int(share) if share.isdigit() else float(share)
        except ValueError:
            sparsity = math.nan
        if not method or not 0 <= sparsity < 1:
            raise UserError(f"{key} is no level: expected a method and a sparsity in [0, 1), as in magnitude-0.5")
        return cls(method, sparsity)


def model_folder(key: str) -> Path:
    """The finished checkpoint of a level, of `dense` or of `baseline`."""
    return MODELS / BASELINE if key == BASELINE else MODELS / "finetuned" / key


def chosen(root: Path = Path()) -> str:
    """The level that `compare` chose.

    Raises:
        UserError: none meets the target, or nothing was compared yet.
    """
    choice = read_json(root / CHOSEN_FILE)
    if choice["key"] is None:
        raise UserError(f"no level is chosen: {choice['why'].rstrip('.')}; name one, as in magnitude-0.5")
    return str(choice["key"])


def named_folder(name: str) -> Path:
    """The checkpoint or export that a person names: a folder as it is, else the finished level of that key.

    Raises:
        UserError: there is none, or it cannot be looked at.
    """
    try:
        if Path(name).is_dir():
            return Path(name)
        folder = model_folder(chosen() if name == CHOSEN else name)
        if len(Path(name).parts) == 1 and folder.is_dir():
            return folder
        here = [BASELINE] * model_folder(BASELINE).is_dir()
        here += sorted(level.name for level in model_folder(DENSE).parent.glob("*") if level.is_dir())
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}") from error
    have = f"one of {', '.join(here)}" if here else "a level that `dvc repro` or `dvc pull` has made"
    raise UserError(f"{name}: no such checkpoint; give a folder, or {have}")


def pruned_folder(key: str) -> Path:
    """What the prune stage leaves for a level: masks, and the weights its method changed."""
    return MODELS / "pruned" / key


def metrics_file(stage: str, key: str | None = None) -> Path:
    """The flat metrics JSON of a stage, or of one level of a stage."""
    return METRICS / f"{stage}.json" if key is None else METRICS / stage / f"{key}.json"


def predictions_file(key: str) -> Path:
    """Generated test-set texts of a level beside their references."""
    return PREDICTIONS / f"{key}.parquet"
