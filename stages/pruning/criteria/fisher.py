"""Fisher: w^2/2 * mean over calibration texts of g^2, with g the gradient of one text's -log p(target | source).

How much the loss grows when w is set to zero, where the gradient is zero and the Hessian diagonal: the saliency of
Optimal Brain Damage (LeCun, Denker and Solla 1990, section 2), with the diagonal of the empirical Fisher information
for that of the Hessian (Theis et al. 2018, Faster gaze prediction with dense networks and Fisher pruning, section 3).

Gradients are of single texts: in a batch's gradient, squared, what its texts disagree on would be lost. So this takes
as many passes as there are calibration samples, whatever the batch size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from stages.pruning.criterion import Context, Criterion
from stages.pruning.gradients import Batch, mean_over_batches, total_loss


def importance(context: Context) -> dict[str, Tensor]:
    """Mean of (w * g)^2 / 2."""

    def single() -> Iterator[Batch]:
        for batch in context.batches():
            for i in range(len(batch["labels"])):
                yield {name: tensor[i : i + 1] for name, tensor in batch.items()}

    return mean_over_batches(
        replace(context, batches=single), lambda weight, gradient: (weight * gradient).square() / 2, total_loss
    )


CRITERION = Criterion(importance)
