"""Peers that change the modules of a model: torch itself, torchao, optimum-quanto and SDNQ."""

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cpu.run import Run

__all__ = ["quanto", "sdnq", "torch_dynamic", "torchao", "torchao_compiled", "torchao_compiled_bfloat16"]


def torch_dynamic(module: nn.Module, inputs: tuple[Tensor, ...]) -> Run:
    """``torch.ao.quantization.quantize_dynamic``: inputs have one range for all tokens."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it will move to another package
        return Run(torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8))


def torchao(module: nn.Module, inputs: tuple[Tensor, ...]) -> Run:
    """int8 weights per channel, int8 inputs per token."""
    return Run(_torchao(module))


def torchao_compiled(module: nn.Module, inputs: tuple[Tensor, ...]) -> Run:
    """The same, compiled."""
    return Run(torch.compile(_torchao(module)))


def torchao_compiled_bfloat16(module: nn.Module, inputs: tuple[Tensor, ...]) -> Run:
    """The same, of a bfloat16 model."""
    return Run(torch.compile(_torchao(copy.deepcopy(module).bfloat16())), torch.bfloat16)


def _torchao(module: nn.Module) -> nn.Module:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    made = copy.deepcopy(module)
    quantize_(made, Int8DynamicActivationInt8WeightConfig())
    return made


def quanto(module: nn.Module, inputs: tuple[Tensor, ...]) -> Run:
    """int8 weights and inputs, whose ranges one call finds."""
    from optimum.quanto import Calibration, freeze, qint8, quantize

    made = copy.deepcopy(module)
    quantize(made, weights=qint8, activations=qint8)
    with Calibration():
        made(*inputs)
    freeze(made)
    return Run(made)


def sdnq(module: nn.Module, inputs: tuple[Tensor, ...]) -> Run:
    """int8 weights per channel and an int8 product."""
    from sdnq import sdnq_post_load_quant

    made: Any = sdnq_post_load_quant(
        copy.deepcopy(module), weights_dtype="int8", group_size=-1, use_quantized_matmul=True
    )
    return Run(made)
