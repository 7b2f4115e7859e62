"""Movement: -w * dL/dw', summed over the steps of fine-tuning; w' is the masked weight, w what is under the mask.

A weight that training drives away from zero is kept, one that it drives towards zero is pruned, however large it is
(Sanh, Wolf and Rush 2020, Movement Pruning, equations 3 and 4). The mask passes the gradient straight through, so that
a pruned weight goes on being scored, and comes back if its score rises, until the schedule reaches its target.

Fine-tuning chooses masks by these scores at every step of its ramp.

- `soft`: one threshold for all matrices. The paper fixes it and has a penalty on the scores drive them below; here it
  is solved for at every refresh, so that the schedule's sparsity is met exactly. That leaves the penalty nothing to do:
  where scores are far below one, as they are, it lowers all of them alike.
- `hard`: the same share of each matrix (top-v).

A share of each matrix, that of its highest scores, is always kept (`floor`; of whole units where those are pruned).
The scores' learning rate is left out: scores start at zero and are in proportion to it, so that it cannot change their
order.

The prune stage does not train. Its masks are by the scores of a step from the baseline: -w * g, the mean over the
calibration batches. Fine-tuning begins dense and learns its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stages.pruning.criterion import Context, Criterion
from stages.pruning.gradients import mean_over_batches


def importance(context: Context) -> Mapping[str, Tensor]:
    """The scores learnt so far, or those of the first step."""
    return context.learnt or mean_over_batches(context, lambda weight, g: -weight * g)


@torch.no_grad()
def learn(scores: Tensor, weight: Tensor, gradient: Tensor) -> None:
    """S <- S - w * dL/dw', in place."""
    scores.addcmul_(weight, gradient, value=-1)


CRITERION = Criterion(importance, learn=learn)
