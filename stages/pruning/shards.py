"""Magnitude pruning of a checkpoint that is read from disk one tensor at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from stages.bitmasks import Masks
from stages.errors import UserError
from stages.files import replacing
from stages.models import anatomy
from stages.models.checkpoint import auto_class, load_config
from stages.params import Prune
from stages.pruning import engine
from stages.pruning.criterion import Context, Criterion
from stages.pruning.scores import Scores

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx")
"""Files that hold weights; of those beside the safetensors, which stay dense, none is copied."""


@dataclass(frozen=True)
class Outcome:
    """How many weights are zero now that were chosen to be."""

    pruned: int
    eligible: int

    @property
    def sparsity(self) -> float:
        """Share of the eligible weights."""
        return self.pruned / self.eligible


class Shards:
    """The tensors of a folder by name, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        """Find out which file holds which tensor.

        Raises:
            UserError: the folder has no safetensors, or they cannot be read.
        """
        self.folder = folder
        try:
            if (folder / INDEX).is_file():
                self.files: dict[str, str] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            else:
                with safe_open(folder / SINGLE, framework="pt") as file:
                    self.files = dict.fromkeys(file.keys(), SINGLE)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise UserError(
                f"{folder} has no readable safetensors ({error}): convert the weights to safetensors"
            ) from None
        if strange := [
            name for name in set(self.files.values()) if Path(name).name != name or Path(name).suffix != ".safetensors"
        ]:
            raise UserError(f"{folder / INDEX} points to {strange[0]}, which is no safetensors file beside it")

    def __getitem__(self, name: str) -> Tensor:
        with self._open(self.files[name]) as file:
            return file.get_tensor(name)

    def of(self, shard: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        """All tensors of one file, and its metadata."""
        with self._open(shard) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118

    def _open(self, shard: str) -> Any:
        try:
            return safe_open(self.folder / shard, framework="pt")
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.folder / shard} cannot be read ({error}): fetch the checkpoint again") from None


def prune_folder(source: Path, target: Path, sparsity: float, rules: Prune) -> Outcome:
    """Write the checkpoint at `source` to `target` with the smallest eligible weights set to zero.

    Raises:
        UserError: the checkpoint cannot be read, or the rules cannot be met.
    """
    model = _skeleton(source)
    shards = Shards(source)
    matrices = anatomy.describe(model).matrices
    if missing := [name for name in matrices if name not in shards.files]:
        raise UserError(f"{source} names its weights in another way than the model: there is no {missing[0]}")
    scores = Scores(matrices, lambda name: shards[name].abs())
    context = Context(model, matrices, list, 0, None)
    masks = engine.choose(context, Criterion(lambda _: scores), sparsity, rules)
    with replacing(target) as partial:
        partial.mkdir()
        for file in source.iterdir():
            if file.is_file() and file.suffix not in WEIGHTS:
                shutil.copy(file, partial / file.name)
        for shard in sorted(set(shards.files.values())):
            tensors, metadata = shards.of(shard)
            _apply(tensors, masks)
            save_file(tensors, partial / shard, metadata=metadata)
    return Outcome(masks.pruned, masks.numel)


def _apply(tensors: Mapping[str, Tensor], masks: Masks) -> None:
    for name, tensor in tensors.items():
        if name in masks:
            tensor.masked_fill_(~masks[name], 0.0)


def _skeleton(folder: Path) -> nn.Module:
    """The model that a folder's config describes, without weights."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no checkpoint: config.json is missing")
    config = load_config(str(folder))
    cls = auto_class(config)
    with torch.device("meta"):
        return cls.from_config(config) if hasattr(cls, "from_config") else cls(config)
