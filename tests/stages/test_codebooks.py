"""VQ4DiT as a stage: what it gains, its switches, both ways to the end, interruptions, and what is refused."""

import jobs
import pytest
import torch

import dither
from dither.errors import BadFormat, BadRecipe, BadValue
from dither.models.base import linear_at
from dither.numerics import decode, encode, encode_codebook, unpack_indices
from dither.spec import Bits, Codebook, Int, Recipe
from dither.stages import Assign, Codebooks, Ranges, Rtn, describe
from dither.store import open_store

WORDS = Assign(weight=Codebook(4, 16), adaln=Codebook(4, 16))
SHORT = {"trajectories": 4, "samples": 3, "steps": 4, "finish": 1, "lr_ratios": 0.5, "lr_words": 1e-3}
HOW = dither.Calibration(samples=4, steps=2)
LAYER = "transformer_blocks.0.ff.net.0.proj"


def made(*stages, store=None, progress=None, seed=0):
    recipe = Recipe("test", "", Bits(2, None), describe((WORDS, *stages, Rtn(), Ranges())))
    pipe = jobs.pipeline()
    return dither.quantize(pipe, recipe, calibration=HOW, store=store, progress=progress, seed=seed).transformer


def error(model) -> float:
    exact = jobs.outputs(jobs.pipeline().transformer)
    return float((jobs.outputs(model) - exact).square().mean())


def notes(model) -> dict:
    return dither.checkpoint.header_of(model).recipe["notes"]


def test_assignments_gain_most_words_and_biases_some():
    plain, words = error(made()), error(made(Codebooks(candidates=1, **SHORT)))
    whole = error(made(Codebooks(**SHORT)))
    assert words < plain
    assert whole < 0.8 * words


def test_without_candidates_assignments_are_those_of_k_means():
    model = made(Codebooks(candidates=1, iterations=7, **SHORT))
    layer, w = linear_at(model, LAYER), jobs.pipeline().transformer.get_submodule(LAYER).weight.data
    begin = encode_codebook(w, Codebook(4, 16), iterations=7, sampled=False)
    assert torch.equal(layer.stored()["codes"], begin["codes"])
    assert not torch.equal(layer.stored()["codebook"], begin["codebook"])
    assert not torch.equal(layer.bias, jobs.pipeline().transformer.get_submodule(LAYER).bias)


@pytest.mark.parametrize(
    "how",
    [
        {"progressive": True, "settled": 0.7, "share": 0.5},
        {"progressive": False, "threshold": 0.2, "absolute": True},
        {"progressive": False, "threshold": 0.0},  # never: what is soft at the end is hardened there
    ],
    ids=["one by one", "all at once", "at the end"],
)
def test_every_way_ends_with_codes(how):
    model = made(Codebooks(**{**SHORT, **how}))
    winners = notes(model)[LAYER]["codebooks"]["winners"]
    assert len(winners) == 2
    assert sum(winners) == pytest.approx(1, abs=1e-3)
    assert winners[1] > 0
    assert error(model) < error(made())
    layer = linear_at(model, LAYER)
    codes = unpack_indices(layer.stored(), layer.spec.weight, layer.in_features)
    assert int(codes.max()) < 16
    w = decode(layer.stored(), layer.spec.weight, layer.shape)
    assert torch.equal(w, layer.dequantized())


def test_words_wait_for_their_assignments_or_do_not():
    """With the release's order, words of layers that are still soft do not move."""
    begin = encode_codebook(
        jobs.pipeline().transformer.get_submodule(LAYER).weight.data, Codebook(4, 16), iterations=100, sampled=False
    )["codebook"]
    soft = {**SHORT, "trajectories": 1, "lr_ratios": 1e-6}
    later = linear_at(made(Codebooks(**soft)), LAYER).stored()["codebook"]
    assert torch.equal(later, begin)
    together = linear_at(made(Codebooks(progressive=False, threshold=0.0, **soft)), LAYER).stored()["codebook"]
    assert not torch.equal(together, begin)


def test_learned_words_are_stored_in_float16_where_the_format_says_so(tmp_path):
    half = Assign(weight=Codebook(4, 16, half=True), adaln=Codebook(4, 16))
    recipe = Recipe("test", "", Bits(2, None), describe((half, Codebooks(**SHORT), Rtn())))
    model = dither.quantize(jobs.pipeline(), recipe, calibration=HOW).transformer
    assert linear_at(model, LAYER).stored()["codebook"].dtype == torch.float16
    assert error(model) < 1.05 * error(made(Codebooks(**SHORT)))
    dither.save(model, tmp_path / "saved")
    for dtype in (None, torch.bfloat16):
        again = type(model).from_pretrained(tmp_path / "saved", torch_dtype=dtype)
        words = [linear_at(m, LAYER).stored()["codebook"] for m in (again, model)]
        assert torch.equal(*words)
        assert words[0].dtype == torch.float16


def test_it_stops_when_all_is_made_and_finished():
    seen = []
    stage = Codebooks(**{**SHORT, "trajectories": 9, "settled": 0.5, "share": 0.0, "finish": 2})
    made(stage, progress=lambda what, i, n: seen.append(i) if "assignments" in what else None)
    assert seen == [1, 2, 3]  # hard after the first, then two more


@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_calibration_goes_on_and_ends_the_same(after, tmp_path):
    stage, reached = Codebooks(**{**SHORT, "settled": 0.8, "share": 0.5, "finish": 9}), []

    def stop(what, i, n):
        if what == "calibrating assignments":
            reached.append(i)
            if i == after + 1:
                raise KeyboardInterrupt

    whole = made(stage)
    store = open_store(tmp_path / "out", {}, resume=False)
    with pytest.raises(KeyboardInterrupt):
        made(stage, store=store, progress=stop)
    reached.clear()
    again = made(stage, store=store, progress=lambda what, i, n: reached.append(i) if "assign" in what else None)
    assert reached[0] == after + 1
    assert jobs.same_tensors(again, whole)


def test_what_was_interrupted_after_the_calibration_is_not_calibrated_further(tmp_path):
    stage = Codebooks(**{**SHORT, "settled": 0.5, "share": 0.0, "finish": 1, "trajectories": 9})
    store, reached = open_store(tmp_path / "out", {}, resume=False), []
    whole = made(stage, store=store)
    (store.folder / f"{LAYER}.safetensors").unlink()
    again = made(stage, store=store, progress=lambda what, i, n: reached.append(i) if "assign" in what else None)
    assert not reached
    assert jobs.same_tensors(again, whole)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"candidates": 0}, r"codebooks\.candidates 0"),
        ({"candidates": 17}, "codebooks.candidates 17: layer '.*' has only 16 words"),
        ({"trajectories": 0}, r"codebooks\.trajectories 0"),
        ({"settled": 0.3}, r"codebooks\.settled 0\.3"),
        ({"steps": 0}, r"codebooks\.steps 0"),
        ({"keep": 0}, r"codebooks\.keep 0"),
    ],
)
def test_fields_that_make_no_sense(fields, message):
    with pytest.raises(BadRecipe, match=message):
        made(Codebooks(**{**SHORT, **fields}))


def test_it_comes_before_other_rounding():
    job = jobs.job(jobs.pipeline().transformer)
    with torch.no_grad():
        Assign(weight=Codebook(4, 16), adaln=Int(8)).run(job)
        first = "transformer_blocks.0.norm1.linear"
        job.commit(first, lambda: encode(job.dense(first), Int(8)))
        with pytest.raises(BadRecipe, match="put 'codebooks' before it"):
            Codebooks(**SHORT).run(job)


def test_other_formats_are_left_alone():
    job = jobs.job(jobs.pipeline().transformer)
    with torch.no_grad():
        Assign(weight=Int(4)).run(job)
        Codebooks(**SHORT).run(job)
    assert not job.done


def test_a_network_alone_needs_a_sampler():
    recipe = Recipe("test", "", Bits(2, None), describe((WORDS, Codebooks(**SHORT))))
    with pytest.raises(BadValue, match="give it a pipeline, or run="):
        dither.quantize(jobs.pipeline().transformer, recipe)


@pytest.mark.parametrize("own", ["run", "calls"])
def test_it_follows_a_callers_own_sampler_or_calls(own):
    pipe = jobs.pipeline()
    given = {"run": lambda: jobs.sample(pipe)} if own == "run" else {"calls": jobs.calls()}
    recipe = Recipe("test", "", Bits(2, None), describe((WORDS, Codebooks(**SHORT))))
    dither.quantize(pipe.transformer, recipe, **given)
    assert error(pipe.transformer) < error(made())


@pytest.mark.parametrize(
    ("fmt", "message"),
    [(Codebook(3, 16), "sub-vector length 3 does not divide"), (Codebook(4, 512), "512 words for .* sub-vectors")],
)
def test_formats_that_do_not_fit_are_refused(fmt, message):
    recipe = Recipe("test", "", Bits(2, None), describe((Assign(weight=fmt), Codebooks(**SHORT))))
    with pytest.raises(BadFormat, match=message):
        dither.quantize(jobs.pipeline(), recipe)


def test_no_gradients_are_left_and_parameters_learn_as_before():
    model = made(Codebooks(**SHORT))
    assert all(p.grad is None for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())
