"""Errors passed on from output to output: what is gained, by its own measure and in a model, and what is refused."""

from functools import partial

import jobs
import pytest
import torch
from torch import Tensor

import dither
from dither import zoo
from dither.errors import BadRecipe
from dither.numerics import dynamic_grid, from_codes, pack_int
from dither.quantization import record_calls
from dither.spec import Bits, Gaussian, Int, Recipe, Trellis
from dither.stages import Assign, Gptq, Rotate, Rtn, describe
from dither.stages.columns import factor, round_columns
from dither.stages.outputs import Part, round_by_outputs
from dither.stages.tiles import round_tiles
from dither.store import open_store

N, K = 24, 32


def gauss(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def moments(width: int, seed: int) -> Tensor:
    """Of strongly correlated channels."""
    x = gauss(4 * width, 6, seed=seed) @ gauss(6, width, seed=seed + 1) + 0.3 * gauss(4 * width, width, seed=seed + 2)
    return x.T @ x / len(x)


W, H, G = gauss(N, K, seed=0), moments(K, 1), moments(N, 2)


def integers(h: Tensor, w: Tensor) -> Part:
    fmt = Int(3, False)
    made, _ = round_columns(
        w, h, fmt, partial(factor, damp=0.01, rows=999), lambda g, f, d: dynamic_grid(g, f), 8, False
    )
    return Part(pack_int(made.codes, made.scale, made.zero, fmt), from_codes(made.codes, made.scale, made.zero, fmt))


def tiles(fmt: Gaussian | Trellis, h: Tensor, w: Tensor) -> Part:
    made, _ = round_tiles(w, h, fmt, partial(factor, damp=0.01, rows=999))
    return Part(made.tensors, made.values)


WAYS = {
    "integers": (integers, 1),
    "integers, four at a time": (integers, 4),
    "an uneven rest": (integers, 7),
    "words": (partial(tiles, Gaussian(4, 256)), 2),
    "trellis": (partial(tiles, Trellis(2, 8, 4, 4)), 4),
}


def loss(values: Tensor, g: Tensor, h: Tensor) -> float:
    gap = W - values
    return float(((g @ gap @ h) * gap).sum())


@pytest.mark.parametrize(("round_rows", "rows"), WAYS.values(), ids=WAYS)
def test_the_error_that_counts_is_less(round_rows, rows):
    how = partial(round_rows, H)
    passed = round_by_outputs(W, factor(G, 0.01, 999).u, rows, how)
    assert loss(passed.values, G, H) < 0.8 * loss(how(W).values, G, H)
    assert passed.values.shape == W.shape


@pytest.mark.parametrize(("round_rows", "rows"), WAYS.values(), ids=WAYS)
def test_outputs_that_have_nothing_to_do_with_each_other_are_rounded_by_themselves(round_rows, rows):
    how = partial(round_rows, H)
    passed, plain = round_by_outputs(W, torch.eye(N), rows, how), how(W)
    assert torch.equal(passed.values, plain.values)
    assert {k: t.tolist() for k, t in passed.tensors.items()} == {k: t.tolist() for k, t in plain.tensors.items()}


def test_errors_go_to_later_rows_as_the_inverse_says():
    """Two rows by hand: the second takes -G_21 / G_22 of the first one's error, which is the minimum."""
    g, w = torch.tensor([[2.0, 1.0], [1.0, 3.0]]), torch.tensor([[0.4], [5.0]])
    seen = []

    def whole(part: Tensor) -> Part:
        seen.append(part.clone())
        return Part({"x": part.round()}, part.round())

    u = torch.linalg.cholesky(torch.linalg.inv(g), upper=True)
    round_by_outputs(w, u, 1, whole)
    torch.testing.assert_close(seen[1], torch.tensor([[5.0 + 0.4 / 3]]))


def made(stage, assign, store=None, progress=None, seed=0):
    recipe = Recipe("test", "", Bits(2, None), describe((Rotate(), assign, stage)))
    how = dither.Calibration(samples=8, steps=4)
    return dither.quantize(
        jobs.pipeline(), recipe, calibration=how, store=store, progress=progress, seed=seed
    ).transformer


def error(model) -> float:
    exact = jobs.outputs(jobs.pipeline().transformer)
    return float((jobs.outputs(model) - exact).square().mean())


ASSIGNS = {
    "integers": Assign(weight=Int(3), adaln=Int(3)),
    "words": Assign(weight=Gaussian(4, 256), adaln=Gaussian(4, 256)),
}


@pytest.mark.parametrize("assign", ASSIGNS.values(), ids=ASSIGNS)
def test_the_model_answers_better(assign):
    passed, plain = (
        sum(error(made(stage, assign, seed=seed)) for seed in range(3)) for stage in (Gptq(outputs=4), Gptq())
    )
    assert passed < plain


def test_a_trained_model_in_trellis_codes_answers_much_better():
    pipe = zoo.load("digits")
    unseen = record_calls(pipe, calibration=dither.Calibration(samples=8, steps=5), seed=1)

    def answers(model):
        with torch.no_grad():
            return torch.cat([model(*call.args, **call.kwargs)[0] for call in unseen])

    want, found = answers(pipe.transformer), {}
    for outputs in (0, 16):
        stages = (Rotate(skip=True), Assign(weight=Trellis(2, 8), adaln=Trellis(2, 8), fit=True), Gptq(outputs=outputs))
        made = dither.quantize(zoo.load("digits"), Recipe("test", "", Bits(2, None), describe((*stages, Rtn()))))
        found[outputs] = float((answers(made.transformer) - want).square().mean())
    assert found[16] < 0.8 * found[0]


def test_outputs_that_nothing_depends_on_are_rounded_by_themselves():
    """As those of an untrained adaLN-Zero model, whose gates are 0."""
    pipes = [jobs.pipeline() for _ in range(2)]
    for pipe in pipes:
        for block in pipe.transformer.transformer_blocks:
            for tensor in (block.norm1.linear.weight, block.norm1.linear.bias):
                tensor.data.zero_()
    name = "transformer_blocks.0.ff.net.0.proj"
    found = []
    for pipe, outputs in zip(pipes, (0, 4), strict=True):
        recipe = Recipe("test", "", Bits(2, None), describe((Assign(weight=Int(3)), Gptq(outputs=outputs, walk=False))))
        how = dither.Calibration(samples=4, steps=2)
        found.append(dither.quantize(pipe, recipe, calibration=how).transformer.get_submodule(name).stored())
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_an_interrupted_run_goes_on(tmp_path):
    def stop(what, i, n):
        if what == "rounding by GPTQ" and i == 5:
            raise KeyboardInterrupt

    stage, store = Gptq(outputs=4, tokens=64), open_store(tmp_path / "out", {}, resume=False)
    with pytest.raises(KeyboardInterrupt):
        made(stage, ASSIGNS["words"], store, stop)
    assert jobs.same_tensors(made(stage, ASSIGNS["words"], store), made(stage, ASSIGNS["words"]))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(BadRecipe, match=r"gptq\.outputs 4: layer '.*' has one range for the whole tensor"):
        made(Gptq(outputs=4), Assign(weight=Int(4, group=-1)))
    with pytest.raises(BadRecipe, match=r"gptq\.outputs -1"):
        made(Gptq(outputs=-1), ASSIGNS["words"])
    with pytest.raises(BadRecipe, match=r"gptq\.tokens 0|gptq\.rows 0"):
        made(Gptq(outputs=4, tokens=0), ASSIGNS["words"])
