"""The folder of an MLflow model: a plain `transformers` folder with its card, and the file that serves it."""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stages.errors import UserError
from stages.registry import served
from stages.registry.level import Finished

PACKAGES = ("mlflow", "torch", "transformers", "tokenizers", "safetensors", "numpy")
"""What serving needs, whatever the model."""
SENTENCEPIECE = ("*.model", "*.spm")
"""Files that only a tokenizer of the package sentencepiece reads."""
SAMPLING = ("temperature", "top_k", "top_p")
"""What a generation config that does not sample may not have."""


def save(finished: Finished, folder: Path, *, card: str, example: list[str]) -> None:
    """Write the MLflow model.

    Args:
        finished: the level.
        folder: to write to; must not exist.
        card: text of its README.md.
        example: texts that go with it as an example of a request.

    Raises:
        UserError: the decoding that the level was evaluated with is none that `transformers` takes.
    """
    import mlflow.pyfunc

    with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=".plain-") as between:
        plain = Path(between) / served.CHECKPOINT
        defaults = write_plain(finished, plain)
        (plain / "README.md").write_text(card, encoding="utf-8")
        mlflow.pyfunc.save_model(
            folder,
            python_model=served.__file__,
            artifacts={served.CHECKPOINT: str(plain)},
            signature=signature(defaults),
            input_example=example,
            pip_requirements=requirements(plain),
            metadata={"key": finished.key, "checkpoint_md5": finished.checkpoint_md5},
        )
    _without_paths(folder)


def write_plain(finished: Finished, folder: Path) -> dict[str, int]:
    """Write the level's `transformers` folder, whose generation config is the decoding that it was evaluated with.

    Returns:
        What a request may change, with its default.

    Raises:
        UserError: as `save`.
    """
    from stages.models import checkpoint

    generator = checkpoint.load(finished.checkpoint)
    config = generator.model.generation_config
    options = finished.decoding
    config.update(**({} if options["do_sample"] else dict.fromkeys(SAMPLING)), **options)
    try:
        checkpoint.save(generator, folder)
    except ValueError as error:
        raise UserError(f"{finished.key}: evaluated with a decoding that cannot be saved: {error}") from error
    return {"num_beams": config.num_beams, "max_new_tokens": config.max_new_tokens}


def signature(defaults: dict[str, int]) -> Any:
    """One text in, one text out; `defaults` are what a request may change.

    The input is of any type, and the model refuses what is no text: of a column of strings MLflow makes texts of
    whatever it is given, "None" of a null.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, ParamSchema, ParamSpec, Schema

    return ModelSignature(
        inputs=Schema([ColSpec(AnyType())]),
        outputs=Schema([ColSpec("string")]),
        params=ParamSchema([ParamSpec(name, "long", value) for name, value in defaults.items()]),
    )


def requirements(folder: Path) -> list[str]:
    """Pinned packages, as an index has them: builds for one device, such as 2.13.0+cpu, are all one release there."""
    names = list(PACKAGES)
    if any(True for pattern in SENTENCEPIECE for _ in folder.glob(pattern)):
        names.append("sentencepiece")
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]


def _without_paths(folder: Path) -> None:
    """Take out of an MLmodel file where on this machine its parts came from; MLflow looks for them in the folder."""
    from mlflow.models import Model

    model = Model.load(folder)
    flavor = model.flavors["python_function"]
    flavor["model_code_path"] = Path(served.__file__).name
    flavor["artifacts"][served.CHECKPOINT]["uri"] = flavor["artifacts"][served.CHECKPOINT]["path"]
    model.save(folder / "MLmodel")
