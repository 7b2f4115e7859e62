"""Espalier's pipeline: one script per DVC stage, and the packages they call."""

import os
import sys
from types import TracebackType

# Read by OpenMP when torch is first imported, so it has to be set before any stage imports it.
# Spinning threads collapse on a busy machine (a stage of 10 s took 165 s); waiting ones give the
# same bits and lose nothing on an idle one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Forked data workers and a threaded tokenizer dead-lock; the tokenizer says so on every fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C while a command still imports, before `stages.errors.command` can take it, ends in the same line."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    from stages.errors import GO_ON, INTERRUPTED
    from stages.restore import put_back

    put_back()
    print(GO_ON, file=sys.stderr, flush=True)
    sys.exit(INTERRUPTED)


sys.excepthook = _uncaught
