import pyarrow as pa
import pytest
import torch

from stages.evaluation import size
from stages.evaluation.loss import mean_loss
from stages.evaluation.size import sizes, weight_files
from stages.models import checkpoint
from stages.models.anatomy import describe

pytest_plugins = ["evaluation_fixtures"]

SOURCES = ["bye", "inform ( name , area )", "request ( food )", "bye", "inform ( area )"]
TARGETS = ["Goodbye !", "The #NAME# is in the #AREA# .", "What food ?", "Bye", "It is in the #AREA# . " * 20]


def test_loss_is_the_mean_over_the_tokens_of_all_pairs(generator):
    total, tokens = 0.0, 0
    for source, target in zip(SOURCES, TARGETS, strict=True):
        [example] = generator.encode([source], [target])
        with torch.inference_mode():
            mean = generator.model(**generator.collate([example])).loss
        count = sum(label != checkpoint.IGNORED for label in example["labels"])
        total, tokens = total + mean.item() * count, tokens + count
    for batch_size in (1, 2, 64):
        loss = mean_loss(generator, SOURCES, TARGETS, batch_size=batch_size)
        assert loss == pytest.approx(total / tokens, rel=1e-5)


def test_sizes_count_tied_weights_once_and_zeros_exactly(generator, tmp_path):
    weights = list(describe(generator.model).weights.values())
    with torch.no_grad():
        weights[0].view(-1)[:7] = 0
    checkpoint.save(generator, tmp_path / "model")
    (tmp_path / "model" / "masks.safetensors").write_bytes(b"x" * 10_000)
    loaded = checkpoint.load(tmp_path / "model")
    found = sizes(loaded.model, tmp_path / "model")

    distinct = {p.data_ptr(): p for p in loaded.model.parameters()}.values()
    assert found["parameters"] == sum(p.numel() for p in distinct)
    assert found["nonzero_parameters"] == sum(int((p != 0).sum()) for p in distinct)
    assert found["eligible_parameters"] == sum(w.numel() for w in weights)
    assert found["sparsity"] == pytest.approx(7 / found["eligible_parameters"])
    assert found["size_bytes"] == (tmp_path / "model" / "model.safetensors").stat().st_size
    assert all(isinstance(found[name], int) for name in found if name != "sparsity")


def test_shards_are_added_and_masks_left_out(tmp_path):
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "masks.safetensors"):
        (tmp_path / name).write_bytes(b"")
    assert [file.name[:11] for file in weight_files(tmp_path)] == ["model-00001", "model-00002"]


def test_compressed_bytes_fall_with_sparsity_and_add_up_over_blocks(tmp_path, monkeypatch):
    torch.manual_seed(0)
    dense = torch.randn(50_000)
    kept = dense * (torch.rand(50_000) > 0.9)
    files = [tmp_path / "dense", tmp_path / "sparse"]
    for file, weights in zip(files, (dense, kept), strict=True):
        file.write_bytes(weights.numpy().tobytes())
    whole = [size.compressed(file) for file in files]
    assert whole[0] > 180_000
    assert whole[1] < 0.25 * whole[0]
    monkeypatch.setattr(size, "BLOCK", 100_000)
    codec = pa.Codec("zstd", compression_level=size.COMPRESSION_LEVEL)
    data = files[1].read_bytes()
    assert size.compressed(files[1]) == codec.compress(data[:100_000]).size + codec.compress(data[100_000:]).size
