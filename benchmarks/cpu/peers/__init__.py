"""Other libraries in the same run. Each is optional: ``pip install -c constraints.txt 'dither[peers]'`` installs all.

Only their public interfaces are called. What cannot be imported, raises, or computes something else is ``n/a`` with its
reason; a new peer is one function and one line here.
"""

from benchmarks.cpu.peers import eager, graphs
from benchmarks.cpu.peers.base import Build, Peer

__all__ = ["PEERS", "Build", "Peer"]

_AO = ("torchao",)
_OPENVINO = ("openvino",)
PEERS: tuple[Peer, ...] = (
    Peer("torch's dynamic int8", (), "`quantize_dynamic`, a range for all tokens", eager.torch_dynamic),
    Peer("torchao", _AO, "int8 weights, dynamic int8 activations per token", eager.torchao),
    Peer("torchao, compiled", _AO, "the same by `torch.compile`", eager.torchao_compiled),
    Peer("torchao in bfloat16, compiled", _AO, "the same of a bfloat16 model", eager.torchao_compiled_bfloat16),
    Peer("optimum-quanto", ("optimum-quanto",), "int8 weights, static int8 activations", eager.quanto),
    Peer("SDNQ", ("sdnq",), "int8 weights per channel, int8 product", eager.sdnq),
    Peer("OpenVINO, float32", _OPENVINO, "no quantization", graphs.openvino_float32),
    Peer("OpenVINO, bfloat16", _OPENVINO, "no quantization", graphs.openvino_bfloat16),
    Peer("OpenVINO, int8", (*_OPENVINO, "nncf"), "NNCF, static int8 activations", graphs.openvino_int8),
    Peer("ONNX Runtime", ("onnxruntime", "onnx"), "`quantize_dynamic`, per channel", graphs.onnx_runtime),
)
