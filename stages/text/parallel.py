"""Several processes or machines, one order."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol, TypeVar

from stages.errors import UserError
from stages.machine import cores

Item = TypeVar("Item")
Result = TypeVar("Result")
Given = TypeVar("Given", covariant=True)


class OrderedMap(Protocol):
    """`map` by several workers: results in the order of items, whatever the number of workers.

    A bounded number of items is in flight, so a stream of any length needs bounded memory. The function must be
    picklable and depend on its item alone; what it raises is raised here.
    """

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        """Results of the items."""


class Promise(Protocol[Given]):
    """A result that is being worked on."""

    def result(self) -> Given:
        """Wait for it."""


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """An `OrderedMap` of `workers` processes, one a core at most, with at most two items a worker in flight.

    Raises:
        UserError: a process was killed. What `function` raises is raised here.
    """
    if workers == 1:
        yield from map(function, items)
        return
    # Ctrl-C reaches the processes too; only this one should act on it.
    workers = min(workers, cores())
    with ProcessPoolExecutor(workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
        try:
            yield from in_order(lambda item: pool.submit(function, item), items, 2 * workers)
        except BrokenProcessPool:
            raise UserError("a process was killed, most likely for lack of memory: lower clean.workers") from None
        finally:
            pool.shutdown(cancel_futures=True)


def in_order(submit: Callable[[Item], Promise[Result]], items: Iterable[Item], most: int) -> Iterator[Result]:
    """Results of items in their order, at most `most` of them in flight besides the one that is waited for."""
    flight: deque[Promise[Result]] = deque()
    for item in items:
        flight.append(submit(item))
        if len(flight) > most:
            yield flight.popleft().result()
    while flight:
        yield flight.popleft().result()
