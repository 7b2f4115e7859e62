"""Generate from ONNX graphs by ONNX Runtime.

`OnnxModel` stands where a `transformers` model would: `generate` takes the same arguments and gives the same tokens.
Plain greedy search runs in a loop of our own; all else (beams, sampling, penalties) in that of `transformers`, which
then calls the graphs as a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime import OrtValue
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutputWithPast, Seq2SeqLMOutput

from stages.errors import UserError
from stages.models.checkpoint import Generator, one_line
from stages.runtimes import greedy
from stages.runtimes.description import Description
from stages.runtimes.graphs import filled, flat
from stages.runtimes.model import Parts, RuntimeModel

KEPT_SETTINGS = 1000
"""Of greedy search, by what was asked for."""


def load(folder: Path) -> Generator:
    """A generator that runs the graphs of a folder, on the CPU, with as many threads as torch has.

    Raises:
        UserError: files are missing, or ONNX Runtime cannot read them.
    """
    graphs, parts = Description.load(folder).graphs, Parts.load(folder)
    return parts.generator(OnnxModel(parts, {name: session(folder / file) for name, file in graphs.items()}))


def session(path: Path) -> onnxruntime.InferenceSession:
    """A session of a graph.

    Raises:
        UserError: there is no such file, or it is no graph that this ONNX Runtime runs.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of several kinds, none of which is public
        raise UserError(f"cannot read {path}: {one_line(error)}: run stages.export again") from error


class OnnxModel(RuntimeModel):
    """Graphs as a `transformers` model.

    Args:
        parts: config and settings of the model that was exported.
        sessions: `decoder`, and `encoder` if there is one.
    """

    def __init__(self, parts: Parts, sessions: dict[str, onnxruntime.InferenceSession]) -> None:
        super().__init__(parts)
        self._decoder = sessions["decoder"]
        self._encode = _Encoder(sessions["encoder"]) if "encoder" in sessions else None
        self._outputs = [output.name for output in self._decoder.get_outputs()]
        self._settings: dict[str, greedy.Settings | None] = {}
        self._past = [i for i in self._decoder.get_inputs() if i.name.startswith("past.")]

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """What `generate` calls once a text."""
        assert self._encode is not None
        return self._encode

    @torch.inference_mode()
    def generate(self, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Tensor:
        """As of `transformers`: tokens [batch, length], with the start token or the prompt.

        Args:
            input_ids: tokens [batch, source]; padded on the right for an encoder, on the left for a causal model.
            attention_mask: 0 where padding is, [batch, source].
            options: settings of generation, over those of the generation config.
        """
        wanted = self._greedy(options, input_ids.shape[1] if self._encode is None else 1)
        if wanted is None:
            return super().generate(
                input_ids=input_ids, attention_mask=attention_mask, past_key_values=DynamicCache(), **options
            )
        mask = attention_mask.numpy()
        if self._encode is None:
            steps: Any = _CausalSteps(self, mask)
            prompt = input_ids.numpy()
        else:
            cross = self._encode.run(_values({"input_ids": input_ids.numpy(), "attention_mask": mask}))
            steps = _Steps(self, len(mask), cross | _values({"attention_mask": mask}))
            prompt = np.full((len(mask), 1), wanted.start, dtype=np.int64)
        return torch.from_numpy(greedy.search(steps, prompt, wanted))

    def _greedy(self, options: dict[str, Any], length: int) -> greedy.Settings | None:
        """Settings of greedy search, if that is what is asked for; kept, since a config is checked for milliseconds."""
        key = repr((vars(self.generation_config), options, length))
        if key not in self._settings:
            if len(self._settings) == KEPT_SETTINGS:
                self._settings.clear()
            self._settings[key] = greedy.settings(self.asked(options), length)
        return self._settings[key]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: DynamicCache | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast | Seq2SeqLMOutput:
        """A step of `transformers`' own loops: logits of the last token alone, and the past with the new tokens."""
        tokens = input_ids if self._encode is None else decoder_input_ids
        assert tokens is not None and attention_mask is not None and past_key_values is not None
        feed = {"input_ids": tokens, "attention_mask": attention_mask}
        if self._encode is None:
            assert position_ids is not None
            feed["position_ids"] = position_ids
        else:
            feed |= {name: encoder_outputs[name] for name in self._encode.names}
        values = _values({name: tensor.contiguous().numpy() for name, tensor in feed.items()})
        if past_key_values.layers:
            names = [i.name for i in self._past]
            tensors = flat(past_key_values)
            values |= _values({n: t.contiguous().numpy() for n, t in zip(names, tensors, strict=True)})
        else:
            values |= self.nothing_past(len(tokens))
        logits, *present = (torch.from_numpy(value.numpy()) for value in self.step(values))
        cache = filled(present)
        if self._encode is None:
            return CausalLMOutputWithPast(logits=logits[:, None], past_key_values=cache)
        return Seq2SeqLMOutput(logits=logits[:, None], past_key_values=cache)

    def step(self, values: dict[str, OrtValue]) -> list[OrtValue]:
        """Logits [batch, vocabulary], and the keys and values of past and new tokens."""
        return self._decoder.run_with_ort_values(self._outputs, values)

    def past(self, values: Sequence[OrtValue]) -> dict[str, OrtValue]:
        """What a step returned beside the logits, as inputs of the next."""
        return {i.name: value for i, value in zip(self._past, values, strict=True)}

    def nothing_past(self, batch: int) -> dict[str, OrtValue]:
        """Inputs of the first step."""
        return _values({i.name: np.zeros((batch, i.shape[1], 0, i.shape[3]), dtype=np.float32) for i in self._past})


class _Encoder(nn.Module):
    """What `generate` takes for the encoder; its output has the keys and values of cross-attention."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        super().__init__()
        self.names = [output.name for output in session.get_outputs()]
        self._session = session

    def run(self, values: dict[str, OrtValue]) -> dict[str, OrtValue]:
        return dict(zip(self.names, self._session.run_with_ort_values(self.names, values), strict=True))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> BaseModelOutput:
        found = self.run(_values({"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}))
        # `generate` repeats all of these for each beam; of the states it reads the batch size alone.
        output = BaseModelOutput(last_hidden_state=input_ids.new_empty(*input_ids.shape, 0, dtype=torch.float32))
        for name, value in found.items():
            output[name] = torch.from_numpy(value.numpy())
        return output


class _Steps:
    """A decoder's steps after an encoder, the past kept between them."""

    def __init__(self, model: OnnxModel, batch: int, fixed: dict[str, OrtValue]) -> None:
        self._model = model
        self._values = fixed | model.nothing_past(batch)

    def __call__(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        logits, *present = self._model.step(self._values | _values({"input_ids": tokens}))
        self._values |= self._model.past(present)
        return logits.numpy()


class _CausalSteps(_Steps):
    """A causal generator's steps, whose mask grows; positions count what is not padding."""

    def __init__(self, model: OnnxModel, mask: NDArray[np.int64]) -> None:
        super().__init__(model, len(mask), {})
        self._mask = mask
        self._positions = np.maximum(mask.cumsum(axis=1) - 1, 0)

    def __call__(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        self._values |= _values({"attention_mask": self._mask, "position_ids": self._positions})
        logits = super().__call__(tokens)
        self._mask = np.pad(self._mask, ((0, 0), (0, 1)), constant_values=1)
        self._positions = self._positions[:, -1:] + 1
        return logits


def _values(arrays: dict[str, NDArray[Any]]) -> dict[str, OrtValue]:
    return {name: OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
