"""Checkpoints that are no checkpoints, and what `generate` may be given besides: one line each, no traceback."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import refused
from shared import ROOT

from stages import generate
from stages.errors import UserError
from stages.models import checkpoint

Harm = Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A small generator as `train` leaves one."""
    from shared import SOURCES, TARGETS, family_section, merge

    from stages import params
    from stages.models.build import build

    values = params.read_yaml(ROOT / "params.yaml")
    section = merge(values["model"], family_section("bert"))
    model = params.validate({**values, "model": section}, "params.yaml").model
    folder = tmp_path_factory.mktemp("whole") / "model"
    checkpoint.save(build(model, SOURCES + TARGETS), folder)
    return folder


@pytest.fixture
def model(whole, tmp_path, monkeypatch) -> Path:
    """A copy to harm, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(whole, "model"))


def cut(name: str, share: float = 0.5) -> Harm:
    def harm(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return harm


def write(name: str, content: bytes | str) -> Harm:
    raw = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(raw)


def remove(name: str) -> Harm:
    return lambda folder: (folder / name).unlink()


def setting(name: str, **changes: object) -> Harm:
    def harm(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        for path, value in changes.items():
            place = values
            *parents, last = path.split("__")
            for parent in parents:
                place = place[parent]
            if value is None:
                place.pop(last, None)
            else:
                place[last] = value
        (folder / name).write_text(json.dumps(values))

    return harm


def header(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


WEIGHTS, CONFIG, GENERATION = "model.safetensors", "config.json", "generation_config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
HARMS: dict[str, Harm] = {
    "no config": remove(CONFIG),
    "empty config": write(CONFIG, ""),
    "config cut short": cut(CONFIG),
    "config a list": write(CONFIG, "[]"),
    "config null": write(CONFIG, "null"),
    "config empty object": write(CONFIG, "{}"),
    "config not UTF-8": write(CONFIG, b"\xff\xfe{}"),
    "config of an unknown type": setting(CONFIG, model_type="spruce"),
    "config of a classifier": setting(CONFIG, model_type="vit"),
    "config type a number": setting(CONFIG, model_type=3),
    "config without its encoder": setting(CONFIG, encoder=None),
    "config encoder a text": setting(CONFIG, encoder="bert"),
    "config wider": setting(CONFIG, encoder__hidden_size=32),
    "config hidden size of zero": setting(CONFIG, encoder__hidden_size=0),
    "config hidden size a text": setting(CONFIG, encoder__hidden_size="wide"),
    "config heads that do not divide": setting(CONFIG, encoder__num_attention_heads=3),
    "config more layers": setting(CONFIG, decoder__num_hidden_layers=9),
    "config fewer layers": setting(CONFIG, decoder__num_hidden_layers=1),
    "config less than no layers": setting(CONFIG, encoder__num_hidden_layers=-1),
    "config layers a text": setting(CONFIG, decoder__num_hidden_layers="two"),
    "config unknown activation": setting(CONFIG, encoder__hidden_act="wish"),
    "config smaller vocabulary": setting(CONFIG, encoder__vocab_size=7),
    "no weights": remove(WEIGHTS),
    "weights empty": write(WEIGHTS, b""),
    "weights cut short": cut(WEIGHTS),
    "weights cut at the end": cut(WEIGHTS, 0.999),
    "weights cut in the header": cut(WEIGHTS, 0.001),
    "weights a text": write(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"),
    "weights a pickle": write(WEIGHTS, pickle.dumps({"a": 1})),
    "weights zeros": write(WEIGHTS, bytes(4096)),
    "weights header too long": write(WEIGHTS, struct.pack("<Q", 2**62) + b"{}"),
    "weights header no JSON": write(WEIGHTS, header(b"not json")),
    "weights header empty": write(WEIGHTS, header(b"{}")),
    "weights offsets outside": write(
        WEIGHTS, header(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}') + bytes(4)
    ),
    "weights unknown type": write(WEIGHTS, header(b'{"a":{"dtype":"F9","shape":[1],"data_offsets":[0,4]}}') + bytes(4)),
    "a pickle alone": lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"),
    "no generation config": remove(GENERATION),
    "generation config cut short": cut(GENERATION),
    "generation config a list": write(GENERATION, "[1]"),
    "generation config without a length": setting(GENERATION, max_new_tokens=None),
    "generation config length a text": setting(GENERATION, max_new_tokens="long"),
    "generation config length of zero": setting(GENERATION, max_new_tokens=0),
    "generation config beams a text": setting(GENERATION, num_beams="many"),
    "generation config penalty of zero": setting(GENERATION, repetition_penalty=0),
    "no tokenizer": lambda folder: [file.unlink() for file in folder.glob("tokenizer*")],
    "tokenizer empty": write(TOKENIZER, ""),
    "tokenizer cut short": cut(TOKENIZER),
    "tokenizer an empty object": write(TOKENIZER, "{}"),
    "tokenizer no JSON": write(TOKENIZER, "tokenizer"),
    "tokenizer config cut short": cut(TOKENIZER_CONFIG),
    "tokenizer config without a length": setting(TOKENIZER_CONFIG, model_max_length=None),
    "tokenizer config length a text": setting(TOKENIZER_CONFIG, model_max_length="long"),
    "tokenizer config of code": setting(TOKENIZER_CONFIG, tokenizer_class="Spruce", auto_map={"AutoTokenizer": "x.Y"}),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_checkpoint_that_is_none_is_refused(harm, model, capsys):
    HARMS[harm](model)
    said = refused(capsys, lambda: generate.main(["--model", "model", "--text", "bye"]))
    assert "model" in said


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_damage_is_loaded_or_refused_in_one_line(data, model):
    """Bytes overwritten, put in or cut out of any file of a checkpoint: hypothesis looks for anything else."""
    file = data.draw(st.sampled_from(sorted(model.iterdir())))
    content = file.read_bytes()
    # The first bytes of safetensors say what the rest is.
    place = data.draw(st.integers(0, min(len(content), 9000)))
    put = data.draw(st.binary(max_size=8))
    try:
        file.write_bytes(content[:place] + put + content[place + data.draw(st.integers(0, 9)) :])
        checkpoint.load(model)
    except UserError as error:
        assert "\n" not in str(error) and "model" in str(error)
    finally:
        file.write_bytes(content)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--text", "a"],
        ["--model", "", "--text", "a"],
        ["--model", "no such level", "--text", "a"],
        ["--model", "/dev/null", "--text", "a"],
        ["--model", "model/config.json", "--text", "a"],
        ["--model", "x" * 5000, "--text", "a"],
        ["--model", "a\0b", "--text", "a"],
        ["--model", "model", "--input", "missing.txt"],
        ["--model", "model", "--input", "model"],
        ["--model", "model", "--input", "latin.txt"],
        ["--model", "model", "--input", "utf16.txt"],
        ["--model", "model", "--text", "\udcff"],
        ["--model", "model", "--text", "a", "--input", "latin.txt"],
        ["--model", "model", "--text", "a", "--output", "model"],
        ["--model", "model", "--text", "a", "--output", "latin.txt/out.jsonl"],
        ["--model", "model", "--text", "a", "--output", "/proc/nothing/out.jsonl"],
        ["--model", "model", "--text", "a", "--output", "x" * 300],
        ["--model", "model", "--text", "a", "--batch-size", "0"],
        ["--model", "model", "--text", "a", "--num-beams", "many"],
        ["--model", "model", "--text", "a", "--max-new-tokens", "9999"],
        ["--model", "model", "--text", "a", "--temperature", "nan"],
        ["--model", "model", "--text", "a", "--temperature", "0.5"],
        ["--model", "model", "--text", "a", "--do-sample", "--top-p", "1.5"],
        ["--model", "model", "--text", "a", "--beam", "3"],
    ],
)
def test_what_generate_is_given_wrongly_is_refused(arguments, model, capsys):
    Path("latin.txt").write_bytes(b"caf\xe9\n")
    Path("utf16.txt").write_bytes("bye\n".encode("utf-16"))
    refused(capsys, lambda: generate.main(arguments))


def test_in_a_process_of_its_own_it_is_the_same(model):
    """What is printed at exit or by a library's own hands is seen only here."""
    HARMS["tokenizer cut short"](model)
    command = [sys.executable, "-m", "stages.generate", "--model", "model", "--text", "bye"]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert ended.returncode == 1 and not ended.stdout
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1, ended.stderr
