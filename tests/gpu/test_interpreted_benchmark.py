"""The blocks that are timed on a GPU give what their simulation gives, and what single modules give."""

import pytest
import torch
from lanes import interpreted, silent
from spied import spied

from benchmarks.gpu.blocks import Formats, Size, denoiser, packed, quantized, simulated
from benchmarks.gpu.layers import arguments, distance, expected
from benchmarks.gpu.tiles import AFTER
from dither.gpu import SIGNED, WHOLE
from dither.gpu.products import Product
from dither.kernels import gpu
from dither.nn import QBlock
from dither.spec import Act, Int, LinearSpec

pytestmark = [interpreted, *silent]
SMALL = Size(64, 2, 2)


@pytest.fixture(autouse=True)
def as_if_it_were_a_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "can_run", lambda device: True)


@pytest.mark.parametrize(
    "formats", [Formats(8), Formats(8, static=True), Formats(4), Formats(4, rotated=True), Formats(2)], ids=str
)
def test_a_block_is_its_simulation_and_runs_in_three_calls(formats):
    model = quantized(denoiser(SMALL, "cpu", torch.float32, blocks=1), formats)
    block = model.blocks[0]
    assert isinstance(block.whole, QBlock)
    x, c = torch.randn(2, 6, 64), torch.randn(2, 64)
    with torch.no_grad():
        want = simulated(block)(x, c)
        with spied() as calls:
            assert distance(block(x, c), want) < 5e-3  # codes next to ties
    assert [name for name, _ in calls] == ["linears", "linears", "feed_forward"]


def test_a_block_of_float8_is_its_simulation():
    block = quantized(denoiser(SMALL, "cpu", torch.float32, blocks=1), Formats(None)).blocks[0]
    x, c = torch.randn(2, 6, 64), torch.randn(2, 64)
    with torch.no_grad():
        assert distance(block(x, c), simulated(block)(x, c)) < 2e-2


def test_eight_bits_are_near_full_precision():
    x, c = torch.randn(2, 5, 64), torch.randn(2, 64)
    model = denoiser(SMALL, "cpu", torch.float32)
    with torch.no_grad():
        want = model(x, c)
        assert 0 < distance(quantized(model, Formats(8))(x, c), want) < 0.03


def test_a_layer_is_what_it_is_held_against():
    layer, x = packed(torch.nn.Linear(64, 96), LinearSpec(Int(8), Act(Int(8)))), torch.randn(7, 64)
    assert distance(layer(x), expected(layer, x)) < 1e-5
    assert distance(layer(x) * 1.02, expected(layer, x)) > 1e-2


@pytest.mark.parametrize("nibbles", [WHOLE, SIGNED])
@pytest.mark.parametrize("after", AFTER.values(), ids=AFTER)
def test_what_tiles_are_measured_with_is_a_product(after, nibbles):
    given = arguments(9, 32, 64, nibbles, device="cpu", dtype=torch.float32, **after)
    assert torch.ops.dither.int8_product(*given).shape == (9, 32)
    names = {"gelu": "gelu", "gated": "residual+gate"}
    assert Product.of(*given[:13], None, None, 8, *given[13:]).epilogue == (
        "+".join(names[name] for name in after) or "plain"
    )
