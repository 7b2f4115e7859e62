"""The weights that a pruning method changed, kept beside its masks."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from stages.errors import UserError
from stages.files import replacing

WEIGHTS_FILE = "weights.safetensors"


def save(model: nn.Module, path: Path) -> None:
    """Write all parameters of a model, shared ones once."""
    tensors = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    with replacing(path) as partial:
        save_file(tensors, partial)


@torch.no_grad()
def load(model: nn.Module, path: Path, missing_ok: bool = False) -> None:
    """Put saved parameters into a model of the same architecture.

    Raises:
        UserError: the file is missing (unless `missing_ok`), damaged, or of another model.
    """
    if missing_ok and not path.exists():
        return
    try:
        tensors = load_file(path)
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `dvc repro`, or `dvc pull` to fetch it") from None
    except (SafetensorError, KeyError, RuntimeError, OSError) as error:
        raise UserError(f"{path} is damaged or of another model ({error}): run `dvc repro --force`") from None
