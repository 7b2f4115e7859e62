"""A level without its zeros: as large as what it holds, and the same model."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from shared import FAMILIES, SOURCES, TARGETS, family_section

from stages.bitmasks import MASKS_FILE
from stages.densify import main as densify
from stages.errors import UserError
from stages.evaluation.size import sizes
from stages.models import anatomy, checkpoint
from stages.models.build import build
from stages.models.sparse import VALUES_FILE as VALUES
from stages.pruning import criterion, engine, masks


@pytest.fixture
def pruned(build_family, settings):
    """`pruned(family)`: a generator with 70 % of its eligible weights at zero, and the masks."""

    def make(family: str, **changes):
        generator = build_family(family, **changes)
        matrices = anatomy.describe(generator.model).matrices
        context = criterion.Context(generator.model, matrices, list, 0, None)
        chosen = engine.choose(context, criterion.find("magnitude"), 0.7, settings().prune)
        masks.apply(context.weights, chosen)
        return generator, chosen

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_loads_as_the_same_model_and_becomes_plain_again(family, pruned, tmp_path):
    generator, chosen = pruned(family)
    checkpoint.save(generator, tmp_path / "plain", masks=chosen)
    checkpoint.save(generator, tmp_path / "sparse", masks=chosen, storage="sparse")
    assert not list((tmp_path / "sparse").glob("model*"))
    plain, loaded = (checkpoint.load(tmp_path / name) for name in ("plain", "sparse"))
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name]), name
    assert plain.model.generation_config.to_dict() == loaded.model.generation_config.to_dict()
    densify([str(tmp_path / "sparse"), "--output", str(tmp_path / "again")])
    files = {file.name for file in (tmp_path / "plain").iterdir()}
    assert {file.name for file in (tmp_path / "again").iterdir()} == files
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes(), name


def test_costs_what_it_holds(pruned, tmp_path):
    generator, chosen = pruned("bert", encoder={"config": WIDE}, decoder={"config": WIDE})
    checkpoint.save(generator, tmp_path / "sparse", masks=chosen, storage="sparse")
    figures = sizes(checkpoint.load(tmp_path / "sparse").model, tmp_path / "sparse")
    allowed = figures["nonzero_parameters"] * 4 + figures["eligible_parameters"] / 8
    # Parameters that happen to be zero without being pruned, as new biases are, are kept like others.
    others = sum(int((p == 0).sum()) for p in generator.model.parameters()) - chosen.pruned
    assert figures["size_bytes"] <= 1.05 * allowed + 4 * others


@pytest.mark.parametrize("file", [VALUES, MASKS_FILE])
@pytest.mark.parametrize(
    "spoil", [lambda path: path.write_bytes(path.read_bytes()[:-5]), lambda path: path.write_text("")]
)
def test_damage_ends_in_one_clear_line(file, spoil, pruned, tmp_path):
    generator, chosen = pruned("gpt2")
    checkpoint.save(generator, tmp_path / "sparse", masks=chosen, storage="sparse")
    spoil(tmp_path / "sparse" / file)
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.load(tmp_path / "sparse")


def _without(path, name):
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    del tensors[name]
    save_file(tensors, path, metadata=metadata)


def _shorter(folder):
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"n_positions": 64', '"n_positions": 32'))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: _without(folder / VALUES, "transformer.ln_f.weight"), "lacks 1 weights of the model"),
        (lambda folder: _without(folder / VALUES, "transformer.h.0.mlp.c_fc.weight"), "lacks transformer.h.0"),
        (lambda folder: (folder / "generation_config.json").unlink(), "cannot read .*generation_config.json"),
        (lambda folder: (folder / "generation_config.json").write_text("{"), "cannot read .*generation_config.json"),
        (lambda folder: save_file({}, folder / VALUES), "is damaged"),
        (_shorter, "wpe.weight is 64 x 16, its config asks for 32 x 16"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_named(spoil, message, pruned, tmp_path):
    generator, chosen = pruned("gpt2")
    checkpoint.save(generator, tmp_path / "sparse", masks=chosen, storage="sparse")
    spoil(tmp_path / "sparse")
    with pytest.raises(UserError, match=message) as caught:
        checkpoint.load(tmp_path / "sparse")
    assert "\n" not in str(caught.value)


def test_needs_no_name_of_its_class(pruned, tmp_path):
    generator, chosen = pruned("bart")
    checkpoint.save(generator, tmp_path / "sparse", masks=chosen, storage="sparse")
    config = json.loads((tmp_path / "sparse/config.json").read_text())
    del config["architectures"]
    (tmp_path / "sparse/config.json").write_text(json.dumps(config))
    assert type(checkpoint.load(tmp_path / "sparse").model) is type(generator.model)


def test_shared_sides_are_kept_once_and_are_shared_again(pruned, tmp_path):
    generator, chosen = pruned("bert", share_weights=True)
    checkpoint.save(generator, tmp_path / "plain", masks=chosen)
    checkpoint.save(generator, tmp_path / "sparse", masks=chosen, storage="sparse")
    kept = sum(tensor.numel() for tensor in load_file(tmp_path / "sparse" / VALUES).values())
    assert kept == sum(p.numel() for p in generator.model.parameters()) - chosen.pruned
    loaded = checkpoint.load(tmp_path / "sparse").model
    assert (
        loaded.decoder.bert.encoder.layer[0].output.dense.weight is loaded.encoder.encoder.layer[0].output.dense.weight
    )
    densify([str(tmp_path / "sparse"), "--output", str(tmp_path / "again")])
    files = ("model.safetensors", "config.json", MASKS_FILE)
    assert all((tmp_path / "again" / f).read_bytes() == (tmp_path / "plain" / f).read_bytes() for f in files)


def test_densify_names_a_folder_without_a_checkpoint(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit):
        densify([str(tmp_path / "empty"), "--output", str(tmp_path / "out")])
    assert "empty holds no checkpoint (config.json is missing)" in capsys.readouterr().err


def test_can_be_started_from(pruned, settings, tmp_path):
    generator, chosen = pruned("gpt2")
    checkpoint.save(generator, tmp_path / "sparse", masks=chosen, storage="sparse")
    section = {**family_section("gpt2"), "checkpoint": str(tmp_path / "sparse"), "config": {}, "architecture": None}
    model = build(settings(model=section).model, SOURCES + TARGETS, None).model
    assert all(torch.equal(model.state_dict()[name], t) for name, t in generator.model.state_dict().items())


def test_files_of_two_levels_are_told_apart(pruned, tmp_path):
    generator, chosen = pruned("gpt2")
    checkpoint.save(generator, tmp_path / "sparse", masks=chosen, storage="sparse")
    masks.keep_all(anatomy.describe(generator.model).weights).save(tmp_path / "sparse" / MASKS_FILE)
    with pytest.raises(UserError, match="another number of values"):
        checkpoint.load(tmp_path / "sparse")


WIDE = {"num_hidden_layers": 1, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 256}
