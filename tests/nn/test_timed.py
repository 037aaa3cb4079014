"""Linears that time selects: banks and views, sample by sample."""

import copy
import pickle

import pytest
import tiny
import torch
from torch import Tensor, nn

from dither.clock import Clock
from dither.errors import BadCheckpoint, BadFormat, Refused
from dither.nn import QLinear, TimedLinear, ViewedLinear, build
from dither.spec import Act, Int, LinearSpec, Timed, View, Views


def timed() -> tuple[TimedLinear, Clock, nn.Linear]:
    clock = Clock((0.5,), branches=2)
    torch.manual_seed(0)
    dense = nn.Linear(16, 24)
    static = LinearSpec(Int(8), Act(Int(8), static=True, rows=4))
    made = build(Timed((tiny.W4, static), (0, 1, 1, 1)), dense, clock)
    assert isinstance(made, TimedLinear)
    for i, part in enumerate(made.variants):
        tiny.fill(part, dense.weight, i)
    return made.requires_grad_(False), clock, dense


def test_timed_runs_each_sample_in_its_variant():
    layer, clock, dense = timed()
    x = torch.randn(6, 5, 16)  # three samples, two frames each
    level, branch = torch.tensor([0.1, 0.9, 0.1]), torch.tensor([0, 0, 1])
    clock.set(level, branch)
    y = layer(x)
    for i, variant in enumerate((0, 1, 1)):
        clock.set(level[i : i + 1], branch[i : i + 1])
        part = layer.variants[variant]
        torch.testing.assert_close(y[2 * i : 2 * i + 2], part.compute(x[2 * i : 2 * i + 2], dense.bias))


def test_timed_restores_the_clock_and_names_a_bad_batch():
    layer, clock, _ = timed()
    clock.set(torch.tensor([0.1, 0.9]), torch.tensor([0, 0]))
    before = clock.row
    layer(torch.randn(2, 5, 16))
    assert clock.row is before
    with pytest.raises(BadCheckpoint, match="batch 3"):
        layer(torch.randn(3, 5, 16))


def test_timed_stores_the_bias_once():
    layer, _, dense = timed()
    assert [k for k in layer.state_dict() if k.endswith("bias")] == ["bias"]
    assert layer.bias is dense.bias


# --- views

LEVEL, BRANCH = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 1, 0])
"""They select the views 0, 1 and 2 of ``tiny.VIEWS`` (time edges 0.3 and 0.7, two branches)."""


def viewed(spec: Views = tiny.VIEWS, bias: bool = True) -> tuple[ViewedLinear, Clock]:
    clock = Clock((0.3, 0.7), branches=2)
    torch.manual_seed(0)
    dense = nn.Linear(16, 24, bias=bias)
    made = build(spec, dense, clock)
    assert isinstance(made, ViewedLinear)
    tiny.fill(made.base, dense.weight, 0)
    return made.requires_grad_(False), clock


def alone(layer: ViewedLinear, index: int) -> QLinear:
    """A linear of one view's spec, with the same tensors."""
    made = QLinear(layer.spec.specs[index], 16, 24, layer.bias)
    return made.load(dict(layer.base.named_buffers()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_each_sample_runs_in_its_view(bias, dtype):
    layer, clock = viewed(bias=bias)
    layer.to(dtype)
    x = torch.randn(6, 5, 16).to(dtype)  # three samples, two frames each
    clock.set(LEVEL, BRANCH)
    y = layer(x)
    assert y.dtype == dtype
    for i in range(3):
        rows = slice(2 * i, 2 * i + 2)
        assert torch.equal(y[rows], alone(layer, i)(x[rows]))
    for i in range(3):  # and all in one
        clock.set(LEVEL[i].expand(3), BRANCH[i].expand(3))
        assert torch.equal(layer(x), alone(layer, i)(x))


def test_the_weight_is_stored_once_and_the_bias_outside():
    layer, _ = viewed()
    base = {f"base.{k}" for k, _ in layer.base.named_buffers()}
    assert set(layer.state_dict()) == {"bias", *base}
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    whole, _ = viewed(Views(tiny.VIEWS.base, (View(8),), (0,) * 6))
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in layer.state_dict().items())


def test_no_view_is_simulated():
    layer, _ = viewed()
    assert [k.name for k in layer.kernels] == [tiny.INTEGER, tiny.INTEGER, tiny.WEIGHT_ONLY]
    assert all(k.real for k in layer.kernels)


def test_casting_keeps_scales():
    layer, clock = viewed()
    clock.set(LEVEL, BRANCH)
    x = torch.randn(3, 16).half()
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    layer(x)
    layer.half()
    for name, value in layer.state_dict().items():
        assert value.dtype == (torch.float16 if name == "bias" else before[name].dtype)
        assert name == "bias" or torch.equal(value, before[name])
    for i, part in enumerate(layer(x)):
        assert torch.equal(part, alone(layer, i)(x[i : i + 1])[0])


@pytest.mark.parametrize("how", ["load", "load_state_dict"])
def test_new_tensors_make_views_forget_what_kernels_prepared(how):
    asym = Views(LinearSpec(Int(8)), (View(8, Act(Int(8, False))), View(4, Act(Int(8, False)))), (0, 1, 0, 1, 0, 1))
    layer, clock = viewed(asym)
    other = nn.Linear(16, 24)
    clock.set(LEVEL, BRANCH)
    x = torch.randn(3, 16)
    layer(x)
    fresh = QLinear(asym.base, 16, 24, None)
    tiny.fill(fresh, other.weight, 1)
    if how == "load":
        layer.base.load(dict(fresh.named_buffers()))
    else:
        layer.load_state_dict({"bias": layer.bias, **{f"base.{k}": v for k, v in fresh.named_buffers()}})
    for i, index in enumerate((0, 1, 0)):
        assert torch.equal(layer(x)[i : i + 1], alone(layer, index)(x[i : i + 1]))


def test_copies_are_independent():
    layer, clock = viewed()
    clock.set(LEVEL, BRANCH)
    x = torch.randn(3, 16)
    y = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), y)
        twin.base.get_buffer("weight_scale").zero_()
        assert torch.equal(twin(x), twin.bias.expand(3, 24))
        assert torch.equal(layer(x), y)


def test_the_weight_is_that_of_the_whole_width_and_read_only():
    layer, _ = viewed()
    assert torch.equal(layer.weight, layer.base.dequantized())
    with pytest.raises(Refused, match="packed"):
        layer.weight.zero_()
    assert layer.bfloat16().weight.dtype == torch.bfloat16


def test_gradients_pass_through_every_view():
    layer, clock = viewed()
    layer.bias.requires_grad_()
    clock.set(LEVEL, BRANCH)
    x = torch.randn(3, 5, 16, requires_grad=True)
    y = layer(x)
    with torch.no_grad():
        assert torch.equal(y, layer(x))
    g = torch.randn_like(y)
    y.backward(g)
    want = torch.cat([_through(alone(layer, i), g[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(x.grad, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.bias.grad, g.sum((0, 1)))


def _through(linear: QLinear, g: Tensor) -> Tensor:
    return g @ linear.dequantized()


def test_a_base_that_is_not_the_views_is_refused():
    base = QLinear(tiny.VIEWS.base, 16, 24, None)
    with pytest.raises(BadFormat, match="without a bias"):
        ViewedLinear(QLinear(tiny.VIEWS.base, 16, 24, nn.Parameter(torch.zeros(24))), tiny.VIEWS, None, Clock())
    with pytest.raises(BadFormat, match="linear of just that"):
        ViewedLinear(QLinear(tiny.W8A8, 16, 24, None), tiny.VIEWS, None, Clock())
    with pytest.raises(BadFormat, match="other tensors"):
        base.way(LinearSpec(Int(4)))
