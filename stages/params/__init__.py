"""The typed, validated `params.yaml`; nothing else reads it.

No key has a default here: what decides a result is in `params.yaml`, where DVC tracks it. That is why this
module is no dependency of any stage in `dvc.yaml`: it can refuse a run, never change its bits.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.errors import UserError
from stages.layout import CHOSEN, Level
from stages.params.agreement import RULES
from stages.params.benchmark import Benchmark
from stages.params.export import Export
from stages.params.finetune import Distillation, Lora
from stages.params.prune import Method, Prune
from stages.params.section import (
    Distinct,
    Fraction,
    HubId,
    NonNegative,
    Place,
    Positive,
    PositiveFloat,
    Section,
    Share,
    Sparsity,
    Workers,
)
from stages.params.wording import describe

PARAMS_FILE = Path("params.yaml")


class Runtime(Section):
    """What fixes the bits of a computation beside code and data."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    threads: Workers
    processes: Annotated[int, Field(ge=1, le=1024)]
    precision: Literal["auto", "bf16", "fp32"]
    instructions: Literal["portable", "native"]


class Data(Section):
    """Where the text pairs are and how to read them."""

    path: Place
    pattern: str
    hub: HubId | None
    source: str
    target: str
    split: str | None
    prefix: str
    swap: bool
    language: Literal["en", "zh"]
    placeholder: str | None

    @field_validator("placeholder")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"is not a regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _columns_differ(self) -> Data:
        if self.source == self.target:
            raise ValueError("source and target name the same column")
        return self


class SplitShares(Section):
    """Share of distinct inputs in each split."""

    train: Fraction
    validation: Fraction
    test: Fraction

    @model_validator(mode="after")
    def _sum_to_one(self) -> SplitShares:
        if abs(self.train + self.validation + self.test - 1) > 1e-9:
            raise ValueError("train + validation + test must be 1")
        return self


class Clean(Section):
    """Steps of data cleaning."""

    workers: Workers
    repair_encoding: bool
    unicode_form: Literal["NFC", "NFKC"] | None
    strip_control: bool
    strip_html: bool
    collapse_whitespace: bool
    min_characters: Positive
    max_source_characters: Positive
    max_target_characters: Positive
    drop_duplicates: bool
    near_duplicates: Fraction | None
    language_filter: str | None
    split: SplitShares


class Side(Section):
    """Encoder or decoder of an `encoder_decoder`."""

    checkpoint: Place | None
    architecture: Literal["bert", "roberta"]
    config: dict[str, Any]


class Tokenizer(Section):
    """Which tokenizer to take, or how to train one."""

    checkpoint: Place | None
    vocab_size: Annotated[int, Field(ge=300, le=10**7)]
    lowercase: bool


class Model(Section):
    """The generator."""

    kind: Literal["encoder_decoder", "seq2seq", "causal"]
    checkpoint: Place | None
    architecture: str | None
    config: dict[str, Any]
    encoder: Side
    decoder: Side
    share_weights: bool
    tokenizer: Tokenizer
    max_source_tokens: Positive
    max_target_tokens: Positive

    @property
    def checkpoints(self) -> list[str]:
        """Every local folder or hub id that is named."""
        named = (self.checkpoint, self.encoder.checkpoint, self.decoder.checkpoint, self.tokenizer.checkpoint)
        return list(dict.fromkeys(name for name in named if name))

    @model_validator(mode="after")
    def _has_origin(self) -> Model:
        if self.kind != "encoder_decoder" and (self.checkpoint is None) == (self.architecture is None):
            raise ValueError(f"kind {self.kind} needs either checkpoint or architecture")
        if self.kind == "encoder_decoder" and (self.checkpoint or self.architecture):
            raise ValueError("kind encoder_decoder takes encoder and decoder, not checkpoint or architecture")
        return self


class Optimization(Section):
    """What every training loop needs: baseline, penalised and fine-tuning."""

    epochs: PositiveFloat
    batch_size: Positive
    gradient_accumulation: Positive
    learning_rate: PositiveFloat
    decay: Literal["linear", "cosine", "constant"]
    warmup_ratio: Share
    weight_decay: NonNegative
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    max_grad_norm: PositiveFloat
    bucket_by_length: bool


class Train(Optimization):
    """Training of the baseline."""

    early_stopping_patience: Positive | None
    checkpoint_every: Annotated[int, Field(ge=0)]


class Finetune(Optimization):
    """Training that holds the sparsity, pruning gradually if asked to."""

    schedule: Literal["one_shot", "rounds", "cubic"]
    rounds: Positive
    rewind: Literal["none", "weights", "learning_rate"]
    ramp: Fraction
    refresh_steps: Positive
    storage: Literal["dense", "sparse"]
    distillation: Distillation
    lora: Lora

    @model_validator(mode="after")
    def _adapts_fixed_masks(self) -> Finetune:
        if self.lora.rank and self.schedule != "one_shot":
            raise ValueError("lora trains under fixed masks: set schedule to one_shot, or lora.rank to 0")
        return self

    @model_validator(mode="after")
    def _rewinds_rounds(self) -> Finetune:
        if self.rewind != "none" and self.schedule != "rounds":
            raise ValueError(f"rewind {self.rewind} is done at the start of each round: set schedule to rounds")
        return self


class Sweep(Section):
    """The levels: every method at every sparsity."""

    method: Annotated[Distinct[Method], Field(min_length=1)]
    sparsity: Annotated[Distinct[Sparsity], Field(min_length=1)]

    @property
    def levels(self) -> list[Level]:
        """All levels, in the order DVC's matrix has them."""
        return [Level(method, sparsity) for method in self.method for sparsity in self.sparsity]


class Evaluate(Section):
    """Generation and the statistics behind every figure."""

    batch_size: Positive
    num_beams: Annotated[int, Field(ge=1, le=1000)]
    length_penalty: Annotated[float, Field(ge=-10, le=10)]
    do_sample: bool
    temperature: Annotated[float, Field(ge=0.001, le=1000)]
    top_k: Annotated[int, Field(ge=0)]
    top_p: Annotated[float, Field(ge=0.001, le=1)]
    repetition_penalty: Annotated[float, Field(ge=0.001, le=1000)]
    fluency_order: Annotated[int, Field(ge=2, le=6)]
    bootstrap_samples: Annotated[int, Field(ge=100)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)]


class Target(Section):
    """Which loss of quality is still good enough."""

    metric: Literal["bleu", "chrf", "rougeL"]
    max_drop: NonNegative


class Search(Section):
    """Bisection for the highest sparsity that meets the target."""

    method: Method
    low: Sparsity
    high: Sparsity
    resolution: Annotated[float, Field(gt=0, lt=1)]

    @model_validator(mode="after")
    def _ordered(self) -> Search:
        if self.low >= self.high:
            raise ValueError("low must be below high")
        return self


class Tracking(Section):
    """Where runs go."""

    experiment: Annotated[str, Field(min_length=1)]


class Params(Section):
    """The whole params.yaml."""

    runtime: Runtime
    data: Data
    clean: Clean
    model: Model
    train: Train
    sweep: Sweep
    prune: Prune
    finetune: Finetune
    evaluate: Evaluate
    export: Export
    benchmark: Benchmark
    target: Target
    search: Search
    tracking: Tracking

    @model_validator(mode="after")
    def _sections_agree(self) -> Params:
        for rule in RULES:
            rule(self)
        return self


def load(*sections: str, path: Path | str = PARAMS_FILE) -> Params:
    """Read and check the whole of `params.yaml`, and return the named sections of it.

    Args:
        sections: names of the top-level sections the caller uses. The others are left out of the result, so
            a stage cannot come to depend on a knob that DVC does not know it reads.
        path: file to read.

    Raises:
        UserError: the file is missing, is not YAML, or a value is wrong; names the key and what is allowed.
    """
    params = validate(read_yaml(path), origin=str(path))
    if unknown := set(sections) - set(Params.model_fields):
        raise ValueError(f"no such section: {sorted(unknown)}")
    return Params.model_construct(**{name: getattr(params, name) for name in sections})


def switched_off(variable: str) -> bool:
    """Whether an environment variable says that something is not wanted: off, 0 or false."""
    return os.environ.get(variable, "on").lower() in ("off", "0", "false")


def checkpoint_every() -> int:
    """`train.checkpoint_every`, which is of every stage that trains, and decides no result of any."""
    return load("train").train.checkpoint_every


def check_level(method: str, sparsity: float, path: Path | str = PARAMS_FILE) -> None:
    """Check that the other params, which `load` has found right, allow a level, whether it is one of the sweep or not.

    Raises:
        UserError: they do not, or there is no such method.
    """
    check_method(method)
    values = read_yaml(path)
    alone = values["sweep"] | {"method": [method], "sparsity": [sparsity]}
    # A level of the sweep that is exported is not to be exported of this one.
    export = values["export"] | {"level": CHOSEN}
    validate(values | {"sweep": alone, "export": export}, origin=f"{path}, were {method}-{sparsity:g} in the sweep")


def check_method(name: str) -> None:
    """Check that a level names a known method.

    Raises:
        UserError: it does not.
    """
    if name not in get_args(Method):
        raise UserError(f"{name} is no pruning method: choose from {', '.join(get_args(Method))}")


def validate(values: Any, origin: str) -> Params:
    """Check parsed params.

    Raises:
        UserError: one line that names every offending key of `origin` and what it should be.
    """
    if not isinstance(values, dict):
        raise UserError(f"{origin}: expected sections such as `data:` and `train:`, found {values!r:.40}")
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{origin}: " + "; ".join(describe(Params, values, e) for e in error.errors())) from None


def read_yaml(path: Path | str) -> Any:
    """Parse a YAML file.

    Raises:
        UserError: it is missing or not YAML.
    """
    try:
        return YAML(typ="safe").load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run this from the project's root folder") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
