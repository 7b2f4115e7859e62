"""What stands where a `transformers` model would, and has its weights in another runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

from stages.errors import UserError
from stages.models.checkpoint import Generator, limits, load_config, load_tokenizer, one_line


@dataclass(frozen=True)
class Parts:
    """What an exported folder has beside the model itself."""

    config: Any
    generation_config: GenerationConfig
    tokenizer: Any

    @classmethod
    def load(cls, folder: Path) -> Parts:
        """Read them.

        Raises:
            UserError: a file is missing or damaged.
        """
        try:
            generation_config = GenerationConfig.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}/generation_config.json: {one_line(error)}: run stages.export again") from error
        tokenizer = load_tokenizer(str(folder))
        limits(tokenizer, generation_config, folder)
        return cls(load_config(str(folder)), generation_config, tokenizer)

    def generator(self, model: PreTrainedModel) -> Generator:
        """A generator of these and a model."""
        longest = self.generation_config.max_new_tokens
        assert longest is not None
        return Generator(model, self.tokenizer, self.tokenizer.model_max_length, longest)


class RuntimeModel(PreTrainedModel, GenerationMixin):
    """A model without weights of its own, on the CPU.

    Args:
        parts: config and settings of the model that was exported.
    """

    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts.config)
        self.generation_config = parts.generation_config

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
