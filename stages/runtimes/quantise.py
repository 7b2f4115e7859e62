"""Eight-bit integers by ONNX Runtime's own dynamic quantiser."""

from __future__ import annotations

import logging
from pathlib import Path

from stages.runtimes.onnx_export import too_large_for_protobuf


def quantise(graph: Path, output: Path) -> None:
    """Write a graph with matrices and embeddings as int8.

    Weights get a scale for each output; activations are scaled as they come, from the least and greatest value of each
    tensor, so no calibration data is needed. Products of activations (attention itself) stay in float.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises a preparation that the exporter has done
    try:
        quantize_dynamic(
            graph,
            output,
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=too_large_for_protobuf(graph),
        )
    finally:
        root.setLevel(level)
