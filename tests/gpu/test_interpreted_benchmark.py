"""The blocks that are timed on a GPU give what their simulation gives, and what single modules give."""

import pytest
import torch
from lanes import interpreted, silent

from benchmarks.gpu.blocks import Block, InFloat8, Quantized, Simulated, Size, denoiser, quantized
from benchmarks.gpu.layers import arguments, distance, expected
from benchmarks.gpu.tiles import AFTER
from dither.gpu import SIGNED, WHOLE
from dither.gpu.products import Product
from dither.kernels import gpu

pytestmark = [interpreted, *silent]
SMALL = Size(64, 2, 2)


@pytest.mark.parametrize(("bits", "static"), [(8, False), (8, True), (4, False), (2, False)])
def test_a_block_is_its_simulation(bits, static):
    torch.manual_seed(0)
    block = Quantized(Block(SMALL).requires_grad_(False), bits, static)
    x, c = torch.randn(2, 6, 64), torch.randn(2, 64)
    with torch.no_grad():
        assert distance(block(x, c), Simulated(block)(x, c)) < 5e-3  # codes next to ties


def test_a_block_of_float8_is_its_simulation():
    torch.manual_seed(0)
    block = InFloat8(Block(SMALL).requires_grad_(False))
    x, c = torch.randn(2, 6, 64), torch.randn(2, 64)
    with torch.no_grad():
        assert distance(block(x, c), Simulated(block)(x, c)) < 2e-2


def test_eight_bits_are_near_full_precision():
    x, c = torch.randn(2, 5, 64), torch.randn(2, 64)
    model = denoiser(SMALL, "cpu", torch.float32)
    with torch.no_grad():
        want = model(x, c)
        assert 0 < distance(quantized(model, 8, False)(x, c), want) < 0.03


def test_a_layer_is_what_it_is_held_against():
    block = Quantized(Block(SMALL).requires_grad_(False), 8, False)
    x = torch.randn(7, 64)
    call = block.qkv.inputs(x, block.qkv.bias, block.qkv.ways[0])
    assert distance(gpu.linear(call), expected(block.qkv, x)) < 1e-5
    assert distance(gpu.linear(call) * 1.02, expected(block.qkv, x)) > 1e-2


@pytest.mark.parametrize("nibbles", [WHOLE, SIGNED])
@pytest.mark.parametrize("after", AFTER.values(), ids=AFTER)
def test_what_tiles_are_measured_with_is_a_product(after, nibbles):
    given = arguments(9, 32, 64, nibbles, device="cpu", dtype=torch.float32, **after)
    assert torch.ops.dither.int8_product(*given).shape == (9, 32)
    names = {"gelu": "gelu", "gated": "residual+gate"}
    assert Product.of(*given[:13], None, None, 8, *given[13:]).epilogue == (
        "+".join(names[name] for name in after) or "plain"
    )
