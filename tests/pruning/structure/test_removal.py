"""What is removed counts for nothing: the smaller model gives the logits of the dense one with the rest masked."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
from shared import SMALL, SOURCES, TARGETS

from stages.errors import UserError
from stages.models import checkpoint
from stages.models.checkpoint import Generator
from stages.pruning.structure import states
from stages.pruning.structure.axes import describe
from stages.pruning.structure.masking import masked
from stages.pruning.structure.plan import Plan, whole
from stages.pruning.structure.removal import remove, shrink

DEEP = {
    "bert": {"num_hidden_layers": 3, "hidden_size": 24, "num_attention_heads": 3},
    "bart": {"encoder_layers": 2, "decoder_layers": 3, "d_model": 24, "encoder_attention_heads": 3}
    | {"decoder_attention_heads": 3},
    "t5": {"num_layers": 3, "num_decoder_layers": 3, "num_heads": 3},
    "gpt2": {"n_layer": 3, "n_embd": 24, "n_head": 3},
    "llama": {"num_hidden_layers": 3, "hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 3}
    | {"head_dim": 4},
}
DEEP["roberta"], DEEP["marian"] = DEEP["bert"], DEEP["bart"]
FAMILIES = [*DEEP, "gated-t5", "mbart", "scaled-bart", "untied-t5", "qwen2"]
WIDTH_LOCKED = ("marian",)
FREE_HEADS = ("t5", "gated-t5", "untied-t5", "llama", "qwen2")


@pytest.fixture(scope="module")
def _made() -> dict[str, Generator]:
    return {}


@pytest.fixture
def made(build_family, _made):
    """A generator with three layers and three heads, its norms and biases not as they are when new."""

    def get(family: str) -> Generator:
        if family in _made:
            return _made[family]
        if family in ("gated-t5", "untied-t5"):
            config = SMALL["t5"] | DEEP["t5"] | {"feed_forward_proj": "gated-gelu"}
            config |= {"tie_word_embeddings": False} if family == "untied-t5" else {}
            found = build_family("t5", config=config)
        elif family == "scaled-bart":
            found = build_family("bart", config=SMALL["bart"] | DEEP["bart"] | {"scale_embedding": True})
        elif family in ("mbart", "qwen2"):
            found = _other(family, build_family("bart" if family == "mbart" else "llama"))
        elif family in ("bert", "roberta"):
            side = {"architecture": family, "config": SMALL[family] | DEEP[family]}
            found = build_family(family, encoder=side, decoder=side)
        else:
            found = build_family(family, config=SMALL[family] | DEEP[family])
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in found.model.parameters():
                if parameter.requires_grad:  # positions that are computed are not saved
                    parameter.add_(0.1 * torch.randn_like(parameter))
        found.model.eval()
        _made[family] = found
        return found

    return get


def _other(family: str, like: Generator) -> Generator:
    """A family that only a checkpoint brings in."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    base = like.model.config
    common = {"vocab_size": base.vocab_size, "pad_token_id": base.pad_token_id, "eos_token_id": base.eos_token_id}
    if family == "mbart":
        sizes = SMALL["bart"] | DEEP["bart"] | {"scale_embedding": True, "decoder_start_token_id": 1}
        model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("mbart", **common, **sizes))
    else:
        sizes = SMALL["llama"] | DEEP["llama"]
        del sizes["head_dim"]
        config = AutoConfig.for_model("qwen2", **common, **sizes, use_sliding_window=True, max_window_layers=1)
        model = AutoModelForCausalLM.from_config(config)
    model.generation_config = copy.deepcopy(like.model.generation_config)
    return Generator(model, like.tokenizer, like.max_source_tokens, like.max_target_tokens)


def plan_of(model, *kinds: str) -> Plan:
    """Removes some of each kind: of layers the first, of units others in each block, of the width with its heads."""
    structure = describe(model)
    generator = torch.Generator().manual_seed(3)
    layers = dict(whole(structure).layers)
    if "layers" in kinds:
        layers = {side: kept[1:] for side, kept in layers.items()}
    plan = Plan(layers)
    units = {}
    for axis in structure.axes.values():
        coupled = axis.size in structure.head_sizes or (axis.kind == "width" and structure.head_sizes)
        wanted = axis.kind in kinds or ("width" in kinds and coupled)
        if plan.has(axis) and wanted:
            keep = axis.units * 2 // 3
            units[axis.name] = tuple(sorted(torch.randperm(axis.units, generator=generator)[:keep].tolist()))
    plan = Plan(layers, units)
    plan.check(structure)
    return plan


def logits(generator: Generator):
    batch = generator.collate(generator.encode(SOURCES, TARGETS))
    with torch.no_grad():
        return generator.model(**batch, use_cache=False).logits


@pytest.mark.parametrize("kinds", [("layers",), ("neurons",), ("heads",), ("width",), ("layers", "neurons", "width")])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_masked_model(family, kinds, made):
    generator = made(family)
    if (family in WIDTH_LOCKED and "width" in kinds) or (kinds == ("heads",) and family not in FREE_HEADS):
        with pytest.raises(UserError, match="cut"):
            plan_of(generator.model, *kinds)
        return
    if "width" in kinds and family in FREE_HEADS:
        kinds += ("heads",)
    plan = plan_of(generator.model, *kinds)
    before = logits(generator)
    smaller = shrink(generator, plan)
    with masked(generator.model, plan):
        expected = logits(generator)
    assert (expected - before).abs().max() > 1e-3
    torch.testing.assert_close(logits(smaller), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(generator), before)
    parameters = [sum(p.numel() for p in model.parameters()) for model in (smaller.model, generator.model)]
    assert parameters[0] < parameters[1]


@pytest.mark.parametrize("last_goes", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_have_their_counterparts_in_the_masked_model(family, last_goes, made):
    """Block by block, also after two removals; a block that is skipped hands on what the one before it gave out."""
    generator = made(family)
    kinds = ("neurons",) if family in WIDTH_LOCKED else ("neurons", "width", "heads")
    first = plan_of(generator.model, *(kinds if family in FREE_HEADS else kinds[:2]))
    layers = {side: kept[:-1] if last_goes else kept[1:] for side, kept in first.layers.items()}
    both = Plan(
        layers, {n: kept for n, kept in first.units.items() if Plan(layers).has(describe(generator.model).axes[n])}
    )
    counterparts = states.follow(generator, first)
    narrower = shrink(generator, first)
    smaller = shrink(narrower, Plan(layers), counterparts.factor)
    counterparts = states.follow(narrower, Plan(layers), counterparts)

    batch = generator.collate(generator.encode(SOURCES, TARGETS))

    def outputs(model):
        with torch.no_grad():
            return model(**batch, use_cache=False, output_hidden_states=True)

    ours = outputs(smaller.model)
    with masked(generator.model, both):
        theirs = outputs(generator.model)
    torch.testing.assert_close(ours.logits, theirs.logits, atol=2e-5, rtol=1e-5)
    names = {"decoder": "hidden_states"} if generator.kind == "causal" else {s: f"{s}_hidden_states" for s in layers}
    for side, name in names.items():
        wanted = counterparts.of(side, theirs[name][1:])
        assert len(wanted) == len(layers[side]) == len(ours[name]) - 1
        for mine, their in zip(ours[name][1:], wanted, strict=True):
            torch.testing.assert_close(mine, their, atol=2e-5, rtol=1e-5)


RELOAD = """
import sys
sys.modules["stages"] = None  # an editable install is seen with -I too
try:
    import stages.models
except ImportError:
    pass
else:
    raise AssertionError("this project can be imported")
import json
import torch
import transformers

torch.set_num_threads(1)
said = {}
for folder, batch in json.load(sys.stdin).items():
    config = transformers.AutoConfig.from_pretrained(folder)
    auto = (transformers.EncoderDecoderModel if config.model_type == "encoder-decoder" else
            transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM)
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], (folder, info)
    transformers.AutoTokenizer.from_pretrained(folder)
    said[folder] = model.generate(**{name: torch.tensor(value) for name, value in batch.items()}).tolist()
json.dump(said, sys.stdout)
"""


def test_stock_transformers_loads_and_generates_the_same(made, tmp_path):
    prompts, ours = {}, {}
    for family in FAMILIES:
        kinds = ["layers", "neurons"]
        kinds += [] if family in WIDTH_LOCKED else ["width"]
        kinds += ["heads"] if family in FREE_HEADS else []
        generator = made(family)
        smaller = shrink(generator, plan_of(generator.model, *kinds))
        batch = smaller.prompts(SOURCES)
        ours[family] = smaller.model.generate(**batch).tolist()
        checkpoint.save(smaller, tmp_path / family)
        prompts[family] = {name: tensor.tolist() for name, tensor in batch.items()}
    command = [sys.executable, "-I", "-c", RELOAD]
    done = subprocess.run(command, input=json.dumps(prompts), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said.keys() == ours.keys()
    assert [family for family in FAMILIES if said[family] != ours[family]] == []


def test_removed_bit_by_bit_is_removed_at_once(made):
    """Later plans are of the dense model too."""
    model = made("bert").model
    first, last = plan_of(model, "neurons"), plan_of(model, "layers", "neurons", "width")
    structure = describe(model)
    units = dict(last.units)
    for name, kept in first.units.items():
        if name in units:
            units[name] = kept[: len(units[name]) - 1]
    last = Plan(last.layers, units)
    at_once = remove(model, last).state_dict()
    in_steps = remove(remove(model, first), last.after(first, structure)).state_dict()
    assert at_once.keys() == in_steps.keys()
    assert all(torch.equal(at_once[name], in_steps[name]) for name in at_once)
    with pytest.raises(RuntimeError, match="has been removed before"):
        whole(structure).after(first, structure)


def test_a_new_projection_between_sides_of_different_width(build_family):
    wide = {"architecture": "bert", "config": SMALL["bert"] | {"hidden_size": 32}}
    generator = build_family("bert", encoder=wide)
    generator.model.eval()
    axes = describe(generator.model).axes
    half = {"encoder.width": tuple(range(0, 32, 2)), "decoder.width": tuple(range(8))}
    for axis in axes.values():
        if axis.kind == "heads":
            half[axis.name] = (1,)
    plan = Plan({"encoder": (0, 1), "decoder": (0, 1)}, half)
    with masked(generator.model, plan):
        expected = logits(generator)
    torch.testing.assert_close(logits(shrink(generator, plan)), expected, atol=1e-5, rtol=1e-5)


def test_plans_survive_a_file(made, tmp_path):
    plan = plan_of(made("bart").model, "layers", "neurons", "width")
    plan.save(tmp_path / "structure.json")
    assert Plan.load(tmp_path / "structure.json") == plan
    (tmp_path / "structure.json").write_text('{"layers": {"encoder": "0-x"}, "units": {}}')
    with pytest.raises(UserError, match="is no plan"):
        Plan.load(tmp_path / "structure.json")


@pytest.mark.parametrize(
    ("layers", "units", "message"),
    [
        ({"decoder": (0, 1, 2)}, {}, "is of sides"),
        ({"encoder": (0, 1, 2), "decoder": ()}, {}, "at least one has to stay"),
        ({"encoder": (0, 1, 3), "decoder": (0,)}, {}, "be below 3"),
        ({}, {"nothing": (0,)}, "has no nothing"),
        ({}, {"encoder.0.neurons": (1, 0)}, "must ascend"),
        ({}, {"encoder.0.neurons": (0,)}, "one encoder.intermediate_size"),
        ({"encoder": (0,), "decoder": (0, 1, 2)}, {"encoder.1.neurons": (0,)}, "layer that is removed"),
        ({}, {"encoder.width": tuple(range(16)), "decoder.width": tuple(range(16))}, "both must be cut together"),
    ],
)
def test_wrong_plans_end_in_one_clear_line(layers, units, message, made):
    model = made("bert").model
    with pytest.raises(UserError, match=message):
        Plan(layers or whole(describe(model)).layers, units).check(describe(model))


def test_sides_of_one_width_are_cut_alike(made):
    model = made("bert").model
    plan = plan_of(model, "width")
    units = {name: kept for name, kept in plan.units.items() if not name.startswith("encoder")}
    with pytest.raises(UserError, match="encoder"):
        Plan(plan.layers, units).check(describe(model))


def test_shared_sides_are_refused(build_family):
    with pytest.raises(UserError, match="share their weights"):
        describe(build_family("bert", share_weights=True).model)


def test_a_t5_keeps_no_more_decoder_than_encoder_layers(made):
    model = made("t5").model
    with pytest.raises(UserError, match="more decoder than encoder"):
        remove(model, Plan({"encoder": (0,), "decoder": (0, 1)}))
