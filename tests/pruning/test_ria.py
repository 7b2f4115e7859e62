"""RIA by hand."""

from __future__ import annotations

import torch
from layers import correlated, pruned


def test_by_hand():
    weight = torch.tensor([[1.0, -4.0], [3.0, 4.0]])
    inputs = torch.diag(torch.tensor([4.0, 1.0]))
    # |w|/column + |w|/row: 1/4 + 1/5, 4/8 + 4/5; 3/4 + 3/7, 4/8 + 4/7. Times the root of the norms, 2 and 1:
    # 0.9, 1.3; 2.36, 1.07. Wanda's are 4, 4; 12, 4; without inputs 0.45, 1.3; 1.18, 1.07.
    assert pruned("ria", weight, inputs, 2)[0].tolist() == [[False, True], [True, False]]
    assert pruned("ria", weight, inputs, 2, power=0.0)[0].tolist() == [[False, True], [True, False]]
    assert pruned("ria", weight, inputs, 2, scope="row")[0].tolist() == [[False, True], [True, False]]
    # 4 * 0.45, 1.3; 4 * 1.18, 1.07.
    assert pruned("ria", weight, inputs, 2, power=1.0)[0].tolist() == [[True, False], [True, False]]


def test_no_channel_goes_whole_because_its_weights_are_small():
    weight, inputs = correlated(16, 16, 100)
    weight[3] *= 1e-3
    weight[:, 5] *= 1e-3
    kept, _ = pruned("ria", weight, inputs, 128, power=0.0)
    assert kept[3].any() and kept[:, 5].any()
    assert not pruned("wanda", weight, inputs, 128, scope="layer")[0][3].any()


def test_rows_and_columns_of_zeros_are_ranked_lowest():
    weight, inputs = correlated(4, 8, 50)
    weight[1] = 0
    weight[:, 2] = 0
    kept, _ = pruned("ria", weight, inputs, 11)
    assert torch.equal(~kept, weight == 0)
