"""The weights that a pruning method changed, kept beside its masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from stages.errors import UserError
from stages.files import digest, remedy, replacing

WEIGHTS_FILE = "weights.safetensors"


def fingerprints(model: nn.Module) -> dict[str, str]:
    """A digest of every parameter: taken before a method runs, it tells what the method changed, without a copy."""
    return {
        name: digest(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        for name, parameter in model.named_parameters()
    }


def save(model: nn.Module, path: Path, before: Mapping[str, str]) -> None:
    """Write the parameters that are not as they were, shared ones once.

    Args:
        model: after the method.
        path: file to write.
        before: `fingerprints` of it before the method.
    """
    now = fingerprints(model)
    changed = {
        name: parameter.detach().contiguous()
        for name, parameter in model.named_parameters()
        if now[name] != before[name]
    }
    with replacing(path) as partial:
        save_file(changed, partial)


@torch.no_grad()
def load(model: nn.Module, path: Path, missing_ok: bool = False) -> None:
    """Put saved parameters into the model they were changed from; the others stay as they are.

    Raises:
        UserError: the file is missing (unless `missing_ok`), damaged, or of another model.
    """
    if missing_ok and not path.exists():
        return
    parameters = dict(model.named_parameters())
    try:
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if parameters[name].shape != tensor.shape:
                raise RuntimeError(f"{name} has another shape")
            parameters[name].copy_(tensor)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `dvc repro`, or `dvc pull` to fetch it") from None
    except (SafetensorError, KeyError, RuntimeError, OSError) as error:
        raise UserError(f"{path} is damaged or of another model ({error}): {remedy(path)}") from None
