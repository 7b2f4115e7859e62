"""The section `prune`: the methods there are, and the knobs of each."""

from __future__ import annotations

import re
from collections.abc import Set
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from stages.params.section import NonNegative, Positive, PositiveFloat, Section, Share

Method = Literal[
    "magnitude",
    "gradient",
    "taylor",
    "grasp",
    "fisher",
    "movement",
    "l1",
    "l2",
    "random",
    "wanda",
    "ria",
    "sparsegpt",
    "alps",
    "dsnot",
    "structured",
]


class Calibration(Section):
    """The sample of training pairs that scores are averaged over."""

    samples: Positive
    batch_size: Positive


class NoKnobs(Section):
    """A criterion without knobs."""


class Grasp(Section):
    """Preservation of the gradient."""

    temperature: PositiveFloat


class Movement(Section):
    """Scores learnt in fine-tuning."""

    variant: Literal["soft", "hard"]
    floor: Annotated[float, Field(ge=0, lt=1)]

    @property
    def scope(self) -> Literal["global", "layer"]:
        """What scores are compared across."""
        return "global" if self.variant == "soft" else "layer"


class Penalty(Section):
    """Training with a weight penalty, before weights are ranked."""

    strength: PositiveFloat
    epochs: PositiveFloat
    learning_rate: PositiveFloat


class Owl(Section):
    """Allocation by outliers."""

    threshold: PositiveFloat
    spread: Share


class Layerwise(Section):
    """A criterion that ranks one matrix after another."""

    scope: Literal["layer", "row"]


class Ria(Layerwise):
    """Wanda with relative weights."""

    power: NonNegative


class SparseGPT(Layerwise):
    """Pruning column by column, with updates of what is kept."""

    damping: PositiveFloat
    block_columns: Positive


class Alps(Layerwise):
    """Mask and weights by ADMM."""

    damping: PositiveFloat
    rho: PositiveFloat
    steps: Positive
    gradient_steps: Annotated[int, Field(ge=0)]


class DSnoT(Layerwise):
    """Swaps that refine a mask."""

    initial: Literal["wanda", "magnitude"]
    cycles: Positive
    threshold: NonNegative


Removed = Literal["auto"] | Annotated[float | int, Field(ge=0, lt=1)]
"""Share of a kind of unit that goes, or whatever the level's sparsity asks for."""


ROUNDED = 5e-4
"""How far a sparsity of three digits may be from the share it means."""
Part = Literal[
    "reply",
    "head",
    "encoder_layers",
    "encoder_attention",
    "encoder_feed_forward",
    "decoder_layers",
    "decoder_attention",
    "decoder_feed_forward",
]
"""What the time of a reply is the sum of: itself, layers by number, weights by the million."""


class Latency(Section):
    """What the parts of a model add to the time of a reply, and what that was measured of."""

    device: str
    threads: Positive
    source_tokens: PositiveFloat
    target_tokens: Positive
    baseline_ms: PositiveFloat
    sizes: dict[str, Positive]
    milliseconds: dict[Part, NonNegative]

    @model_validator(mode="after")
    def _takes_time(self) -> Latency:
        sides = {part.partition("_")[0] for part in self.milliseconds} & {"encoder", "decoder"}
        wanted = {part for part in get_args(Part) if part.partition("_")[0] in {*sides, "decoder", "reply", "head"}}
        if missing := wanted - self.milliseconds.keys():
            raise ValueError(f"milliseconds has no {min(missing)}: measure it again with python -m stages.latency")
        if not any(self.milliseconds.values()):
            raise ValueError("milliseconds are all 0: measure them again with python -m stages.latency")
        return self


class Structured(Section):
    """Removal of whole parts."""

    budget: Literal["parameters", "flops", "latency"]
    latency: Latency | None
    allocation: Literal["uniform", "loss"]
    score: Literal["norm", "group_lasso", "taylor", "taylor_sum", "gate", "activation"]
    group_lasso: Penalty
    layer_score: Literal["loss", "output"]
    encoder_layers: Removed
    decoder_layers: Removed
    heads: Removed
    neurons: Removed
    width: Removed
    vocabulary: bool
    zeros: Annotated[float | int, Field(ge=0, lt=1)]

    @property
    def trains_first(self) -> bool:
        """Whether units are ranked after a training that penalises them."""
        return self.score == "group_lasso"

    @model_validator(mode="after")
    def _something_to_penalise(self) -> Structured:
        if self.trains_first and not any((self.heads, self.neurons, self.width)):
            raise ValueError(
                "score group_lasso trains units away: let heads, neurons or width go, or take another score"
            )
        return self

    @model_validator(mode="after")
    def _is_measured(self) -> Structured:
        if self.budget == "latency" and self.latency is None:
            raise ValueError("budget latency goes by what was measured: run `python -m stages.latency`")
        return self


class Prune(Section):
    """How weights are chosen."""

    scope: Literal["global", "layer", "row"]
    pattern: str
    allocation: Literal["uniform", "owl"]
    layers: dict[str, Annotated[float | int, Field(ge=0, lt=1)]]
    owl: Owl
    calibration: Calibration
    magnitude: NoKnobs
    random: NoKnobs
    gradient: NoKnobs
    taylor: NoKnobs
    grasp: Grasp
    fisher: NoKnobs
    movement: Movement
    l1: Penalty
    l2: Penalty
    wanda: Layerwise
    ria: Ria
    sparsegpt: SparseGPT
    alps: Alps
    dsnot: DSnoT
    structured: Structured

    def nearest(self, sparsity: float) -> float:
        """What an N:M pattern makes of a matrix's sparsity: its own, if it is that in three digits (0.667 of 1:3)."""
        own = self.group_sparsity
        return own if own is not None and abs(sparsity - own) <= ROUNDED else sparsity

    @property
    def group(self) -> tuple[int, int] | None:
        """N and M of a pattern N:M."""
        kept, colon, group = self.pattern.partition(":")
        return (int(kept), int(group)) if colon else None

    @property
    def group_sparsity(self) -> float | None:
        """Sparsity of a matrix that has the pattern N:M."""
        return 1 - self.group[0] / self.group[1] if self.group else None

    @property
    def blocks(self) -> bool:
        """Whether the pattern is one of blocks."""
        return "x" in self.pattern

    @property
    def units(self) -> bool:
        """Whether whole heads and neurons go."""
        return self.pattern == "units"

    @field_validator("pattern")
    @classmethod
    def _known(cls, pattern: str) -> str:
        match = re.fullmatch(r"unstructured|units|[1-9]\d*x[1-9]\d*|([1-9]\d*):([1-9]\d*)", pattern)
        if match is None or (match[1] and int(match[1]) >= int(match[2])):
            raise ValueError(
                "must be unstructured, N:M with N below M (2:4 keeps 2 of 4), a block such as 4x1, or units, which are "
                "heads and neurons"
            )
        return pattern

    @model_validator(mode="after")
    def _fits_together(self) -> Prune:
        if self.allocation == "owl" and self.scope == "global":
            raise ValueError(
                "allocation owl divides the sparsity between layers, scope global ranks across them: "
                "set scope to layer or row"
            )
        if self.allocation == "owl" and self.group:
            raise ValueError("allocation owl gives layers different sparsities, pattern N:M the same: use one of them")
        if self.group:
            whole = self.group_sparsity
            if partly := [share for share in self.layers.values() if self.nearest(share) not in (0, whole)]:
                raise ValueError(
                    f"pattern {self.pattern} keeps {self.group[0]} weights of every {self.group[1]}, so that layers "
                    f"can only be 0, which protects, or {whole:.4g}, not {partly[0]:g}"
                )
        if self.units and (self.scope == "row" or self.allocation == "owl"):
            wrong = "scope row" if self.scope == "row" else "allocation owl"
            raise ValueError(
                f"pattern units ranks heads and neurons, {wrong} weights: set scope to global or layer, and allocation "
                "to uniform"
            )
        if self.units and (shares := [share for share in self.layers.values() if share]):
            raise ValueError(
                f"pattern units: a unit runs through several matrices, so that layers can only be 0, not {shares[0]:g}"
            )
        return self

    def check_methods(self, methods: Set[str]) -> None:
        """Check that these methods can have the pattern.

        Raises:
            ValueError: one cannot.
        """
        if self.blocks and "dsnot" in methods:
            raise ValueError(
                f"method dsnot swaps single weights, prune.pattern {self.pattern} prunes blocks: "
                "choose another method, or unstructured or N:M"
            )
        if "movement" in methods and self.movement.variant == "soft" and self.allocation == "owl":
            raise ValueError(
                "method movement, variant soft, ranks across layers, allocation owl divides the sparsity between them: "
                "set movement.variant to hard, or allocation to uniform"
            )
        alone = [name for name in sorted(methods) if isinstance(getattr(self, name), Layerwise)]
        if self.units and alone:
            raise ValueError(
                f"method {alone[0]} prunes one matrix after another, prune.pattern units what runs through several: "
                "choose another method, such as magnitude or taylor"
            )
