"""Classifier-free guidance puts conditional and unconditional rows into one batch, and they must not share a scale.

A dynamic range belongs to one token of one sample. So what a sample gets is the same to the last bit, whatever stands beside
it in the batch; a range per tensor fails every check here, which shows that they can fail.
"""

import jobs
import pytest
import torch

import dither
from dither import zoo
from dither.nn import QLinear
from dither.spec import PER_TENSOR, Act, Int

HOW = dither.Calibration(samples=10, steps=4, calls=4)
LOUD = 1000.0


def quantized(recipe: str, bits: str, *settings: str) -> torch.nn.Module:
    return dither.quantize(jobs.pipeline(), recipe, bits, settings=settings, calibration=HOW).transformer


@pytest.fixture(scope="module", params=[("rtn", "w8a8"), ("vidit-q", "w4a8"), ("vidit-q", "w4a4"), ("quarot", "w6a6")])
def layers(request):
    """All kinds of layers with quantized inputs: scaled, rotated, symmetric or not, of 8 bits or fewer."""
    found = {n: m for n, m in quantized(*request.param).named_modules() if isinstance(m, QLinear) and m.spec.act}
    assert found
    return found


def pair(width: int) -> torch.Tensor:
    """Tokens (2, 8, K) of two samples, the second far louder."""
    x = torch.randn(2, 8, width, generator=torch.Generator().manual_seed(0))
    return torch.stack((x[0], LOUD * x[1]))


def test_a_layer_answers_each_row_as_if_it_were_alone(layers):
    for name, layer in layers.items():
        x = pair(layer.in_features)
        both = layer(x)
        for i in range(2):
            assert torch.equal(both[i : i + 1], layer(x[i : i + 1])), name
        assert torch.equal(layer(x.flip(0)).flip(0), both), name


def test_a_range_per_tensor_would_be_noticed():
    settings = [f"assign.act.grid.group={PER_TENSOR}"]
    layer = quantized("rtn", "w8a8", *settings).transformer_blocks[0].attn1.to_q
    assert layer.spec.act == Act(Int(8, group=PER_TENSOR))
    x = pair(layer.in_features)
    assert not torch.equal(layer(x)[:1], layer(x[:1]))


def calls(model: torch.nn.Module) -> list[torch.Tensor]:
    """The answers to one conditional sample: beside itself, its unconditional twin, and another that is far louder."""
    null = model.config.num_embeds_ada_norm
    make = torch.Generator().manual_seed(1)
    x = torch.randn(1, model.config.in_channels, *(model.config.sample_size,) * 2, generator=make)
    beside = [(x, 3), (x, null), (LOUD * x, null)]
    found = []
    with torch.no_grad():
        for other, label in beside:
            states, labels = torch.cat((x, other)), torch.tensor([3, label])
            times = torch.tensor([400, 400])
            found.append(model(states, timestep=times, class_labels=labels).sample[0])
    return found


@pytest.mark.parametrize(("recipe", "bits"), [("vidit-q", "w4a4"), ("vidit-q", "w8a8"), ("vidit-q-shipped-mp", "w4a4")])
def test_a_model_answers_a_conditional_row_as_if_no_unconditional_one_were_there(recipe, bits):
    """Batches of the same size: in another size floating point alone may round the last bit differently."""
    model = dither.quantize(zoo.load("digits"), recipe, bits, calibration=HOW).transformer
    first, *others = calls(model)
    assert all(torch.equal(first, other) for other in others)


def test_a_model_with_ranges_per_tensor_would_be_noticed():
    settings = ("smooth=off", "rotate=off", f"assign.act.grid.group={PER_TENSOR}")
    first, *others = calls(dither.quantize(zoo.load("digits"), "vidit-q", "w8a8", settings=settings).transformer)
    assert not any(torch.equal(first, other) for other in others)
