"""Whether dvc.lock is whole.

Plain `dvc` rewrites it in place; killed meanwhile, it leaves the beginning. Little of that is luckily YAML, and would
pass for a lock in which later stages were never made. `stages.run_dvc`, by which all commands here call DVC, does not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.errors import UserError
from stages.run_dvc import HEAD, LOCK, blocks

WRITING_S = 5.0
"""Seconds without a change after which nobody is still writing it: DVC thinks for two before the first piece."""
LOOKS = 60
REMEDY = "`git checkout dvc.lock` (remove it if git has none), then `dvc repro`, which has what was made in its cache"


def refuse_damaged(lock: Path = Path(LOCK), *, thoroughly: bool = False) -> None:
    """Refuse a lock that was cut short; one that is being written is waited for, and none is none.

    Args:
        lock: the file.
        thoroughly: read all of it as YAML, which takes a while, and not only its end.

    Raises:
        UserError: says what is wrong, and how to get a whole one.
    """
    seen, since = None, time.monotonic()
    for _ in range(LOOKS):
        try:
            state = lock.stat()
            text = lock.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return
        if not (wrong := fault(text, thoroughly=thoroughly)):
            return
        if seen != (seen := (state.st_mtime_ns, state.st_size)):
            since = time.monotonic()
        if max(time.time() - state.st_mtime, time.monotonic() - since) > WRITING_S:
            break
        time.sleep(WRITING_S / 10)
    raise UserError(f"{lock} {wrong}, as a killed DVC leaves it: {REMEDY}")


def fault(text: str, *, thoroughly: bool = False) -> str | None:
    """What is wrong with a lock's text.

    DVC ends it with a newline, and an entry with its outs; every stage here has some.
    """
    from ruamel.yaml import YAML, YAMLError

    if not text.strip():
        return "is empty"
    if not text.endswith("\n"):
        return "is cut short"
    entries = blocks(text)
    end = text if thoroughly or not entries else f"{HEAD}{entries[next(reversed(entries))]}"
    try:
        data = YAML(typ="safe").load(end)
    except YAMLError:
        return "is no YAML"
    if not isinstance(data, Mapping) or "schema" not in data or not isinstance(data.get("stages"), Mapping):
        return "has no schema or no stages"
    last = next(reversed(data["stages"].values()), None)
    return "is cut short" if data["stages"] and not _is_complete(last) else None


def _is_complete(entry: Any) -> bool:
    """Whether an entry has all that DVC writes of a stage, to the end."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("outs"), list):
        return False
    return all(isinstance(out, Mapping) and _is_complete_out(out) for out in entry["outs"])


def _is_complete_out(out: Mapping[str, Any]) -> bool:
    """Path, hash, size; of a folder, the number of files as well. Where the kind of hash is not said, it is md5."""
    wanted = {"path", str(out.get("hash", "md5"))} | ({"size"} if "hash" in out else set())
    folder = "size" in out and str(out.get("md5", "")).endswith(".dir")
    return wanted | ({"nfiles"} if folder else set()) <= out.keys()
