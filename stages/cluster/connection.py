"""The way to a cluster, and what its workers have to have in common with this process."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from stages.errors import UserError

if TYPE_CHECKING:
    from distributed import Client

VARIABLE = "ESPALIER_SCHEDULER"
"""Environment variable with the scheduler's address, for stages that DVC runs."""
CONNECT_S = 10
ADVICE = "start it in an environment like this one (constraints.txt)"
PACKAGES = ("dask", "distributed", "cloudpickle", "msgpack")
"""What both ends of a connection speak with."""


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """A client of the cluster whose scheduler is at `address`, as in tcp://host:8786 or tls://host:8786.

    Certificates of a tls:// address are those of Dask's own configuration (`distributed.comm.tls`).

    Raises:
        UserError: Dask is not installed, no scheduler answers, or the cluster has another version of Python or Dask.
    """
    try:
        import dask
        from distributed import Client
    except ImportError:
        raise UserError("Dask is not installed: pip install -c constraints.txt -e '.[cluster]'") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what goes wrong is reported here, in one line
    # Batches of rows go with the task, so that those of a worker that is lost are still there.
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GB"}):
        try:
            client = Client(address, timeout=CONNECT_S, set_as_default=False)
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"no Dask scheduler answers at {address} ({reason}): start one, or correct the address"
            ) from None
        try:
            _require_alike(client.get_versions())
            yield client
        finally:
            with suppress(Exception):  # the cluster may be gone, which has been said then
                client.close(timeout=5)


def _require_alike(reports: Mapping[str, Any]) -> None:
    """Check what has to be alike before a function can be sent at all.

    Raises:
        UserError: the scheduler or a worker has another version of Python or of what Dask speaks with.
    """
    here = reports["client"]["packages"]
    there = {"the scheduler": reports["scheduler"]} | {f"the worker {at}": of for at, of in reports["workers"].items()}
    for who, report in there.items():
        for name in ("python", *PACKAGES):
            found, wanted = (_version(name, packages) for packages in (report["packages"], here))
            if found != wanted:
                raise UserError(f"{who} has {name} {found}, not {wanted}: {ADVICE}")


def _version(name: str, packages: Mapping[str, str | None]) -> str:
    version = packages[name] or "none"
    return ".".join(version.split(".")[:2]) if name == "python" else version


def by_value(thing: Any) -> bytes:
    """Pickle something with the code of this project that it uses, as it is in this process.

    A worker may have another revision of it, or none.
    """
    import functools

    import cloudpickle

    import stages

    class Pickler(cloudpickle.Pickler):
        def reducer_override(self, obj: Any) -> Any:
            """A function with a cache travels as the function, and starts another cache."""
            if isinstance(obj, functools._lru_cache_wrapper) and obj.__module__.startswith(f"{stages.__name__}."):
                return functools.lru_cache(**obj.cache_parameters()), (obj.__wrapped__,)
            return super().reducer_override(obj)

    file = io.BytesIO()
    cloudpickle.register_pickle_by_value(stages)
    try:
        Pickler(file).dump(thing)
    finally:
        cloudpickle.unregister_pickle_by_value(stages)
    return file.getvalue()


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of packages in this process; "none" for one that is not installed."""
    from importlib import metadata

    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def differing(wanted: Mapping[str, str]) -> str:
    """What this process has in other versions than wanted, and what to do; "" if nothing is."""
    found = versions(wanted)
    unlike = [f"{name} {found[name]}, not {version}" for name, version in wanted.items() if found[name] != version]
    return f"has {', '.join(unlike)}: {ADVICE}" if unlike else ""


def on_worker(code: bytes, method: str = "__call__") -> Callable[..., Any]:
    """A function for workers: calls a method of what `by_value` pickled, which every worker process unpickles once."""

    # Local, so that it travels by value itself. `Client.run` gives the worker, outside of tasks.
    def call(*arguments: Any, dask_worker: Any = None) -> Any:
        import pickle

        from distributed import get_worker

        loaded = (dask_worker or get_worker()).__dict__.setdefault("espalier", {})
        if code not in loaded:
            loaded[code] = pickle.loads(code)
        return getattr(loaded[code], method)(*arguments)

    return call
