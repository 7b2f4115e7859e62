"""What MLflow serves: a plain `transformers` folder, by this file, which is kept beside it and needs nothing else.

It is not imported but copied into the model ("models from code"), so that a server has neither this project nor a
pickle to load. Its outputs are those of `python -m stages.generate` on the folder: the same inputs cut at the same
length, longest first, as many at a time, and the decoding of the folder's generation config.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
import transformers
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel

CHECKPOINT = "checkpoint"
"""Name of the artifact that is the folder."""
BATCH_SIZE = 100


class TextGenerator(PythonModel):
    """Generates an output text for each input text."""

    def load_context(self, context: Any) -> None:
        """Load the folder, once."""
        folder = context.artifacts[CHECKPOINT]
        config = transformers.AutoConfig.from_pretrained(folder)
        kind = getattr(transformers, config.architectures[0])
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = kind.from_pretrained(folder, use_safetensors=True).eval().to(device)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[str]:
        """Outputs in the order of the inputs; a blank text has a blank output.

        Args:
            context: MLflow's; not looked at.
            model_input: one column of texts, which is what MLflow makes of a list; it leaves out others before this.
            params: `num_beams` and `max_new_tokens`, for this request.

        Raises:
            MlflowException: the request is not such; MLflow answers it with 400 and this message.
        """
        texts = list(model_input.iloc[:, 0])
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise _refusal(f"a text is a string: input {i} is {'null' if pd.isna(text) else type(text).__name__}")
        for name, value in (params or {}).items():
            if value < 1:
                raise _refusal(f"params.{name} is {value}: give 1 or more")
        outputs = [""] * len(texts)
        order = sorted((i for i, text in enumerate(texts) if text.strip()), key=lambda i: -len(texts[i]))
        for start in range(0, len(order), BATCH_SIZE):
            rows = order[start : start + BATCH_SIZE]
            for i, output in zip(rows, self._generate([texts[i] for i in rows], params or {}), strict=True):
                outputs[i] = output
        return outputs

    def _generate(self, texts: list[str], options: dict[str, Any]) -> list[str]:
        limit, causal = self.tokenizer.model_max_length, not self.model.config.is_encoder_decoder
        # A causal generator goes on from the line break after its prompt, which is never cut off.
        end = self.tokenizer("\n", add_special_tokens=False)["input_ids"] if causal else []
        ids = self.tokenizer(texts, truncation=True, max_length=limit - len(end))["input_ids"]
        batch = self.tokenizer.pad(
            {"input_ids": [row + end for row in ids]},
            padding_side="left" if causal else "right",
            return_tensors="pt",
        ).to(self.model.device)
        with torch.inference_mode():
            sequences = self.model.generate(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], num_return_sequences=1, **options
            )
        return self.tokenizer.batch_decode(
            sequences[:, batch["input_ids"].shape[1] if causal else 0 :],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )


def _refusal(message: str) -> MlflowException:
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


set_model(TextGenerator())
