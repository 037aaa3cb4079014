import copy

import numpy as np
import pytest
import torch
from torch import nn

from dither.errors import BadValue
from dither.evaluation.layers import SNR_CLIP_DB, layer_snr


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
