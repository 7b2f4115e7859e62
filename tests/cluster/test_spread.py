"""Cleaning by the workers of a Dask cluster: the bytes of one machine, whatever happens to a worker."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dask_cluster import Cluster, cluster
from shared import ROOT

from stages.cluster import connection, results
from stages.cluster import spread as spreading
from stages.cluster.connection import by_value, connected, differing, versions
from stages.cluster.spread import Spread
from stages.cluster.workshop import Workshop
from stages.errors import UserError
from stages.text.cleaning import OUTPUTS, clean_pairs
from stages.text.deduplicate import shingles


@pytest.fixture(scope="module", autouse=True)
def _by_value() -> Iterator[None]:
    """Workers have no tests to import."""
    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster"), 2) as started:
        yield started


def write_rows(path: Path, count: int) -> None:
    """Pairs of which some are equal, some nearly so, some in need of repair, and some in another language."""
    with path.open("w", encoding="utf-8") as file:
        file.write("act\tutterance\n")
        for number in range(count):
            name = "cafÃ©" if number % 7 == 0 else f"the café of the {number % 90}th street"
            said = "Das Haus steht leider nicht mehr" if number % 11 == 0 else f"We can recommend {name}"
            far = 5 * number if number % 3 else number % 2
            file.write(f"inform {number % 100} <b>area</b>\t{said}, which is {far} minutes away .\n")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.tsv"
    write_rows(path, 1000)
    return path


def cleaned(rows: Path, folder: Path, settings, spread=None, progress=lambda rows: None) -> dict[str, bytes]:
    """The bytes of every output of cleaning, and of its profile."""
    folder.mkdir()
    data = settings(data={"path": str(rows)}).data
    clean = settings(clean={"workers": 1, "near_duplicates": 0.9, "language_filter": "en"}).clean
    outputs = {name: folder / name for name in OUTPUTS}
    profile = clean_pairs(data, clean, outputs, folder, progress, spread)
    return {name: path.read_bytes() for name, path in outputs.items()} | {"profile": repr(profile).encode()}


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr("stages.text.reading.BATCH_ROWS", 100)


@pytest.fixture(scope="module")
def alone(rows, settings, tmp_path_factory) -> dict[str, bytes]:
    """What one process makes of the rows; how many of them a batch has makes no difference to it."""
    return cleaned(rows, tmp_path_factory.mktemp("alone") / "outputs", settings)


def test_the_bytes_of_one_machine(two_workers, rows, alone, settings, tmp_path, small_batches):
    with connected(two_workers.address) as client:
        assert cleaned(rows, tmp_path / "cluster", settings, Spread(client)) == alone
    profile = alone["profile"].decode()
    for reason in ("duplicate", "near_duplicate", "target_language"):
        assert f"'{reason}': 0" not in profile, "the data tests nothing"


def test_the_command_writes_the_same_files(two_workers, rows, default_values, tmp_path, monkeypatch):
    from ruamel.yaml import YAML

    monkeypatch.chdir(tmp_path)
    values = default_values | {"data": default_values["data"] | {"path": str(rows)}}
    YAML().dump(values, Path("params.yaml"))
    found = []
    for arguments in ([], ["--scheduler", two_workers.address]):
        monkeypatch.setattr(sys, "argv", ["clean", *arguments])
        from stages.clean import main

        main()
        found.append({path: path.read_bytes() for path in Path("outputs").rglob("*") if path.is_file()})
    assert found[0] == found[1] and len(found[0]) == 6


def slow(item: int) -> tuple[int, int]:
    time.sleep(0.05)
    return item * item, os.getpid()


def test_both_workers_work_and_order_is_kept(two_workers):
    with connected(two_workers.address) as client:
        results = list(Spread(client)(slow, range(20)))
    assert [square for square, _ in results] == [number * number for number in range(20)]
    assert {pid for _, pid in results} == {worker.pid for worker in two_workers.workers}


def test_a_worker_killed_on_the_way_changes_nothing(rows, alone, settings, tmp_path, small_batches):
    with cluster(tmp_path / "processes", 2) as started, connected(started.address) as client:
        done = 0

        def kill_one(count: int) -> None:
            nonlocal done
            done += count
            if done >= 300 and started.workers[0].poll() is None:
                started.workers[0].send_signal(signal.SIGKILL)
                started.workers[0].wait(timeout=30)

        assert cleaned(rows, tmp_path / "cluster", settings, Spread(client), kill_one) == alone
        assert started.workers[0].returncode == -signal.SIGKILL


def test_items_are_asked_for_only_as_results_are_taken(two_workers):
    asked: list[int] = []
    with connected(two_workers.address) as client:
        results = Spread(client)(slow, (asked.append(number) or number for number in range(1000)))
        for _ in range(5):
            next(results)
        assert len(asked) <= 5 + spreading.IN_FLIGHT * 2
        results.close()


def fail_at_three(number: int) -> int:
    if number == 3:
        raise UserError("three is too many")
    if number == 13:
        raise ZeroDivisionError
    return number


def test_an_error_ends_it_where_it_happened(two_workers):
    with connected(two_workers.address) as client:
        results = Spread(client)(fail_at_three, range(100))
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(UserError, match="three is too many"):
            next(results)
        with pytest.raises(ZeroDivisionError):
            list(Spread(client)(fail_at_three, range(10, 20)))


def test_another_version_is_told(two_workers, monkeypatch):
    monkeypatch.setattr(spreading, "versions", lambda names: versions(names) | {"ftfy": "1.0"})
    with (
        connected(two_workers.address) as client,
        pytest.raises(UserError, match=r"a worker has ftfy [\d.]+, not 1\.0: "),
    ):
        list(Spread(client)(fail_at_three, range(3)))


def test_a_lost_scheduler_is_one_line(tmp_path):
    with cluster(tmp_path, 1) as started, connected(started.address) as client:
        results = Spread(client)(slow, range(1000))
        next(results)
        started.scheduler.kill()
        with pytest.raises(UserError, match="the Dask scheduler was lost"):
            list(results)


def test_versions_name_what_differs():
    here = versions(["pyarrow", "no-such-package"])
    assert here["no-such-package"] == "none" and differing(here) == ""
    assert differing(here | {"pyarrow": "2.7"}).startswith(f"has pyarrow {here['pyarrow']}, not 2.7: ")


@pytest.mark.parametrize(("who", "name"), [("scheduler", "dask"), ("a worker", "python"), ("a worker", "msgpack")])
def test_what_dask_speaks_with_has_to_be_alike(two_workers, who, name):
    with connected(two_workers.address) as client:
        reports = client.get_versions()
    connection._require_alike(reports)
    one = reports["scheduler"] if who == "scheduler" else next(iter(reports["workers"].values()))
    one["packages"][name] = "2.7.18.final.0"
    with pytest.raises(UserError, match=rf"^the {who.split()[-1]}.* has {name} 2\.7"):
        connection._require_alike(reports)


def test_no_scheduler_and_no_workers_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.cluster.connection.CONNECT_S", 1)
    for address in ("tcp://127.0.0.1:9", "nonsense://somewhere", "127.0.0.1:port"):
        with pytest.raises(UserError, match="no Dask scheduler answers at") as error, connected(address):
            pass
        assert "\n" not in str(error.value)
    with (
        cluster(tmp_path, 0) as started,
        connected(started.address) as client,
        pytest.raises(UserError, match="no workers"),
    ):
        Spread(client)


def test_code_travels_by_value(monkeypatch):
    """What is unpickled where no module of ours can be imported still works, caches included."""
    import subprocess

    from stages.text import filtering

    workshop = Workshop("url", "0" * 40, "", {}, "topic", True, by_value(results.reach), by_value(results.push))
    text = by_value((shingles, filtering._identifier, filtering.Filter.__call__, workshop))
    code = (
        "import pickle, sys; sys.modules['stages'] = None; "
        "shingles, identifier, call, workshop = pickle.load(sys.stdin.buffer); "
        "print(sorted(shingles('abcd')), identifier() is identifier(), workshop._variables.__name__); "
        "pickle.loads(workshop.push), pickle.loads(workshop.reach), workshop.stop(2)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, cwd=ROOT.parent, check=True)
    assert done.stdout.decode().strip() == "['abc', 'bcd'] True _variables"
