"""The progress of a sweep as a table: a row a level, a column a stage."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from stages.pool import Task

STYLES = {"waiting": "dim", "queued": "dim", "running": "yellow", "kept": "dim", "failed": "bold red", "skipped": "red"}


def table(tasks: Sequence[Task], now: float) -> Group:
    """Draw the tasks as they are at `now`, by the monotonic clock."""
    columns = list(dict.fromkeys(task.name.partition("@")[0] for task in tasks if task.key))
    rows: dict[str, dict[str, Task]] = {}
    shared = []
    for task in tasks:
        stage, key = _place(task.name, columns)
        if key:
            rows.setdefault(key, {})[stage] = task
        else:
            shared.append(task)
    line = Text("  ").join(Text.assemble(f"{task.name} ", _cell(task, now)) for task in shared)
    if not rows:
        return Group(line)
    grid = Table(box=None, pad_edge=False)
    for column in ("level", *columns):
        grid.add_column(column, justify="left" if column == "level" else "right")
    for key, cells in rows.items():
        grid.add_row(key, *(_cell(cells[column], now) if column in cells else "" for column in columns))
    return Group(line, grid)


def _place(name: str, columns: Sequence[str]) -> tuple[str, str]:
    """Stage and level: both `finetune@l1-0.5` and `finetune_dense` belong in the column `finetune`."""
    stage, _, key = name.partition("@")
    if not key and stage.partition("_")[0] in columns:
        stage, _, key = stage.partition("_")
    return stage, key


def _cell(task: Task, now: float) -> Text:
    seconds = now - task.started if task.state == "running" else task.seconds
    clock = f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
    texts = {"waiting": "·", "queued": "·", "running": clock, "done": clock, "skipped": "–"}
    return Text(texts.get(task.state, task.state), style=STYLES.get(task.state, ""))
