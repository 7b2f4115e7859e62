"""Pruning by magnitude takes little memory beside the model."""

from __future__ import annotations

import subprocess
import sys

import pytest
from shared import ROOT

PRUNED = """
import sys
import torch
from transformers import BartConfig, BartForConditionalGeneration
from benchmarks.pruning import measure, ways
from stages.models import anatomy

def model(width, layers):
    sizes = {"layers": layers, "ffn_dim": 4 * width, "attention_heads": 8}
    sides = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sizes.items()}
    return BartForConditionalGeneration(BartConfig(d_model=width, vocab_size=30000, **sides))

torch.set_num_threads(1)
prune = ways.ours("magnitude", sys.argv[1])
prune(model(64, 1), [], "0.7")  # what is imported and set up at the first call is no cost of pruning
large = model(768, 6)
size = sum(parameter.numel() * parameter.element_size() for parameter in large.parameters())
spent = measure.cost(lambda: prune(large, [], "0.7"))
weights = anatomy.describe(large).weights.values()
zeros = sum(int((weight == 0).sum()) for weight in weights)
print(zeros - round(0.7 * sum(weight.numel() for weight in weights)), spent.extra_bytes / size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is measured by Linux's own means")
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_extra_memory_is_below_a_tenth_of_the_model(scope) -> None:
    """Of the size of BART-base, in a process that has nothing else to hide the memory in."""
    done = subprocess.run([sys.executable, "-c", PRUNED, scope], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    missed, share = done.stdout.split()
    assert (missed == "0") if scope == "global" else (abs(int(missed)) <= 96)
    print(share)
    assert 0 < float(share) <= 0.1
