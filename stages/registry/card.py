"""The model card of a finished level: nothing in it but what dvc.lock, metrics files and git say.

Metadata is Hugging Face's (https://huggingface.co/docs/hub/model-cards), so that a hub, or `huggingface_hub`, reads it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import stages
from stages import layout
from stages.evaluation.comparison import NAMES, difference, number, percent, reference_lines, with_interval
from stages.evaluation.samples import escape
from stages.registry import metadata, speed, structure
from stages.registry.level import Figures, Finished, target
from stages.registry.metadata import CHECKPOINTS, licence, title

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

LANGUAGES = {"en": "English", "zh": "Chinese"}
EXAMPLES = 3
LAYERS = (
    ("encoder_layers",),
    ("num_hidden_layers", "n_layer", "num_layers"),
    ("decoder_layers", "num_decoder_layers"),
)
"""What configs call their numbers of layers: of an encoder, of either or of the only stack, of a decoder."""
GENERAL = ("prune.scope", "prune.pattern", "prune.allocation")
TUNING = ("finetune.schedule", "finetune.learning_rate", "finetune.distillation.weight", "finetune.lora.rank")
MACHINE = ("device", "instructions", "torch", "threads")
"""What is said of where timings were taken; the precision that is known is of training."""


def make(finished: Finished) -> ModelCard:
    """The card of a level: `content` is all of it, `text` is it without metadata.

    Raises:
        UserError: a file that it is made from is missing, or is not the one that dvc.lock has.
    """
    from huggingface_hub import ModelCard

    return ModelCard(f"---\n{metadata.describe(finished).to_yaml()}\n---\n\n{_text(finished)}")


def untitled(card: ModelCard) -> str:
    """The text of a card without its title, so that it begins with a sentence: what lists show of a description."""
    return card.text.strip().partition("\n\n")[2]


def _text(finished: Finished) -> str:
    sections = (_summary, _use, _data, _method, _results, _speed, _limits, _reproduce)
    return "\n\n".join("\n".join(section(finished)) for section in sections) + "\n"


def _summary(finished: Finished) -> Iterable[str]:
    level, figures = finished.level, finished.figures
    yield f"# {title(finished)}"
    yield ""
    made = f"A generator of {_language(finished)} text ({_architecture(finished)})"
    if level is None:
        yield f"{made}, not pruned: the {'trained baseline' if finished.key == layout.BASELINE else 'dense control'}."
    else:
        yield f"{made}, {percent(level.sparsity)} of whose eligible weights were {_how(finished)} by `{level.method}`."
    before = finished.baseline_parameters
    yield (
        f"{figures['parameters']:,} parameters, {figures['nonzero_parameters']:,} of them not zero; before pruning "
        f"{before:,}. Level `{finished.key}` of revision `{finished.revision.identity[:7]}`."
    )


def _zeros(finished: Finished) -> bool:
    """Whether weights of what parts were removed of were set to zero besides."""
    return bool(finished.is_smaller and finished.params.get("prune.structured.zeros"))


def _how(finished: Finished) -> str:
    """What became of pruned weights."""
    if not finished.is_smaller:
        return "set to zero"
    return "removed or set to zero" if _zeros(finished) else "removed"


def _use(finished: Finished) -> Iterable[str]:
    values = finished.params
    example, *_ = finished.inputs(1)
    task = f"given `{values['data.source']}`, write `{values['data.target']}`"
    yield "## Use"
    yield ""
    yield f"Made for one task, and measured on no other: {task}."
    yield ""
    yield "```python"
    yield from program(finished.config, example, values["model.max_source_tokens"], finished.decoding)
    yield "```"
    yield ""
    yield "The first of the test split, as it answered them:"
    yield ""
    rows = [tuple(map(escape, pair)) for pair in zip(*finished.answers(EXAMPLES), strict=True)]
    yield from _table([values["data.source"], "output"], rows)


def program(config: Mapping[str, Any], text: str, limit: int, decoding: Mapping[str, Any]) -> Iterable[str]:
    """Lines of Python that generate from the checkpoint in the working directory, by `transformers` alone.

    Args:
        config: of the model.
        text: the input.
        limit: tokens of an input.
        decoding: arguments of `model.generate`.
    """
    kind = config["architectures"][0]
    causal = not config.get("is_encoder_decoder")
    yield "import torch"
    yield f"from transformers import AutoTokenizer, {kind}"
    yield ""
    yield f'model = {kind}.from_pretrained(".")'
    yield 'tokenizer = AutoTokenizer.from_pretrained(".")'
    if causal:
        yield 'end = tokenizer("\\n", add_special_tokens=False, return_tensors="pt").input_ids'
    cut = f"truncation=True, max_length={limit}{' - end.shape[1]' if causal else ''}"
    yield f'ids = tokenizer({text!r}, {cut}, return_tensors="pt").input_ids'
    if causal:
        yield "ids = torch.cat([ids, end], dim=1)"
    options = ", ".join(f"{name}={value!r}" for name, value in decoding.items())
    yield f"output = model.generate(ids, attention_mask=torch.ones_like(ids), {options})[0]"
    yield f"print(tokenizer.decode(output{'[ids.shape[1] :]' if causal else ''}, skip_special_tokens=True))"


def _data(finished: Finished) -> Iterable[str]:
    values, counts = finished.params, finished.cleaned
    path = values["data.path"]
    if values.get("data.hub"):
        source, terms = f"`{values['data.hub']}` on the Hugging Face hub", "as its page there says"
    else:
        md5 = finished.entries["clean"].deps.get(path, "")
        source, terms = f"`{path}`" + f" (md5 `{md5}`)" * bool(md5), licence(finished.pipeline.root, Path(path))
    yield "## Data"
    yield ""
    rows = [
        ("source", source),
        ("licence", terms),
        ("language", _language(finished)),
        ("rows", f"{counts['rows_kept']:,} of {counts['rows_read']:,}, after cleaning"),
    ]
    for split in ("train", "validation", "test"):
        rows.append((split, f"{counts[f'{split}_rows']:,} rows, {counts[f'{split}_inputs']:,} distinct inputs"))
    yield from _table(["", ""], rows)
    yield ""
    yield "No input is in two splits. Nothing was chosen by the test split."


def _method(finished: Finished) -> Iterable[str]:
    values, figures, level = finished.params, finished.figures, finished.level
    origin = ", ".join(f"`{values[name]}`" for name in CHECKPOINTS if values.get(name))
    yield "## Training and pruning"
    yield ""
    epochs, seed = values["train.epochs"], values["runtime.seed"]
    yield f"- Trained from {origin or 'random weights'}, {epochs:g} epochs at most, seed {seed}."
    if level is not None:
        ranked = () if finished.is_smaller and not _zeros(finished) else GENERAL
        gone = "removed or zero" if finished.is_smaller else "zero"
        counts = f"{100 * figures['sparsity']:.4f} % {gone}, of {figures['eligible_parameters']:,} eligible weights"
        yield f"- {_formula(level.method)} (`stages/pruning/criteria/{level.method}.py`)"
        yield f"- Sparsity: {percent(level.sparsity)} asked, {counts}."
        if finished.is_smaller:
            yield from (f"- {line}" for line in structure.left(finished.baseline, finished.checkpoint))
        yield f"- {_knobs(_used(values), f'prune.{level.method}', *ranked)}"
    if finished.key != layout.BASELINE:
        held = ", what is pruned staying zero" if level and (_zeros(finished) or not finished.is_smaller) else ""
        yield f"- Fine-tuned {values['finetune.epochs']:g} epochs{held}. {_knobs(values, *TUNING)}"


def _results(finished: Finished) -> Iterable[str]:
    rows = {finished.key: finished.figures}
    rows |= {key: figures for key, figures in finished.controls.items() if key not in rows}
    scores = [name for name in NAMES if name in finished.figures]
    first = scores[0]
    header = ["", *(NAMES[name] for name in scores), f"Δ {NAMES[first]}", "p", "parameters", "not zero", "MB"]
    lines = []
    for key, figures in rows.items():
        cells = [f"**{key}**" if key == finished.key else key, *(with_interval(figures, name) for name in scores)]
        sizes = (f"{figures['parameters']:,}", f"{figures['nonzero_parameters']:,}")
        lines.append([*cells, *_difference(figures, first), *sizes, f"{figures['compressed_bytes'] / 1e6:.2f}"])
    for line in reference_lines(finished.references):
        lines.append([line["key"], *("" if line[n] is None else number(line[n], n) for n in scores), *[""] * 5])
    yield "## Results on the test split"
    yield ""
    yield from _table(header, lines)
    yield ""
    inputs, share = finished.cleaned["test_inputs"], finished.evaluation.get("confidence", 0)
    yield (
        f"{inputs:,} inputs, {finished.cleaned['test_rows']:,} references. In brackets {share:.0%} bootstrap intervals "
        "over test inputs; Δ, its interval and p: against dense, which was fine-tuned for as many steps, by paired "
        "bootstrap. "
        "MB: weights, compressed by zstd. Copy floor: the target of the most similar training input. Human line: each "
        "reference against the others."
    )
    yield ""
    yield from (f"- {NAMES.get(name, name)}: `{how}`" for name, how in finished.signatures.items())


def _difference(figures: Figures, name: str) -> list[str]:
    """As `difference`, with the interval of the paired bootstrap."""
    found, p = difference(figures, name)
    ends = [figures[f"{name}_delta_{end}"] for end in ("low", "high") if found]
    return [f"{found} ({' to '.join(f'{end:+.1f}' for end in ends)})" if ends else found, p]


def _speed(finished: Finished) -> Iterable[str]:
    rows, on = speed.read(finished)
    yield "## Speed"
    yield ""
    if rows:
        yield from _table(*speed.table(rows, speed.scores(finished, rows)))
        yield ""
        where = ", ".join(f"{name} {on[name]}" for name in MACHINE if name in on)
        yield (
            f"Generators took turns in one process: {where}; PyTorch in fp32. Medians (quartiles) of {on['rounds']} "
            f"batches; a text by greedy search, as long as it comes; throughputs with {on['tokens']} tokens a text. "
            f"Times faster: than dense. {NAMES[speed.SCORE]}: on test, as it ran so. In brackets beside pytorch: the "
            "export that it read."
        )
    else:
        yield "Not measured: the commit has no benchmark of it."
    if finished.level is not None and not finished.is_smaller:
        yield "Zeros in a dense matrix make a model compressible, not faster."


def _limits(finished: Finished) -> Iterable[str]:
    values, figures = finished.params, finished.figures
    yield "## Limits"
    yield ""
    yield (
        f"- Inputs are cut at {values['model.max_source_tokens']} tokens, outputs end at "
        f"{values['model.max_target_tokens']}."
    )
    if (rate := figures.get("slot_error_rate")) is not None:
        yield f"- Slot errors on test: {rate:.3f}, placeholders left out or added over those of the closest reference."
    floor = finished.references.get("copy_bleu")
    if floor is not None and figures["bleu"] < floor:
        bleu = f"{figures['bleu']:.1f} against {floor:.1f} BLEU"
        yield f"- It is below the copy floor ({bleu}): it has not learnt the task."
    yield "- One seed: intervals are over test inputs, not over trainings."
    yield "- Nothing here measures truth, bias, safety, or any other data."


def _reproduce(finished: Finished) -> Iterable[str]:
    yield "## Reproduce"
    yield ""
    commit = finished.commit
    if finished.uncommitted:
        names = ", ".join(f"`{name}`" for name in finished.uncommitted[:5])
        more = f" and {len(finished.uncommitted) - 5} more" * (len(finished.uncommitted) > 5)
        yield f"**Made with uncommitted changes** ({names}{more}); the last commit before them is below."
        yield ""
    if not commit:
        yield "Made outside git: there is no commit to name."
        yield ""
    yield "```"
    if commit:
        yield f"git checkout {commit}"
    yield f"dvc repro {target(finished.key)}"
    yield f"python -m stages.verify {finished.key}    # again from its inputs, compared bit by bit"
    yield "```"
    yield ""
    yield f"dvc.lock has it as `{finished.checkpoint_md5}`. Versions of all packages: `constraints.txt`."


def _architecture(finished: Finished) -> str:
    """As in `bert2bert, 2 + 2 layers of width 128`, where encoder and decoder have one each."""
    config = finished.config
    parts = [config["encoder"], config["decoder"]] if config["model_type"] == "encoder-decoder" else [config]
    groups = LAYERS if len(parts) == 1 else LAYERS[1:2]
    counts = [_first(part, *names) for part in parts for names in groups]
    if "encoder_layers" in config:  # BART's second name for it
        del counts[1]
    layers = " + ".join(str(count) for count in counts if count is not None)
    widths = dict.fromkeys(_first(part, "hidden_size", "d_model", "n_embd") for part in parts)
    kinds = "2".join(part["model_type"] for part in parts)
    return f"{kinds}, {layers} layers of width {' and '.join(map(str, widths))}"


def _first(config: Mapping[str, Any], *names: str) -> Any:
    """The value of the first name that is there."""
    return next((config[name] for name in names if config.get(name) is not None), None)


def _formula(method: str) -> str:
    """First paragraph of what a criterion's module says of itself."""
    file = Path(stages.__file__).parent / "pruning" / "criteria" / f"{method}.py"
    documentation = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or method
    return " ".join(documentation.split("\n\n")[0].split())


def _used(values: Mapping[str, Any]) -> dict[str, Any]:
    """Params without those that others leave without effect."""
    section = "prune.structured."
    unused = []
    if values.get(f"{section}score") != "group_lasso":
        unused.append(f"{section}group_lasso")
    if values.get(f"{section}budget") != "latency":
        unused.append(f"{section}latency")
    return {name: value for name, value in values.items() if not name.startswith(tuple(unused))}


def _knobs(values: Mapping[str, Any], *sections: str) -> str:
    """What params say under some names, as in `prune.scope`: global."""
    found = {
        name: value
        for section in sections
        for name, value in values.items()
        if name == section or name.startswith(f"{section}.")
    }
    return "; ".join(f"`{name}`: {value}" for name, value in found.items() if value != {}) + "." * bool(found)


def _language(finished: Finished) -> str:
    code = finished.params["data.language"]
    return LANGUAGES.get(code, code)


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterable[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + ":--|" * len(header)
    for row in rows:
        yield "| " + " | ".join(str(cell) for cell in row) + " |"
