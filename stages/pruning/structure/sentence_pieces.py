"""Removing entries of Marian's vocabulary: one table of numbers over two SentencePiece models, source and target.

A piece that is not in the table is unknown, whatever else its letters could be split into. So what goes from the table
goes out of use in both models as well: a text whose pieces are all kept is split as before, in any other the models
find shorter pieces that are known, where there are some.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import MarianTokenizer

from stages.errors import UserError

MODELS = "source.spm", "target.spm"


def rebuilt(tokenizer: MarianTokenizer, renumbered: Mapping[int, int]) -> Any:
    """The tokenizer with the entries that have a new number; the given one is left as it is.

    Raises:
        UserError: it has a table for each side.
    """
    if tokenizer.separate_vocabs:
        raise UserError("a Marian vocabulary with a table for each side cannot be trimmed: set vocabulary to false")
    table = {piece: renumbered[number] for piece, number in tokenizer.encoder.items() if number in renumbered}
    gone = tokenizer.encoder.keys() - table.keys()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        (folder / "vocab.json").write_text(json.dumps(table), encoding="utf-8")
        for model in MODELS:
            (folder / model).write_bytes(_without((folder / model).read_bytes(), gone))
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        added = settings.get("added_tokens_decoder", {})
        settings["added_tokens_decoder"] = {str(renumbered[int(number)]): token for number, token in added.items()}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return MarianTokenizer.from_pretrained(folder)


def _without(model: bytes, gone: set[str]) -> bytes:
    """A SentencePiece model, serialised, that does not use some pieces; they stay in it, as numbers are places."""
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2  # made at run time
    read = messages.ModelProto()
    read.ParseFromString(model)
    kinds = messages.ModelProto.SentencePiece
    for piece in read.pieces:
        if piece.type == kinds.NORMAL and piece.piece in gone:
            piece.type = kinds.UNUSED
    return read.SerializeToString(deterministic=True)
