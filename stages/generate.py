"""Generate from a checkpoint: any number of texts to JSON Lines, in order.

    python -m stages.generate --model magnitude-0.5 --text "Hotel-Inform (Area, Name)"
    python -m stages.generate --model outputs/models/baseline --input texts.txt --output outputs.jsonl
    cat texts.txt | python -m stages.generate --model dense --num-beams 4

In: a checkpoint (a folder, the key of a level, or `chosen`) or a folder that stages.export wrote, and texts, one a
line: given by --text (any number of times), from a file, or from standard input.
Out: one object a text, {"input": …, "output": …}; a blank line gives a blank output, so line n of the output
belongs to line n of the input. Texts are generated in batches and written as they are done; a file given
by --output appears when all is written.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from stages import layout
from stages.errors import UserError, command
from stages.files import replacing

if TYPE_CHECKING:
    from stages.models.checkpoint import Generator

Number = TypeVar("Number", int, float)
SAMPLING = ("temperature", "top_k", "top_p")


@partial(command, interrupted="interrupted: texts were generated in part; a file given by --output is as it was")
def main(arguments: Sequence[str] | None = None) -> None:
    """Generate as the command line says."""
    args = _parser().parse_args(arguments)
    options = _options(args)
    folder = layout.named_folder(args.model)
    texts, total = _texts(args)
    _check_output(args.output)

    # Mistakes above show without the seconds that these imports take.
    from transformers.utils import logging

    from stages.evaluation.generation import stream
    from stages.runtimes import folder as runtimes

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    generator = runtimes.load(folder)
    limit = generator.max_target_tokens
    if args.max_new_tokens and args.max_new_tokens > limit:
        raise UserError(f"--max-new-tokens {args.max_new_tokens}: {folder} was trained to write at most {limit}")
    _try_out(generator, options, folder)
    with _memory(), _progress(total, shown=bool(args.output) or not sys.stdout.isatty()) as done:
        results = stream(generator, texts, batch_size=args.batch_size, seed=args.seed, options=options, done=done)
        if args.output:
            _write_file(results, args.output)
        else:
            _write(results, sys.stdout.buffer)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stages.generate", description="Generate from a checkpoint to JSON Lines."
    )
    parser.add_argument(
        "--model", required=True, help="checkpoint folder or export, or chosen, dense, magnitude-0.5, …"
    )
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--input", type=Path, help="UTF-8 file with a text a line (default: standard input)")
    given.add_argument("--text", action="append", help="a text; may be repeated")
    parser.add_argument("--output", type=Path, help="JSON Lines file (default: standard output)")
    parser.add_argument("--batch-size", type=_whole(1, 10**6), default=100, help="texts at a time (default: 100)")
    parser.add_argument("--seed", type=_whole(0), default=0, help="of sampling (default: 0)")
    group = parser.add_argument_group("decoding (default: the checkpoint's generation config)")
    group.add_argument("--num-beams", type=_whole(1, 1000), help="1: greedy; more: beam search")
    group.add_argument("--length-penalty", type=_number(-10, 10), help="of beam search; above 1 favours longer outputs")
    group.add_argument("--repetition-penalty", type=_number(0.001, 1000), help="1: off")
    group.add_argument("--max-new-tokens", type=_whole(1), help="cut outputs shorter than the model's own limit")
    group.add_argument("--do-sample", action="store_true", default=None, help="draw tokens instead of the likeliest")
    group.add_argument("--temperature", type=_number(0.001, 1000), help="of sampling")
    group.add_argument("--top-k", type=_whole(0), help="of sampling; 0: off")
    group.add_argument("--top-p", type=_number(0.001, 1), help="of sampling; 1: off")
    return parser


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """The decoding flags that were given, as arguments of `model.generate`."""
    names = ("num_beams", "length_penalty", "repetition_penalty", "max_new_tokens", "do_sample", *SAMPLING)
    options: dict[str, Any] = {"num_return_sequences": 1}  # an output a text, whatever the checkpoint says
    options |= {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    for name in SAMPLING:
        if name in options and not args.do_sample:
            raise UserError(f"--{name.replace('_', '-')} is of sampling: add --do-sample")
    return options


def _texts(args: argparse.Namespace) -> tuple[Iterable[str], int | None]:
    """Texts, and how many there are where that can be known."""
    if args.text:
        for text in args.text:
            try:
                text.encode()
            except UnicodeEncodeError:
                raise UserError("--text is not valid UTF-8") from None
        return args.text, len(args.text)
    if args.input is None:
        if sys.stdin is None:
            raise UserError("standard input is closed: give texts by --text or --input")
        if sys.stdin.isatty():
            print("reading texts from the keyboard, one a line; Ctrl-D ends them", file=sys.stderr)
        return _lines(sys.stdin.buffer, "standard input"), None
    with _saying(f"cannot read {args.input}"):
        handle = args.input.open("rb")
        return _lines(handle, str(args.input)), _count_lines(handle) if handle.seekable() else None


def _lines(handle: BinaryIO, name: str) -> Iterator[str]:
    with handle, _saying(f"cannot read {name}"):
        for number, line in enumerate(handle, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise UserError(f"{name}, line {number} is not UTF-8: convert it, perhaps with iconv") from None
            yield text.rstrip("\r\n")


def _count_lines(handle: BinaryIO) -> int:
    count, last = 0, b"\n"
    while block := handle.read(2**20):
        count += block.count(b"\n")
        last = block[-1:]
    handle.seek(0)
    return count + (last != b"\n")


def _check_output(path: Path | None) -> None:
    if path is None:
        if sys.stdout is None:
            raise UserError("standard output is closed: give --output")
        return
    with _saying(f"cannot write {path}"):
        if path.exists() and not path.is_file():
            raise UserError(f"--output {path} is not a file; leave --output away to write to standard output")
        above = next(folder for folder in path.absolute().parents if folder.exists())
        if not above.is_dir():
            raise UserError(f"--output {path}: {above} is not a folder")


@contextmanager
def _saying(what: str) -> Iterator[None]:
    """Say what could not be done, and the system's reason."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: {error.strerror}") from error


def _try_out(generator: Generator, options: dict[str, Any], folder: Path) -> None:
    """Generate a token, to see whether the flags and what the checkpoint says of decoding work together."""
    from stages.evaluation.generation import generate_batch
    from stages.models.checkpoint import one_line

    try:
        generate_batch(generator, ["a"], options | {"max_new_tokens": 1})
    except Exception as error:
        raise UserError(
            f"cannot generate with these flags and {folder}/generation_config.json: {one_line(error)}"
        ) from error


@contextmanager
def _memory() -> Iterator[None]:
    """Say what to lower where memory is short; torch has an error of its own for a GPU alone."""
    try:
        yield
    except RuntimeError as error:
        if not re.search(r"out of memory|can't allocate memory|not enough memory", str(error)):
            raise
        raise UserError("memory is too short for so many texts at a time: lower --batch-size or --num-beams") from error


def _write_file(results: Iterable[tuple[str, str]], path: Path) -> None:
    with _saying(f"cannot write {path}"), replacing(path) as partial, partial.open("wb") as handle:
        _write(results, handle)


def _write(results: Iterable[tuple[str, str]], handle: BinaryIO) -> None:
    for text, output in results:
        record = json.dumps({"input": text, "output": output}, ensure_ascii=False)
        handle.write(record.encode() + b"\n")
        handle.flush()


@contextmanager
def _progress(total: int | None, shown: bool) -> Iterator[Callable[[int], object]]:
    """Yield what to call with a number of texts done; it moves a bar if standard error is a terminal."""
    if not (shown and sys.stderr.isatty()):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("texts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("texts", total=total)
        yield lambda count: progress.advance(task, count)


def _whole(low: int, high: float = math.inf) -> Callable[[str], int]:
    return _within(int, "whole number", low, high)


def _number(low: float, high: float) -> Callable[[str], float]:
    """Beyond such bounds logits overflow, to probabilities that are no numbers; nan is outside of any."""
    return _within(float, "number", low, high)


def _within(convert: Callable[[str], Number], name: str, low: float, high: float) -> Callable[[str], Number]:
    def parse(text: str) -> Number:
        value = convert(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be at least {low}" + f" and at most {high}" * (high < math.inf))
        return value

    parse.__name__ = name  # argparse names it where a word stands for a number
    return parse


if __name__ == "__main__":
    main()
