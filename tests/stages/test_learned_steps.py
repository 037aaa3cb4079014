"""Learned steps: what they round to, LSQ's gradient, and each sample's own row."""

import pytest
import torch

from dither.clock import Clock
from dither.numerics import dynamic_grid, fake_quantize, grid
from dither.spec import Act, Int
from dither.stages.learned_steps import LearnedSteps, dynamic


def steps(fmt: Int, rows: int = 1, groups: int = 1, wide: float = 1.5) -> LearnedSteps:
    """Tables too narrow for the inputs below, so that some are clipped."""
    make = torch.Generator().manual_seed(3)
    hi = wide * (0.5 + torch.rand(rows, groups, generator=make))
    scale, zero = grid(-0.5 * hi, hi, fmt)
    clock = Clock((0.5,) if rows > 1 else (), 1)
    return LearnedSteps({"scale": scale} if zero is None else {"scale": scale, "zero": zero}, fmt, clock)


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("fmt", [Int(8, False), Int(4), Int(3, False, 4)], ids=str)
@pytest.mark.parametrize("gradients", [False, True])
def test_inputs_are_rounded_as_a_layer_with_this_table_does(fmt, gradients):
    made = steps(fmt, groups=2 if fmt.group else 1)
    x = inputs(3, 5, 8)
    with torch.set_grad_enabled(gradients):
        got = made(x)
    table = made.table()
    assert torch.equal(got.detach(), fake_quantize(x, fmt, table["scale"], table.get("zero")))


def by_hand(x, scale, zero, fmt, grad):
    """LSQ's gradients (arXiv 1902.08153, equations 3 and 5), zero points aside, with autograd doing the sums."""
    lo, hi = (0, 2**fmt.bits - 1) if not fmt.symmetric else (-(2 ** (fmt.bits - 1)), 2 ** (fmt.bits - 1) - 1)
    x, scale = x.clone().requires_grad_(), scale.clone().requires_grad_()
    z = 0.0 if zero is None else zero.float()
    q = x / scale + z
    q = q + (q.detach().round() - q.detach())  # rounding is the identity
    y = scale * (q.clamp(lo, hi) - z)
    y.backward(grad)
    return x.grad, scale.grad


@pytest.mark.parametrize("fmt", [Int(8, False), Int(4), Int(3, False)], ids=str)
def test_the_gradient_is_that_of_lsq(fmt):
    made = steps(fmt)
    x, grad = inputs(3, 5, 8).requires_grad_(), torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))
    made(x).backward(grad)
    table = made.table()
    dx, ds = by_hand(x.detach(), table["scale"], table.get("zero"), fmt, grad)
    assert 0 < float((dx == 0).float().mean()) < 0.9  # some were clipped
    torch.testing.assert_close(x.grad, dx)
    torch.testing.assert_close(made.log.grad, ds * table["scale"], rtol=1e-4, atol=1e-5)  # ds = s d(log s)


def test_each_sample_and_group_moves_its_own_step():
    fmt = Int(4, False, 4)
    made = steps(fmt, rows=2, groups=2)
    made.clock.tell(torch.tensor([1, 1, 0]))
    x = inputs(3, 5, 8)
    y = made(x)
    for i, row in enumerate((1, 1, 0)):
        table = {k: t[row] for k, t in made.table().items()}
        assert torch.equal(y[i].detach(), fake_quantize(x[i], fmt, table["scale"], table["zero"]))
    (y[0, :, 4:]).square().sum().backward()
    assert made.log.grad[0].tolist() == [0, 0]
    assert made.log.grad[1, 0] == 0
    assert made.log.grad[1, 1] != 0


def test_a_step_of_zero_stays_and_gives_zeros():
    made = LearnedSteps({"scale": torch.zeros(1, 1)}, Int(8), Clock())
    x = inputs(2, 3).requires_grad_()
    y = made(x)
    y.sum().backward()
    assert y.abs().max() == 0
    assert made.log.grad.item() == 0
    assert torch.isfinite(x.grad).all()


def test_restarted_steps_are_the_table_they_began_with():
    made = steps(Int(8, False))
    before = made.table()["scale"].clone()
    with torch.no_grad():
        made.log.add_(0.5)
    torch.testing.assert_close(made.table()["scale"], before * torch.tensor(0.5).exp())
    made.restart()
    assert torch.equal(made.table()["scale"], before)


@pytest.mark.parametrize("fmt", [Int(8, False), Int(4, True, 4), Int(4, False, -1)], ids=str)
def test_dynamic_ranges_pass_gradients_straight_through(fmt):
    act, x = Act(fmt), inputs(3, 5, 8).requires_grad_()
    y = dynamic(x, fmt)
    assert torch.equal(y.detach(), fake_quantize(x.detach(), act.grid, *dynamic_grid(x.detach(), fmt)))
    grad = inputs(3, 5, 8).mul(2)
    y.backward(grad)
    assert torch.equal(x.grad, grad)
    with torch.no_grad():
        assert torch.equal(dynamic(x, fmt), y)
