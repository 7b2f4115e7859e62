"""A checkpoint pruned from shard to shard equals one pruned in memory."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from shared import FAMILIES

from stages.errors import UserError
from stages.models import anatomy, checkpoint
from stages.models.sharing import copies, unshared_state
from stages.pruning import criterion, engine, masks
from stages.pruning.shards import Shards, prune_folder


@pytest.fixture
def saved(build_family, tmp_path):
    """`saved(family)`: a generator, and its folder of several shards."""

    def make(family: str, **changes):
        generator = build_family(family, **changes)
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


def test_weights_saved_without_a_head(saved, settings, tmp_path):
    """As GPT-2's were: `h.0.attn.c_attn.weight`, which is `transformer.h.0.…` in the model that generates."""
    generator, folder = saved("gpt2")
    for shard in folder.glob("*.safetensors*"):
        shard.unlink()
    bare = {name.removeprefix("transformer."): tensor for name, tensor in generator.model.state_dict().items()}
    del bare["lm_head.weight"]
    save_file({name: tensor.clone() for name, tensor in bare.items()}, folder / "model.safetensors")
    outcome = prune_folder(folder, tmp_path / "pruned", 0.6, settings().prune)
    assert Shards(tmp_path / "pruned").files.keys() == bare.keys()
    loaded = checkpoint.load(tmp_path / "pruned").model
    matrices = anatomy.describe(generator.model).matrices
    chosen = engine.choose(
        criterion.Context(generator.model, matrices, list, 0, None),
        criterion.find("magnitude"),
        0.6,
        settings().prune,
    )
    assert outcome.pruned == chosen.pruned
    masks.check_held(anatomy.describe(loaded).weights, chosen)


BF16, F16, F64 = torch.bfloat16, torch.float16, torch.float64


@pytest.mark.parametrize("kinds", [(BF16, None), (BF16, F16), (F64, F64), (BF16, BF16)])
@pytest.mark.parametrize("pattern, scope", [("unstructured", "global"), ("4x4", "layer")])
def test_every_type_of_weights_is_counted_as_in_memory(kinds, pattern, scope, saved, settings, tmp_path):
    """Feed-forward weights of one type, attention of another: a threshold of one is not rounded to the other."""
    _, folder = saved("llama")
    for shard in folder.glob("*.safetensors"):
        tensors = load_file(shard)
        for name, tensor in tensors.items():
            kind = kinds["mlp" not in name] or tensor.dtype
            if pattern == "unstructured":  # the first is the second in bf16
                tensor = torch.full_like(tensor, 0.12353515625 if "mlp" in name else 0.1234567)
            tensors[name] = (tensor + 1e-9 * (kind == F64)).to(kind)
        save_file(tensors, shard, metadata={"format": "pt"})
    generator = checkpoint.load(folder)
    matrices = anatomy.describe(generator.model).matrices
    for sparsity in (0.3, 0.61, 0.8):
        rules = settings(prune={"pattern": pattern, "scope": scope}).prune
        outcome = prune_folder(folder, tmp_path / "pruned", sparsity, rules)
        context = criterion.Context(generator.model, matrices, list, 0, None)
        chosen = engine.choose(context, criterion.find("magnitude"), sparsity, rules)
        assert outcome.pruned == chosen.pruned
        assert outcome.pruned == pytest.approx(sparsity * outcome.eligible, abs=0.5 if pattern == "unstructured" else 8)
        written = Shards(tmp_path / "pruned")
        for name, mask in chosen.items():
            assert not bool(written[name][~mask].any())
            assert torch.equal(written[name][mask], Shards(folder)[name][mask])


def test_shared_sides_count_once_and_lose_the_same(saved, settings, tmp_path):
    generator, folder = saved("bert", share_weights=True)
    outcome = prune_folder(folder, tmp_path / "pruned", 0.5, settings().prune)
    eligible = anatomy.describe(generator.model).eligible
    assert (outcome.pruned, outcome.eligible) == (round(0.5 * eligible), eligible)
    shards = Shards(tmp_path / "pruned")
    for copy, original in copies(generator.model).items():
        if copy in shards.files:
            assert torch.equal(shards[copy], shards[original]), copy


def _changed(folder, name, change):
    file = folder / Shards(folder).files[name]
    tensors = load_file(file)
    tensors[name] = change(tensors[name])
    save_file(tensors, file, metadata={"format": "pt"})


def _index(folder, change):
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"] = change(values["weight_map"])
    index.write_text(json.dumps(values))


WEIGHT = "model.encoder.layers.0.fc1.weight"


def _narrow(folder):
    _changed(folder, WEIGHT, lambda weight: weight[:, :8].contiguous())


def _elsewhere(files):
    return {**files, WEIGHT: next(file for file in files.values() if file != files[WEIGHT])}


def _nowhere(files):
    return {name: file for name, file in files.items() if name != WEIGHT}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_narrow, "fc1.weight is 32 x 8, its config asks for 32 x 16"),
        (lambda folder: _changed(folder, WEIGHT, lambda t: t.to(torch.int8)), "fc1.weight is I8: prune the checkpoint"),
        (lambda folder: _index(folder, _elsewhere), "lacks model.encoder"),
        (lambda folder: _index(folder, _nowhere), "names its weights in another way"),
        (lambda folder: _index(folder, list), "no readable safetensors"),
    ],
)
def test_weights_that_do_not_fit_are_refused(saved, settings, tmp_path, spoil, message):
    _, folder = saved("bart")
    spoil(folder)
    with pytest.raises(UserError, match=message):
        prune_folder(folder, tmp_path / "out", 0.5, settings().prune)
    assert not (tmp_path / "out").exists()


def test_groups_that_would_not_be_whole_are_refused(saved, settings, tmp_path):
    rules = settings(sweep={"sparsity": [0.5]}, prune={"pattern": "2:4"}).prune
    with pytest.raises(UserError, match=r"a sparsity of 0\.500 over all, not 0\.3"):
        prune_folder(saved("llama")[1], tmp_path / "out", 0.3, rules)
    assert not (tmp_path / "out").exists()


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


def test_a_folder_without_its_zeros_is_to_be_densified_first(build_family, settings, tmp_path):
    generator, rules = build_family("bart"), settings().prune
    context = criterion.Context(generator.model, anatomy.describe(generator.model).matrices, list, 0, None)
    chosen = engine.choose(context, criterion.find("magnitude"), 0.5, rules)
    masks.apply(context.weights, chosen)
    checkpoint.save(generator, tmp_path / "sparse", masks=chosen, storage="sparse")
    with pytest.raises(UserError, match=r"python -m stages\.densify .*sparse"):
        prune_folder(tmp_path / "sparse", tmp_path / "out", 0.7, rules)
