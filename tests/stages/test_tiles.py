"""Trellis codes with errors passed on: against plain search, under Hessians that reward it, and what is stored."""

from functools import partial

import jobs
import pytest
import torch
from torch import Tensor

from dither.errors import BadRecipe
from dither.numerics import decode, encode, validate
from dither.spec import Act, Int, Trellis
from dither.stages import Assign, Gptq, Ranges, Rotate, Rtn, Smooth
from dither.stages.columns import factor
from dither.stages.tiles import round_tiles

FMT = Trellis(2, 8, 4, 8)


def gauss(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def correlated(k: int) -> Tensor:
    """A Hessian with few strong directions."""
    x = gauss(4 * k, k, seed=1) * torch.arange(1, k + 1).pow(-0.75)
    turned = x @ torch.linalg.qr(gauss(k, k, seed=2)).Q
    return turned.T @ turned / len(x)


def rounded(w: Tensor, h: Tensor, fmt: Trellis = FMT):
    return round_tiles(w, h, fmt, partial(factor, damp=0.01, rows=10**6))[0]


def cost(gap: Tensor, h: Tensor) -> float:
    return float((gap @ h).mul(gap).sum())


def test_without_correlation_it_is_the_plain_search() -> None:
    w = gauss(8, 32)
    assert torch.equal(rounded(w, torch.eye(32)).tensors["codes"], encode(w, FMT)["codes"])


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_what_is_passed_on_lowers_the_error(bits: int) -> None:
    w, h, fmt = gauss(16, 64), correlated(64), Trellis(bits, 8, 4, 8)
    plain = decode(encode(w, fmt), fmt, w.shape)
    found = rounded(w, h, fmt)
    assert found.error < 0.7 * cost(w - plain, h)
    assert found.error == pytest.approx(cost(w - found.values, h), rel=1e-4)


def test_what_it_says_is_what_is_stored() -> None:
    w = gauss(8, 32) * torch.tensor([1.0, 1e-4, 50.0, 0.0, 1.0, 1.0, 2.0, 3.0])[:, None]
    found = rounded(w, correlated(32))
    validate(found.tensors, FMT, w.shape)
    torch.testing.assert_close(decode(found.tensors, FMT, w.shape), found.values)
    assert bool((found.values[3] == 0).all())


def test_each_row_has_the_scale_that_is_best_under_the_hessian() -> None:
    w, h = gauss(8, 32), correlated(32)
    found = rounded(w, h)
    for factor_of_all in (0.97, 1.03):
        assert cost(w - found.values * factor_of_all, h) > found.error


# --- as a stage

CODES = Assign(weight=Trellis(2, 8), adaln=Trellis(2, 8), act=Act(Int(8)), fit=True)


def ran(*stages):
    job = jobs.job(jobs.pipeline().transformer)
    with torch.no_grad():
        for stage in stages:
            stage.run(job)
    return job


def test_gptq_rounds_every_layer_of_trellis_codes_and_notes_a_smaller_error() -> None:
    plain, made = ran(CODES, Rtn(), Ranges()), ran(CODES, Gptq(walk=False), Rtn(), Ranges())
    assert made.done == set(made.specs)
    assert all("gptq" in made.notes[name] for name in made.specs)
    assert made.finish().layers == plain.finish().layers
    name = "transformer_blocks.0.ff.net.2"  # of several blocks of columns
    assert 0 < made.notes[name]["gptq"]["error"] < 1
    assert not torch.equal(
        made.model.get_submodule(name).get_buffer("weight_codes"),
        plain.model.get_submodule(name).get_buffer("weight_codes"),
    )


def test_it_is_closer_than_the_plain_search_behind_rotations() -> None:
    def error(*stages) -> float:
        job, exact = ran(*stages), jobs.pipeline().transformer
        with torch.no_grad():
            gaps = [
                (job.model(*c.args, **c.kwargs)[0] - exact(*c.args, **c.kwargs)[0]).square().mean()
                for c in jobs.calls()
            ]
        return float(torch.stack(gaps).mean())

    assert error(Rotate(skip=True), CODES, Gptq(), Rtn(), Ranges()) < error(CODES, Rtn(), Ranges())


def test_tiles_are_fitted_or_refused() -> None:
    job = ran(Assign(weight=Trellis(2, 8, 16, 24), fit=True))
    widths = {name: job.dense(name).shape for name in job.specs if job.specs[name].weight is not None}
    for name, (rows, columns) in widths.items():
        fmt = job.specs[name].weight
        assert rows % fmt.rows == columns % fmt.columns == 0
        assert (fmt.rows, fmt.columns) == (16, 8)
    with pytest.raises(BadRecipe, match="too small for trellis1 L16 1x17"):
        ran(Assign(weight=Trellis(1, 16, 1, 17), fit=True))


def test_stages_that_choose_ranges_leave_trellis_codes_alone() -> None:
    job = ran(Smooth(alpha=0.5), CODES, Rtn(), Ranges())
    assert not job.grids
