"""Checkpoints to start from: what is read of them, and what is refused in one line that says what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from shared import FAMILIES
from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerFast
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from stages.errors import UserError
from stages.models import checkpoint


def start_from(folder: Path, family: str) -> dict[str, Any]:
    """Changes to the `model` section that start a family from a folder."""
    if family in ("bert", "roberta"):
        side = {"checkpoint": str(folder), "config": {}}
        return {"encoder": side, "decoder": side}
    return {"checkpoint": str(folder), "architecture": None, "config": {}}


@pytest.fixture
def saved(build_family, tmp_path) -> Callable[[str], Path]:
    """`saved(family)`: the folder of a checkpoint to start from; of a BERT or RoBERTa encoder for these."""

    def save(family: str) -> Path:
        generator = build_family(family)
        model = generator.model.encoder if family in ("bert", "roberta") else generator.model
        model.save_pretrained(tmp_path / family)
        generator.tokenizer.save_pretrained(tmp_path / family)
        return tmp_path / family

    return save


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_without_its_tokenizer_is_refused(family, saved, build_family):
    """transformers makes an empty tokenizer, to which every text is one unknown token."""
    folder = saved(family)
    assert build_family(family, **start_from(folder, family))
    (folder / "tokenizer.json").unlink()
    for left in ("tokenizer_config.json", None):
        with pytest.raises(UserError, match=f"^{folder} holds no vocabulary: .*tokenizer.json"):
            build_family(family, **start_from(folder, family))
        if left:
            (folder / left).unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.rename(file.with_name("pytorch_model.bin")), r"holds pickled weights \(pytorch_model.bin\)"),
        (lambda file: file.write_bytes(b"garbage"), "/model.safetensors: "),
    ],
)
@pytest.mark.parametrize("family", ["bert", "t5"])
def test_weights_are_looked_at_before_the_tokenizer(family, spoil, message, saved, build_family):
    folder = saved(family)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    spoil(folder / "model.safetensors")
    with pytest.raises(UserError, match=f"{folder}.*{message}"):
        build_family(family, **start_from(folder, family))


@pytest.mark.parametrize("name", ["data/checkpoints/none", "data/none", "./none", "/no/where", "~/none"])
def test_a_folder_that_is_not_there_is_no_hub_id(name, build_family):
    message = f"^{name} does not exist: put the checkpoint there"
    with pytest.raises(UserError, match=message):
        build_family("bert", encoder={"checkpoint": name, "config": {}})
    with pytest.raises(UserError, match=message):
        build_family("bert", tokenizer={"checkpoint": name})


def test_a_file_is_no_checkpoint(saved, build_family):
    file = saved("bart") / "model.safetensors"
    with pytest.raises(UserError, match=f"^{file} is a file: name the folder"):
        build_family("bart", **start_from(file, "bart"))


def test_a_tokenizer_of_bytes_needs_no_vocabulary(build_family, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    tokenizer = {"checkpoint": str(tmp_path), "vocab_size": 300, "lowercase": False}
    assert len(build_family("t5", tokenizer=tokenizer).tokenizer) == 256 + 3 + 125


def test_a_tokenizer_larger_than_the_model_is_refused(saved, build_family, tmp_path):
    folder = saved("bart")
    other = build_family("gpt2")
    other.tokenizer.add_tokens(["#NAME#"])
    other.tokenizer.save_pretrained(tmp_path / "larger")
    tokenizer = {"checkpoint": str(tmp_path / "larger"), "vocab_size": 300, "lowercase": False}
    with pytest.raises(UserError, match=f"301 entries, {folder} only 300: set model.tokenizer.checkpoint"):
        build_family("bart", **start_from(folder, "bart"), tokenizer=tokenizer)
    checkpoint.save(other, tmp_path / "level")
    with pytest.raises(UserError, match="level: the tokenizer has 301 entries, the model only 300"):
        checkpoint.load(tmp_path / "level")


def test_a_tokenizer_without_an_end_is_refused(build_family, tmp_path):
    backend = build_family("bert").tokenizer.backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no end token: name its `eos_token`"):
        build_family("bert", tokenizer={"checkpoint": str(tmp_path), "vocab_size": 300, "lowercase": False})


def in_shards(folder: Path) -> dict[str, Any]:
    """Split the weights of a checkpoint; returns the index that names the parts."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    return json.loads((folder / SAFE_WEIGHTS_INDEX_NAME).read_text())


def test_weights_in_shards_are_read(saved, build_family):
    folder = saved("bart")
    whole = build_family("bart", **start_from(folder, "bart")).model.state_dict()
    assert len(set(in_shards(folder)["weight_map"].values())) > 1
    torch.testing.assert_close(build_family("bart", **start_from(folder, "bart")).model.state_dict(), whole)


def pickle_a_shard(folder: Path) -> None:
    index = in_shards(folder)
    name, part = next(iter(index["weight_map"].items()))
    torch.save(load_file(folder / part), folder / "part.bin")
    index["weight_map"][name] = "part.bin"
    (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index))


def put_a_shard_elsewhere(folder: Path) -> None:
    index = in_shards(folder)
    name = next(iter(index["weight_map"]))
    index["weight_map"][name] = "../part.safetensors"
    (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index))


def pickle_what_the_config_names(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "adapter_model.bin")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "adapter_model.bin"}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (pickle_a_shard, r"pickled weights \(part.bin of model.safetensors.index.json\)"),
        (put_a_shard_elsewhere, r"\(../part.safetensors of model.safetensors.index.json\)"),
        (pickle_what_the_config_names, "config.json has its weights in adapter_model.bin"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "holds an adapter"),
    ],
)
def test_no_pickle_is_opened(spoil, message, saved, build_family, monkeypatch):
    folder = saved("bart")
    spoil(folder)
    opened: list[Any] = []
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: opened.append(args) or {})
    with pytest.raises(UserError, match=message) as caught:
        build_family("bart", **start_from(folder, "bart"))
    assert not opened and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_layers": 1, "decoder_layers": 1}, None),
        ({"decoder_leyers": 1}, "model.config: bart has no field decoder_leyers"),
        ({"d_model": 32}, r"model.config: .*bart: .* is \d+ x 16, its config asks for \d+ x 32"),
        ({"d_model": 15}, "model.config: cannot read .*bart: embed_dim must be divisible"),
        ({"decoder_layers": 3}, "model.config: .*bart lacks .* weights of the model"),
        ({"dropout": 2.0}, "model.config: dropout probability"),
    ],
)
def test_changes_to_a_checkpoint_fit_it_or_name_their_key(changes, message, saved, build_family):
    section = start_from(saved("bart"), "bart") | {"config": changes}
    if message is None:
        assert build_family("bart", **section).model.config.decoder_layers == 1
        return
    with pytest.raises(UserError, match=f"^{message}") as caught:
        build_family("bart", **section)
    assert "\n" not in str(caught.value)
