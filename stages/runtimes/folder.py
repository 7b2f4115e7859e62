"""Exported folders: write one in the format that is asked for, load one by what it holds."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from stages.errors import UserError
from stages.files import replacing
from stages.models import checkpoint
from stages.models.checkpoint import Generator
from stages.runtimes.description import FORMATS, Description, is_exported, versions

ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def save(
    generator: Generator,
    folder: Path,
    format: str,
    *,
    source: str,
    graphs_in: Path | None = None,
    leave_out: Callable[[Any], object] | None = None,
) -> None:
    """Write a generator in one of `FORMATS`, replacing `folder` only once all is written.

    Beside graphs there are the tokenizer, the configs, and `export.json`, which describes the folder.

    Args:
        generator: what to write.
        folder: to write to; an earlier export there is replaced.
        format: one of `FORMATS`.
        source: what the generator is called.
        graphs_in: an export of the same generator as `onnx`, whose graphs `onnx-int8` then need not be traced again.
        leave_out: of graphs, takes away of a model, in place, what changes no logit.

    Raises:
        UserError: the format is not known, cannot hold this model, or needs packages that are not installed; or the
            folder holds something else.
    """
    if format not in FORMATS:
        raise UserError(f"{format} is no format to export to: use one of {', '.join(FORMATS)}")
    if folder.exists() and not is_exported(folder):
        raise UserError(f"{folder} exists and is no earlier export: name a new folder")
    with replacing(folder) as partial:
        checkpoint.save(generator, partial)
        model_type = generator.model.config.model_type
        graphs: dict[str, str] = {}
        packages: tuple[str, ...] = ()
        if format.startswith("onnx"):
            packages = ONNX_PACKAGES
            _require("export", packages)
            int8 = format == "onnx-int8"
            graphs = _write_onnx(generator, partial, int8=int8, graphs_in=graphs_in, leave_out=leave_out)
        elif format.startswith("ctranslate2"):
            packages = ("ctranslate2",)
            _require("ctranslate2", packages)
            from stages.runtimes import ctranslate

            int8 = format == "ctranslate2-int8"
            ctranslate.export(partial, "int8" if int8 else None)
            ctranslate.check(generator, partial, exact=not int8, name=folder)
        if packages:  # what they need of the weights they have
            for weights in partial.glob("model*.safetensors*"):
                weights.unlink()
        Description(format, source, model_type, graphs, versions("torch", "transformers", *packages)).save(partial)


def load(folder: Path) -> Generator:
    """Load a checkpoint, or what `save` wrote.

    Raises:
        UserError: the folder is damaged, or needs packages that are not installed.
    """
    if not is_exported(folder):
        return checkpoint.load(folder)
    description = Description.load(folder)
    if description.format == "safetensors":
        return checkpoint.load(folder)
    if description.format.startswith("ctranslate2"):
        _require("ctranslate2", ("ctranslate2",))
        from stages.runtimes import ctranslate

        return ctranslate.load(folder)
    _require("export", ("onnxruntime",))
    from stages.runtimes import onnx_model

    return onnx_model.load(folder)


def weight_files(folder: Path) -> list[Path]:
    """An export's graphs or weights: all but its tokenizer and configs."""
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix != ".json")


def size_bytes(folder: Path) -> int:
    """Bytes on disk of an export's graphs or weights."""
    return sum(file.stat().st_size for file in weight_files(folder))


def _write_onnx(
    generator: Generator,
    folder: Path,
    *,
    int8: bool,
    graphs_in: Path | None,
    leave_out: Callable[[Any], object] | None,
) -> dict[str, str]:
    from stages.runtimes import onnx_export
    from stages.runtimes.quantise import quantise

    if not int8:
        return onnx_export.export(generator, folder, leave_out)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".float-") as between:
        if graphs_in is None:
            graphs_in = Path(between)
            graphs = onnx_export.export(generator, graphs_in, leave_out)
        else:
            graphs = Description.load(graphs_in).graphs
        for file in graphs.values():
            quantise(graphs_in / file, folder / file)
    return graphs


def _require(extra: str, packages: Sequence[str]) -> None:
    """Say how to install what a format needs, if it is not there."""
    for package in packages:
        try:
            import_module(package)
        except ModuleNotFoundError as error:
            raise UserError(
                f"this format needs the package {package}: run `pip install -c constraints.txt -e '.[{extra}]'`"
            ) from error
