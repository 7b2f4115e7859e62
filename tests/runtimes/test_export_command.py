"""`python -m stages.export` and `stages.generate` on what it wrote, as a person runs them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from stages import export, generate, layout
from stages.errors import UserError
from stages.models import checkpoint
from stages.runtimes import folder as folders
from stages.runtimes.description import Description

TEXTS = ["inform ( name )", "", "bye", "你好 ( 名称 )", "request ( food , area )"]


@pytest.fixture
def level(tmp_path, monkeypatch, build_family) -> str:
    """A folder to work in, with the checkpoint of a level."""
    monkeypatch.chdir(tmp_path)
    generator = build_family("bert")
    torch.manual_seed(1)
    for parameter in generator.model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    checkpoint.save(generator, layout.model_folder("magnitude-0.5"))
    return "magnitude-0.5"


def outputs(capfdbinary, model: str) -> list[str]:
    capfdbinary.readouterr()
    generate.main(["--model", model, "--max-new-tokens", "8", *(part for text in TEXTS for part in ("--text", text))])
    return [json.loads(line)["output"] for line in capfdbinary.readouterr().out.decode().splitlines()]


def stops(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        export.main(list(arguments))
    assert stopped.value.code == 1
    return capsys.readouterr().err


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_int8_generates_from_its_folder_alone(level, capfdbinary, tmp_path):
    export.main([level, "--to", "onnx-int8", "--output", "small"])
    said = capfdbinary.readouterr()
    assert said.out.decode().startswith("small: onnx-int8 of magnitude-0.5, ")
    assert not said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs", "small"]
    assert not list(Path("small").glob("*.safetensors"))
    described = Description.load(Path("small"))
    assert (described.format, described.source, described.model_type) == (
        "onnx-int8",
        "magnitude-0.5",
        "encoder-decoder",
    )
    Path("outputs").rename("gone")
    found = outputs(capfdbinary, "small")
    assert found[1] == ""
    assert len(set(found)) > 2


def test_safetensors_are_the_checkpoint(level, capfdbinary):
    source = layout.model_folder(level)
    export.main([str(source), "--to", "safetensors", "--output", "plain"])
    written = contents(Path("plain"))
    assert written.pop("export.json")
    assert written == contents(source)
    assert outputs(capfdbinary, "plain") == outputs(capfdbinary, level)


def test_an_earlier_export_is_replaced_and_nothing_else(level, capsys):
    export.main([level, "--to", "safetensors", "--output", "plain"])
    Path("plain/left").touch()
    export.main([level, "--to", "safetensors", "--output", "plain"])
    assert not Path("plain/left").exists()
    Path("mine").mkdir()
    Path("mine/thesis").touch()
    said = stops(capsys, level, "--to", "safetensors", "--output", "mine")
    assert "mine exists and is no earlier export: name a new folder" in said
    assert Path("mine/thesis").exists()


def test_what_cannot_be_exported_says_so_and_leaves_what_was_there(level, capsys, monkeypatch):
    export.main([level, "--to", "safetensors", "--output", "plain"])
    before = contents(Path("plain"))

    def fail(*_, **__):
        raise RuntimeError("no such operator\nat all")

    monkeypatch.setattr(torch.onnx, "export", fail)
    for format in ("onnx", "onnx-int8"):
        said = stops(capsys, level, "--to", format, "--output", "plain")
        assert "type encoder-decoder cannot be exported to ONNX: no such operator at all" in said
    assert contents(Path("plain")) == before
    assert sorted(path.name for path in Path().iterdir()) == ["outputs", "plain"]


def test_packages_that_are_missing_are_named(level, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "this format needs the package onnxruntime: run `pip install -c constraints.txt -e '.[export]'" in stops(
        capsys, level, "--to", "onnx", "--output", "new"
    )
    Path("new").mkdir()
    Description("onnx", level, "bert", {"decoder": "decoder.onnx"}, {}).save(Path("new"))
    with pytest.raises(UserError, match="needs the package onnxruntime"):
        folders.load(Path("new"))


WHOLE = {"format": "onnx", "source": "dense", "model_type": "bert", "graphs": {"decoder": "d.onnx"}, "versions": {}}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"format": "onnx"}',
        '{"format": "x", "source": "", "model_type": ""}',
        *(json.dumps(WHOLE | {"graphs": graphs}) for graphs in ({}, [], 3, {"decoder": 3}, {"encoder": "e.onnx"})),
    ],
)
def test_a_folder_that_describes_nothing_is_refused(tmp_path, text):
    (tmp_path / "export.json").write_text(text)
    with pytest.raises(UserError, match=r"export\.json"):
        folders.load(tmp_path)


def test_damaged_graphs_are_refused(level, tmp_path):
    checkpoint.save(checkpoint.load(layout.model_folder(level)), tmp_path / "broken")
    (tmp_path / "broken" / "decoder.onnx").write_bytes(b"nothing")
    Description("onnx", level, "bert", {"decoder": "decoder.onnx"}, {}).save(tmp_path / "broken")
    with pytest.raises(UserError, match=r"cannot read .*decoder\.onnx.*: run stages\.export again"):
        folders.load(tmp_path / "broken")
    path = tmp_path / "broken" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_new_tokens": None}))
    with pytest.raises(UserError, match=r"generation_config\.json: max_new_tokens is missing"):
        folders.load(tmp_path / "broken")
    (tmp_path / "broken" / "generation_config.json").unlink()
    with pytest.raises(UserError, match=r"generation_config\.json: .*: run stages\.export again"):
        folders.load(tmp_path / "broken")


def test_no_such_level(level, capsys):
    assert "no such checkpoint" in stops(capsys, "magnitude-0.9", "--to", "onnx", "--output", "new")
    said = stops(capsys, level, "--to", "onnx", "--output", "/proc/nowhere/new")
    assert "--output /proc/nowhere/new: its folder cannot be made: No such file" in said
