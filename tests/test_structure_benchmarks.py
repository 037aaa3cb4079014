"""The harnesses of structure at scale, on tiny layers: what is compared computes the same, and calls are told apart."""

import jobs
import pytest
import torch
from diffusers import PixArtTransformer2DModel

import dither
from benchmarks.rotation import PLAIN, TRANSFORMS, calls, distance, quantized
from benchmarks.xl_steps import answer, bits_of, rotated
from dither.nn import Clock
from dither.spec import Bits

SMALL = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "sample_size": 4, "patch_size": 2}


def tiny_pixart():
    torch.manual_seed(0)
    return PixArtTransformer2DModel(**SMALL, cross_attention_dim=16, caption_channels=8, in_channels=4).eval()


@pytest.mark.parametrize("bits", ["w8a8", "w4a8"])
def test_every_transform_computes_the_same_layer(bits):
    w, x = torch.randn(32, 128), torch.randn(16, 128)
    layers = {name: quantized(w.clone(), how, Bits.parse(bits), Clock()) for name, how in TRANSFORMS.items()}
    plain = distance(layers[PLAIN](x), x @ w.T)
    assert 0 < plain < 0.15
    assert all(distance(layer(x), x @ w.T) < 1.5 * plain for layer in layers.values())
    assert {layer.spec.rotation.block for layer in layers.values() if layer.spec.rotation} == {64, 128}


def test_every_call_gets_another_input_and_a_group_shares_one():
    clock, seen = Clock(), []
    group = [quantized(torch.randn(8, 64), TRANSFORMS["rotation"], Bits(8, 8), clock) for _ in range(3)]
    for layer in group:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    call = calls({"q, k, v": group}, tokens=4)
    call()
    call()
    assert len({id(x) for x in seen[:3]}) == len({id(x) for x in seen[3:]}) == 1
    assert seen[0] is not seen[3]


def test_the_digest_of_an_answer_tells_models_apart_and_a_reloaded_one_from_none(tmp_path):
    model = tiny_pixart()
    before = bits_of(answer(model, 500))
    assert bits_of(answer(tiny_pixart(), 500)) == before
    dither.quantize(model, "vidit-q", "w4a8", run=lambda: [answer(model, level) for level in (100, 900)])
    after = bits_of(answer(model, 500))
    assert after != before
    dither.save(model, tmp_path / "saved")
    assert bits_of(answer(dither.load(tmp_path / "saved"), 500)) == after
    found = rotated(model)
    assert found["layers_by_rotation_block"] == {"16": 9, "64": 1}
    assert found["incoherence"]["layers"] == 10


def test_a_model_without_rotations_is_counted_as_such():
    model = dither.quantize(jobs.pipeline(), "rtn", "w8a8").transformer
    assert set(rotated(model)) == {"layers_by_rotation_block"}
    assert set(rotated(model)["layers_by_rotation_block"]) == {"none"}
    assert answer(model, 500).shape == (2, 1, 8, 8)
