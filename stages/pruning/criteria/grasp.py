"""GraSP (gradient signal preservation): w * (Hg), with g and H of the loss whose logits are divided by a temperature.

To first order, setting w to zero changes the squared norm of the gradient by -2w * (Hg). The paper scores a weight by
S = -w * (Hg) (Wang, Zhang and Grosse 2020, Picking Winning Tickets Before Training by Preserving Gradient Flow,
equation 8) and removes the highest S (algorithm 1): those without which the gradient is longer, or hardly shorter; what
stays are the weights that the gradient's norm rests on. The lowest are pruned here, so importance is -S.

H and g are of all calibration tokens together, whatever the batch size. The temperature, 200 in the paper, keeps the
softmax of a trained model from saturating, where g and H vanish.
"""

from __future__ import annotations

from functools import partial

from stages.models.attention import eager
from stages.pruning.criterion import Context, Criterion
from stages.pruning.gradients import Loss, hessian_product, mean_over_batches, total_loss
from stages.pruning.scores import Scores


def importance(context: Context) -> Scores:
    """w * (Hg), of any sign."""
    return of_loss(context, partial(total_loss, temperature=context.settings.temperature))


def of_loss(context: Context, loss: Loss) -> Scores:
    """w * (Hg) of a given loss."""
    weights = context.weights
    with eager(context.model):
        gradient = mean_over_batches(context, lambda weight, gradient: gradient, loss)
        product = hessian_product(context, gradient, loss)
    return Scores(weights, lambda name: weights[name].detach() * product[name])


CRITERION = Criterion(importance)
