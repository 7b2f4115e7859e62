"""What makes a process that lives for seconds start and end quickly; nothing here changes a result."""

from __future__ import annotations

import atexit
import gc
import sys

UNUSED = ("datasets", "peft", "scipy", "sklearn")
"""What `transformers` imports wherever it is installed, and no stage that loads a model needs: a second of each."""


def collect_rarely() -> None:
    """Have Python look for garbage less often.

    Importing makes objects by the million that all stay: looking for garbage among them as often as Python does by
    default takes a sixth of the imports' time, in each of three stages a level.
    """
    gc.set_threshold(100_000, 50, 100)
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)  # at exit Python would look through them twice more, which takes 1.5 s


def leave_out(*names: str) -> None:
    """Make packages look as if they were not installed, in this process, unless they are imported already.

    `transformers` asks whether they are there, and imports them for parts of it that are not used here (losses of
    object detection, assisted generation, adapters).
    """
    for name in names:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def let_in(*names: str) -> None:
    """Take back that packages were left out."""
    for name in names:
        if name in sys.modules and sys.modules[name] is None:
            del sys.modules[name]
