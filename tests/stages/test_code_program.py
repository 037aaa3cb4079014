"""Bits by layer: what is predicted is what rounding does, budgets are kept, and what makes no sense is refused."""

import jobs
import pytest
import torch

from dither.errors import BadRecipe
from dither.models.base import linear_at
from dither.numerics import decode, encode, stored_bits
from dither.spec import Act, Int, Trellis
from dither.stages import Assign, CodeProgram, Rotate
from dither.stages.code_program import _flatness, _loss, distortion
from dither.stages.gradients import Sample

CODES = Assign(weight=Trellis(2, 6, 4, 4), adaln=Trellis(2, 6, 4, 4))


def ran(*stages):
    return jobs.run(stages, jobs.pipeline().transformer)


def average(job) -> float:
    specs = {n: s.weight for n, s in job.specs.items()}
    shapes = {n: tuple(linear_at(job.model, n).weight.shape) for n in specs}
    return sum(stored_bits(f, shapes[n]) for n, f in specs.items()) / sum(n * k for n, k in shapes.values())


def test_bits_go_where_they_count_at_the_same_average():
    before, after = ran(Rotate(), CODES), ran(Rotate(), CODES, CodeProgram(rows=64))
    widths = {s.weight.bits for s in after.specs.values()}
    assert len(widths) > 1
    assert average(after) <= average(before)
    notes = {n: v["code-program"] for n, v in after.notes.items()}
    assert set(notes) == set(after.specs)
    assert all(notes[n]["bits"] == s.weight.bits for n, s in after.specs.items())


@pytest.mark.parametrize("bits", [1.9, 2.7])
def test_a_budget_of_ones_own(bits):
    job = ran(Rotate(), CODES, CodeProgram(rows=64, bits=bits + 1.0))
    assert bits + 0.5 < average(job) <= bits + 1.0


@pytest.mark.parametrize("fmt", [Trellis(2, 8), Trellis(3, 8), Int(4, group=32)], ids=str)
def test_the_loss_is_what_rounding_does_behind_a_rotation(fmt):
    make = torch.Generator().manual_seed(0)
    x = torch.randn(400, 64, generator=make) * torch.linspace(0.2, 3, 64)
    w = torch.randn(32, 64, generator=make) * torch.linspace(0.1, 2, 32)[:, None]
    g = torch.rand(400, 32, generator=make)
    gap = decode(encode(w, fmt), fmt, w.shape) - w
    real = float((g * (x @ gap.T).square()).sum(1).mean())
    predicted = distortion(fmt) * _loss(Sample(x, g, torch.zeros(400).long(), x[:1], x[:1]), w, False)
    assert predicted == pytest.approx(real, rel=0.25)


def test_flatness():
    make = torch.Generator().manual_seed(0)
    white = torch.randn(4000, 16, generator=make)
    assert _flatness(white) == pytest.approx(1, abs=0.02)
    assert _flatness(white[:, :1].expand(-1, 16)) < 0.05
    assert _flatness(torch.zeros(4, 3)) == 1


def test_distortions_fall_with_bits():
    found = [distortion(Trellis(b, 8)) for b in (1, 2, 3, 4)]
    assert found == sorted(found, reverse=True)
    assert all(4.0**-b < d < 1.8 * 4.0**-b for b, d in zip((1, 2, 3), found[:3], strict=True))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (CodeProgram(bits=1.0), "code-program: 1.000 bits per weight on average cannot be kept"),
        (CodeProgram(widths=()), r"code-program\.widths"),
        (CodeProgram(widths=(2, 9)), r"code-program\.widths \[2, 9\]: layer '.*': trellis of 9 bits"),
        (CodeProgram(rows=0), r"code-program\.rows 0"),
        (CodeProgram(seconds=0.0), r"code-program\.seconds 0"),
    ],
)
def test_what_makes_no_sense(stage, message):
    with pytest.raises(BadRecipe, match=message):
        ran(CODES, stage)


def test_nothing_to_choose_for():
    with pytest.raises(BadRecipe, match="no layer is to have integers or trellis codes"):
        ran(Assign(act=Act(Int(8))), CodeProgram())
