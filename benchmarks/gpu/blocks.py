"""A block of a DiT in plain torch, and the same on dither's kernels, every fusion of theirs included."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dither.kernels import named
from dither.kernels.gpu import linear, modulated, modulated_feed_forward
from dither.kernels.table import Inputs
from dither.nn import QLinear, build
from dither.numerics import encode, layout
from dither.spec import Act, Float8, Int, LinearSpec, Trellis

EPS = 1e-6
PARTS = ("qkv", "proj", "fc1", "fc2")


@dataclass(frozen=True)
class Size:
    """Of a denoiser: width, heads, blocks."""

    width: int
    heads: int
    blocks: int


XL = Size(1152, 16, 28)
FLUX = Size(3072, 24, 1)
"""One block as wide as FLUX's, with the four times wider feed-forward part of a DiT."""


class Block(nn.Module):
    """adaLN-Zero: attention, then feed-forward, each between a modulated norm and a gate."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        d = size.width
        self.heads = size.heads
        self.qkv, self.proj, self.fc1, self.fc2 = (nn.Linear(*s) for s in ((d, 3 * d), (d, d), (d, 4 * d), (4 * d, d)))
        self.ada = nn.Linear(d, 6 * d)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, T, D), c (B, D)."""
        shift, gain, gate, shift2, gain2, gate2 = (t[:, None] for t in self.ada(F.silu(c)).chunk(6, 1))
        h = F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + gain) + shift
        x = x + gate * self.proj(attention(self.qkv(h), self.heads))
        h = F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + gain2) + shift2
        return x + gate2 * self.fc2(F.gelu(self.fc1(h), approximate="tanh"))


class Quantized(nn.Module):
    """The same block with quantized linears.

    Args:
        whole: the block whose weights are taken.
        bits: of weights; 2 are trellis codes, drawn at random, since finding them takes minutes and changes no time.
        static: ranges of inputs are stored; otherwise found anew for every row.
    """

    def __init__(self, whole: Block, bits: int, static: bool) -> None:
        super().__init__()
        self.heads = whole.heads
        act = Act(Int(8), static=static)
        weight = Trellis(2) if bits == 2 else Int(bits)
        for name in PARTS:
            self.add_module(name, packed(getattr(whole, name), LinearSpec(weight, act)))
        self.ada = packed(whole.ada, LinearSpec(Int(8) if bits == 8 else Int(4)))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """As of ``Block``."""
        shift, gain, gate, shift2, gain2, gate2 = self.ada(F.silu(c)).chunk(6, 1)
        h = attention(modulated(call(self.qkv, x), shift, gain, EPS), self.heads)
        x = linear(call(self.proj, h), gate, x)
        both = call(self.fc1, x), call(self.fc2, x)  # the second one's x gives its rows alone
        return modulated_feed_forward(*both, shift2, gain2, EPS, True, gate2, x)


class InFloat8(Block):
    """The same block with linears of float8, and modulation as recipes have it beside them.

    What is between products is left to torch's compiler, as in blocks that peers quantize.
    """

    def __init__(self, whole: Block) -> None:
        nn.Module.__init__(self)
        self.heads = whole.heads
        for name in PARTS:
            self.add_module(name, packed(getattr(whole, name), LinearSpec(Float8(), Act(Float8()))))
        self.ada = packed(whole.ada, LinearSpec(Int(8)))


class Simulated(Block):
    """A quantized block that decodes and rounds in floating point, as the reference does: what it must give."""

    def __init__(self, quantized: Quantized | InFloat8) -> None:
        nn.Module.__init__(self)
        self.heads = quantized.heads
        for name in (*PARTS, "ada"):
            layer: QLinear = getattr(quantized, name)
            twin = build(layer.spec, layer, device=layer.get_buffer("weight_codes").device)
            assert isinstance(twin, QLinear)
            twin.load(dict(layer.named_buffers(recurse=False)))
            twin.kernel = named("reference")
            self.add_module(name, twin)


class Denoiser(nn.Module):
    """Blocks in a row."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, T, D), c (B, D)."""
        for block in self.blocks:
            x = block(x, c)
        return x


def attention(qkv: Tensor, heads: int) -> Tensor:
    """(B, T, 3 D) to (B, T, D)."""
    b, t, d = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = qkv.view(b, t, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d)


def call(layer: QLinear, x: Tensor) -> Inputs:
    """What a kernel sees."""
    return layer.inputs(x, layer.bias, layer.ways[0])


def packed(dense: nn.Linear, spec: LinearSpec) -> QLinear:
    """A linear in this format on dither's kernels; static ranges are those of inputs of variance 1, which norms give."""
    w = dense.weight.detach().float()
    layer = build(spec, dense, device=w.device)
    assert isinstance(layer, QLinear)
    tensors = random_codes(w, spec.weight) if isinstance(spec.weight, Trellis) else encode(w, spec.weight or Int(8))
    found = {f"weight_{name}": t for name, t in tensors.items()}
    if spec.act is not None and spec.act.static:
        assert isinstance(spec.act.grid, Int)
        found["act_scale"] = torch.full((1, 1), 6.0 / 127, device=w.device)
    layer.load(found).requires_grad_(False)
    if spec.act is None:
        layer.kernel = named("triton_decode")
    else:
        layer.kernel = named("scaled_mm" if isinstance(spec.weight, Float8) else "triton_int8")
    return layer


def random_codes(w: Tensor, fmt: Trellis) -> dict[str, Tensor]:
    """Tensors of the format with bits drawn at random and scales that keep the size of w."""
    shapes = layout(fmt, w.shape)
    size, dtype = shapes["codes"]
    codes = torch.randint(0, 256, size, dtype=torch.uint8, device=w.device)
    scale = (w.square().mean(1, keepdim=True).sqrt() / 29).to(torch.bfloat16)
    assert dtype == codes.dtype
    return {"codes": codes, "scale": scale}


def denoiser(size: Size, device: str, dtype: torch.dtype, blocks: int | None = None) -> Denoiser:
    """Random weights, no gate 0."""
    torch.manual_seed(0)
    size = replace(size, blocks=blocks or size.blocks)
    made: list[nn.Module] = [Block(size).to(device, dtype).eval().requires_grad_(False) for _ in range(size.blocks)]
    return Denoiser(made)


def replaced(model: Denoiser, make: Callable[[Block], nn.Module]) -> Denoiser:
    """Block by block in place, so that no more than one block is there twice."""
    for i, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        model.blocks[i] = make(block)
    return model


def quantized(model: Denoiser, bits: int, static: bool) -> Denoiser:
    """With ``Quantized`` blocks."""
    return replaced(model, lambda block: Quantized(block, bits, static))
