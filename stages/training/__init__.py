"""The training loop: the Trainer, held masks, penalties."""
