"""Leave out the heads and neurons that hand nothing on, layer by layer.

What is left has shapes that no config describes, since it has one number of heads and of neurons for all layers. So it
is for graphs, which have the shapes of each matrix (`onnx_export`), and is never saved as a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from stages.errors import UserError
from stages.models import anatomy
from stages.pruning.structure.axes import Structure, describe


def compact(model: Any) -> int:
    """Cut a model, in place; its logits are as before.

    A unit hands nothing on if all weights by which others read it are zero, as pattern `units` leaves it; one of each
    layer stays. A model whose structure is not known stays as it is.

    Returns:
        How many weights were left out.
    """
    try:
        structure = describe(model)
    except UserError:
        return 0
    kept = _kept(model, structure)
    before = sum(parameter.numel() for parameter in model.parameters())
    cut: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        for place, dimension in enumerate(structure.tensors[name]):
            if dimension and dimension.axis in kept:
                rows = dimension.indices(kept[dimension.axis], structure.axes[dimension.axis].units)
                cut[name] = cut.get(name, tensor).index_select(place, rows.to(tensor.device))
    for name, tensor in cut.items():
        module, _, parameter = name.rpartition(".")
        setattr(model.get_submodule(module), parameter, nn.Parameter(tensor, requires_grad=False))
    for name in dict.fromkeys(name.rpartition(".")[0] for name in cut):
        _tell(model.get_submodule(name))
    for module in model.modules():
        _tell_attention(module)
    return before - sum(parameter.numel() for parameter in model.parameters())


def _kept(model: Any, structure: Structure) -> Mapping[str, Tensor]:
    """Units that something is read of, by axis, of the axes that have others."""
    read: dict[str, Tensor] = {}  # nonzero weights of each unit, in all matrices that read it
    for matrix in anatomy.describe(model).matrices.values():
        place, dimension = structure.read(matrix)
        if dimension is None or structure.axes[dimension.axis].kind == "width":
            continue
        nonzero = structure.per_unit(matrix.weight.detach() != 0, place, dimension)
        read[dimension.axis] = read.get(dimension.axis, 0) + nonzero
    kept = {}
    for axis, weights in read.items():
        if not bool(weights.any()):
            weights[0] = 1  # no graph has a matrix of none
        if not bool(weights.all()):
            kept[axis] = weights.nonzero().flatten().cpu()
    return kept


def _tell(module: Any) -> None:
    """Have a module know the shape that its weight has now."""
    shape = module.weight.shape
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = shape
    else:  # Conv1D of GPT-2
        module.nx, module.nf = shape


def _tell_attention(module: Any) -> None:
    """Have an attention know its heads, where it does not find them by their size."""
    if hasattr(module, "split_size") and hasattr(module, "c_attn"):  # GPT-2
        module.split_size = module.c_attn.nf // 3
        module.num_heads = module.split_size // module.head_dim
    elif hasattr(module, "key_value_proj_dim") and hasattr(module, "n_heads"):  # T5
        # Cross-attention makes a bias of zeros for so many heads, which that of later layers, with others, is given.
        module.n_heads = 1
