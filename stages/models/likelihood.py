"""How likely a generator takes the target to be: which logits are of which label, and the cross-entropy of the two."""

from __future__ import annotations

from torch import Tensor, nn

from stages.models.checkpoint import IGNORED


def aligned(logits: Tensor, labels: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
    """Logits [batch, length, vocabulary] and labels [batch, length], each position with the label that it predicts.

    Position t of a causal generator predicts token t + 1; an encoder-decoder's inputs are shifted already.
    """
    return (logits[:, :-1], labels[:, 1:]) if causal else (logits, labels)


def cross_entropy(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """-log p of the labels in nats, of aligned logits, summed over the tokens of all targets; padding is left out."""
    return nn.functional.cross_entropy(
        logits.float().flatten(0, 1),
        labels.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
