"""Tuning as a stage: what it gains for every format, what it leaves alone, interruptions, and what is refused."""

import jobs
import pytest
import tiny
import torch

import dither
from dither.checkpoint import header_of
from dither.errors import BadRecipe
from dither.models.base import linear_at
from dither.spec import Act, Bits, Codebook, Gaussian, Int, Recipe, Trellis
from dither.stages import Assign, Gptq, Ranges, Rotate, Rtn, Teacher, Tune, Widen, describe
from dither.store import open_store

HOW = dither.Calibration(samples=4, steps=2)
SHORT = {"trajectories": 6, "samples": 3, "steps": 4, "refresh": 2, "lr": 0.02, "lr_scale": 0.01, "lr_bias": 0.01}
FRONT = (Teacher(), Rotate())
LAYER = "transformer_blocks.0.ff.net.0.proj"
FORMATS = {
    "int": Assign(weight=Int(3), adaln=Int(3)),
    "int with inputs": Assign(weight=Int(3, False, 8), act=Act(Int(8)), adaln=Int(3)),
    "static": Assign(weight=Int(3), act=Act(Int(8, False), static=True), adaln=Int(3), time_groups=2),
    "codebook": Assign(weight=Codebook(4, 16), adaln=Codebook(4, 16)),
    "codebook half": Assign(weight=Codebook(4, 16, half=True), adaln=Codebook(4, 16)),
    "gaussian": Assign(weight=Gaussian(4, 256), adaln=Gaussian(4, 256)),
    "trellis": Assign(weight=Trellis(2, 8, 4, 4), adaln=Trellis(2, 8, 4, 4)),
}


def made(assign, *stages, front=FRONT, store=None, progress=None):
    recipe = Recipe("test", "", Bits(2, None), describe((*front, assign, Rtn(), *stages, Ranges())))
    pipe = jobs.pipeline()
    return dither.quantize(pipe, recipe, calibration=HOW, store=store, progress=progress).transformer


def error(model) -> float:
    exact = jobs.outputs(jobs.pipeline().transformer)
    return float((jobs.outputs(model) - exact).square().mean())


@pytest.mark.parametrize("name", FORMATS)
def test_it_gains_whatever_the_format(name):
    assert error(made(FORMATS[name], Tune(**SHORT))) < 0.8 * error(made(FORMATS[name]))


def test_codes_scales_and_biases_are_switches():
    plain = linear_at(made(FORMATS["int"]), LAYER)
    for field, tensor in (("lr", "codes"), ("lr_scale", "scale"), ("lr_bias", "bias")):
        off = {"lr": 0.0, "lr_scale": 0.0, "lr_bias": 0.0, field: 0.05}
        tuned = linear_at(made(FORMATS["int"], Tune(**{**SHORT, **off})), LAYER)
        same = {k: torch.equal(tuned.stored()[k], plain.stored()[k]) for k in ("codes", "scale")}
        same["bias"] = torch.equal(tuned.bias, plain.bias)
        assert same == {"codes": tensor != "codes", "scale": tensor != "scale", "bias": tensor != "bias"}


def test_codes_of_a_codebook_learn_with_its_words():
    plain, tuned = (linear_at(made(FORMATS["codebook"], *s), LAYER).stored() for s in ((), (Tune(**SHORT),)))
    assert not torch.equal(plain["codebook"], tuned["codebook"])


def test_it_follows_gptq_too():
    front = (Teacher(), Rotate(), FORMATS["trellis"], Gptq())
    recipes = [Recipe("test", "", Bits(2, None), describe((*front, *rest))) for rest in ((), (Tune(**SHORT),))]
    errors = [error(dither.quantize(jobs.pipeline(), r, calibration=HOW).transformer) for r in recipes]
    assert errors[1] < 0.8 * errors[0]


TIMED = Assign(weight=Int(3), adaln=Int(3), time_groups=3, branches=2)


def test_layers_that_are_named_get_a_bias_for_each_noise_level(tmp_path):
    """Codes and scales stay; what is left is a mean error that changes with the noise level."""
    still = {**SHORT, "trajectories": 12, "lr": 0.0, "lr_scale": 0.0, "lr_words": 0.0}
    plain, timed = (made(TIMED, Tune(**still, time_bias=pattern)) for pattern in ("", r"ff\.net\.2|proj"))
    assert error(timed) < 0.95 * error(plain)
    specs = header_of(timed).plan.layers
    assert {name for name, spec in specs.items() if spec.time_bias} == {n for n in specs if ".ff.net." in n}
    layer = timed.get_submodule(LAYER)
    assert layer.get_buffer("time_bias").shape == (6, layer.out_features)
    dither.save(timed, tmp_path / "saved")
    assert torch.equal(jobs.outputs(dither.load(tmp_path / "saved")), jobs.outputs(timed))


def test_an_interrupted_tuning_of_biases_by_noise_level_goes_on(tmp_path):
    stage = Tune(**{**SHORT, "trajectories": 3}, time_bias="net.2", keep=1)

    def stop(what, i, n):
        if what == "tuning" and i == 2:
            raise KeyboardInterrupt

    store = open_store(tmp_path / "out", {}, resume=False)
    with pytest.raises(KeyboardInterrupt):
        made(TIMED, stage, store=store, progress=stop)
    assert jobs.same_tensors(made(TIMED, stage, store=store), made(TIMED, stage))


def test_without_noise_levels_there_is_no_bias_for_each():
    with pytest.raises(BadRecipe, match=r"tune\.time_bias: .* set assign\.time_groups"):
        made(FORMATS["int"], Tune(**SHORT, time_bias="net.2"))
    with pytest.raises(BadRecipe, match=r"tune\.time_bias 'nett' is found in no layer's name"):
        made(TIMED, Tune(**SHORT, time_bias="nett"))


@pytest.mark.parametrize("after", [1, 4])
def test_an_interrupted_tuning_goes_on_and_ends_the_same(after, tmp_path):
    stage, reached = Tune(**SHORT, keep=1), []

    def stop(what, i, n):
        if what == "tuning" and i == after + 1:
            raise KeyboardInterrupt

    whole = made(FORMATS["gaussian"], stage)
    store = open_store(tmp_path / "out", {}, resume=False)
    with pytest.raises(KeyboardInterrupt):
        made(FORMATS["gaussian"], stage, store=store, progress=stop)
    again = made(
        FORMATS["gaussian"], stage, store=store, progress=lambda w, i, n: reached.append(i) if w == "tuning" else None
    )
    assert reached[0] == after + 1
    assert jobs.same_tensors(again, whole)
    reached.clear()
    third = made(
        FORMATS["gaussian"], stage, store=store, progress=lambda w, i, n: reached.append(i) if w == "tuning" else None
    )
    assert not reached  # finished, and kept
    assert jobs.same_tensors(third, whole)


def test_layers_that_change_over_time_are_left_alone():
    assign = Assign(weight=Int(4), act=Act(Int(8)), adaln=Int(4))
    wider = Widen(layers="ff.net.0", ranges=4, at=(0, 3), weight=8)
    recipes = [
        Recipe("test", "", Bits(4, 8), describe((Teacher(), assign, wider, Rtn(), *rest)))
        for rest in ((), (Tune(**SHORT),))
    ]
    plain, tuned = (dither.quantize(jobs.pipeline(), r, calibration=HOW).transformer for r in recipes)
    assert tiny.same_state(linear_at(plain, LAYER), linear_at(tuned, LAYER))
    other = LAYER.replace("net.0.proj", "net.2")
    assert not tiny.same_state(linear_at(plain, other), linear_at(tuned, other))


def test_nothing_rounded_is_nothing_to_tune():
    job = jobs.run((Teacher(), Assign(weight=Int(4)), Tune(**SHORT)), jobs.pipeline().transformer)
    assert not job.done


def test_it_needs_a_teacher():
    with pytest.raises(BadRecipe, match="put 'teacher' first in the recipe"):
        made(FORMATS["int"], Tune(**SHORT), front=())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trajectories": 0}, r"tune\.trajectories 0"),
        ({"lr": -1.0}, r"tune\.lr -1"),
        ({"refresh": 0}, r"tune\.refresh 0"),
        ({"own": 2.0}, r"tune\.own 2"),
        ({"keep": 0}, r"tune\.keep 0"),
    ],
)
def test_fields_that_make_no_sense(fields, message):
    with pytest.raises(BadRecipe, match=message):
        made(FORMATS["int"], Tune(**{**SHORT, **fields}))


def test_no_gradients_are_left_and_parameters_learn_as_before():
    model = made(FORMATS["int"], Tune(**SHORT))
    assert all(p.grad is None for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())
