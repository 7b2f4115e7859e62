"""params.yaml: the shipped one is valid, and every kind of mistake is one line that names the key."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from shared import ROOT

from stages import params
from stages.errors import UserError
from stages.layout import Level


def test_the_shipped_params_are_valid_and_commented():
    assert params.load("sweep", path=ROOT / "params.yaml").sweep.levels
    for line in (ROOT / "params.yaml").read_text().splitlines():
        if re.match(r"  +[a-z_0-9]+:", line):
            assert "  # " in line, f"{line.strip()} says nothing"


def test_only_named_sections_are_given(tmp_path):
    loaded = params.load("data", path=ROOT / "params.yaml")
    assert loaded.data.source == "act"
    with pytest.raises(AttributeError):
        _ = loaded.train


def set_at(values: dict, key: str, value: object) -> dict:
    values = copy.deepcopy(values)
    *parents, last = key.split(".")
    inner = values
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return values


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.epoch", 3, "train.epoch is not a known key: did you mean train.epochs?"),
        ("trian", {}, "trian is not a known key: did you mean train or tracking?"),
        ("model.encoder.Cnfig", {}, "model.encoder.Cnfig is not a known key: did you mean model.encoder.config?"),
        ("target.qqq", 1, "target.qqq is not a known key: target has metric, max_drop"),
        ("train.epochs", "three", "train.epochs: input should be a valid number, not 'three'"),
        ("train.epochs", 0, "train.epochs: must be above 0, not 0"),
        ("sweep.sparsity", [0.5, 1.0], "sweep.sparsity.1: must be in [0, 1), not 1.0"),
        ("sweep.sparsity", [-0.1], "sweep.sparsity.0: must be in [0, 1), not -0.1"),
        ("sweep.sparsity", [float("nan")], "sweep.sparsity.0"),
        ("sweep.sparsity", [], "sweep.sparsity: must have at least 1, not []"),
        ("sweep.sparsity", [0.5, 0.5], "names an item twice"),
        ("sweep.method", ["magnitud"], "sweep.method.0: input should be 'magnitude', "),
        ("prune.scope", "matrix", "prune.scope: input should be 'global', 'layer' or 'row', not 'matrix'"),
        ("data.placeholder", "([", "data.placeholder: is not a regular expression"),
        ("export.level", "best", "export.level: is neither chosen, dense nor a level such as magnitude-0.5"),
        ("export.level", "magnitud-0.5", "is neither chosen, dense nor a level"),
        ("export.formats", ["onnx", "onnx"], "names an item twice"),
        ("export.formats", ["tflite"], "export.formats.0: input should be 'safetensors', 'onnx', "),
        ("data.target", "act", "source and target name the same column"),
        ("clean.split.train", 0.9, "must be 1"),
        ("model.kind", "causal", "needs either checkpoint or architecture"),
        ("model.checkpoint", "x", "takes encoder and decoder"),
        ("search.low", 0.99, "low must be below high"),
        ("evaluate", None, "evaluate"),
        ("runtime.seed", True, "runtime.seed"),
        ("sweep.sparsity", [1e-05], "at least 0.0001"),
        ("evaluate.temperature", 1e-40, "evaluate.temperature: must be in [0.001, 1000], not 1e-40"),
        ("evaluate.confidence", 0.5, "evaluate.confidence: must be in (0.5, 1), not 0.5"),
        ("evaluate.top_k", -1, "evaluate.top_k: must be at least 0, not -1"),
        ("runtime.seed", 2**32, "runtime.seed: must be in [0, 4294967296), not 4294967296"),
        ("train.early_stopping_patience", 0, "train.early_stopping_patience: must be at least 1, not 0"),
        ("clean.near_duplicates", 1.5, "clean.near_duplicates: must be in (0, 1], not 1.5"),
        ("prune.layers", {"encoder.*": 1}, "prune.layers.encoder.*: must be in [0, 1), not 1"),
    ],
)
def test_mistakes_name_the_key(key, value, message, default_values):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        params.validate(set_at(default_values, key, value), "params.yaml")
    assert "\n" not in str(caught.value) and key.split(".")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("prune", "sparsity", "message"),
    [
        ({"structured": {"zeros": 0.5}}, [0.7, 0.5], "structured.zeros leave nothing to remove at sweep.sparsity 0.5"),
        (
            {"structured": {"zeros": 0.6}, "pattern": "2:4"},
            [0.7],
            "pattern 2:4 is sparsity 0.5, structured.zeros is 0.6",
        ),
        ({"structured": {"score": "group_lasso", "neurons": 0, "heads": 0}}, [0.5], "trains units away: let heads"),
    ],
)
def test_structure_that_makes_no_sense(prune, sparsity, message, settings):
    with pytest.raises(UserError, match=re.escape(message)):
        settings(prune=prune, sweep={"method": ["structured"], "sparsity": sparsity})
    fine = {"structured": {"zeros": 0.5, "score": "group_lasso", "heads": 0}, "pattern": "2:4"}
    settings(prune=fine, sweep={"method": ["structured"], "sparsity": [0, 0.7]})


SHARED = {"model": {"share_weights": True}}


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"sweep": {"method": ["movement"]}, "prune": {"scope": "layer", "allocation": "owl"}}, "variant soft"),
        (SHARED | {"sweep": {"method": ["wanda"]}}, "method wanda"),
        (SHARED | {"prune": {"scope": "layer", "allocation": "owl"}}, "prune.allocation owl"),
        (SHARED | {"sweep": {"method": ["structured"]}}, "method structured"),
        (SHARED | {"prune": {"pattern": "units"}}, "prune.pattern units"),
        (SHARED | {"finetune": {"schedule": "one_shot", "lora": {"rank": 4}}}, "finetune.lora.rank"),
        ({"prune": {"pattern": "1:3"}, "sweep": {"sparsity": [0.66]}}, "sparsity 0.6667, "),
        ({"export": {"level": "structured-0.77"}}, "export.level structured-0.77 is no level of sweep: add it there"),
        ({"export": {"level": "magnitude-0.50"}}, "export.level magnitude-0.50 is no level of sweep"),
        ({"export": {"formats": ["onnx", "ctranslate2-int8"]}}, "export.formats has ctranslate2-int8, which knows no"),
    ],
)
def test_what_no_stage_can_do_is_refused_beforehand(changes, said, settings):
    settings(**SHARED)
    with pytest.raises(UserError, match=re.escape(said)):
        settings(**changes)


def test_what_can_be_exported(settings):
    for level in ("chosen", "dense", "magnitude-0.5"):
        assert settings(export={"level": level}).export.level == level
    seq2seq = {"kind": "seq2seq", "architecture": "t5"}
    settings(export={"formats": ["ctranslate2", "ctranslate2-int8"]}, model=seq2seq)


def test_a_level_outside_the_sweep_has_the_same_rules(default_values, tmp_path):
    path = tmp_path / "params.yaml"

    def check(method: str, sparsity: float, **sections: object) -> None:
        values = default_values | {name: default_values[name] | changes for name, changes in sections.items()}
        with path.open("w") as file:
            YAML(typ="safe").dump(values, file)
        params.check_level(method, sparsity, path)

    check("wanda", 0.5)
    check("movement", 0.5)
    check("movement", 0.5, export={"level": "magnitude-0.5"})
    with pytest.raises(UserError, match=r"were wanda-0.5 in the sweep: .*pattern units"):
        check("wanda", 0.5, prune={"pattern": "units"})
    with pytest.raises(UserError, match=r"finetune\.schedule to cubic"):
        check("movement", 0.5, finetune={"schedule": "one_shot"})
    with pytest.raises(UserError, match=r"prune.movement.floor keeps 0.3 .*0\.9"):
        check("movement", 0.9, prune={"movement": {"variant": "soft", "floor": 0.3}})
    with pytest.raises(UserError, match="no pruning method"):
        check("wandah", 0.5)


def test_a_missing_key_is_named(default_values):
    values = copy.deepcopy(default_values)
    del values["train"]["epochs"], values["sweep"]
    with pytest.raises(UserError, match=r"train\.epochs is missing; sweep is missing"):
        params.validate(values, "params.yaml")


@pytest.mark.parametrize("content", ["", "[1]", "a: [", "\0", "just text"])
def test_files_that_are_no_params(content, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=r"params\.yaml"):
        params.load("data", path=path)
    with pytest.raises(UserError, match="is missing"):
        params.load("data", path=Path("nowhere.yaml"))


def test_exponents_are_numbers(tmp_path):
    text = re.sub(r"learning_rate: \S+", "learning_rate: 2e-4", (ROOT / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(text)
    assert params.load("train", path=tmp_path / "params.yaml").train.learning_rate == 0.0002


@pytest.mark.parametrize(("key", "level"), [("magnitude-0.5", ("magnitude", 0.5)), ("l1-0", ("l1", 0))])
def test_level_keys_round_trip(key, level):
    assert Level.parse(key) == Level(*level) and Level(*level).key == key


@pytest.mark.parametrize("key", ["magnitude", "magnitude-1", "magnitude-1.5", "-0.5", "magnitude-nan", "magnitude-x"])
def test_keys_that_are_no_level(key):
    with pytest.raises(UserError, match="is no level"):
        Level.parse(key)


def test_paths_do_not_leave_the_project_unless_absolute(settings):
    for path in ("data/../data/raw/pairs.csv", "/mnt/shared/pairs.csv", "..pairs.csv", "~/pairs.csv"):
        assert settings(data={"path": path}).data.path == path
    with pytest.raises(UserError, match=r"data\.path.*leaves the project: write the absolute path if it is meant"):
        settings(data={"path": "data/../../pairs.csv"})


def test_links_do_not_lead_out_of_the_project_but_into_a_cache(settings, tmp_path, monkeypatch):
    root, outside, cached = tmp_path / "project", tmp_path / "outside", tmp_path / "cache/files/md5/ab" / ("c" * 30)
    for folder in (root, outside, cached.parent):
        folder.mkdir(parents=True)
    cached.write_text("source,target\n")
    monkeypatch.chdir(root)
    (root / "in").symlink_to("pairs.csv")
    (root / "kept.csv").symlink_to(cached)  # as DVC leaves it if cache.type is symlink
    for path in ("in", "kept.csv"):
        assert settings(data={"path": path}).data.path == path
    (root / "out").symlink_to(outside)
    for path in ("out", "out/pairs.csv"):
        with pytest.raises(UserError, match=r"data\.path.*is a link that leaves the project"):
            settings(data={"path": path})


@pytest.mark.parametrize("hub", ["owner/name", "owner/name:small", "o-w.n_er/..name@refs/convert/parquet", None])
def test_ids_of_the_hub(settings, hub):
    assert settings(data={"hub": hub}).data.hub == hub


@pytest.mark.parametrize(
    "hub",
    ["../folder", "./folder", "/mnt/folder", "owner/..", "owner/name/more", "~/folder", "owner/name\n", "", "csv"],
)  # of the last `datasets` would read any CSV files that are here
def test_what_is_not_on_the_hub_is_named_by_its_path(settings, hub):
    with pytest.raises(UserError, match=r"data\.hub: must be owner/name on the .* hub, .* \(use data\.path\), not"):
        settings(data={"hub": hub})


def test_a_local_folder_is_not_taken_for_one_of_the_hub(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner/name").mkdir(parents=True)
    assert settings(data={"hub": "owner/other"}).data.hub == "owner/other"
    for hub in ("owner/name", "owner/name:small@v1"):
        with pytest.raises(UserError, match=r"data\.hub: .* no local file or folder \(use data\.path\)"):
            settings(data={"hub": hub})
