"""What `stages.warm` keeps in memory: DVC, and what the stages of a level import. Importing this module imports it."""

from __future__ import annotations

import gc
import importlib
import sys
from pathlib import Path

from stages.startup import UNUSED, collect_rarely, leave_out

MODULES = (
    "dvc.cli",
    "dvc.repo.reproduce",
    "pandas",
    "pyarrow.dataset",
    "rapidfuzz.distance",
    "sacrebleu.metrics",
    "safetensors.torch",
    "torch.distributed.tensor",
    "stages.evaluate",
    "stages.evaluation.inputs",
    "stages.finetune",
    "stages.models.checkpoint",
    "stages.prune",
    "stages.pruning.engine",
    "stages.run_dvc",
    "stages.training.loop",
)
CLASSES = (
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoTokenizer",
    "EncoderDecoderModel",
    "PreTrainedTokenizerFast",
    "Trainer",
)
"""Of `transformers`, which imports a part of it when it is asked for."""
State = tuple[int, int] | None
"""Of a file: when it was changed, in nanoseconds, and its size; None: it is gone."""


def states() -> dict[str, State]:
    """The file of each of this project's modules that is loaded, and its state."""
    found: dict[str, State] = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "stages" and (file := getattr(module, "__file__", None)):
            try:
                now = Path(file).stat()
                found[file] = now.st_mtime_ns, now.st_size
            except OSError:
                found[file] = None
    return found


collect_rarely()
leave_out(*UNUSED)  # as the stages do
for _name in MODULES:
    importlib.import_module(_name)
for _name in CLASSES:
    getattr(importlib.import_module("transformers"), _name)
BEFORE = states()
"""As they were when they were imported."""
gc.freeze()  # what is shared by all forks is not looked through for garbage, which would copy it
