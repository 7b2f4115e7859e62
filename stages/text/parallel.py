"""Several processes, one order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`map` in `workers` processes: results in the order of items, whatever their number.

    At most two items a worker are in flight, so a stream of any length needs bounded memory. `function` must be
    picklable and depend on its item alone.
    """
    if workers == 1:
        yield from map(function, items)
        return
    with ProcessPoolExecutor(workers) as pool:
        flight: deque[Future[Result]] = deque()
        try:
            for item in items:
                flight.append(pool.submit(function, item))
                if len(flight) > 2 * workers:
                    yield flight.popleft().result()
            while flight:
                yield flight.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
