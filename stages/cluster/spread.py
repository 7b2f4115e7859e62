"""Items shared out to the workers of a cluster, results in the order of the items."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from stages.cluster.connection import by_value, differing, on_worker, versions
from stages.errors import UserError
from stages.text.parallel import in_order

if TYPE_CHECKING:
    from distributed import Client

Item = TypeVar("Item")
Result = TypeVar("Result")
DECIDING = ("pyarrow", "numpy", "ftfy", "py3langid", "datasketch")
"""Packages whose version can show in cleaned data."""
IN_FLIGHT = 2
"""Items a worker thread: one worked on, one waiting there."""


class Spread:
    """An `OrderedMap` of the workers of a cluster.

    The function travels with this process's code, so workers need its packages only. An item whose worker is lost is
    given to another.
    """

    def __init__(self, client: Client) -> None:
        """Take the workers of a client.

        Raises:
            UserError: there are none.
        """
        self._client = client
        self._threads = sum(client.nthreads().values())
        if not self._threads:
            raise UserError("the Dask scheduler has no workers: start some")

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        """Results of the items, in order.

        Raises:
            UserError: raised by `function`; or a worker has another version of a package, or the workers that had an
                item were lost one after another, or the scheduler was.
        """
        from concurrent.futures import CancelledError

        from distributed import KilledWorker

        call = on_worker(by_value(_Alike(versions(DECIDING), function)))
        flight: list[Any] = []

        def submit(item: Item) -> Any:
            future = self._client.submit(call, by_value(item), pure=False)
            flight[:] = [*(other for other in flight if not other.done()), future]
            return future

        try:
            for problem, result in in_order(submit, items, IN_FLIGHT * self._threads):
                if problem:
                    raise UserError(problem)
                yield result
        except KilledWorker:
            raise UserError(
                "workers were lost one after another, most likely for lack of memory: give them more"
            ) from None
        except CancelledError:
            raise UserError("the Dask scheduler was lost: run the same command again") from None
        finally:
            self._client.cancel(flight)


@dataclass(frozen=True)
class _Alike:
    """A function, for a process that has the packages of the one that it comes from."""

    wanted: Mapping[str, str]
    function: Callable[[Any], Any]

    def __call__(self, item: bytes) -> tuple[str, Any]:
        """The message of a `UserError`, "" if there was none, and the result: the class would arrive as another one."""
        if problem := differing(self.wanted):
            return f"a worker {problem}", None
        try:
            return "", self.function(pickle.loads(item))
        except UserError as error:
            return str(error), None
