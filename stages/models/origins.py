"""Where a checkpoint comes from, a local folder or a hub id: whether it is there, and its weights may be read."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import safe_open
from transformers.utils import ADAPTER_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from stages.errors import UserError
from stages.layout import CHECKPOINTS, OUTPUTS

OURS = (CHECKPOINTS.parts[0], OUTPUTS.parts[0])
"""Folders of this project, which no owner on the hub is taken to be."""


def check_there(origin: str) -> None:
    """Check that what names a local folder, and can be no hub id, names one that is there.

    Raises:
        UserError: it does not.
    """
    folder = Path(origin)
    if folder.is_dir():
        return
    if folder.is_file():
        raise UserError(f"{origin} is a file: name the folder that it is in")
    try:
        validate_repo_id(origin)
        is_local = folder.parts[0] in OURS
    except HFValidationError:
        is_local = True
    if is_local:
        raise UserError(f"{origin} does not exist: put the checkpoint there, or correct its name in params.yaml")


def check_weights(origin: str, config: Any) -> None:
    """Check that weights may be read, and of a single file that they can be.

    Raises:
        UserError: they are pickled or damaged; names the file.
    """
    check_safe(origin, config)
    if file := _file(origin, SAFE_WEIGHTS_NAME):
        with reading(str(file) if Path(origin).is_dir() else origin, lambda: safe_open(file, framework="pt")):
            pass


def check_safe(origin: str, config: Any) -> None:
    """Check that no weights which `from_pretrained` would read are pickled.

    Its `use_safetensors` is not enough: an index, an adapter or the config may name files of any kind.

    Raises:
        UserError: some are, or may be.
    """
    folder = Path(origin)
    if named := getattr(config, "transformers_weights", None):
        raise UserError(f"{origin}/config.json has its weights in {named}: name that file {SAFE_WEIGHTS_NAME}")
    if (folder / ADAPTER_CONFIG_NAME).is_file():
        raise UserError(f"{origin} holds an adapter ({ADAPTER_CONFIG_NAME}): merge it into the model it is of")
    if _file(origin, SAFE_WEIGHTS_NAME):
        return
    if index := _file(origin, SAFE_WEIGHTS_INDEX_NAME):
        shards = reading(origin, lambda: set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        for name in sorted(map(str, shards)):
            if Path(name).suffix != ".safetensors" or Path(name).name != name:
                _refuse_pickled(origin, f"{name} of {SAFE_WEIGHTS_INDEX_NAME}")
    elif pickled := sorted(folder.glob("*.bin")):
        _refuse_pickled(origin, pickled[0].name)


def _refuse_pickled(origin: str, what: str) -> NoReturn:
    raise UserError(
        f"{origin} holds pickled weights ({what}), which can run code when read: convert them to safetensors with a "
        "tool you trust"
    )


def _file(origin: str, name: str) -> Path | None:
    """A file of a local folder or hub id, fetched if need be; None if it has none of that name."""
    found = reading(origin, lambda: cached_file(origin, name, _raise_exceptions_for_missing_entries=False))
    return Path(found) if found else None


def reading(origin: str, read: Callable[[], Any]) -> Any:
    """What `read` returns; whatever a library raises in it is an error of this origin.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except UserError:
        raise
    except Exception as error:  # transformers, safetensors and json each raise their own kinds
        raise UserError(
            f"cannot read {origin}: {one_line(error)} (is one of its files damaged, or of another model?)"
        ) from error


def one_line(error: Exception) -> str:
    """What an error of a library says, on one line."""
    said = " ".join(str(error).split())[:300] or type(error).__name__
    return f"{said} is not known" if isinstance(error, KeyError) else said
