import copy

import numpy as np
import pytest
import torch
from torch import nn

from dither.errors import BadValue
from dither.evaluation.layers import SNR_CLIP_DB, RangeMeter, SnrMeter, decibel, first_tensor, inputs, layer_snr


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4, bias=False)
        self.b = nn.Linear(4, 2, bias=False)

    def forward(self, x, t):
        return self.b(self.a(x)) * t


@pytest.fixture
def nets():
    torch.manual_seed(0)
    full = Net()
    return full, copy.deepcopy(full)


def call(timestep, seed=0):
    return ((torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)),), {"t": timestep}, timestep)


def test_known_noise(nets):
    full, quantized = nets
    with torch.no_grad():
        quantized.a.weight.mul_(1.1)  # noise is a tenth of the signal: 20 dB, in a and in what follows it
    snr = layer_snr(full, quantized, [call(9.0), call(1.0), call(9.0, seed=1)], ["b", "a"])
    assert snr.timesteps == (9.0, 1.0)
    assert snr.db.shape == (2, 2)
    np.testing.assert_allclose(snr.db, 20.0, atol=1e-4)
    assert snr.to_json()["db"] == [[20.0, 20.0], [20.0, 20.0]]


def test_equal_layers_are_clipped(nets):
    snr = layer_snr(*nets, [call(1.0)], ["a"])
    assert snr.db.tolist() == [[SNR_CLIP_DB]]


def test_a_later_layer_may_work_in_place(nets):
    full, quantized = (nn.Sequential(net.a, nn.ReLU(inplace=True)) for net in nets)
    with torch.no_grad():
        quantized[0].weight.mul_(1.1)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(layer_snr(full, quantized, [((x,), {}, 1.0)], ["0"]).db, 20.0, atol=1e-4)


def test_energies_of_a_timestep_are_pooled(nets):
    full, quantized = nets
    with torch.no_grad():
        quantized.b.weight.add_(torch.randn(2, 4, generator=torch.Generator().manual_seed(5)))
    calls = [call(1.0, 0), call(1.0, 1)]
    x = torch.cat([args[0] for args, _, _ in calls])
    with torch.no_grad():
        y, z = full.b(full.a(x)), quantized.b(full.a(x))
    expected = 10 * torch.log10(y.square().sum() / (z - y).square().sum())
    assert layer_snr(full, quantized, calls, ["b"]).db[0, 0] == pytest.approx(float(expected), abs=1e-4)


def test_no_hook_is_left_behind(nets):
    full, quantized = nets
    layer_snr(full, quantized, [call(1.0)], ["a"])
    with pytest.raises(TypeError):
        layer_snr(full, quantized, [((), {}, 1.0)], ["a"])
    assert not any(module._forward_hooks for net in nets for module in net.modules())


def test_bad_input_is_named(nets):
    full, quantized = nets
    with pytest.raises(BadValue, match="no layer 'zz'"):
        layer_snr(full, quantized, [call(1.0)], ["zz"])
    with torch.no_grad():
        quantized.b.weight.fill_(torch.nan)
    with pytest.raises(BadValue, match=r"'b' gives NaN .* timestep 5"):
        layer_snr(full, quantized, [call(5.0)], ["a", "b"])


def test_ranges_of_inputs_add_up_over_calls(nets):
    meter = RangeMeter(["a", "b"])
    x = [torch.tensor([[-1.0, 2, 0, 0]]), torch.tensor([[3.0, 0, 0, -4]])]
    for column, value in ((0, x[0]), (0, x[1]), (1, x[1])):
        with torch.no_grad(), inputs(nets[0], ["a", "b"], lambda name, y, at=column: meter.see(at, name, y)):
            nets[0](value, 1.0)
    low, high, square, count = meter.result()
    assert (low[0].tolist(), high[0].tolist()) == ([-4, -4], [3, 3])
    assert (square[0].tolist(), count[0].tolist()) == ([30, 25], [8, 4])
    with torch.no_grad():
        assert low[1, 1] == pytest.approx(float(nets[0].a(x[1]).min()))


def test_ranges_of_a_layer_that_was_never_reached():
    meter = RangeMeter(["a", "b"])
    meter.see(0, "a", torch.ones(1))
    with pytest.raises(BadValue, match="'b' is not reached"):
        meter.result()


def test_layers_that_are_called_another_number_of_times():
    meter = SnrMeter(["a"])
    meter.full_precision("a", torch.ones(2))
    with pytest.raises(BadValue, match="'a' is called less often"):
        meter.end_call(0, 1.0)
    meter.quantized("a", torch.ones(2))
    with pytest.raises(BadValue, match="another shape or is called more often"):
        meter.quantized("a", torch.ones(2))


def test_half_precision_does_not_overflow():
    meter = SnrMeter(["a"])
    meter.full_precision("a", torch.full((4,), 600.0, dtype=torch.float16))
    meter.quantized("a", torch.full((4,), 540.0))
    meter.end_call(0, 1.0)
    np.testing.assert_allclose(decibel(*meter.result()), 20.0)


def test_outputs_of_diffusers_are_mappings():
    assert first_tensor({"sample": torch.ones(2)}, "a").tolist() == [1, 1]
    assert first_tensor([torch.ones(2), None], "a").tolist() == [1, 1]
    with pytest.raises(BadValue, match="'a' returns str"):
        first_tensor({"sample": "x"}, "a")
