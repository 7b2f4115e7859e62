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
from torch import Tensor
from transformers import PreTrainedModel

from stages.bitmasks import Masks
from stages.errors import UserError
from stages.files import replacing
from stages.models import anatomy
from stages.models.anatomy import Matrix
from stages.models.checkpoint import auto_class, by, load_config, skeleton
from stages.models.sharing import copies, share_sides
from stages.models.sparse import is_sparse
from stages.params import Prune
from stages.pruning import engine
from stages.pruning.criterion import Context, Criterion
from stages.pruning.scores import Scores

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx")
"""Files that hold weights; of those beside the safetensors, which stay dense, none is copied."""
FLOATING = ("F64", "F32", "F16", "BF16")
"""Types of weights that can be ranked by magnitude and set to zero."""


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
                index = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
                self.files: dict[str, str] = {str(name): str(shard) for name, shard in index.items()}
            else:
                with safe_open(folder / SINGLE, framework="pt") as file:
                    self.files = dict.fromkeys(file.keys(), SINGLE)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
            raise UserError(
                f"{folder} has no readable safetensors ({error}): convert the weights to safetensors"
            ) from None
        for shard in sorted(set(self.files.values())):
            if Path(shard).name != shard or Path(shard).suffix != ".safetensors":
                raise UserError(f"{folder / INDEX} points to {shard}, which is no safetensors file beside it")
            with self._open(shard) as file:
                held = set(file.keys())
            if lost := [name for name, at in self.files.items() if at == shard and name not in held]:
                raise UserError(
                    f"{folder / shard} lacks {lost[0]}, which {INDEX} says it has: fetch the checkpoint again"
                )

    def __getitem__(self, name: str) -> Tensor:
        with self._open(self.files[name]) as file:
            return file.get_tensor(name)

    def kind(self, name: str) -> tuple[torch.Size, str]:
        """Shape and type of a tensor, the type as safetensors spell it, without reading it."""
        with self._open(self.files[name]) as file:
            tensor = file.get_slice(name)
            return torch.Size(tensor.get_shape()), tensor.get_dtype()

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
    if is_sparse(source):
        raise UserError(
            f"{source} leaves out its zeros: run `python -m stages.densify {source} --output FOLDER` and prune that"
        )
    model = _skeleton(source)
    shards = Shards(source)
    matrices = anatomy.describe(model).matrices
    called = _names(shards, model)
    _check(shards, called, matrices)
    engine.check(model, matrices, sparsity, rules)
    # fp32, as a model in memory has them.
    scores = Scores(matrices, lambda name: shards[called[name]], lambda weights: weights.float().abs())
    context = Context(model, matrices, list, 0, None)
    masks = engine.choose(context, Criterion(lambda _: scores), sparsity, rules)
    repeated, names = copies(model), {own: name for name, own in called.items()}
    with replacing(target) as partial:
        partial.mkdir()
        for file in source.iterdir():
            if file.is_file() and file.suffix not in WEIGHTS:
                shutil.copy(file, partial / file.name)
        for shard in sorted(set(shards.files.values())):
            tensors, metadata = shards.of(shard)
            _apply(tensors, masks, repeated, names)
            save_file(tensors, partial / shard, metadata=metadata)
    return Outcome(masks.pruned, masks.numel)


def _names(shards: Shards, model: PreTrainedModel) -> dict[str, str]:
    """What the folder calls each tensor, by the model's name for it.

    Saved without its head, as GPT-2 was, a model lacks the prefix that it has within the one with a head.
    """
    known = model.state_dict().keys()
    prefix = f"{model.base_model_prefix}."
    return {own if own in known else f"{prefix}{own}": own for own in shards.files}


def _check(shards: Shards, called: Mapping[str, str], matrices: Mapping[str, Matrix]) -> None:
    """Check that the weights are there, as the config describes them, and are numbers that have a magnitude."""
    for name, matrix in matrices.items():
        if name not in called:
            raise UserError(f"{shards.folder} names its weights in another way than the model: there is no {name}")
        shape, kind = shards.kind(called[name])
        wanted = matrix.weight.shape
        if shape != wanted:
            raise UserError(
                f"{shards.folder}: {name} is {by(shape)}, its config asks for {by(wanted)}: they must agree"
            )
        if kind not in FLOATING:
            raise UserError(f"{shards.folder}: {name} is {kind}: prune the checkpoint that it was quantised from")


def _apply(tensors: Mapping[str, Tensor], masks: Masks, repeated: Mapping[str, str], names: Mapping[str, str]) -> None:
    """Set to zero what the masks do not keep, in the copies of shared weights as well; names are the model's."""
    for own, tensor in tensors.items():
        name = names[own]
        chosen = repeated.get(name, name)
        if chosen in masks:
            tensor.masked_fill_(~masks[chosen], 0.0)


def _skeleton(folder: Path) -> PreTrainedModel:
    """The model that a folder's config describes, without weights."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no checkpoint: config.json is missing")
    config = load_config(str(folder))
    model = skeleton(auto_class(config), config)
    if getattr(config, "share_weights", False):
        share_sides(model)
    return model
