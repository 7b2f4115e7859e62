"""A checkpoint without the zeros of its pruned weights: the others, and a bit a weight that says where they are.

    python -m stages.densify KEY --output FOLDER      makes a plain `transformers` folder of it again

Files: values.safetensors with every tensor, of a pruned one the kept weights in row order; masks.safetensors. Of sides
that share their weights one copy is kept, and the names of the other in the metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.bitmasks import MASKS_FILE, Masks
from stages.errors import UserError
from stages.files import remedy

VALUES_FILE = "values.safetensors"


def compress(folder: Path, masks: Mapping[str, Tensor], copies: Mapping[str, str]) -> None:
    """Turn a plain checkpoint, as `save_pretrained` has just written it, into one without zeros.

    Args:
        folder: the checkpoint; its model*.safetensors are replaced.
        masks: of the pruned weights, by name.
        copies: names of tensors that repeat another, and which.
    """
    values: dict[str, Tensor] = {}
    repeated: dict[str, str] = {}
    files = sorted(folder.glob("model*.safetensors"))
    for file in files:
        for name, tensor in load_file(file).items():
            if name in copies:
                repeated[name] = copies[name]
            else:
                values[name] = tensor[masks[name]] if name in masks else tensor
    save_file(values, folder / VALUES_FILE, metadata={"format": "pt", "copies": json.dumps(repeated, sort_keys=True)})
    for file in (*files, folder / "model.safetensors.index.json"):
        file.unlink(missing_ok=True)


def is_sparse(folder: Path) -> bool:
    """Whether a checkpoint is kept without its zeros."""
    return (folder / VALUES_FILE).is_file()


def state(folder: Path) -> dict[str, Tensor]:
    """The weights of such a checkpoint, with their zeros.

    Raises:
        UserError: a file is missing or damaged, or the two do not belong together.
    """
    masks = Masks.load(folder / MASKS_FILE)
    weights: dict[str, Tensor] = {}
    try:
        with safe_open(folder / VALUES_FILE, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  it is no mapping
                values = file.get_tensor(name)
                if name in masks:
                    if values.numel() != int(masks[name].sum()):
                        raise ValueError(f"{name} has another number of values than its mask")
                    values = torch.zeros(masks.shapes[name], dtype=values.dtype).masked_scatter_(masks[name], values)
                weights[name] = values
            for name, original in json.loads(file.metadata()["copies"]).items():
                weights[name] = weights[original]
    except (SafetensorError, RuntimeError, OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{folder / VALUES_FILE} is damaged ({error}): {remedy(folder)}") from None
    if lost := [name for name in masks if name not in weights]:
        raise UserError(f"{folder / VALUES_FILE} lacks {lost[0]}: {remedy(folder)}")
    return weights
