"""Training of one unit: its loss, its schedule, what it keeps, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from dither.clock import Clock
from dither.errors import BadModel, BadValue
from dither.models import Call
from dither.numerics import dynamic_grid, fake_quantize, grid
from dither.spec import Act, Int, LinearSpec
from dither.stages.learned_steps import LearnedSteps
from dither.stages.meanwhile import instead
from dither.stages.minibatches import Samples
from dither.stages.reconstruct import Schedule, Unit
from dither.stages.soft_rounding import SoftRounding
from dither.stages.stand_in import StandIn

FMT = Int(3, False)
FAST = Schedule(200, 8, 0.2, 0.0, 3.0, 0.2, 20.0, 2.0, 2.0)


class Block(nn.Module):
    """Two linears with something in between."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.a, self.b = nn.Linear(12, 16), nn.Linear(16, 12)

    def forward(self, x: torch.Tensor, shift: torch.Tensor | None = None) -> torch.Tensor:
        return x + self.b(torch.tanh(self.a(x) if shift is None else self.a(x) + shift[:, None]))


def data(block: nn.Module, tokens: int = 4, repeat: int = 1, size: float = 1.0, calls: int = 6) -> Samples:
    """Correlated inputs, so that errors of neighbouring weights can cancel, and the block's own answers."""
    make = torch.Generator().manual_seed(1)
    mix = torch.randn(3, 12, generator=make)
    xs = [torch.randn(5, tokens, 3, generator=make) @ mix + 0.3 for _ in range(calls)]
    with torch.no_grad():
        ys = [block(x) * size for x in xs]
    xs, ys = ([t.repeat(1, repeat, 1) for t in ts] for ts in (xs, ys))
    return Samples.alike([Call((x,), {}) for x in xs], ys, [torch.zeros(5).long()] * calls)


def standins(block: nn.Module, act: Act | None = None, table=None) -> dict[str, StandIn]:
    found = {}
    for name in ("a", "b"):
        linear = block.get_submodule(name)
        rounding = SoftRounding(linear.weight.data, *dynamic_grid(linear.weight.data, FMT), FMT)
        steps = None if table is None or name != "a" else LearnedSteps(table, act.grid, Clock())
        spec = LinearSpec(FMT, act if name == "a" else None)
        found[name] = StandIn(linear, spec, rounding, steps)
    return found


def trained(*schedules: Schedule, samples: Samples | None = None, made=None, block=None, seed: int = 0):
    block = block or Block()
    samples = samples or data(block)
    made = made or standins(block)
    with torch.no_grad(), instead(block, made):
        unit = Unit("block.7", block, tuple(made.values()), samples, Clock().tell)
        result = unit.reconstruct(schedules or (FAST,), torch.Generator().manual_seed(seed))
    return result, made


def codes(made) -> torch.Tensor:
    return torch.cat([s.rounding.codes().flatten() for s in made.values()])


@torch.no_grad()
def error(block: nn.Module, weights: list[torch.Tensor], samples: Samples, power: float = 2.0) -> float:
    """As a share of the answers' power, from scratch."""
    a, b = weights
    gap = size = 0.0
    for call, y in zip(samples.calls, samples.targets, strict=True):
        x = call.args[0]
        h = torch.tanh(x @ a.T + block.a.bias)
        gap += float((x + h @ b.T + block.b.bias - y).abs().pow(power).sum())
        size += float(y.abs().pow(power).sum())
    return gap / size


@pytest.mark.parametrize("power", [2.0, 2.4])
def test_what_is_learned_is_better_and_told_as_it_is(power):
    block = Block()
    samples = data(block)
    schedule = replace(FAST, power=power)
    result, made = trained(schedule, samples=samples, block=block)
    nearest = [s.rounding.value(s.rounding.nearest) for s in made.values()]
    learned = [s.rounding.value(s.rounding.codes()) for s in made.values()]
    assert result.before == pytest.approx(error(block, nearest, samples, power), rel=1e-3)
    assert result.after == pytest.approx(error(block, learned, samples, power), rel=1e-3)
    assert result.after < 0.5 * result.before
    moved = torch.cat([(s.rounding.codes() != s.rounding.nearest).flatten() for s in made.values()])
    assert result.moved == pytest.approx(float(moved.float().mean()))
    assert 0.02 < result.moved < 0.6


def test_choices_are_made_by_the_end():
    _, made = trained()
    h = torch.cat([s.rounding.choice().flatten() for s in made.values()])
    assert float(((h > 0.1) & (h < 0.9)).float().mean()) < 0.2
    _, loose = trained(replace(FAST, regularizer=0.0))
    h = torch.cat([s.rounding.choice().flatten() for s in loose.values()])
    assert float(((h > 0.1) & (h < 0.9)).float().mean()) > 0.3


def test_the_balance_of_the_two_terms_depends_neither_on_tokens_nor_on_sizes():
    """Tokens seen twice, or outputs a thousand times larger, give the same roundings."""
    _, made = trained()
    want = codes(made)
    _, twice = trained(samples=data(Block(), repeat=2))
    assert float((codes(twice) == want).float().mean()) > 0.98
    big = Block()
    big.b.weight.data *= 1000
    big.b.bias.data *= 1000

    class Scaled(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 1000 * x + self.b(torch.tanh(self.a(x)))

    scaled = Scaled()
    scaled.load_state_dict(big.state_dict())
    _, large = trained(block=scaled, samples=data(scaled))
    assert float((codes(large) == want).float().mean()) > 0.98


def test_weights_of_samples_count_in_the_loss():
    block = Block()
    plain = data(block)
    odd = [y.clone() for y in plain.targets]
    for y in odd:
        y[1] += 5  # nothing can give this, and nothing should try
    rows = plain.rows
    shares = [torch.tensor([1.25, 0.0, 1.25, 1.25, 1.25])] * len(rows)
    weighed, made = trained(samples=Samples(plain.calls, odd, rows, shares), block=block)
    alike, _ = trained(samples=Samples.alike(plain.calls, odd, rows), block=Block())
    assert weighed.after < 0.05 * alike.after
    kept = [s.rounding.value(s.rounding.codes()) for s in made.values()]
    nearest = [s.rounding.value(s.rounding.nearest) for s in made.values()]
    assert error(block, kept, plain) < 0.6 * error(block, nearest, plain)


def test_one_seed_gives_one_result():
    (a, left), (b, right) = trained(seed=1), trained(seed=1)
    assert a == b
    assert torch.equal(codes(left), codes(right))
    assert not torch.equal(codes(left), codes(trained(seed=2)[1]))


def test_where_training_makes_it_worse_nothing_is_changed():
    result, made = trained(replace(FAST, iterations=1, lr=10.0))  # one wild step
    assert result.after == result.before
    assert result.moved == 0
    for s in made.values():
        assert torch.equal(s.rounding.codes(), s.rounding.nearest)
        assert torch.equal(s.weight, s.rounding.value(s.rounding.nearest))


ACT = Act(Int(4, False), static=True)


def table(block: nn.Module, wide: float = 3.0) -> dict[str, torch.Tensor]:
    x = torch.cat([c.args[0] for c in data(block).calls])
    scale, zero = grid(x.amin().reshape(1, 1) * wide, x.amax().reshape(1, 1) * wide, ACT.grid)
    return {"scale": scale, "zero": zero}


def test_steps_that_are_too_wide_shrink():
    block = Block()
    made = standins(block, ACT, table(block))
    learned, _ = trained(replace(FAST, act_lr=0.02), block=block, made=made)
    steps = made["a"].steps
    assert float(steps.table()["scale"] / steps.start) < 0.8
    assert torch.equal(steps.table()["zero"], table(block)["zero"])
    fixed, _ = trained(FAST, block=Block(), made=standins(Block(), ACT, table(block)))
    assert learned.after < 0.7 * fixed.after


def test_a_second_pass_learns_steps_alone_after_roundings_in_full_precision():
    block = Block()
    made = standins(block, ACT, table(block))
    seen = []
    plain = made["a"].steps.__class__.__call__

    class Watched(LearnedSteps):
        def __call__(self, x):
            seen.append(torch.is_grad_enabled())
            return plain(self, x)

    made["a"].steps = Watched(table(block), ACT.grid, Clock())
    second = replace(FAST, iterations=30, lr=0.0, act_lr=0.02, power=2.4)
    trained(replace(FAST, static=False), second, block=block, made=made)
    assert sum(seen) == 30  # gradients went through the steps in the second pass alone
    blank = trained()[1]
    assert torch.equal(codes(made), codes(blank))  # roundings as if inputs were never rounded
    assert made["a"].steps.log.item() != 0


def test_the_exponent_falls_after_the_warm_up():
    schedule = Schedule(100, 1, 1.0, 0.0, 1.0, 0.2, 20.0, 2.0, 2.0)
    assert [schedule.exponent(i) for i in (0, 19)] == [None, None]
    assert schedule.exponent(20) == 20
    assert schedule.exponent(60) == pytest.approx(11)
    assert schedule.exponent(99) == pytest.approx(2 + 18 / 80)
    assert Schedule(1, 1, 1.0, 0.0, 1.0, 1.0, 20.0, 2.0, 2.0).exponent(0) is None


def test_a_loss_that_is_no_number_names_the_unit():
    block = Block()
    samples = data(block)
    samples.targets[0][:] = torch.nan
    with pytest.raises(BadValue, match=r"'block\.7': the loss is nan after \d+ iterations"):
        trained(samples=samples, block=block)


def test_a_unit_that_mixes_samples_is_refused():
    class Mixing(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x - x.mean(0, keepdim=True))

    with pytest.raises(BadModel, match=r"'block\.7' does not treat the samples of its batch apart"):
        trained(block=Mixing())


def test_nothing_of_training_is_left_behind():
    block = Block()
    block.a.bias.requires_grad_(False)
    before = {k: v.clone() for k, v in block.state_dict().items()}
    modules = dict(block.named_modules())
    with torch.no_grad():
        trained(block=block)
        assert not torch.is_grad_enabled()
    assert dict(block.named_modules()) == modules
    assert all(torch.equal(v, before[k]) for k, v in block.state_dict().items())
    assert {n: (p.grad, p.requires_grad) for n, p in block.named_parameters()} == {
        "a.weight": (None, True), "a.bias": (None, False), "b.weight": (None, True), "b.bias": (None, True),
    }  # fmt: skip


def test_the_block_is_as_it_was_after_an_error_too():
    block = Block()
    modules, made = dict(block.named_modules()), standins(block)

    def fail() -> None:
        with instead(block, made):
            assert block.a is made["a"]
            assert not any(m.training for m in made.values())
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fail()
    assert dict(block.named_modules()) == modules


def test_weights_that_need_no_rounding_are_no_error():
    block = Block()
    for linear in (block.a, block.b):
        linear.weight.data = fake_quantize(linear.weight.data, FMT, *dynamic_grid(linear.weight.data, FMT))
    result, _ = trained(block=block)
    assert result.before == pytest.approx(0, abs=1e-12)
    assert result.after <= result.before
