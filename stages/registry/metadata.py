"""Metadata of a model card, as Hugging Face's hub reads it, and what other pages say in theirs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.evaluation.comparison import NAMES
from stages.registry.level import Finished

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

TAG = "espalier"
CHECKPOINTS = ("model.checkpoint", "model.encoder.checkpoint", "model.decoder.checkpoint")
METRIC_IDS = {"bleu": "bleu", "chrf": "chrf", "rougeL": "rouge"}
"""As https://huggingface.co/metrics has them."""


def describe(finished: Finished) -> ModelCardData:
    """Language, library, tags, what it was trained from and on, and its scores on the test split."""
    from huggingface_hub import EvalResult, ModelCardData

    values, figures = finished.params, finished.figures
    scores = [name for name in METRIC_IDS if name in figures]
    origins = [str(values[name]) for name in CHECKPOINTS if values.get(name)]
    hub = [origin for origin in dict.fromkeys(origins) if not Path(finished.pipeline.root, origin).exists()]
    data = values.get("data.hub") or stem(values["data.path"])
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=data,
            dataset_name=data,
            dataset_split="test",
            metric_type=METRIC_IDS[name],
            metric_name=NAMES[name],
            metric_value=figures[name],
        )
        for name in scores
    ]
    level = finished.level
    return ModelCardData(
        language=values["data.language"],
        library_name="transformers",
        base_model=hub[0] if len(hub) == 1 else hub or None,
        datasets=[values["data.hub"]] if values.get("data.hub") else None,
        metrics=[METRIC_IDS[name] for name in scores],
        tags=[TAG, *(["pruning", level.method] if level else [])],
        model_name=title(finished),
        eval_results=results,
    )


def title(finished: Finished) -> str:
    """Data set and key."""
    return f"{stem(finished.params.get('data.hub') or finished.params['data.path'])} {finished.key}"


def is_card(path: Path) -> bool:
    """Whether a file is a card that `make` made."""
    return TAG in (stated_in(path).get("tags") or ())


def licence(root: Path, path: Path) -> str:
    """What the metadata of a README.md beside the data says; it is a dataset card then."""
    beside = (path if (root / path).is_dir() else path.parent) / "README.md"
    stated = stated_in(root / beside).get("license")
    return (
        f"{stated}, see `{beside}`"
        if stated
        else f"not stated (`license:` in the metadata of `{beside}` would be here)"
    )


def stated_in(path: Path) -> dict[str, Any]:
    """What a page of Markdown says between lines of `---` at its top."""
    from huggingface_hub import metadata_load

    try:
        return metadata_load(path) or {}
    except Exception:  # no file, no text, no YAML: then it says nothing
        return {}


def stem(path: Any) -> str:
    """Name of a data set: of its file without endings, or of its id."""
    return Path(str(path)).name.split(".")[0]
