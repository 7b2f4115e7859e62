"""What stands where a `transformers` model would, and has its weights in another runtime."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel


class RuntimeModel(PreTrainedModel, GenerationMixin):
    """A model without weights of its own, on the CPU.

    Args:
        config: of the model that was exported.
        generation_config: of it, too.
    """

    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, config: Any, generation_config: GenerationConfig) -> None:
        super().__init__(config)
        self.generation_config = generation_config

    @property
    def device(self) -> torch.device:
        """Where inputs have to be."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of the logits."""
        return torch.float32

    def asked(self, options: dict[str, Any]) -> GenerationConfig:
        """The generation config with options of `generate` over it, and the defaults of `generate` under it."""
        return self._prepare_generation_config(None, **options)[0]
