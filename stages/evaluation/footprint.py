"""What a generator takes of a machine before it is fast or slow: seconds to load, and memory.

A process's peak of memory never falls, so each generator is measured in a child of its own, forked once libraries are
imported, which is quick and the same for all.
"""

from __future__ import annotations

import gc
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from stages.errors import UserError
from stages.evaluation.generation import generate_batch
from stages.models.checkpoint import Generator, one_line

RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes of the unit that the system counts memory in."""


def footprint(load: Callable[[], Generator], texts: Sequence[str], options: dict[str, Any]) -> dict[str, float]:
    """Measure one generator.

    The calling process should have its libraries imported, hold no generator, and have computed nothing: threads do not
    survive a fork.

    Args:
        load: gives the generator.
        texts: one batch, generated once.
        options: arguments of `model.generate`.

    Returns:
        `load_seconds`, from files that the system has in memory, and `peak_memory_bytes`: most that the process held,
        libraries among it, while it loaded the generator and generated the batch.

    Raises:
        UserError: the generator cannot be loaded, or the child was killed, as for want of memory.
    """
    # What a GPU was told does not survive a fork either.
    context: Any = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(sender, load, texts, options))
    child.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        child.join()
        raise UserError(
            f"a generator could not be measured: its process ended with {child.exitcode}, perhaps for want of memory"
        ) from None
    child.join()
    if isinstance(found, UserError):
        raise found
    return dict(found)


def _measure(sender: Connection, load: Callable[[], Generator], texts: Sequence[str], options: dict[str, Any]) -> None:
    name = "a generator"
    try:
        generator = load()
        name = generator.model.name_or_path or name
        generate_batch(generator, texts, options)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT
        del generator
        gc.collect()
        start = time.perf_counter()  # a second time: the first one imported what this kind of model needs
        load()
        sender.send({"load_seconds": time.perf_counter() - start, "peak_memory_bytes": peak})
    except UserError as error:
        sender.send(error)
    except Exception as error:  # not all kinds survive a pipe, and a traceback here would be of no process the user ran
        sender.send(UserError(f"{name} could not be measured: {type(error).__name__}: {one_line(error)}"))
