"""A block of a DiT as diffusers has it, and the same quantized, in the frame that every model of dither runs in."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from dither.kernels import named
from dither.nn import Clock, QLinear, build, fuse
from dither.nn import replace as put
from dither.numerics import encode, layout, random_signs, rotate
from dither.spec import Act, Float8, Int, LinearSpec, Rotation, Trellis

PARTS = tuple(f"whole.{n}" for n in (*(f"attn1.to_{x}" for x in "qkv"), "attn1.to_out.0", "ff.net.0.proj", "ff.net.2"))


@dataclass(frozen=True)
class Size:
    """Of a denoiser: width, heads, blocks."""

    width: int
    heads: int
    blocks: int


XL = Size(1152, 16, 28)
FLUX = Size(3072, 24, 1)
"""One block as wide as FLUX's, with the four times wider feed-forward part of a DiT."""


@dataclass(frozen=True)
class Formats:
    """How a block is quantized.

    Args:
        bits: of weights; 2 are trellis codes, drawn at random, since finding them takes minutes and changes no time; None:
            weights and inputs are float8, and modulation is what recipes have beside them.
        static: ranges of inputs are stored; otherwise they are found anew for every row.
        rotated: inputs are rotated over their whole width.
    """

    bits: int | None
    static: bool = False
    rotated: bool = False

    def spec(self, width: int) -> LinearSpec:
        """Of a linear of so many inputs."""
        if self.bits is None:
            return LinearSpec(Float8(), Act(Float8()))
        weight = Trellis(2) if self.bits == 2 else Int(self.bits)
        rotation = Rotation(width) if self.rotated else None
        return LinearSpec(weight, Act(Int(8), static=self.static), rotation=rotation)


class Block(nn.Module):
    """adaLN-Zero: attention, then feed-forward, each between a modulated norm and a gate; and what makes its modulation."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size, d = size, size.width
        self.whole = BasicTransformerBlock(
            d, size.heads, d // size.heads, activation_fn="gelu-approximate", attention_bias=True,
            norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
        )  # fmt: skip
        self.ada = nn.Linear(d, 6 * d)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, T, D), c (B, D)."""
        y: Tensor = self.whole(x, timestep=self.ada(F.silu(c)))
        return y


def pack(block: Block, formats: Formats) -> Block:
    """Put quantized linears into a block, in the place of its own, under one clock, as those of a model are."""
    clock = Clock()
    for name in PARTS:
        dense = block.get_submodule(name)
        assert isinstance(dense, nn.Linear)
        put(block, name, packed(dense, formats.spec(dense.in_features), clock))
    block.ada = packed(block.ada, LinearSpec(Int(8) if formats.bits in (8, None) else Int(4)))
    return block


def simulated(block: Block) -> Block:
    """A quantized block that decodes and rounds in floating point, as the reference does: what the other one must give."""
    twin = Block(block.size)
    twin.whole.scale_shift_table = block.whole.scale_shift_table
    for name in (*PARTS, "ada"):
        layer = block.get_submodule(name)
        assert isinstance(layer, QLinear)
        made = build(layer.spec, layer, device=layer.get_buffer("weight_codes").device)
        assert isinstance(made, QLinear)
        made.load(dict(layer.named_buffers(recurse=False)))
        made.kernel = named("reference")
        put(twin, name, made)
    return twin.eval().requires_grad_(False)


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


def packed(dense: nn.Linear, spec: LinearSpec, clock: Clock | None = None) -> QLinear:
    """A linear in this format on dither's kernels; static ranges are those of inputs of variance 1, which norms give."""
    w = dense.weight.detach().float()
    layer = build(spec, dense, clock, device=w.device)
    assert isinstance(layer, QLinear)
    turned = {}
    if spec.rotation is not None:
        turned["rotation_signs"] = random_signs(w.shape[1], 0).to(w.device)
        w = rotate(w, turned["rotation_signs"], spec.rotation.block)
    tensors = random_codes(w, spec.weight) if isinstance(spec.weight, Trellis) else encode(w, spec.weight or Int(8))
    found = {f"weight_{name}": t for name, t in tensors.items()}
    if spec.act is not None and spec.act.static:
        assert isinstance(spec.act.grid, Int)
        found["act_scale"] = torch.full((1, 1), 6.0 / 127, device=w.device)
    layer.load(found | turned).requires_grad_(False)
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


def quantized(model: Denoiser, formats: Formats) -> Denoiser:
    """Block by block in place, so that no more than one block is there twice; then fused, as models are that are loaded."""
    for block in model.blocks:
        assert isinstance(block, Block)
        pack(block, formats)
    fuse(model)
    return model
