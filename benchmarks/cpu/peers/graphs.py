"""Peers that take a whole graph: OpenVINO, with and without NNCF, and ONNX Runtime."""

import copy
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cpu.run import Run

__all__ = ["onnx_runtime", "openvino_bfloat16", "openvino_float32", "openvino_int8"]


def openvino_float32(module: nn.Module, inputs: tuple[Tensor, ...]) -> Run:
    """The graph in float32."""
    return _compiled(_openvino(module, inputs), inputs, {"INFERENCE_PRECISION_HINT": "f32"})


def openvino_bfloat16(module: nn.Module, inputs: tuple[Tensor, ...]) -> Run:
    """The graph in bfloat16."""
    return _compiled(_openvino(module, inputs), inputs, {"INFERENCE_PRECISION_HINT": "bf16"})


def openvino_int8(module: nn.Module, inputs: tuple[Tensor, ...]) -> Run:
    """NNCF's post-training quantization for transformers, whose ranges one call finds; the rest as OpenVINO chooses."""
    import nncf

    graph = _openvino(module, inputs)
    data = nncf.Dataset([tuple(x.numpy() for x in inputs)])
    made = nncf.quantize(graph, data, subset_size=1, model_type=nncf.ModelType.TRANSFORMER)
    return _compiled(made, inputs, {})


def _openvino(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """The module as a graph of fixed shapes."""
    import openvino

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing
        return openvino.convert_model(
            copy.deepcopy(module), example_input=inputs, input=[list(x.shape) for x in inputs]
        )


def _compiled(graph: Any, inputs: tuple[Tensor, ...], config: Mapping[str, Any]) -> Run:
    """The graph on the CPU, with as many threads as torch has."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY", **config}
    request = openvino.compile_model(graph, "CPU", options).create_infer_request()

    def call(*given: Tensor) -> Tensor:
        found = request.infer([x.numpy() for x in given], share_inputs=True, share_outputs=True)
        return torch.from_numpy(found[0])

    return Run(call)


def onnx_runtime(module: nn.Module, inputs: tuple[Tensor, ...]) -> Run:
    """The exported graph, its products quantized by ``quantize_dynamic``: weights per channel, inputs per tensor."""
    from onnxruntime import InferenceSession, SessionOptions
    from onnxruntime.quantization import QuantType, quantize_dynamic

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others have their turns in between
    with tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder) / "whole.onnx", Path(folder) / "small.onnx"
        names = [f"input_{i}" for i in range(len(inputs))]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing
            torch.onnx.export(copy.deepcopy(module), inputs, str(whole), input_names=names, dynamo=False)
        quantize_dynamic(whole, small, weight_type=QuantType.QInt8, per_channel=True, use_external_data_format=True)
        session = InferenceSession(str(small), options, providers=["CPUExecutionProvider"])

    def call(*given: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {n: x.numpy() for n, x in zip(names, given, strict=True)})[0])

    return Run(call)
