"""The two sides of a linear: each scale against a plain loop over the objective, given the other side."""

import pytest
import torch

from dither.numerics import act_quantize, dynamic_table, encode_int, fake_quantize, grid, int_range, range_table
from dither.spec import PER_TENSOR, Act, Int
from dither.stages.scale_search import Ratios, group_ranges
from dither.stages.sides import Scales, Sides, by_turns

RATIOS = Ratios("test", 0.2, 1.1, 9)
N, K, TOKENS = 6, 16, 48


def sides(fmt: Int | None, act: Act | None, seed: int = 0, seen: tuple[int, ...] = (0, 1, 2)) -> Sides:
    """Heavy tails on both sides, so that full ranges are poor; tokens of later rows are larger."""
    make = torch.Generator().manual_seed(seed)
    x, w = torch.randn(TOKENS, K, generator=make), torch.randn(N, K, generator=make)
    rows = torch.tensor([seen[t % len(seen)] for t in range(TOKENS)])
    x, w = (x + x.pow(3)) * (1 + rows[:, None]), w + w.pow(3)
    importance = torch.rand(TOKENS, N, generator=make) * torch.logspace(-2, 2, N)
    lo, hi = torch.full((3, K), torch.inf), torch.full((3, K), -torch.inf)
    for r in set(seen):
        lo[r], hi[r] = x[rows == r].amin(0), x[rows == r].amax(0)
    if act is not None and act.static:
        lo, hi = group_ranges(act, lo, hi)
    return Sides(x, importance, rows if act is not None and act.rows > 1 else rows * 0, w, fmt, act, lo, hi, RATIOS)


def start(s: Sides) -> Scales:
    weight = {} if s.fmt is None else dynamic_table(s.w, s.fmt)
    return Scales(weight, range_table(s.lo, s.hi, s.act.grid) if s.act is not None and s.act.static else {})


def weighted(s: Sides, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """(n, N) float64, in plain terms."""
    return s.importance.double() * (x.double() @ w.double().T - s.x.double() @ s.w.double().T).square()


STATIC = Act(Int(4, False), True, 3)


@pytest.mark.parametrize("act", [None, Act(Int(4)), STATIC], ids=["exact", "dynamic", "static"])
@pytest.mark.parametrize("fmt", [Int(3), Int(3, False), Int(1)], ids=str)
def test_each_output_has_its_best_scale_given_the_inputs(fmt, act):
    s = sides(fmt, act)
    now = start(s)
    if act is None:
        x = s.x
    elif not act.static:
        x = fake_quantize(s.x, act.grid, *dynamic_table(s.x, act.grid).values(), None)
    else:  # by each token's row
        each = [
            fake_quantize(s.x[t : t + 1], act.grid, *(now.act[k][r] for k in ("scale", "zero")))
            for t, r in enumerate(s.rows.tolist())
        ]
        x = torch.cat(each)
    found, error = s.best_weight(now)
    lo, hi = int_range(s.w, fmt)
    tables = [encode_int(s.w, fmt)] + [
        dict(zip(("scale", "zero"), grid(lo * r, hi * r, fmt), strict=True)) for r in RATIOS
    ]
    total = 0.0
    for a in range(N):
        losses = []
        for t in tables:
            zero = t.get("zero")
            w = fake_quantize(s.w[a : a + 1], fmt, t["scale"][a : a + 1], None if zero is None else zero[a : a + 1])
            losses.append(
                float((s.importance[:, a].double() * ((x @ w.T)[:, 0] - s.target[:, a]).double().square()).sum())
            )
        best = min(range(len(losses)), key=losses.__getitem__)
        total += losses[best]
        assert float(found.weight["scale"][a]) == pytest.approx(float(tables[best]["scale"][a]))
    assert error == pytest.approx(total, rel=1e-4)
    assert error < s.error(now)
    assert s.error(found) == pytest.approx(error, rel=1e-4)
    assert found.act is now.act


def test_a_scale_for_the_whole_tensor_goes_by_all_outputs():
    s = sides(Int(3, group=PER_TENSOR), None)
    found, error = s.best_weight(start(s))
    top = float(s.w.abs().max())
    losses = {}
    for ratio in (1.0, *RATIOS):
        scale = torch.tensor([[top * ratio / 3]])
        losses[ratio] = float(weighted(s, s.x, fake_quantize(s.w, s.fmt, scale, None)).sum())
    best = min(losses, key=losses.__getitem__)
    assert best < 0.8
    assert found.weight["scale"].shape == (1, 1)
    assert float(found.weight["scale"]) == pytest.approx(top * best / 3)
    assert error == pytest.approx(losses[best], rel=1e-4)


@pytest.mark.parametrize("fmt", [Int(3), None], ids=["rounded weight", "exact weight"])
def test_each_time_group_has_its_best_scale_given_the_weight(fmt):
    s = sides(fmt, STATIC)
    now = start(s)
    w = s.w if fmt is None else fake_quantize(s.w, fmt, now.weight["scale"], None)
    found, error = s.best_inputs(now)
    total, moved = 0.0, []
    for r in range(3):
        mine = s.rows == r
        losses = {}
        for ratio in (1.0, *RATIOS):
            scale, zero = grid(s.lo[r] * ratio, s.hi[r] * ratio, STATIC.grid)
            x = fake_quantize(s.x[mine], STATIC.grid, scale, zero)
            losses[ratio] = float((s.importance[mine] * (x @ w.T - s.target[mine]).square()).double().sum())
        best = min(losses, key=losses.__getitem__)
        total += losses[best]
        scale, zero = grid(s.lo[r] * best, s.hi[r] * best, STATIC.grid)
        torch.testing.assert_close(found.act["scale"][r], scale)
        assert torch.equal(found.act["zero"][r], zero)
        moved.append(best != 1)
    assert any(moved)
    assert len(set(found.act["scale"].flatten().tolist())) == 3
    assert error == pytest.approx(total, rel=1e-4)
    assert s.error(found) == pytest.approx(error, rel=1e-4)
    assert found.weight is now.weight


def test_a_time_group_without_tokens_takes_what_serves_all_of_them():
    s = sides(Int(8), STATIC, seen=(0, 2))
    found, error = s.best_inputs(start(s))
    whole = sides(Int(8), Act(Int(4, False), True, 1), seen=(0, 2))
    want, _ = whole.best_inputs(start(whole))
    assert torch.equal(found.act["scale"][1], want.act["scale"][0])
    assert not torch.equal(found.act["scale"][1], found.act["scale"][0])
    assert s.error(found) == pytest.approx(error, rel=1e-4)  # it does not count twice


@pytest.mark.parametrize("act", [None, STATIC], ids=str)
def test_groups_of_a_weight_are_better_one_by_one(act):
    fmt = Int(3, False, group=8)
    s = sides(fmt, act)
    found, error = s.best_weight(start(s))
    assert found.weight["scale"].shape == (N, 2)
    assert error < s.error(start(s))
    # no other candidate of the last group is better for any output, with the first group as it is
    lo, hi = int_range(s.w, fmt)
    x = s.x if act is None else act_quantize(s.x, act.grid, {k: t[s.rows] for k, t in start(s).act.items()})
    best = weighted(s, x, act_quantize(s.w, fmt, found.weight)).sum(0)
    for ratio in RATIOS:
        scale, zero = grid(lo * ratio, hi * ratio, fmt)
        scale[:, 0], zero[:, 0] = found.weight["scale"][:, 0], found.weight["zero"][:, 0]
        assert bool((weighted(s, x, fake_quantize(s.w, fmt, scale, zero)).sum(0) >= best * (1 - 1e-5)).all())


def test_turns_get_better_until_nothing_does():
    s = sides(Int(3), STATIC)
    first = s.error(start(s))
    weight, w_error = s.best_weight(start(s))
    both, b_error = s.best_inputs(weight)
    assert b_error < w_error < first
    once = by_turns(s, start(s), True, True, 1)
    assert torch.equal(once[0].act["scale"], both.act["scale"])
    assert once[1] == pytest.approx(b_error / first)
    shares = [by_turns(s, start(s), True, True, rounds)[1] for rounds in (1, 2, 3, 20, 50)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == shares[-2]
    only = by_turns(s, start(s), False, True, 5)
    assert torch.equal(only[0].weight["scale"], start(s).weight["scale"])
    assert only[1] == pytest.approx(s.best_inputs(start(s))[1] / first)


def test_what_has_no_error_stays_whole():
    s = sides(Int(8), None)
    silent = Sides(s.x * 0, s.importance, s.rows, s.w, s.fmt, None, s.lo, s.hi, RATIOS)
    scales, share = by_turns(silent, start(silent), True, False, 3)
    assert share == 1.0
    assert torch.equal(scales.weight["scale"], start(silent).weight["scale"])
