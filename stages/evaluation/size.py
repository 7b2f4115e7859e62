"""How large a checkpoint is: parameters, how many are zero, bytes."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from transformers import PreTrainedModel

from stages.bitmasks import MASKS_FILE
from stages.models.anatomy import count_nonzero, describe, nonzero
from stages.models.sparse import VALUES_FILE, is_sparse

COMPRESSION_LEVEL = 9
BLOCK = 64 * 2**20


def sizes(model: PreTrainedModel, folder: Path, eligible: int | None = None) -> dict[str, float]:
    """Parameters (tied ones once), how many are not zero, sparsity of eligible weights, and bytes.

    Args:
        model: the loaded model.
        folder: its checkpoint.
        eligible: weights that could be pruned of the baseline; where parts were removed the model has fewer. None: its
            own.

    Returns:
        `parameters`, `nonzero_parameters`, `eligible_parameters`, `sparsity` (share of eligible weights that
        are zero, or gone), `size_bytes` of the weights on disk, and `compressed_bytes` of them (see `compressed`).
    """
    anatomy = describe(model)
    eligible = eligible or anatomy.eligible
    kept = sum(count_nonzero(weight) for weight in anatomy.weights.values())
    files = weight_files(folder)
    return {
        "parameters": anatomy.parameters,
        "nonzero_parameters": nonzero(model),
        "eligible_parameters": eligible,
        "sparsity": 1 - kept / eligible,
        "size_bytes": sum(file.stat().st_size for file in files),
        "compressed_bytes": sum(compressed(file) for file in files),
    }


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the model itself, sharded or not, and of one kept without its zeros its masks too."""
    if is_sparse(folder):
        return [folder / VALUES_FILE, folder / MASKS_FILE]
    return sorted(folder.glob("model*.safetensors"))


def compressed(file: Path) -> int:
    """Bytes of a file compressed by zstd in blocks of 64 MiB: what the zeros of a sparse level save.

    The codec is the one inside pyarrow, whose version is pinned, so the figure is the same on every machine.
    """
    codec = pa.Codec("zstd", compression_level=COMPRESSION_LEVEL)
    total = 0
    with file.open("rb") as handle:
        while block := handle.read(BLOCK):
            total += codec.compress(block).size
    return total
