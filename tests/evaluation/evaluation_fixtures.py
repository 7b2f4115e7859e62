"""Small generators; no conftest, since a second module of that name would hide the shared one."""

from collections.abc import Callable

import pytest

from stages.models.checkpoint import Generator


@pytest.fixture
def make_generator(build_family: Callable[..., Generator]) -> Callable[[str], Generator]:
    """A small generator of random weights, the same at every call, whose outputs differ from text to text."""

    def make(family: str = "bert") -> Generator:
        import torch

        generator = build_family(family)
        torch.manual_seed(1)
        for parameter in generator.model.parameters():
            if parameter.dim() > 1:  # as initialised, weights are so small that every text gives the same
                torch.nn.init.normal_(parameter, std=0.4)
        generator.model.eval()
        return generator

    return make


@pytest.fixture(params=["bert", "bart", "gpt2"])
def generator(request: pytest.FixtureRequest, make_generator: Callable[[str], Generator]) -> Generator:
    """One of each kind: encoder_decoder, seq2seq, causal."""
    return make_generator(request.param)
