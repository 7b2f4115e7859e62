"""Several processes, one order."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from stages.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`map` in `workers` processes: results in the order of items, whatever their number.

    At most two items a worker are in flight, so a stream of any length needs bounded memory. `function` must be
    picklable and depend on its item alone.

    Raises:
        UserError: a process was killed. What `function` raises is raised here.
    """
    if workers == 1:
        yield from map(function, items)
        return
    # Ctrl-C reaches the processes too; only this one should act on it.
    with ProcessPoolExecutor(workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
        flight: deque[Future[Result]] = deque()
        try:
            for item in items:
                flight.append(pool.submit(function, item))
                if len(flight) > 2 * workers:
                    yield flight.popleft().result()
            while flight:
                yield flight.popleft().result()
        except BrokenProcessPool:
            raise UserError("a process was killed, most likely for lack of memory: lower clean.workers") from None
        finally:
            pool.shutdown(cancel_futures=True)
