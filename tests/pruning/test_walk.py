"""What the walk through a model spares: statistics, factors and computation that come to the same."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from layers import context_of, correlated, gathered, layer_of
from shared import FAMILIES
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from stages.errors import UserError
from stages.models.anatomy import Matrix
from stages.pruning import criterion, engine, hessian, patterns
from stages.pruning.layerwise import Layer, Layerwise, prune_in_order
from stages.pruning.statistics import Gram, Norms
from stages.pruning.walk import walk

QKV = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}
SAME_INPUTS = {  # of each family's last block; what is not named here is alone
    "bert": [
        {f"attention.self.{name}" for name in ("query", "key", "value")},
        {f"crossattention.self.{name}" for name in ("key", "value")},
    ],
    "bart": [QKV, {"encoder_attn.k_proj", "encoder_attn.v_proj"}],
    "llama": [QKV, {"mlp.gate_proj", "mlp.up_proj"}],
}


@pytest.mark.parametrize("family", SAME_INPUTS)
def test_matrices_with_the_same_inputs_have_one_statistic(family, build_family, settings):
    context = context_of(build_family(family), settings, "wanda", batch=2)
    last = list(context.matrices.values())[-1].block
    found = {n.removeprefix(f"{last}.").removesuffix(".weight"): s for n, s in gathered(context).items() if last in n}
    groups: dict[int, set[str]] = {}
    for name, statistic in found.items():
        groups.setdefault(id(statistic), set()).add(name)
    assert [names for names in groups.values() if len(names) > 1] == SAME_INPUTS[family]


def test_what_a_block_has_no_more_use_for_is_gone(build_family, settings):
    """What attention was given, by the feed-forward network, whose states take the most memory."""
    context = context_of(build_family("llama"), settings, "wanda", batch=2)
    block = context.model.get_submodule("model.layers.0")
    given: list[weakref.ref[Tensor]] = []
    there: list[bool] = []
    for module in (block.self_attn.q_proj, block.self_attn.o_proj):
        module.register_forward_pre_hook(lambda _, inputs: given.append(weakref.ref(inputs[0])))
    block.mlp.gate_proj.register_forward_pre_hook(lambda _, inputs: there.extend(one() is not None for one in given))
    gathered(context)
    assert len(given) == 2 * 2 * len(list(context.batches())), "two matrices, twice a batch"
    assert there and not any(there)


def test_squares_are_not_there_at_once():
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = function(*args, **(kwargs or {}))
            if function is torch.ops.aten.pow.Tensor_Scalar:
                self.elements = max(self.elements, made.numel())
            return made

    inputs, norms = torch.randn(50, 1000), Norms(1000, torch.device("cpu"))
    with Largest() as seen:
        norms.add(inputs)
    assert torch.equal(norms.squares, inputs.square().sum(dim=0))
    assert 0 < seen.elements <= 50 * Norms.TOGETHER


def test_their_hessian_is_inverted_once(build_family, settings, monkeypatch):
    context = context_of(build_family("llama"), settings, "sparsegpt", batch=2)
    inverted: list[str] = []
    invert = hessian.inverse_factor

    def counting(matrix: Tensor, name: str) -> Tensor:
        inverted.append(name)
        return invert(matrix, name)

    monkeypatch.setattr(hessian, "inverse_factor", counting)
    engine.choose(context, criterion.find("sparsegpt"), 0.5, settings().prune)
    assert len(context.matrices) == 14
    assert len(inverted) == 8  # before attention, its output, before the gate, after it: of two blocks


@pytest.mark.parametrize("family", ["bert", "bart", "gpt2"])
def test_inputs_are_refreshed_where_training_computes_in_bf16(family, build_family, settings):
    """The model is wrapped as accelerate wraps it; every block is set to zero once it was seen."""

    AcceleratorState._reset_state(reset_partial_state=True)  # of another precision, where a test has trained before

    def norms(*, wrapped: bool) -> dict[str, Tensor]:
        context = context_of(build_family(family), settings, "wanda", batch=2)
        if wrapped:
            Accelerator(mixed_precision="bf16", cpu=True).prepare_model(context.model)
        found: dict[str, Tensor] = {}

        def visit(block: str, statistics: dict[str, Any]) -> None:
            assert not torch.is_autocast_enabled("cpu")
            for name, statistic in statistics.items():
                found[name] = statistic.norms.clone()
                with torch.no_grad():
                    context.matrices[name].weight.zero_()

        walk(context, Norms, visit)
        assert not torch.is_autocast_enabled("cpu")
        return found

    plain, wrapped = norms(wrapped=False), norms(wrapped=True)
    for name in plain:
        torch.testing.assert_close(wrapped[name], plain[name], msg=name)


@pytest.mark.parametrize(
    "given, back",
    [
        (lambda x: x[:, 1:], lambda x: torch.cat([x[:, :1], x], dim=1)),  # as experts are, what is sent to them
        (lambda x: x.transpose(0, 1), lambda x: x.transpose(0, 1)),  # as many as tokens, in another order: FSMT
    ],
)
def test_what_is_given_others_than_tokens_is_refused(given, back, build_family, settings):
    context = context_of(build_family("gpt2"), settings, "wanda", batch=2)
    first = next(iter(context.matrices.values()))
    module = context.model.get_submodule(first.name.removesuffix(".weight"))
    whole = module.forward
    module.register_forward_pre_hook(lambda _, inputs: (given(inputs[0]),), prepend=True)
    module.forward = lambda inputs: whole(back(inputs))
    with pytest.raises(UserError, match="padding cannot be told apart"):
        gathered(context)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_matrix_that_no_text_reaches_can_be_protected(method, build_family, settings):
    """As Mamba's `dt_proj`, whose weight is multiplied outside of it."""
    context = context_of(build_family("llama"), settings, method, batch=2)
    aside = context.model.get_submodule("model.layers.1.mlp.gate_proj")
    parent = context.model.get_submodule("model.layers.1.mlp")
    parent.forward = lambda x: parent.down_proj(nn.functional.silu(x @ aside.weight.T) * parent.up_proj(x))
    with pytest.raises(UserError, match=r"reaches model.layers.1.mlp.gate_proj.weight: protect it"):
        engine.choose(context, criterion.find(method), 0.5, settings().prune)
    for division in ({}, {"allocation": "owl", "scope": "layer"}):
        rules = settings(prune={"layers": {"model.layers.1.mlp.gate_proj.weight": 0}, **division}).prune
        found = engine.choose(context, criterion.find(method), 0.5, rules)
        assert found.pruned == round(0.5 * found.numel)
        assert bool(found["model.layers.1.mlp.gate_proj.weight"].all())


def test_nothing_is_kept_of_matrices_that_are_done(build_family, settings):
    context = context_of(build_family("llama"), settings, "sparsegpt", batch=2)
    seen: list[weakref.ref[Gram]] = []
    alive: list[int] = []

    def prune(layer: Layer) -> Tensor:
        seen.append(weakref.ref(layer.statistic))
        alive.append(len({id(one()) for one in seen if one() is not None}))
        return layer.keep(layer.weight.abs())

    counts = {name: matrix.weight.numel() // 2 for name, matrix in context.matrices.items()}
    prune_in_order(context, Layerwise(Gram, prune), counts, patterns.parse("unstructured"), None)
    assert len(alive) == 14
    assert set(alive) == {1}


@pytest.mark.parametrize("family", FAMILIES)
def test_no_more_is_computed_than_what_is_looked_at(family, build_family, settings):
    """Of four batches the first finds out where a block's last matrix is; none of them reaches the head."""
    generator = build_family(family)
    context = context_of(generator, settings, "wanda", batch=1)
    last = generator.model.get_submodule(list(context.matrices)[-1].removesuffix(".weight"))
    calls = {"last": 0, "head": 0}

    def count(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            calls[name] += 1

        return hook

    last.register_forward_hook(count("last"))
    generator.model.get_output_embeddings().register_forward_hook(count("head"))
    gathered(context)
    assert calls == {"last": 1, "head": 0}


class Model(nn.Module):
    """A block of one's own making."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([block])
        self.config = type("Config", (), {"is_encoder_decoder": False, "model_type": "mine"})()

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Tensor:
        return self.layers[0](input_ids)


class Maps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.other, self.twice = (nn.Linear(2, 2, bias=False) for _ in range(3))


def of_texts(block: nn.Module, *texts: list[float]) -> dict[str, Any]:
    """What reaches the maps of a block, of texts of one token each."""
    weights = {f"layers.0.{name}.weight": module.weight for name, module in block.named_children()}
    matrices = {n: Matrix(n, w, False, "unknown", "decoder", "layers.0") for n, w in weights.items()}
    ones = torch.ones(1, 1, dtype=torch.long)
    batches = [{"input_ids": torch.tensor([[t]]), "attention_mask": ones, "labels": ones} for t in texts]
    context = criterion.Context(Model(block).eval(), matrices, lambda: batches, 0, None)
    return {name.split(".")[2]: statistic for name, statistic in gathered(context).items()}


def test_a_block_that_differs_from_text_to_text_is_seen_whole():
    class Block(Maps):
        def forward(self, hidden_states: Tensor) -> Tensor:
            self.first(hidden_states)
            if bool((hidden_states > 5).any()):
                self.other(hidden_states)
            self.twice(hidden_states)
            self.twice(hidden_states)
            return self.twice(2 * hidden_states)

    found = of_texts(Block(), [1.0, 2.0], [6.0, 0.0], [0.0, 1.0])
    assert found["first"].squares.tolist() == [37.0, 5.0] and found["first"].tokens == 3
    assert found["other"].squares.tolist() == [36.0, 0.0] and found["other"].tokens == 1
    assert found["twice"].squares.tolist() == [6 * 37.0, 6 * 5.0] and found["twice"].tokens == 9  # 1 + 1 + 2^2


def test_what_is_called_again_before_another_does_not_give_it_too_much():
    class Block(Maps):
        def forward(self, hidden_states: Tensor) -> Tensor:
            self.twice(hidden_states)
            self.twice(3 * hidden_states)
            return self.first(hidden_states) + self.other(hidden_states.add_(1))

    found = of_texts(Block(), [1.0, 2.0], [6.0, 0.0])
    assert found["twice"].squares.tolist() == [370.0, 40.0]
    assert found["first"].squares.tolist() == [37.0, 4.0]
    assert found["other"].squares.tolist() == [4.0 + 49.0, 9.0 + 1.0]


@pytest.mark.parametrize("left_out", [True, False])
def test_inputs_that_are_the_same_in_one_text_alone_are_refused(left_out):
    class Block(Maps):
        def forward(self, hidden_states: Tensor) -> Tensor:
            self.twice(hidden_states)
            self.first(hidden_states)
            if not (hidden_states > 5).any():
                self.other(hidden_states)
            elif not left_out:
                self.other(hidden_states + 1)
            return hidden_states

    with pytest.raises(RuntimeError, match=r"different ways through the model: the inputs of layers\.0\.other"):
        of_texts(Block(), [1.0, 2.0], [6.0, 0.0], [0.0, 1.0])


def test_products_are_all_of_them_and_symmetric_to_the_bit():
    """Wider than a band, and looked at in between."""
    _, inputs = correlated(1, 300, 64)
    gram = Gram(300, torch.device("cpu"))
    for batch in inputs.split(16):
        gram.add(batch)
        assert torch.equal(gram.products, gram.products.T)
    torch.testing.assert_close(gram.products, inputs.T @ inputs, rtol=1e-5, atol=1e-3)


def test_the_inverse_factor_of_a_hessian_that_is_nearly_singular():
    """By hand: H = A A^T, A one on the diagonal and minus one above it; then U = A^-1 doubles from column to column.

    H's condition is near 1e17: forming H^-1 and factoring it again is off by 3 % in the first row.
    """
    size = 26
    upper = 2 * torch.eye(size, dtype=torch.float64) - torch.ones(size, size, dtype=torch.float64).triu()
    factor = hessian.inverse_factor(upper @ upper.T, "m")
    distance = torch.arange(size) - torch.arange(size).unsqueeze(1)
    by_hand = torch.where(distance > 0, 2.0 ** (distance - 1), (distance == 0).float())
    torch.testing.assert_close(factor, by_hand, rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_turning_in_place_is_turning(size, monkeypatch):
    monkeypatch.setattr(hessian, "PIECE", 3)
    matrix = torch.rand(size, size)
    turned = matrix.flip(0, 1)
    hessian._turn(matrix)
    assert torch.equal(matrix, turned)


def test_a_shared_factor_is_made_once_and_uses_up_the_sums():
    dense, inputs = correlated(4, 8, 50)
    inputs[:, 3] = 0
    gram = layer_of("sparsegpt", dense, inputs, 16).statistic
    one, again = (hessian.shared_factor(gram, 0.01, "m") for _ in range(2))
    assert one is again
    assert gram.dead.nonzero().flatten().tolist() == [3]
    assert not gram.products.numel()
