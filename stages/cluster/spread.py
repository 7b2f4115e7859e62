"""Items shared out to the workers of a cluster, results in the order of the items."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from stages.cluster.connection import PACKAGES, by_value, differing, versions
from stages.errors import UserError
from stages.text.parallel import in_order

if TYPE_CHECKING:
    from distributed import Client

Item = TypeVar("Item")
Result = TypeVar("Result")
DECIDING = ("pyarrow", "numpy", "ftfy", "py3langid", "datasketch", *PACKAGES)
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

        call = _caller(by_value((partial(differing, versions(DECIDING)), function)))
        flight: list[Any] = []

        def submit(item: Item) -> Any:
            future = self._client.submit(call, by_value(item), pure=False)
            flight[:] = [*(other for other in flight if not other.done()), future]
            return future

        try:
            for problem, result in in_order(submit, items, IN_FLIGHT * self._threads):
                if problem is not None:
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


def _caller(code: bytes) -> Callable[[bytes], tuple[str | None, Any]]:
    """A function for a worker that unpickles `code` once, and applies the function in it to items.

    It returns the message of a `UserError`, whose class the worker has its own of, and the result.
    """

    def call(item: bytes) -> tuple[str | None, Any]:  # local, so that it travels by value itself
        import pickle

        from distributed import get_worker

        worker = get_worker()
        loaded = worker.__dict__.setdefault("espalier_functions", {})
        if code not in loaded:
            unlike, function = pickle.loads(code)
            if differences := unlike():
                advice = "start it in an environment like this one (constraints.txt)"
                return f"the worker {worker.address} has {differences}: {advice}", None
            loaded[code] = function
        try:
            return None, loaded[code](pickle.loads(item))
        except Exception as error:
            if type(error).__name__ != "UserError":
                raise
            return str(error), None

    return call
