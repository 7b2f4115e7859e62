"""DVC and stages in processes that begin with the libraries in memory.

A level is three stages, each a process of its own; starting Python and importing torch and transformers takes longer
than pruning itself. So one process, a server of multiprocessing's kind, imports them once, computes nothing and has no
threads. It is forked for every `dvc`, and that once more for each command of a level's stages, which begins where a new
process would be after its imports, as a child of the same DVC and in the same process group.

Processes are started anew where a fork would not be the same:

- on a GPU, whose driver does not survive a fork once it is initialised, and on systems but Linux;
- in a folder whose code is not this code: another project, or another commit's clone;
- once a module has been edited: a stage's code has to be what DVC writes into dvc.lock;
- with ESPALIER_WARM=off.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

import stages
from stages import params

SWITCH = "ESPALIER_WARM"
IMPORTED = "stages.warm_imports"
"""What the server imports. It is not imported here: the sweep itself needs none of it."""
_COMMAND = re.compile(r"python -m (stages\.(?:prune|finetune|evaluate)) ([\w.-]+)")


class Warm:
    """A process that runs DVC, as far as `subprocess.Popen` is asked of one."""

    def __init__(self, arguments: Sequence[str], variables: Mapping[str, str]) -> None:
        """Start `dvc ARGUMENTS` in a process group of its own; its output and errors are in `stdout`."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([IMPORTED])
        reader, writer = context.Pipe(duplex=False)
        self._status, status = context.Pipe(duplex=False)
        self._process = context.Process(target=_dvc, args=(list(arguments), dict(variables), writer, status))
        self._process.start()
        writer.close()
        status.close()
        with suppress(EOFError):  # it has ended at once
            reader.recv_bytes()  # a signal to the group is lost while there is none
        assert self._process.pid is not None
        self.pid: int = self._process.pid
        self.stdout: TextIO = os.fdopen(os.dup(reader.fileno()), encoding="utf-8", errors="replace")
        reader.close()

    def wait(self) -> int:
        """Its exit status, once it has ended; it says so itself, since the server may have been killed meanwhile."""
        said: int | None = None
        with suppress(EOFError):  # it was killed itself
            said = self._status.recv()
        self._process.join()
        return self._process.exitcode or 0 if said is None else said


def possible() -> bool:
    """Whether stages of the project in the working directory may begin so."""
    if sys.platform != "linux" or params.switched_off(SWITCH):
        return False
    if not Path(stages.__file__).parents[1].samefile(Path.cwd()):
        return False
    import torch

    return not torch.cuda.is_available()


def _dvc(arguments: list[str], variables: dict[str, str], output: Connection, ended: Connection) -> None:
    """In a fork of the server: what `python -m stages.run_dvc ARGUMENTS` does."""
    os.setsid()
    with suppress(BrokenPipeError):  # the sweep is gone: what DVC has begun it ends
        output.send_bytes(b"")
    for number in (1, 2):
        os.dup2(output.fileno(), number)
    output.close()
    _become(variables, Path.cwd())
    import dvc.stage.run

    from stages import run_dvc

    dvc.stage.run._run = forking(dvc.stage.run._run)
    sys.argv = ["dvc", *arguments]
    status = 1
    try:
        status = run_dvc.main()
    except SystemExit as end:
        status = _status(end)
    finally:
        with suppress(OSError):  # the sweep is gone
            ended.send(status)
    sys.exit(status)


def forking(cold: Callable[..., None]) -> Callable[..., None]:
    """DVC's way of running a stage's command, by a fork of this process if that is the same.

    Args:
        cold: DVC's, for all other commands.
    """

    def run(executable: str | None, command: str, **options: Any) -> None:
        from dvc.stage.exceptions import StageCmdFailedError

        words = _COMMAND.fullmatch(command)
        if not words or edited():
            cold(executable, command, **options)
            return
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if not child:
            _stage(words[1], [words[2]], options["env"], options["cwd"])
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as DVC does: the stage is to end first
        try:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        finally:
            signal.signal(signal.SIGINT, before)
        if status:
            raise StageCmdFailedError(command, status)

    return run


def edited() -> bool:
    """Whether a module of this project is another in its file than in this process."""
    from stages.warm_imports import BEFORE, states

    now = states()
    return any(now[file] != state for file, state in BEFORE.items())


def _stage(module: str, arguments: list[str], variables: Mapping[str, str], folder: str) -> None:
    """In a fork of DVC: what `python -m MODULE ARGUMENTS` does; never returns."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        _become(variables, Path(folder))
        sys.argv = [module, *arguments]
        importlib.import_module(module).main()
        status = 0
    except SystemExit as end:
        status = _status(end)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _status(end: SystemExit) -> int:
    """What Python would end with."""
    return end.code if isinstance(end.code, int) else int(end.code is not None)


def _become(variables: Mapping[str, str], folder: Path) -> None:
    """Take on what a new process is given."""
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, write_through=True)  # type: ignore[union-attr]
