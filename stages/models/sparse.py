"""A checkpoint without the zeros of its pruned weights: the others, and a bit a weight that says where they are.

    python -m stages.densify KEY --output FOLDER      makes a plain `transformers` folder of it again

Files: values.safetensors with every tensor, of a pruned one the kept weights in row order; masks.safetensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from stages.bitmasks import MASKS_FILE, Masks
from stages.errors import UserError
from stages.models.sharing import share_sides

VALUES_FILE = "values.safetensors"


def compress(folder: Path, masks: Mapping[str, Tensor]) -> None:
    """Turn a plain checkpoint, as `save_pretrained` has just written it, into one without zeros.

    Args:
        folder: the checkpoint; its model*.safetensors are replaced.
        masks: of the pruned weights, by name.
    """
    values: dict[str, Tensor] = {}
    files = sorted(folder.glob("model*.safetensors"))
    for file in files:
        for name, tensor in load_file(file).items():
            values[name] = tensor[masks[name]] if name in masks else tensor
    save_file(values, folder / VALUES_FILE, metadata={"format": "pt"})
    for file in (*files, folder / "model.safetensors.index.json"):
        file.unlink(missing_ok=True)


def is_sparse(folder: Path) -> bool:
    """Whether a checkpoint is kept without its zeros."""
    return (folder / VALUES_FILE).is_file()


def load(folder: Path, config: Any) -> PreTrainedModel:
    """The model of such a checkpoint, with its zeros, in fp32.

    Raises:
        UserError: a file is missing or damaged, or the two do not belong together.
    """
    cls = getattr(transformers, config.architectures[0])
    model: PreTrainedModel = cls.from_pretrained(
        None,
        config=config,
        state_dict=_state(folder),
        generation_config=GenerationConfig.from_pretrained(folder),
        dtype=torch.float32,
    )
    if getattr(config, "share_weights", False):
        share_sides(model)
    return model


def _state(folder: Path) -> dict[str, Tensor]:
    masks = Masks.load(folder / MASKS_FILE)
    state: dict[str, Tensor] = {}
    try:
        with safe_open(folder / VALUES_FILE, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  it is no mapping
                values = file.get_tensor(name)
                if name in masks:
                    if values.numel() != int(masks[name].sum()):
                        raise RuntimeError(f"{name} has another number of values than its mask")
                    values = torch.zeros(masks.shapes[name], dtype=values.dtype).masked_scatter_(masks[name], values)
                state[name] = values
    except (SafetensorError, RuntimeError, OSError) as error:
        raise UserError(f"{folder / VALUES_FILE} is damaged ({error}): run `dvc checkout --force {folder}`") from None
    if lost := [name for name in masks if name not in state]:
        raise UserError(f"{folder / VALUES_FILE} lacks {lost[0]}: run `dvc checkout --force {folder}`")
    return state
