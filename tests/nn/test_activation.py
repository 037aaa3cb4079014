"""An activation as a module: what it computes, its table, and what casting leaves alone."""

import copy

import pytest
import torch

from dither.clock import Clock
from dither.errors import BadCheckpoint
from dither.nn import QActivation
from dither.numerics import act_quantize, dynamic_table
from dither.spec import Act, Int, TwoRegion

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def static(rows: int = 2) -> QActivation:
    clock = Clock((0.5,))
    clock.set(torch.tensor([0.1, 0.9]), torch.tensor([0, 0]))
    made = QActivation(Act(Int(4, group=4), static=True, rows=rows), 8, clock)
    return made.load({"scale": torch.tensor([[0.1, 0.2], [0.3, 0.4]])[:rows]})


def test_nothing_changes_without_a_format():
    assert QActivation(None, 8, Clock())(X) is X


@pytest.mark.parametrize("grid", [Int(4), Int(4, False, group=2), TwoRegion(4, signed=True)], ids=str)
def test_dynamic_ranges_follow_the_input(grid):
    layer = QActivation(Act(grid), 8, Clock())
    assert torch.equal(layer(X), act_quantize(X, grid, dynamic_table(X, grid)))
    assert layer.packed() == {}


def test_each_sample_has_the_row_of_its_time():
    y = static()(X)
    for i, scales in enumerate(([0.1, 0.2], [0.3, 0.4])):
        table = {"scale": torch.tensor(scales)}
        assert torch.equal(y[i], act_quantize(X[i], Int(4, group=4), table))
    assert torch.equal(static(1)(X)[1], act_quantize(X[1], Int(4, group=4), {"scale": torch.tensor([0.1, 0.2])}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_leaves_the_table_alone(dtype):
    layer = static()
    before = layer.get_buffer("scale").clone()
    layer.to(dtype)
    assert torch.equal(layer.get_buffer("scale"), before)
    assert layer(X.to(dtype)).dtype == dtype


def test_gradients_pass_straight_through():
    layer, x = static(), X.clone().requires_grad_()
    y = layer(x)
    torch.testing.assert_close(y.detach(), layer(X))
    y.mul(torch.arange(8.0)).sum().backward()
    assert torch.equal(x.grad, torch.arange(8.0).expand_as(X))


def test_a_copy_and_a_state_dict_hold_the_same_table():
    layer = static()
    assert torch.equal(copy.deepcopy(layer)(X), layer(X))
    empty = QActivation(layer.act, 8, layer.clock)
    empty.load_state_dict(layer.state_dict())
    assert torch.equal(empty(X), layer(X))
    assert repr(layer) == "QActivation(int4 sym group 4 static x2)"


@pytest.mark.parametrize("bad", [torch.ones(1, 2), torch.ones(2, 2, dtype=torch.float64)])
def test_a_table_must_fit(bad):
    with pytest.raises(BadCheckpoint, match=r"'scale'.*does not fit int4"):
        static().load({"scale": bad})
