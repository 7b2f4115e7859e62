"""The size of a sweep's cache, on a small model."""

from __future__ import annotations

import re

from benchmarks import storage
from stages.models import checkpoint


def test_sparse_is_little_more_than_the_values_that_are_left(build_family, tmp_path, capsys):
    sizes = {"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512}
    side = {"architecture": "bert", "config": sizes}
    checkpoint.save(build_family("bert", encoder=side, decoder=side), tmp_path)
    storage.main(["--model", str(tmp_path)])
    printed = capsys.readouterr().out
    found = re.findall(r"│ (\w+) +│ (\S+) +│ (\S+) +│ (\S+) +│", printed)
    rows = {name: [float(cell) for cell in cells] for name, *cells in found}
    assert rows["dense"][0] > 1.4 * rows["sparse"][0]
    assert rows["dense"][2] > 40
    assert rows["sparse"][2] <= 5
