"""LPIPS around a stand-in for the package, and around the real one with random weights where it is installed."""

import sys
import types
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from dither.errors import BadModel, BadValue
from dither.extractors import open_lpips


class StandIn(nn.Module):
    """The mean squared difference, in the shape that LPIPS gives."""

    def __init__(self, net, verbose):
        super().__init__()
        warnings.warn("The parameter 'pretrained' is deprecated", UserWarning, stacklevel=2)
        assert not verbose

    def forward(self, a, b):
        assert a.shape[1] == b.shape[1] == 3
        assert a.abs().max() <= 1
        return ((a - b) ** 2).mean((1, 2, 3), keepdim=True)


class Offline(nn.Module):
    def __init__(self, net, verbose):
        raise OSError("no route to the weights")


def package(network):
    module = types.ModuleType("lpips")
    module.LPIPS = network
    return module


@pytest.fixture
def distance(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", package(StandIn))
    return open_lpips("alex", batch=2)


def pairs(n=5, size=32, channels=3):
    return np.random.default_rng(0).integers(0, 256, (2, n, size, size, channels), np.uint8)


def test_one_distance_a_pair_on_the_scale_of_minus_one_to_one(distance):
    a, b = pairs()
    wanted = ((a / 127.5 - b / 127.5) ** 2).mean((1, 2, 3))
    distances = distance(a, b)
    assert distances.dtype == np.float64
    np.testing.assert_allclose(distances, wanted, rtol=1e-4)
    np.testing.assert_array_equal(distance(a, a), 0)


def test_grey_is_repeated(distance):
    a, b = pairs(channels=1)
    np.testing.assert_allclose(distance(a, b), distance(a.repeat(3, -1), b.repeat(3, -1)), rtol=1e-6)


def test_name(distance):
    assert distance.name == "lpips:alex"


@pytest.mark.usefixtures("distance")
@pytest.mark.parametrize("net", ["squeeze", "resnet", "", "../alex"])
def test_unknown_net(net):
    with pytest.raises(BadValue, match="alex or vgg"):
        open_lpips(net)


def test_different_shapes(distance):
    a, b = pairs()
    with pytest.raises(BadValue, match="one shape"):
        distance(a, b[:4])
    with pytest.raises(BadValue, match="one shape"):
        distance(a, b[..., :1])


def test_too_small(distance):
    with pytest.raises(BadValue, match="at least 31 pixels a side, and the pictures have 30 x 30"):
        distance(*pairs(size=30))


def test_not_pictures(distance):
    a, b = pairs()
    with pytest.raises(BadValue, match="uint8"):
        distance(a / 255, b)


def test_weights_that_cannot_be_had(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", package(Offline))
    with pytest.raises(BadModel, match="'vgg' cannot be loaded: no route to the weights"):
        open_lpips("vgg")


def test_not_finite(monkeypatch):
    monkeypatch.setattr(StandIn, "forward", lambda self, a, b: torch.full((len(a), 1, 1, 1), float("nan")))
    monkeypatch.setitem(sys.modules, "lpips", package(StandIn))
    with pytest.raises(BadValue, match="NaN"):
        open_lpips()(*pairs())


@pytest.mark.parametrize(("net", "smallest"), [("alex", 31), ("vgg", 16)])
def test_the_real_package_with_random_features(net, smallest, monkeypatch):
    pytest.importorskip("torchvision", reason="needs lpips: pip install 'dither[lpips]'", exc_type=Exception)
    lpips = pytest.importorskip("lpips", reason="needs lpips: pip install 'dither[lpips]'")
    real = lpips.LPIPS
    monkeypatch.setattr(lpips, "LPIPS", lambda net, verbose: real(net=net, verbose=verbose, pnet_rand=True))
    distance = open_lpips(net)
    a, b = pairs(n=2, size=smallest)
    assert (distance(a, b) > 0).all()
    np.testing.assert_array_equal(distance(a, a), 0)
    with pytest.raises(BadValue, match=f"at least {smallest} pixels"):
        distance(a[:, 1:], b[:, 1:])
    x, y = (torch.from_numpy(p[:, 1:].transpose(0, 3, 1, 2) / 127.5 - 1).float() for p in (a, b))
    with pytest.raises(RuntimeError):  # so the limit is not too strict
        distance.network(x, y)
