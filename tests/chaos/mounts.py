"""File systems over folders of the project struck: full ones, and ones that cannot be written to."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from chaos.faults import Skipped

ROOM = 2**23
"""Bytes that are free beside what is there when a small file system is made."""
BALLAST = ".ballast"


class Small:
    """A small file system, which can be filled to its last byte."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fill(self) -> None:
        """Leave no room."""
        with suppress(OSError), (self._folder / BALLAST).open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        """Make room again."""
        (self._folder / BALLAST).unlink(missing_ok=True)


@contextmanager
def small(folder: Path) -> Iterator[Small]:
    """Have a folder, with what it holds, on a small file system; what it holds in the end is there for good.

    Raises:
        Skipped: mounting is not allowed.
    """
    aside = folder.with_name(f"{folder.name}.aside")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder, aside, symlinks=True)
    held = sum(-(-path.stat().st_size // 4096) * 4096 + 4096 for path in folder.rglob("*"))
    with _mounted(folder, "-t", "tmpfs", "-o", f"size={held + ROOM}", "tmpfs"):
        shutil.copytree(aside, folder, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(aside)
        made = Small(folder)
        try:
            yield made
        finally:
            made.free()
            shutil.copytree(folder, aside, symlinks=True)
    shutil.rmtree(folder)
    aside.rename(folder)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Have a folder such that not even root may write there.

    Raises:
        Skipped: mounting is not allowed.
    """
    with _mounted(folder, "--bind", str(folder)):
        _mount("-o", "remount,bind,ro", str(folder))
        yield


@contextmanager
def _mounted(folder: Path, *options: str) -> Iterator[None]:
    if "ESPALIER_CHAOS_NAMESPACE" not in os.environ:
        raise Skipped("mounting is not allowed: it takes root, or a system on which users may have namespaces")
    _mount(*options, str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Skipped(f"mount: {done.stderr.strip()}")
