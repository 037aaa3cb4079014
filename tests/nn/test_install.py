"""Putting quantized linears where a plan says."""

import pytest
import tiny
from torch import nn

from dither.errors import BadCheckpoint
from dither.nn import QLinear, ViewedLinear, install, packed_tensors
from dither.spec import Plan


def test_install_replaces_only_what_the_plan_names():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    bias = model[0].bias
    install(model, Plan({"0": tiny.W8A8}), read=None, device="meta")
    assert isinstance(model[0], QLinear)
    assert model[0].bias is bias
    assert model[0].get_buffer("weight_codes").device.type == "meta"
    assert type(model[1]) is nn.Linear


def test_install_names_a_missing_layer():
    with pytest.raises(BadCheckpoint, match="'7'"):
        install(nn.Sequential(nn.Linear(4, 4)), Plan({"7": tiny.W8A8}), read=None)


def test_views_are_installed_around_one_empty_linear():
    model = nn.Sequential(nn.Linear(16, 4))
    bias = model[0].bias
    clock = install(model, Plan({"0": tiny.VIEWS}, (0.3, 0.7), 2), read=None, device="meta")
    assert isinstance(model[0], ViewedLinear)
    assert (model[0].bias, model[0].base.bias) == (bias, None)
    assert model[0].clock is clock
    assert set(packed_tensors(model)) == {f"0.base.{k}" for k in model[0].base.packed()}
    assert set(model.state_dict()) == {"0.bias", *packed_tensors(model)}
    assert all(t.is_meta for t in packed_tensors(model).values())
