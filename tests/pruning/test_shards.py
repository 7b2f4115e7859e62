"""A checkpoint pruned from shard to shard equals one pruned in memory."""

from __future__ import annotations

import json

import pytest
import torch
from shared import FAMILIES

from stages.errors import UserError
from stages.models import anatomy, checkpoint
from stages.models.sharing import unshared_state
from stages.pruning import criterion, engine, masks
from stages.pruning.shards import prune_folder


@pytest.fixture
def saved(build_family, tmp_path):
    """`saved(family)`: a generator, and its folder of several shards."""

    def make(family: str):
        generator = build_family(family)
        folder = tmp_path / "dense"
        checkpoint.save(generator, folder)
        (folder / "model.safetensors").unlink()
        generator.model.save_pretrained(folder, max_shard_size="20KB", state_dict=unshared_state(generator.model))
        assert len(list(folder.glob("*.safetensors"))) > 1
        return generator, folder

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_same_as_in_memory(family, saved, settings, tmp_path):
    generator, folder = saved(family)
    rules = settings(prune={"layers": {"*0*": 0.5}}).prune
    outcome = prune_folder(folder, tmp_path / "pruned", 0.6, rules)
    matrices = anatomy.describe(generator.model).matrices
    context = criterion.Context(generator.model, matrices, list, 0, None)
    chosen = engine.choose(context, criterion.find("magnitude"), 0.6, rules)
    masks.apply(context.weights, chosen)
    assert outcome.pruned == chosen.pruned == round(0.6 * chosen.numel)
    loaded = checkpoint.load(tmp_path / "pruned").model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in generator.model.state_dict().items())


def test_from_the_command_line(saved, tmp_path, capsys):
    from stages.prune_shards import main

    _, folder = saved("gpt2")
    (folder / "pytorch_model.bin").write_bytes(b"never copied")
    arguments = ["--model", str(folder), "--sparsity", "0.5", "--output", str(tmp_path / "out")]
    main(arguments)
    assert "50.00%" in capsys.readouterr().out and not (tmp_path / "out/pytorch_model.bin").exists()
    with pytest.raises(SystemExit):
        main(arguments)
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("entry", "message"), [("../other.safetensors", "no safetensors"), ("model.bin", "no safetensors"), (None, "no")]
)
def test_strange_folders_are_refused(saved, settings, tmp_path, entry, message):
    _, folder = saved("bart")
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    if entry:
        values["weight_map"][next(iter(values["weight_map"]))] = entry
        index.write_text(json.dumps(values))
    else:
        for file in folder.glob("model*"):
            file.unlink()
    with pytest.raises(UserError, match=message):
        prune_folder(folder, tmp_path / "out", 0.5, settings().prune)
    assert not (tmp_path / "out").exists()
