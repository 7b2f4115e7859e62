"""How each library prunes a model by each method, at a level: a sparsity, or 2:4."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from stages import params
from stages.params import Prune

Batches = Sequence[Mapping[str, Tensor]]
Way = Callable[[Any, Batches, str], None]
"""`way(model, batches, level)` prunes the model in place, and leaves it a plain one."""

GROUP = "2:4"
SPARSITIES = ("0.5", "0.6", "0.7", "0.8")
LEVELS = (*SPARSITIES, GROUP)


def share(level: str) -> float:
    """The sparsity of a level."""
    return 0.5 if level == GROUP else float(level)


def ours(method: str, scope: str = "global") -> Way:
    """This project's, with the knobs of params.yaml."""

    def prune(model: Any, batches: Batches, level: str) -> None:
        from stages.models import anatomy
        from stages.pruning import criterion, engine, masks

        described, rules = anatomy.describe(model), _rules(level, scope)
        settings = getattr(rules, method)
        context = criterion.Context(model, described.matrices, lambda: map(dict, batches), 0, settings)
        found = engine.choose(context, criterion.find(method), share(level), rules)
        masks.apply(described.weights, found)

    return prune


def _rules(level: str, scope: str) -> Prune:
    """Params `prune`: the project's, with the level's pattern."""
    values = params.read_yaml(params.PARAMS_FILE)["prune"]
    pattern = GROUP if level == GROUP else "unstructured"
    return Prune.model_validate(values | {"scope": scope, "pattern": pattern, "allocation": "uniform", "layers": {}})


def _modules(model: Any) -> dict[str, Any]:
    """The modules of the eligible weights: others are given the same ones."""
    from stages.models import anatomy

    names = (name.removesuffix(".weight") for name in anatomy.describe(model).matrices)
    return {name: model.get_submodule(name) for name in names}


def torch_global(model: Any, batches: Batches, level: str) -> None:
    """`torch.nn.utils.prune.global_unstructured`."""
    from torch.nn.utils import prune

    modules = [(module, "weight") for module in _modules(model).values()]
    count = round(share(level) * sum(module.weight.numel() for module, _ in modules))
    prune.global_unstructured(modules, pruning_method=prune.L1Unstructured, amount=count)
    for module, name in modules:
        prune.remove(module, name)


def torch_layer(model: Any, batches: Batches, level: str) -> None:
    """`torch.nn.utils.prune.l1_unstructured`, module after module."""
    from torch.nn.utils import prune

    for module in _modules(model).values():
        prune.l1_unstructured(module, "weight", amount=round(share(level) * module.weight.numel()))
        prune.remove(module, "weight")


def torch_groups(model: Any, batches: Batches, level: str) -> None:
    """`torch.ao.pruning.WeightNormSparsifier` with two zeros in every block of 1 by 4."""
    from torch.ao.pruning import WeightNormSparsifier

    sparsifier = WeightNormSparsifier(sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
    sparsifier.prepare(model, [{"tensor_fqn": f"{name}.weight"} for name in _modules(model)])
    sparsifier.step()
    sparsifier.squash_mask()


def llmcompressor(modifier: str) -> Way:
    """`llmcompressor.oneshot`, with the same batches at the same size."""

    def prune(model: Any, batches: Batches, level: str) -> None:
        from llmcompressor import oneshot
        from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
        from torch.utils.data import DataLoader

        cls = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}[modifier]
        structure = GROUP if level == GROUP else "0:0"
        recipe = cls(sparsity=share(level), mask_structure=structure, targets=["Linear"], ignore=["re:.*lm_head"])
        inputs = [_without_labels(model, batch) for batch in batches]
        loader: Any = DataLoader(inputs, batch_size=None)  # type: ignore[arg-type]
        # A processor is loaded, at a cost, where none is given; with tokens as they are here it has nothing to do.
        unused: Any = object()
        oneshot(model=model, processor=unused, dataset=loader, recipe=recipe, num_calibration_samples=len(inputs))

    return prune


def _without_labels(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a model is given where no loss is wanted."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
    return inputs


OURS = "espalier"
TORCH, TORCH_AO, LLMCOMPRESSOR = "torch.nn.utils.prune", "torch.ao.pruning", "llmcompressor"
WAYS: dict[str, dict[str, Way]] = {
    "magnitude": {OURS: ours("magnitude"), TORCH: torch_global, TORCH_AO: torch_groups},
    "magnitude by layer": {OURS: ours("magnitude", "layer"), TORCH: torch_layer},
    "wanda": {OURS: ours("wanda"), LLMCOMPRESSOR: llmcompressor("wanda")},
    "sparsegpt": {OURS: ours("sparsegpt"), LLMCOMPRESSOR: llmcompressor("sparsegpt")},
}
"""Each method as each library has it."""

CALIBRATED = ("wanda", "sparsegpt")
"""Methods that look at texts."""


def other(method: str, level: str) -> str | None:
    """The library that ours is compared with at a level; None where ours has nothing more to show.

    Magnitude by layer at 2:4 is magnitude at 2:4.
    """
    if method == "magnitude":
        return TORCH_AO if level == GROUP else TORCH
    if method == "magnitude by layer":
        return None if level == GROUP else TORCH
    return LLMCOMPRESSOR
