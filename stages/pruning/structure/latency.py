"""The time of a reply, as the sum of what its parts take: what a budget of latency is a share of.

A reply is greedy, of one text, with a cache of keys and values. It takes some time whatever the model is, some for each
layer, since calling an operation takes time however small it is, and some for each weight that is read:

    t = reply + head * W_head + sum over sides of (layers * N + attention * W_attention + feed_forward * W_feed_forward)

with N layers and W million weights. So a layer costs more than its weights, and a decoder's, which is run for every
token, more than an encoder's. The factors, in milliseconds, are measured (`stages.latency`) and kept in params: what is
chosen by them is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

from stages.errors import UserError
from stages.models import anatomy
from stages.models.checkpoint import sides
from stages.params.prune import Latency, Part
from stages.pruning.criterion import Context
from stages.pruning.structure.axes import Structure
from stages.pruning.structure.plan import Plan, counts, whole

PARTS: tuple[Part, ...] = get_args(Part)
MILLION = 1e6
AGAIN = "measure this one: python -m stages.latency"


def latency(context: Context, structure: Structure) -> Callable[[Plan], float]:
    """Milliseconds of a reply, by params `prune.structured.latency`.

    Raises:
        UserError: nothing was measured, or of another model.
    """
    table: Latency | None = context.settings.latency
    if table is None:
        raise UserError("prune.structured.latency is null: run `python -m stages.latency`, which measures it")
    return predicted(table, context.model, structure)


def predicted(table: Latency, model: Any, structure: Structure) -> Callable[[Plan], float]:
    """Milliseconds of a reply by a table: of the model that it was measured of, or of what is left of that model.

    Raises:
        UserError: it is of another model.
    """
    _check(table, sizes(model, structure))
    amount_of = amounts(model, structure)
    return lambda plan: total(table.milliseconds, amount_of(plan))


def check_measured(table: Latency, model: Any, structure: Structure) -> None:
    """Check that a table was measured of just this model.

    Raises:
        UserError: it is of another one.
    """
    found = sizes(model, structure)
    _check(table, found)
    for name, size in found.items():
        if size != table.sizes[name]:
            raise _of_another(table, name, size)


def total(milliseconds: Mapping[Part, float], amount: Mapping[Part, float]) -> float:
    """Milliseconds of so much of each part."""
    return sum(milliseconds[part] * much for part, much in amount.items())


def amounts(model: Any, structure: Structure) -> Callable[[Plan], dict[Part, float]]:
    """How much of each part a plan leaves: layers by number, weights by the million, the reply itself once."""
    read: dict[Part, list[str]] = {"head": [head(model)]}
    for name, matrix in anatomy.describe(model).matrices.items():
        part: Any = f"{matrix.side}_{'feed_forward' if matrix.role == 'feed_forward' else 'attention'}"
        read.setdefault(part, []).append(name)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}

    def amount(plan: Plan) -> dict[Part, float]:
        weights = {
            part: sum(plan.elements(name, shapes[name], structure) for name in names) / MILLION
            for part, names in read.items()
        }
        layers = {f"{side}_layers": float(len(kept)) for side, kept in plan.layers.items()}
        return {"reply": 1.0, **weights, **layers}  # type: ignore[dict-item]

    return amount


def sizes(model: Any, structure: Structure) -> dict[str, int]:
    """What tells models apart that take different times: sizes by config field, and the vocabulary."""
    return counts(whole(structure), structure) | {"vocabulary": model.state_dict()[head(model)].shape[0]}


def head(model: Any) -> str:
    """Name of the language-model head's weight."""
    weight = sides(model)[-1].get_output_embeddings().weight
    return next(name for name, found in model.named_parameters(remove_duplicate=False) if found is weight)


def _check(table: Latency, found: Mapping[str, int]) -> None:
    if table.sizes.keys() != found.keys():
        raise UserError(f"prune.structured.latency was measured of a model of another family: {AGAIN}")
    for name, size in found.items():
        if size > table.sizes[name]:
            raise _of_another(table, name, size)


def _of_another(table: Latency, name: str, size: int) -> UserError:
    return UserError(
        f"prune.structured.latency was measured of a model with {name} {table.sizes[name]}, this one has {size}: "
        f"{AGAIN}"
    )
