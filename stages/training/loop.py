"""The training loop: transformers' Trainer, set up the same way for every stage that trains."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from stages.errors import UserError
from stages.models.attention import trained_fast
from stages.models.checkpoint import IGNORED, Generator
from stages.models.likelihood import aligned, cross_entropy
from stages.models.sharing import unshared_state
from stages.params import Optimization, Runtime
from stages.runtime import autocast_bf16, processes, writes_outputs
from stages.training.bucketing import StepBucketSampler
from stages.training.checkpoints import Checkpoints
from stages.training.learning_rate import restarting
from stages.training.progress import ShowProgress
from stages.training.resuming import Patience, ResumableTrainer, decisive

if TYPE_CHECKING:
    from stages.training.distillation import Teacher

LOGS_PER_RUN = 40
"""Points of a loss curve."""
SCHEDULERS = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}

Examples = Sequence[dict[str, list[int]]]


@dataclass(frozen=True)
class Outcome:
    """What a training run came to."""

    steps: int
    epochs: float
    validation_loss: float
    """Mean over the tokens of each batch, averaged over validation batches."""
    bf16: bool
    """Whether it computed in bf16: what `precision: auto` came to."""
    curve: list[dict[str, float]]
    """Points with `step`, `epoch` and some of `loss`, `validation_loss`, `learning_rate`, `sparsity`."""


def train(
    generator: Generator,
    examples: Examples,
    validation: Examples,
    optimization: Optimization,
    runtime: Runtime,
    scratch: Path,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    starts: Sequence[int] = (0,),
    teacher: Teacher | None = None,
    keep_best: bool = False,
    patience: int | None = None,
    checkpoints: Checkpoints | None = None,
) -> Outcome:
    """Train a generator in place; a run that was killed goes on from its last checkpoint, and ends in the same bits.

    Args:
        generator: what to train; left in evaluation mode, and computing in its own precision.
        examples: of `Generator.encode`, to train on.
        validation: the same, to measure the loss on after each epoch.
        optimization: epochs, batch size, learning rate and so on.
        runtime: seed and precision.
        scratch: folder for the best weights so far; removed after success.
        callbacks: more Trainer callbacks.
        starts: steps with which the schedule of the learning rate begins, from 0 on: one for each round.
        teacher: what to learn from besides the examples.
        keep_best: end with the weights of the lowest validation loss, not the last ones.
        patience: stop after so many evaluations without a lower validation loss.
        checkpoints: to keep, and to go on from. Removing them is the caller's, who knows when the result is safe.

    Raises:
        UserError: the loss is not finite.
    """
    arguments = _arguments(total_steps(len(examples), optimization), optimization, runtime, scratch, keep_best)
    callbacks = [*callbacks, *([Patience(patience)] if patience else [])]
    store = None
    if checkpoints and checkpoints.every:
        knobs = (optimization.model_dump(exclude={"checkpoint_every"}), runtime, starts, keep_best, patience)
        parts = decisive(generator.model, callbacks, (examples, validation), *knobs, arguments.bf16, processes())
        store = checkpoints.of(*parts)
    if writes_outputs():
        shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
    with _config_kept(generator.model), closing(ShowProgress()) as progress:
        trainer = _Trainer(
            store=store,
            every=checkpoints.every if checkpoints else 0,
            optimization=optimization,
            starts=starts,
            teacher=teacher,
            model=generator.model,
            args=arguments,
            train_dataset=_Split(examples),
            eval_dataset=_Split(validation),
            data_collator=_collator(generator),
            compute_loss_func=_token_mean(generator, optimization.label_smoothing, teacher),
            callbacks=[*callbacks, _StopOnDivergence(), progress],
        )
        trainer.remove_callback(PrinterCallback)
        longest = max(len(ids) for example in examples for ids in example.values())
        with trained_fast(generator.model, longest, bf16=arguments.bf16):
            trainer.run()
    generator.model.eval()
    final = _final_loss(trainer, keep_best)
    # Accelerate leaves bf16 on in `forward`, so that what comes next would not compute as with the model loaded anew.
    extract_model_from_parallel(generator.model, keep_fp32_wrapper=False)
    if writes_outputs():
        shutil.rmtree(scratch, ignore_errors=True)
    return Outcome(
        steps=trainer.state.global_step,
        epochs=float(trainer.state.epoch or 0),
        validation_loss=final,
        bf16=arguments.bf16,
        curve=_curve(trainer.state.log_history),
    )


@contextmanager
def _config_kept(model: PreTrainedModel) -> Iterator[None]:
    """Have the config after the block as it was before; the Trainer turns the decoding cache off in it."""
    before = dict(vars(model.config))
    yield
    vars(model.config).update(before)
    if "use_cache" not in before:
        vars(model.config).pop("use_cache", None)


def total_steps(examples: int, optimization: Optimization) -> int:
    """Optimizer steps that `optimization.epochs` over so many examples take."""
    batch = optimization.batch_size * optimization.gradient_accumulation * processes()
    return max(1, math.ceil(optimization.epochs * math.ceil(examples / batch)))


def _arguments(
    total: int, optimization: Optimization, runtime: Runtime, scratch: Path, keep_best: bool
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=optimization.batch_size,
        per_device_eval_batch_size=2 * optimization.batch_size,
        gradient_accumulation_steps=optimization.gradient_accumulation,
        max_steps=total,
        learning_rate=optimization.learning_rate,
        lr_scheduler_type=SCHEDULERS[optimization.decay],
        warmup_steps=round(optimization.warmup_ratio * total),
        weight_decay=optimization.weight_decay,
        max_grad_norm=optimization.max_grad_norm,
        use_cpu=not torch.cuda.is_available(),
        bf16=autocast_bf16(runtime),
        seed=runtime.seed,
        data_seed=runtime.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        eval_strategy="epoch",
        save_strategy="best" if keep_best else "no",
        metric_for_best_model="loss",
        save_total_limit=1,
        save_only_model=True,
        load_best_model_at_end=keep_best,
        logging_steps=max(1, total // LOGS_PER_RUN),
        logging_nan_inf_filter=False,
        prediction_loss_only=True,
        report_to="none",
        disable_tqdm=True,
    )


class _Trainer(ResumableTrainer):
    """The Trainer, with our sampler if batches are to hold like lengths, a schedule for each round, a teacher, and
    sides that share their weights saved as two.
    """

    def __init__(
        self, optimization: Optimization, starts: Sequence[int], teacher: Teacher | None, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self._optimization = optimization
        self._starts = starts
        self._teacher = teacher

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        if self._teacher and model.training:
            inputs = self._teacher.ask(inputs, self.accelerator.autocast())
        return super().compute_loss(model, inputs, *args, **kwargs)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if len(self._starts) == 1:
            return super().create_scheduler(num_training_steps, optimizer)
        name, warmup = self.args.lr_scheduler_type, self._optimization.warmup_ratio
        self.lr_scheduler = restarting(self.optimizer, name, self._starts, num_training_steps, warmup)
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        if not self._optimization.bucket_by_length:
            return super()._get_train_sampler(train_dataset)
        assert isinstance(self.train_dataset, _Split)
        lengths = self.train_dataset.lengths
        step = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return StepBucketSampler(lengths, step, self.args.seed)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        # safetensors refuses tensors that share memory. Read back, both copies are equal, so the sides stay shared.
        super()._save(output_dir, unshared_state(self.model) if state_dict is None else state_dict)


class _Split(Dataset[dict[str, list[int]]]):
    """Examples of a split, with their lengths to bucket by: the tokens of input and target together."""

    def __init__(self, examples: Examples) -> None:
        if not examples:
            raise UserError("a split has no examples to train or validate on: check outputs/data and clean.split")
        self._examples = examples
        self.lengths = [len(example["input_ids"]) + len(example["labels"]) for example in examples]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self._examples[index]


def _collator(generator: Generator) -> Callable[[Examples], dict[str, Tensor]]:
    """`Generator.collate`, with the decoder's input, since the Trainer keeps the labels for the loss below."""
    if generator.kind == "causal":
        return generator.collate
    model: Any = generator.model

    def collate(examples: Examples) -> dict[str, Tensor]:
        batch = generator.collate(examples)
        batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
        return batch

    return collate


def _token_mean(generator: Generator, label_smoothing: float, teacher: Teacher | None) -> Callable[..., Tensor]:
    """Cross-entropy per target token, the mean taken over all tokens of an optimizer step; with a teacher, its loss.

    A mean of each batch's mean would give the tokens of short texts more weight than those of long ones once
    gradients are accumulated. (Models that ignore the token count the Trainer passes, as EncoderDecoderModel
    does, would even sum the batches.)
    """

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        training = generator.model.training
        logits, predicted = aligned(outputs.logits, labels, causal=generator.kind == "causal")
        total = cross_entropy(logits, predicted, label_smoothing=label_smoothing if training else 0.0)
        if teacher and training:
            total = teacher.loss(total, outputs, labels)
        return total / ((predicted != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)

    return loss


class _StopOnDivergence(TrainerCallback):
    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        for name in ("loss", "eval_loss"):
            if name in logs and not math.isfinite(logs[name]):
                raise UserError(
                    f"the {name.replace('eval_', 'validation ')} is not finite at step {state.global_step}: "
                    "lower the learning rate, or set runtime.precision to fp32"
                )


def _final_loss(trainer: Trainer, keep_best: bool) -> float:
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    return min(losses) if keep_best else losses[-1]


def _curve(history: list[dict[str, float]]) -> list[dict[str, float]]:
    points: dict[int, dict[str, float]] = {}
    for entry in history:
        point = points.setdefault(int(entry["step"]), {"step": entry["step"], "epoch": entry["epoch"]})
        for name, key in (("loss", "loss"), ("eval_loss", "validation_loss"), ("learning_rate", "learning_rate")):
            if name in entry:
                point[key] = float(entry[name])
        if "sparsity" in entry:
            point["sparsity"] = float(entry["sparsity"])
    return list(points.values())
