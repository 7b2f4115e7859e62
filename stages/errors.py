"""Errors a person can act on, and the wrapper that shows them without a traceback."""

from __future__ import annotations

import errno
import functools
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stages.restore import outputs_kept

INTERRUPTED = 130
NO_READER = 141
"""As a shell tells of a command that SIGPIPE ended."""
CANNOT_WRITE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
)
"""Of an error of the system: the place that was named cannot be written, which is no bug of ours."""
READING_TOO = (errno.EACCES, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
"""Those of which it is not known whether something was to be read."""
GO_ON = "interrupted: finished stages are kept; run the same command to go on"


class UserError(Exception):
    """Something the user can put right: bad params, data or checkpoint.

    The message is one line that names the file, line or key, and says what to do.
    """


def command(main: Callable[..., None], *, interrupted: str = GO_ON) -> Callable[..., None]:
    """Run `main` as a command: a `UserError`, a full disk or Ctrl-C ends in one line on stderr.

    A stage that fails leaves the outputs it had before, and one whose code is not what DVC takes it for does not
    begin. Exit status is 1 for an error, 130 for Ctrl-C, which `interrupted` is said of, and 141 if nobody reads any
    more what is printed. Never 0: DVC would record a stage's outputs of before as those of this run. Any other
    exception is a bug of ours and keeps its traceback.
    """

    @functools.wraps(main)
    def run(*args: object, **kwargs: object) -> None:
        if "DVC_STAGE" in os.environ:
            # Termination and a closed terminal too end a stage in good order: its outputs have to be put back.
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.default_int_handler)
        try:
            with outputs_kept(), _code_as_recorded(Path(main.__code__.co_filename).stem):
                main(*args, **kwargs)
        except UserError as error:
            _stop(f"error: {error}", 1)
        except KeyboardInterrupt:
            _stop(interrupted, INTERRUPTED)
        except BrokenPipeError:
            # The reader went away (`| head`, or `| tee` by Ctrl-C). What still waits to be printed has nowhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(NO_READER)
        except Exception as error:
            why = _number(error)
            if why not in CANNOT_WRITE:
                raise
            doing = "read or write" if why in READING_TOO else "write"
            _stop(f"error: cannot {doing} {getattr(error, 'filename', None) or 'output'}: {os.strerror(why)}", 1)

    return run


@contextmanager
def _code_as_recorded(script: str) -> Iterator[None]:
    """Refuse to run, in a stage of DVC, code that DVC would record as another."""
    if "DVC_STAGE" not in os.environ:
        yield
        return
    from stages import fingerprints

    fingerprints.refuse_edited(script)
    fingerprints.refuse_other_libraries(script)
    before = set(sys.modules)
    yield
    fingerprints.refuse_edited(script, imported=sys.modules.keys() - before)


def _number(error: Exception) -> int:
    """The system's number of an error, 0 if it has none; libraries in Rust, as safetensors, have it in their text."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else 0


def _stop(message: str, status: int) -> None:
    with suppress(BrokenPipeError):
        print(message, file=sys.stderr, flush=True)
    sys.exit(status)
