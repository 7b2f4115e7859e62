"""A Trainer that goes on from a checkpoint and ends in the bits of a run that nobody stopped.

The Trainer's own resuming falls short of that in places: it loses the loss summed since the last log, the evaluation of
an epoch whose last step is the checkpoint's, what callbacks know, parameters shared by two modules; and it writes a
pickle. So a checkpoint is taken, and restored, at one moment at which nothing is under way, right before the forward
pass of a step: all of the step before is done, logs and evaluation included. The Trainer still reads and writes its
optimizer, scheduler, generators and state, by `torch.load(weights_only=True)` and JSON.
"""

from __future__ import annotations

import shutil
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from stages.files import digest
from stages.training.checkpoints import Store

TENSORS = "state.safetensors"
BEST = "best"
"""Folder of the weights of the lowest validation loss so far."""
GENERATORS = ".generators"
"""Folder in which processes hand over the state of their random generators."""


@runtime_checkable
class Stateful(Protocol):
    """A callback that changes as training goes, in a way that decides what comes after."""

    def state_dict(self) -> dict[str, Tensor]:
        """All of it, by name."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Be again as `state_dict` was called; weights are restored apart."""
        ...


class Patience(EarlyStoppingCallback):
    """Early stopping that is stateful."""

    def state_dict(self) -> dict[str, Tensor]:
        """Evaluations without a lower validation loss."""
        return {"waited": torch.tensor(self.early_stopping_patience_counter)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See `Stateful`."""
        self.early_stopping_patience_counter = int(state["waited"])


class ResumableTrainer(Trainer):
    """Keeps checkpoints in a store, and goes on from its latest."""

    def __init__(self, store: Store | None, every: int, **settings: Any) -> None:
        """Set up; without a store it is the Trainer. The other settings are the Trainer's."""
        super().__init__(**settings)
        self._store = store
        self._every = every
        self._restored: Path | None = None
        if store:
            # First, since others begin a step by what the one before it, or a checkpoint, left.
            self.callback_handler.callbacks.insert(0, _BetweenSteps(self))

    def run(self) -> None:
        """Train, from the latest checkpoint on if there is one."""
        self._restored = self._latest()
        if self._restored:
            state = TrainerState.load_from_json(str(self._restored / TRAINER_STATE_NAME))
            if state.best_model_checkpoint and self.args.should_save:
                shutil.copytree(self._restored / BEST, state.best_model_checkpoint, dirs_exist_ok=True)
            self._say(f"going on from step {state.global_step} of {state.max_steps}, checkpoint {self._restored}")
        try:
            self.train(resume_from_checkpoint=str(self._restored) if self._restored else None)
        except KeyboardInterrupt:
            if self._store and (last := self._store.latest()):
                done = f"step {self.state.global_step} of {self.state.max_steps}"
                self._say(f"stopped after {done}; checkpoint {last} is kept to go on from")
            raise

    def _latest(self) -> Path | None:
        """The latest checkpoint, if all processes that train together see the same one."""
        latest = self._store.latest() if self._store else None
        if self.args.world_size > 1:
            step = torch.tensor([int(latest.name.rpartition("-")[2]) if latest else 0], device=self.args.device)
            if len(set(self.accelerator.gather(step).tolist())) > 1:
                self._say("processes see different checkpoints, so training begins anew: .scratch has to be shared")
                return None
        return latest

    def between_steps(self) -> None:
        """Restore the checkpoint that this run goes on from, or keep one if it is time."""
        if self._restored:
            self._restore(self._restored)
            self._restored = None
        elif self.state.global_step and self.state.global_step % self._every == 0:
            try:
                self._keep()
            except (OSError, RuntimeError, SafetensorError) as error:
                # Training is worth more than a checkpoint that a full disk has no room for. torch does not say so.
                why = " ".join(str(error).split())
                step = self.state.global_step
                self._say(f"no checkpoint of step {step} (is the disk full?), the one before it is kept: {why}")

    def _keep(self) -> None:
        assert self._store
        generators = self._store.folder / GENERATORS
        generators.mkdir(parents=True, exist_ok=True)
        try:
            self._save_rng_state(str(generators))  # each process has its own
        finally:
            self.accelerator.wait_for_everyone()
        if not self.args.should_save:
            return
        with self._store.writing(self.state.global_step) as folder:
            for rank in range(self.args.world_size):
                name = "rng_state.pth" if self.args.world_size == 1 else f"rng_state_{rank}.pth"
                (generators / name).replace(folder / name)
            save_file(self._tensors(), folder / TENSORS)
            self._save_optimizer_and_scheduler(str(folder))
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
            if self.state.best_model_checkpoint:
                (folder / BEST).mkdir()
                for file in Path(self.state.best_model_checkpoint).glob("*.safetensors*"):
                    shutil.copyfile(file, folder / BEST / file.name)

    @torch.no_grad()
    def _restore(self, folder: Path) -> None:
        saved = load_file(folder / TENSORS)
        for name, tensor in self._live().items():
            tensor.copy_(saved[name])
        for prefix, callback in self._stateful():
            callback.load_state_dict(
                {name.removeprefix(prefix): tensor for name, tensor in saved.items() if name.startswith(prefix)}
            )
        self._globalstep_last_logged = int(saved["trainer.last_logged"])
        # The Trainer's own loading fails with several processes on a CPU: they are on devices cpu:0, cpu:1, ….
        for name, part in ((OPTIMIZER_NAME, self.optimizer), (SCHEDULER_NAME, self.lr_scheduler)):
            part.load_state_dict(torch.load(folder / name, map_location="cpu", weights_only=True))
        super()._load_rng_state(str(folder))

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {**self._live(), "trainer.last_logged": torch.tensor(self._globalstep_last_logged)}
        for prefix, callback in self._stateful():
            tensors |= {f"{prefix}{name}": tensor for name, tensor in callback.state_dict().items()}
        return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}

    def _live(self) -> dict[str, Tensor]:
        """Tensors that training changes in place; a shared one once."""
        model = self.accelerator.unwrap_model(self.model)
        return {**_named(model), "trainer.loss": self._tr_loss}

    def _stateful(self) -> Iterator[tuple[str, Stateful]]:
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, Stateful):
                yield f"callback.{type(callback).__name__}.", callback

    def _say(self, text: str) -> None:
        if self.args.should_save:
            with suppress(BrokenPipeError):  # by Ctrl-C, `| tee` ends before us
                print(text, file=sys.stderr, flush=True)

    # What the Trainer restores by itself before its loop, `_restore` does at the moment it was saved.
    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        pass

    def _load_optimizer_and_scheduler(self, *args: Any, **kwargs: Any) -> None:
        pass

    def _load_rng_state(self, *args: Any, **kwargs: Any) -> None:
        pass


class _BetweenSteps(TrainerCallback):
    def __init__(self, trainer: ResumableTrainer) -> None:
        self._trainer = trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.between_steps()


def decisive(
    model: torch.nn.Module,
    callbacks: Iterable[TrainerCallback],
    splits: Iterable[Sequence[Mapping[str, list[int]]]],
    *settings: object,
) -> list[str]:
    """Hashes and text that together say where training starts, and so where it ends.

    Args:
        model: before training.
        callbacks: all of those that change what is trained.
        splits: encoded examples.
        settings: of the training; what decides the result has to be in their `str`.
    """
    states = [callback.state_dict() for callback in callbacks if isinstance(callback, Stateful)]
    return [
        *(str(setting) for setting in (torch.__version__, transformers.__version__, *settings)),
        *(_digest(tensors) for tensors in (_named(model), {"": torch.get_rng_state()}, *states)),
        *(digest(*(_bytes(ids) for example in split for ids in example.values())) for split in splits),
    ]


def _named(model: torch.nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    raw = ((name, tensor.detach().cpu().reshape(-1).view(torch.uint8)) for name, tensor in tensors.items())
    return digest(*(digest(name, bytes(flat.numpy())) for name, flat in raw))


def _bytes(ids: list[int]) -> bytes:
    return array("q", [len(ids), *ids]).tobytes()
