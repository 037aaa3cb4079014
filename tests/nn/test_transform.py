"""Layers that read one tensor transform it once, with the same bits as each on its own."""

import copy

import pytest
import tiny
import torch
from torch import nn

from dither.clock import Clock
from dither.nn import QLinear, build, linear
from dither.spec import Act, Int, LinearSpec, Rotation

SPEC = LinearSpec(Int(4), Act(Int(8)), 1, Rotation(16, seed=3))


@pytest.fixture
def counted(monkeypatch):
    """How often a rotation was computed."""
    calls = []
    real = linear.turned
    monkeypatch.setattr(linear, "turned", lambda x, signs, block: calls.append(1) or real(x, signs, block))
    return calls


def readers(count: int = 3, spec: LinearSpec = SPEC) -> list[QLinear]:
    """Of one tensor, on one clock; scales and signs are the same, weights are not."""
    clock = Clock()
    made = []
    for i in range(count):
        torch.manual_seed(i)
        layer = build(spec, nn.Linear(16, 24), clock)
        assert isinstance(layer, QLinear)
        tiny.fill(layer, torch.randn(24, 16), 0)
        made.append(layer.requires_grad_(False))
    return made


def test_once_for_all_readers_with_the_same_bits(counted):
    layers, x = readers(), torch.randn(2, 5, 16)
    with torch.no_grad():
        found = [layer(x) for layer in layers]
        assert len(counted) == 1
        for layer, y in zip(layers, found, strict=True):
            layer.clock = Clock()
            assert torch.equal(layer(x), y)
    assert len(counted) == 4


def test_other_scales_or_signs_are_another_transform(counted):
    first, second, third = readers()
    second.load({"pre_scale": second.get_buffer("pre_scale") * 2})
    third.get_buffer("rotation_signs").neg_()
    x = torch.randn(2, 16)
    with torch.no_grad():
        for layer in (first, second, third, first):
            layer(x)
        assert len(counted) == 4
        alone = copy.deepcopy(third)
        assert torch.equal(third(x), alone(x))


def test_tensors_that_are_changed_later_are_noticed(counted):
    layer, x = readers(1)[0], torch.randn(2, 16)
    with torch.no_grad():
        layer(x)
        layer(x)
        assert len(counted) == 1
        x *= 2
        y = layer(x)
        assert len(counted) == 2
        assert torch.equal(y, copy.deepcopy(layer)(x.clone()))
        layer.get_buffer("pre_scale").mul_(3)
        assert torch.equal(layer(x), copy.deepcopy(layer)(x.clone()))
        layer.pre_scale = layer.pre_scale * 5  # as offloading puts tensors into modules
        assert torch.equal(layer(x), copy.deepcopy(layer)(x.clone()))


def test_a_new_input_never_finds_an_old_result(counted):
    layer = readers(1)[0]
    with torch.no_grad():
        for i in range(20):  # memory, and perhaps the identity of the object, is used again
            layer(torch.full((2, 16), float(i)))
    assert len(counted) == 20


@pytest.mark.parametrize("mode", ["gradients", "inference", "rows", "compiled", "loaded in inference mode"])
def test_where_it_is_off(mode, counted):
    spec = SPEC if mode != "rows" else LinearSpec(Int(4), Act(Int(8)), 2, Rotation(16, seed=3))
    with torch.inference_mode(mode == "loaded in inference mode"):
        first, second = readers(2, spec)
    for layer in (first, second):
        layer.clock.edges = torch.tensor([0.5])
    x = torch.randn(1, 16)
    if mode == "inference":
        with torch.inference_mode():
            x = torch.randn(1, 16)
            first(x), second(x)
    elif mode == "compiled":
        torch._dynamo.reset()
        compiled = torch.compile(lambda t: (first(t), second(t)), backend="eager", fullgraph=True)
        with torch.no_grad():
            got = compiled(x)
        assert first.clock.last._result is None
        assert torch.equal(got[0], first(x))
        return
    else:
        with torch.set_grad_enabled(mode == "gradients"):
            first(x), second(x)
    assert len(counted) == 2


def test_the_whole_block_shares_and_changes_nothing(counted):
    """q, k and v of a model, against a twin whose layers have clocks of their own."""
    plan = tiny.timeless()
    names = [n for n in plan.layers if n.rpartition(".")[2] in ("to_q", "to_k", "to_v")]
    model = tiny.stamped_dit(type(plan)(dict.fromkeys(names, SPEC)))
    first = model.get_submodule(names[0])
    for name in names:
        model.get_submodule(name).load({k: first.get_buffer(k) for k in ("pre_scale", "rotation_signs")})
    twin = copy.deepcopy(model)
    for name in names:
        twin.get_submodule(name).clock = Clock()
    call = {"timestep": torch.tensor([900, 100]), "class_labels": torch.tensor([1, 10])}
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        y = model(x, **call).sample
        assert len(counted) == 2  # blocks
        assert torch.equal(twin(x, **call).sample, y)
        assert len(counted) == 2 + len(names)
