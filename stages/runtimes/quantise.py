"""Eight-bit integers by ONNX Runtime's own dynamic quantiser."""

from __future__ import annotations

import logging
from pathlib import Path

import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper

from stages.runtimes.onnx_export import too_large_for_protobuf

EIGHT_BITS = (TensorProto.INT8, TensorProto.UINT8)


def quantise(graph: Path, output: Path) -> None:
    """Write a graph with matrices and embeddings as int8.

    Weights get a scale for each output and take seven of the bits, from -64 to 64: processors without VNNI
    instructions add products by twos in sixteen bits, which overflow by larger weights and give other text. Activations
    are scaled as they come, from the least and greatest value of each tensor, so no calibration data is needed.
    Products of activations (attention itself) stay in float. A head that is tied to the embedding has one scale, which
    is the embedding's.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises a preparation that the exporter has done
    large = too_large_for_protobuf(graph)
    try:
        quantize_dynamic(
            graph,
            output,
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=large,
        )
    finally:
        root.setLevel(level)
    model = onnx.load(output, load_external_data=False)
    if _multiply_tied(model.graph):
        onnx.save(model, output)


def _multiply_tied(graph: GraphProto) -> int:
    """Have products with a transposed matrix of eight bits done in integers; how many there were.

    The quantiser leaves those of a tied head in float, and the runtime makes floats of the whole embedding for each
    token, which takes longer than the product.
    """
    weights = {weight.name for weight in graph.initializer if weight.data_type in EIGHT_BITS}
    makers = {name: node for node in graph.node for name in node.output}
    nodes: list[NodeProto] = []
    idle: set[str] = set()
    for node in graph.node:
        floats = makers.get(node.input[1]) if node.op_type == "MatMul" else None
        turned = makers.get(floats.input[0]) if floats is not None and floats.op_type == "DequantizeLinear" else None
        if floats is None or turned is None or turned.op_type != "Transpose" or turned.input[0] not in weights:
            nodes.append(node)
            continue
        nodes += _product(node, turned.output[0], *floats.input[1:])
        idle.add(floats.output[0])
    needed = {name for node in nodes for name in node.input} | {found.name for found in graph.output}
    del graph.node[:]
    graph.node.extend(node for node in nodes if not idle.intersection(node.output) or needed.intersection(node.output))
    return len(idle)


def _product(node: NodeProto, weight: str, scale: str, zero: str) -> list[NodeProto]:
    """What the quantiser puts in the place of other products: operator by operator, which the runtime then fuses."""
    left, name = node.input[0], node.output[0]
    quantised, step, shift = f"{name}_left", f"{name}_left_scale", f"{name}_left_zero"
    return [
        helper.make_node("DynamicQuantizeLinear", [left], [quantised, step, shift]),
        helper.make_node("MatMulInteger", [quantised, weight, shift, zero], [f"{name}_integers"]),
        helper.make_node("Cast", [f"{name}_integers"], [f"{name}_floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [step, scale], [f"{name}_scale"]),
        helper.make_node("Mul", [f"{name}_floats", f"{name}_scale"], [name]),
    ]
