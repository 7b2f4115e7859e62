"""Showing that a long job moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def counting(what: str) -> Iterator[Callable[[int], None]]:
    """Show a running count of rows on a terminal while the block runs; elsewhere nothing.

    Yields:
        A function to call with the number of rows just done.
    """
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    count = TextColumn("{task.description} {task.completed:,.0f} rows")
    # Without its refreshing thread, for processes may be forked while it is shown.
    with Progress(
        SpinnerColumn(),
        count,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        auto_refresh=False,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(what, total=None)
        yield lambda rows: progress.update(task, advance=rows, refresh=True)
