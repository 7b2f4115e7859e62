"""Masks at one bit a weight, in memory and on disk.

A mask is a bool tensor of the weight's shape, True where the weight is kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stages.errors import UserError
from stages.files import remedy, replacing

MASKS_FILE = "masks.safetensors"


class Masks(Mapping[str, Tensor]):
    """Masks by weight name, kept at one bit a weight; a lookup unpacks one, on the CPU.

    Bool tensors would take a quarter of an fp32 model's memory.
    """

    def __init__(self, masks: Mapping[str, Tensor] | None = None) -> None:
        """Take bool tensors, or start empty."""
        self._packed: dict[str, np.ndarray] = {}
        self._shapes: dict[str, torch.Size] = {}
        for name, mask in (masks or {}).items():
            self.put(name, mask)

    def put(self, name: str, mask: Tensor) -> None:
        """Add or replace one."""
        self._packed[name] = np.packbits(mask.cpu().numpy().reshape(-1))
        self._shapes[name] = mask.shape

    def __getitem__(self, name: str) -> Tensor:
        shape = self._shapes[name]
        bits = np.unpackbits(self._packed[name], count=math.prod(shape))
        return torch.from_numpy(bits.view(bool)).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every mask, by name."""
        return {name: tuple(shape) for name, shape in self._shapes.items()}

    @property
    def pruned(self) -> int:
        """Weights that are not kept."""
        # Bits that fill up the last byte are zero, as those of pruned weights.
        kept = sum(int(np.bitwise_count(packed).sum()) for packed in self._packed.values())
        return self.numel - kept

    @property
    def numel(self) -> int:
        """Weights that there are masks for."""
        return sum(math.prod(shape) for shape in self._shapes.values())

    @property
    def sparsity(self) -> float:
        """Share of weights that are not kept."""
        return self.pruned / self.numel

    def save(self, path: Path) -> None:
        """Write them: rows of 8 packed most significant bit first; shapes in the metadata."""
        packed = {name: torch.from_numpy(bits) for name, bits in self._packed.items()}
        with replacing(path) as partial:
            save_file(packed, partial, metadata={"shapes": json.dumps(self.shapes)})

    @classmethod
    def load(cls, path: Path) -> Masks:
        """Read masks that `save` wrote.

        Raises:
            UserError: the file is missing or damaged.
        """
        masks = cls()
        try:
            with safe_open(path, framework="pt") as file:
                for name, shape in json.loads(file.metadata()["shapes"]).items():
                    bits = file.get_tensor(name).numpy()
                    if bits.dtype != np.uint8 or bits.size != (math.prod(shape) + 7) // 8:
                        raise ValueError("a mask has the wrong length")
                    masks._packed[name], masks._shapes[name] = bits, torch.Size(shape)
        except FileNotFoundError:
            raise UserError(f"{path} is missing: run `dvc repro`, or `dvc pull` to fetch it") from None
        except (SafetensorError, TypeError, KeyError, ValueError, AttributeError, OSError) as error:
            raise UserError(f"{path} is damaged ({error}): {remedy(path.parent)}") from None
        return masks
