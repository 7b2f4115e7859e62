"""What a person sees while a model trains: a bar on a terminal, a line per evaluation elsewhere."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

SHOWN = (("loss", "loss"), ("eval_loss", "validation"), ("sparsity", "sparsity"))


class ShowProgress(TrainerCallback):
    """Progress on stderr, from the main process only."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._figures: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar."""
        if state.is_world_process_zero:
            self._task = self._bar.add_task("", total=state.max_steps, completed=state.global_step, figures="")
            self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if state.is_world_process_zero:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """Show the latest figures; keep a line for each evaluation."""
        if not state.is_world_process_zero:
            return
        self._figures |= {shown: logs[name] for name, shown in SHOWN if name in logs}
        text = "  ".join(f"{name} {value:.3f}" for name, value in self._figures.items())
        self._bar.update(self._task, figures=text)
        if "eval_loss" in logs:
            self._console.print(f"step {state.global_step}/{state.max_steps}  epoch {state.epoch:.1f}  {text}")

    def close(self) -> None:
        """Close the bar, however training ended."""
        self._bar.stop()
