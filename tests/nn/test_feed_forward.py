"""Two linears and a GELU in one call are what they are one by one, and only where nobody looks between them."""

import copy

import pytest
import tiny
import torch
from diffusers.models.attention import FeedForward
from spied import spied, together
from torch import nn

from dither.kernels import means
from dither.nn import Clock, QFeedForward, QLinear, build, fuse, replace
from dither.spec import PER_TENSOR, Act, Gaussian, Int, LinearSpec, LowRank, Rotation, Trellis, TwoRegion

needs_native = pytest.mark.skipif(means() is None, reason="no native code on this machine")
WIDTH = 24
PLAIN = LinearSpec(Int(8), Act(Int(8)))
SPECS = {
    "int8": (PLAIN, PLAIN),
    "zero points": (LinearSpec(Int(8, False), Act(Int(8, False))), LinearSpec(Int(4, False), Act(Int(8, False)))),
    "groups": (LinearSpec(Int(4, group=8), Act(Int(8))), LinearSpec(Int(4, False, 12), Act(Int(8, False, 24)))),
    "scaled and rotated": (LinearSpec(Int(8), Act(Int(8)), 1, Rotation(8, seed=1)), LinearSpec(Int(8), Act(Int(8)), 1)),
    "rotated": (
        LinearSpec(Int(8), Act(Int(8)), 0, Rotation(24)),
        LinearSpec(Int(8), Act(Int(8)), 1, Rotation(96, seed=1)),
    ),
    "rotated only": (PLAIN, LinearSpec(Int(4, group=8), Act(Int(8)), 0, Rotation(32, seed=1))),
    "by time": (LinearSpec(Int(8), Act(Int(8, False), True, 3)), LinearSpec(Int(8), Act(TwoRegion(8, True), True, 3))),
    "names of integers": (LinearSpec(Trellis(2, 8, 8, 8), Act(Int(8))), LinearSpec(Gaussian(4, 256), Act(Int(8)))),
}
APART = {
    "scaled by time": (PLAIN, LinearSpec(Int(8), Act(Int(8)), 3)),
    "low rank": (LinearSpec(Int(8), Act(Int(8)), 0, None, LowRank(2)), PLAIN),
    "per tensor": (PLAIN, LinearSpec(Int(8), Act(Int(8, True, PER_TENSOR)))),
    "weight-only": (LinearSpec(Int(8)), PLAIN),
}


class Block(nn.Module):
    def __init__(self, specs, activation="gelu-approximate", seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.clock = Clock((0.3, 0.6))
        self.ff = FeedForward(WIDTH, activation_fn=activation)
        for name, spec in zip(("ff.net.0.proj", "ff.net.2"), specs, strict=True):
            dense = self.get_submodule(name)
            layer = build(spec, dense, self.clock)
            tiny.fill(layer, dense.weight, seed)
            replace(self, name, layer)
        self.eval().requires_grad_(False)

    def forward(self, x):
        self.clock.set(torch.linspace(0.1, 0.9, len(x)), torch.zeros(len(x), dtype=torch.int64))
        return self.ff(x)


def run(block, x):
    """The output, and whether both linears ran in one call."""
    with torch.no_grad(), spied() as calls:
        return block(x), "feed_forward" in together(calls)


@needs_native
@pytest.mark.parametrize("approximate", ["tanh", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("name", "specs"), SPECS.items(), ids=SPECS)
def test_one_call_is_the_modules_one_by_one(name, specs, dtype, approximate):
    """To the bit, whoever looks."""
    block = Block(specs)
    block.ff.net[0].approximate = approximate
    x = torch.randn(3, 17, WIDTH).to(dtype)
    plain, _ = run(block, x.float())
    fuse(block)
    got, fused = run(block, x)
    assert fused == (
        dtype == torch.float32 or (dtype == torch.bfloat16 and name not in ("scaled and rotated", "rotated"))
    )
    handle = block.ff.net[2].register_forward_hook(lambda *_: None)
    want, fused = run(block, x)
    handle.remove()
    assert not fused
    assert got.dtype == dtype
    assert torch.equal(got, want)
    # beside torch's own GELU: a code next to a tie may be the other one
    most = float(plain.abs().max())
    exact, _ = run(block, x.float())
    assert torch.isclose(exact, plain, rtol=1e-4, atol=1e-5 * most).float().mean() > 0.9
    torch.testing.assert_close(exact, plain, rtol=0.1, atol=0.05 * most)
    assert float((got.float() - exact).norm() / exact.norm()) < 3e-2


@needs_native
@pytest.mark.parametrize("specs", APART.values(), ids=APART)
def test_what_it_does_not_know_runs_apart(specs):
    block = Block(specs)
    x = torch.randn(2, 5, WIDTH)
    want, _ = run(block, x)
    fuse(block)
    got, fused = run(block, x)
    assert not fused
    torch.testing.assert_close(got, want, rtol=0.1, atol=0.05 * float(want.abs().max()))  # GELU is another


@needs_native
def test_nobody_misses_what_is_between():
    block = Block(SPECS["int8"])
    fuse(block)
    x = torch.randn(2, 5, WIDTH)
    assert run(block, x)[1]
    for name in ("ff.net.0", "ff.net.0.proj", "ff.net.1", "ff.net.2"):
        seen = []
        handle = block.get_submodule(name).register_forward_hook(lambda *_, seen=seen: seen.append(1))
        assert not run(block, x)[1]
        assert seen
        handle.remove()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not run(block, x)[1]
    handle.remove()
    block.ff.net[1].train()
    assert not run(block, x)[1]
    block.ff.net[1].eval()
    block.ff.net[2] = nn.Linear(4 * WIDTH, WIDTH)  # as an adapter would
    assert not run(block, x)[1]


@needs_native
def test_gradients_pass_as_they_do_one_by_one():
    block, other = Block(SPECS["int8"]), Block(SPECS["int8"])
    fuse(block)
    x = torch.randn(2, 5, WIDTH, requires_grad=True)
    grads = [torch.autograd.grad(b(x).square().sum(), x)[0] for b in (block, other)]
    assert torch.equal(*grads)


def test_names_and_copies_stay():
    block = Block(SPECS["int8"])
    names = list(block.state_dict())
    fuse(block)
    assert type(block.ff) is QFeedForward
    assert isinstance(block.ff, FeedForward)
    assert list(block.state_dict()) == names
    again = copy.deepcopy(block)
    assert again.ff.net[2] is not block.ff.net[2]
    x = torch.randn(2, 5, WIDTH)
    assert torch.equal(run(again, x)[0], run(block, x)[0])
    fuse(block)
    assert type(block.ff.net[0].proj) is QLinear


@pytest.mark.parametrize("activation", ["geglu", "gelu-approximate"])
def test_other_activations_and_full_precision_are_left_alone(activation):
    block = nn.ModuleDict({"ff": FeedForward(WIDTH, activation_fn=activation)})
    fuse(block)
    assert type(block["ff"]) is FeedForward


@needs_native
@pytest.mark.parametrize(
    "specs",
    [SPECS["int8"], SPECS["groups"], SPECS["rotated"], APART["low rank"]],
    ids=["int8", "groups", "rotated", "apart"],
)
def test_graphs_are_whole(specs):
    block = Block(specs)
    fuse(block)
    compiled = torch.compile(block.ff, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 5, WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), block.ff(x))
