"""Export a level for a runtime: ONNX Runtime or CTranslate2, in float or int8, or a plain `transformers` folder.

    python -m stages.export                                                     the stage: what params `export` say
    python -m stages.export magnitude-0.5 --to onnx --output exported           any level, anywhere
    python -m stages.generate --model exported --text "Hotel-Inform (Area, Name)"

The stage
In:  outputs/compare/chosen.json, the checkpoint of the level, outputs/predictions of it and of dense,
     outputs/data/test.parquet.
Out: outputs/export/FORMAT for every format, and outputs/metrics/export.json: quality of what each writes for the test
     inputs, as `FORMAT/bleu`, and bytes, on disk and compressed.

The command
In:  a level's key, `dense`, `baseline`, or the folder of a checkpoint.
Out: a folder with graphs or weights, tokenizer, configs, and export.json, which says what is there. An earlier export
     in its place is replaced once all is written.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from stages import layout, params
from stages.errors import UserError, command
from stages.files import read_json, replacing, write_json
from stages.runtimes.description import FORMATS


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Write one folder, or what params ask for."""
    parser = argparse.ArgumentParser(prog="python -m stages.export", description="Export a level for a runtime.")
    parser.add_argument("level", nargs="?", help="baseline, dense, magnitude-0.5, …, or a checkpoint folder")
    parser.add_argument("--to", choices=FORMATS, help="format to write")
    parser.add_argument("--output", type=Path, help="folder to write")
    args = parser.parse_args(arguments)
    given = [args.level, args.to, args.output]
    if all(value is None for value in given):
        _stage()
    elif None in given:
        parser.error("give a level, --to and --output; or none of them for what params.yaml says")
    else:
        _command(args.level, args.to, args.output)


def _command(level: str, format: str, output: Path) -> None:
    source = layout.named_folder(level)
    try:
        output.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output}: its folder cannot be made: {error.strerror}") from None

    from transformers.utils import logging

    from stages.models import checkpoint
    from stages.pruning.structure.compact import compact
    from stages.runtimes import folder

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder.save(checkpoint.load(source), output, format, source=source.name, leave_out=compact)
    print(f"{output}: {format} of {source.name}, {folder.size_bytes(output) / 1e6:.1f} MB")


def _stage() -> None:
    settings = params.load("data", "evaluate", "export", "runtime")
    formats = settings.export.formats
    key = _level(settings.export.level)

    from stages.evaluation.inputs import read_inputs, read_predictions

    test = read_inputs(layout.DATA / "test.parquet")
    in_torch = read_predictions(layout.predictions_file(key), "test", test)
    dense = read_predictions(layout.predictions_file(layout.DENSE), "test", test)

    from stages.runtime import prepare

    prepare(settings.runtime)

    from stages.evaluation.figures import quality, rounded, same_share
    from stages.evaluation.generation import decoding, generate
    from stages.evaluation.quality import metrics
    from stages.evaluation.size import compressed
    from stages.models import checkpoint
    from stages.pruning.structure.compact import compact
    from stages.runtimes import folder

    evaluate, data, seed = settings.evaluate, settings.data, settings.runtime.seed
    measured = metrics(data.language, data.placeholder, test.references)
    figures: dict[str, float] = {}
    with replacing(layout.EXPORT) as partial:
        partial.mkdir()
        generator = checkpoint.load(layout.model_folder(key))
        for format in formats:
            traced = partial / "onnx"  # the graphs that int8 is made of
            graphs_in = traced if traced.is_dir() else None
            folder.save(generator, partial / format, format, source=key, graphs_in=graphs_in, leave_out=compact)
            exported = folder.load(partial / format)
            outputs = generate(
                exported, test.sources, batch_size=evaluate.batch_size, seed=seed, options=decoding(evaluate)
            )
            found = quality(measured, outputs, test.references, control=dense, evaluate=evaluate, seed=seed)
            found["same_outputs"] = same_share(outputs, in_torch)
            found["size_bytes"] = folder.size_bytes(partial / format)
            found["compressed_bytes"] = sum(map(compressed, folder.weight_files(partial / format)))
            figures |= {f"{format}/{name}": value for name, value in rounded(found).items()}
            print(
                f"{layout.EXPORT / format}: {key}, {found['size_bytes'] / 1e6:.1f} MB, BLEU {found['bleu']:.2f}, "
                f"{found['same_outputs']:.1%} of the outputs as in PyTorch"
            )
    write_json(layout.metrics_file("export"), figures)


def _level(asked: str) -> str:
    """The key of the level that params ask for.

    Raises:
        UserError: it is not there.
    """
    key = asked
    if asked == layout.CHOSEN:
        key = read_json(layout.CHOSEN_FILE)["key"]
        if key is None:
            print("No level meets the target: dense is exported.")
            key = layout.DENSE
    if not layout.model_folder(key).is_dir():
        raise UserError(f"export.level {asked}: {layout.model_folder(key)} is missing: run `dvc repro`, or `dvc pull`")
    return str(key)


if __name__ == "__main__":
    main()
