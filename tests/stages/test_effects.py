"""What errors of the denoiser do to the final sample, against closed forms of samplers."""

import math
from itertools import pairwise

import jobs
import pytest
import tiny
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)

import dither
from dither.errors import BadRecipe, BadValue
from dither.quantization import plan_ahead
from dither.recipes import get
from dither.stages import Assign, Job, Rtn
from dither.stages.effects import Effects, effects, row_weights
from dither.stages.needs import Sampling

LINEAR = {"beta_schedule": "linear", "timestep_spacing": "trailing"}
NO_ANSWER = math.inf


def alphas(scheduler, steps: int) -> list[float]:
    """Cumulative alphas at each step from the first, and 1 at the end (of DDIM if steps divide 1000)."""
    scheduler.set_timesteps(steps)
    return [*(float(scheduler.alphas_cumprod[int(t)]) for t in scheduler.timesteps), 1.0]


def sizes(scheduler, steps: int, variance: float = 1.0) -> list[float]:
    """In the order of sampling."""
    return effects(scheduler, steps, 1.5, variance).sizes.flip(0).tolist()


@pytest.mark.parametrize("variance", [NO_ANSWER, 1.0, 0.3])
def test_ddim_is_a_product_of_its_coefficients(variance):
    """x' = c x + b e with c = sqrt(a'/a), b = sqrt(1 - a') - c sqrt(1 - a), and e = r x of the network."""
    scheduler = DDIMScheduler(**LINEAR)
    steps = []
    for a, after in pairwise(alphas(scheduler, 8)):
        c, r = math.sqrt(after / a), math.sqrt(1 - a) / (variance * a + 1 - a)
        b = math.sqrt(1 - after) - c * math.sqrt(1 - a)
        steps.append((b, c + b * r))
    want = [abs(b) * math.prod(m for _, m in steps[i + 1 :]) for i, (b, _) in enumerate(steps)]
    assert sizes(scheduler, 8, variance) == pytest.approx(want, rel=1e-4)


def test_without_an_answer_ddim_counts_differences_of_noise_to_signal():
    scheduler = DDIMScheduler(**LINEAR)
    ratio = [math.sqrt((1 - a) / a) for a in alphas(scheduler, 10)]
    found = sizes(scheduler, 10, NO_ANSWER)
    assert found == pytest.approx([a - b for a, b in pairwise(ratio)], rel=1e-4)
    assert found[0] > 100 * found[-1]
    assert sizes(scheduler, 10)[0] < 10 * sizes(scheduler, 10)[-1]


@pytest.mark.parametrize("variance", [NO_ANSWER, 1.0])
def test_ddpm_is_free_of_its_own_noise(variance):
    """x' = c0 x0 + c x + noise with x0 = (x - sqrt(1 - a) e) / sqrt(a): the posterior's mean (arXiv 2006.11239, eq. 7)."""
    scheduler = DDPMScheduler(**LINEAR)
    steps = []
    for a, after in pairwise(alphas(scheduler, 8)):
        beta = 1 - a / after
        c0, c = math.sqrt(after) * beta / (1 - a), math.sqrt(1 - beta) * (1 - after) / (1 - a)
        b, r = -c0 * math.sqrt(1 - a) / math.sqrt(a), math.sqrt(1 - a) / (variance * a + 1 - a)
        steps.append((b, c + c0 / math.sqrt(a) + b * r))
    want = [abs(b) * math.prod(m for _, m in steps[i + 1 :]) for i, (b, _) in enumerate(steps)]
    assert sizes(scheduler, 8, variance) == pytest.approx(want, rel=1e-3)
    assert effects(scheduler, 8, 1.5).sizes.equal(effects(scheduler, 8, 1.5).sizes)


def test_flow_is_a_product_of_its_steps():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(6)
    steps = []
    for s, after in pairwise(scheduler.sigmas.tolist()):
        r = (s - (1 - s)) / (s**2 + (1 - s) ** 2)
        steps.append((after - s, 1 + (after - s) * r))
    want = [abs(b) * math.prod(m for _, m in steps[i + 1 :]) for i, (b, _) in enumerate(steps)]
    assert sizes(scheduler, 6) == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize(
    ("predicts", "factor"),
    [("v_prediction", math.sqrt), ("sample", lambda a: math.sqrt(a / (1 - a)))],
)
def test_what_is_predicted_only_changes_the_unit_of_an_error(predicts, factor):
    """e = a v + s x, and e = (x - a x0) / s: an error of v is one of e times a, and one of x0 times a / s."""
    noise, other = (DDIMScheduler(**LINEAR, prediction_type=p) for p in ("epsilon", predicts))
    scale = [factor(a) for a in alphas(noise, 6)[:-1]]
    want = [size * f for size, f in zip(sizes(noise, 6), scale, strict=True)]
    assert sizes(other, 6) == pytest.approx(want, rel=1e-4)


DIFFUSERS = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
"""Some schedulers make NumPy arrays of tensors by an old way."""


@DIFFUSERS
@pytest.mark.parametrize(
    ("kind", "more"),
    [(EulerDiscreteScheduler, {}), (DPMSolverMultistepScheduler, {"solver_order": 1, "final_sigmas_type": "zero"})],
)
def test_one_sampler_in_other_words_has_the_same_effects(kind, more):
    assert sizes(kind(**LINEAR, **more), 8) == pytest.approx(sizes(DDIMScheduler(**LINEAR), 8), rel=1e-3)


SCHEDULERS = {
    "dpm-solver": (DPMSolverMultistepScheduler, LINEAR),
    "dpm-solver sde": (DPMSolverMultistepScheduler, {**LINEAR, "algorithm_type": "sde-dpmsolver++"}),
    "euler ancestral": (EulerAncestralDiscreteScheduler, LINEAR),
    "heun": (HeunDiscreteScheduler, {"beta_schedule": "linear"}),
}


def final(scheduler, steps: int, start: torch.Tensor, wrong: int | None) -> torch.Tensor:
    """The last sample of a loop whose denoiser is that of unit Gaussian data, wrong by 1 at one call."""
    scheduler.set_timesteps(steps)
    x, make = start.clone(), torch.Generator().manual_seed(3)
    extra = {} if isinstance(scheduler, HeunDiscreteScheduler) else {"generator": make}
    for i, t in enumerate(scheduler.timesteps):
        one, zero = torch.ones_like(x), torch.zeros_like(x)
        a, s = (float(scheduler.add_noise(*pair, t.reshape(1)).flatten()[0]) for pair in ((one, zero), (zero, one)))
        scheduler.scale_model_input(x, t)
        x = scheduler.step(s / (a * a + s * s) * x + float(i == wrong), t, x, **extra).prev_sample
    return x


@DIFFUSERS
@pytest.mark.parametrize("name", SCHEDULERS)
def test_samplers_with_memory_noise_and_two_calls_a_step(name):
    """Whole loops one by one from some noise, the same each time, with an error and without."""
    (kind, config), steps = SCHEDULERS[name], 5
    scheduler = kind(**config)
    start = torch.randn(1, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    right = final(scheduler, steps, start, None)
    calls = scheduler.timesteps.tolist()
    found: dict[float, list[float]] = {}
    for i, t in enumerate(calls):
        gap = final(scheduler, steps, start, i) - right
        torch.testing.assert_close(gap, gap.mean().expand_as(gap), rtol=1e-3, atol=1e-5)  # the same at each pixel
        found.setdefault(t / 1000, []).append(float(gap.mean()))
    want = [math.sqrt(sum(g * g for g in found[level]) / len(found[level])) for level in sorted(found)]
    got = effects(scheduler, steps, 1.0)
    assert got.levels.tolist() == pytest.approx(sorted(found))
    assert got.sizes.tolist() == pytest.approx(want, rel=1e-3, abs=1e-5)


def test_clips_and_the_pipeline_are_left_alone():
    clipped, plain = (DDIMScheduler(**LINEAR, clip_sample=c, thresholding=c) for c in (True, False))
    clipped.set_timesteps(3)
    before, random = clipped.timesteps.clone(), torch.get_rng_state()
    assert effects(clipped, 9, 1.5).sizes.equal(effects(plain, 9, 1.5).sizes)
    assert torch.equal(clipped.timesteps, before)
    assert clipped.config.clip_sample
    assert torch.equal(torch.get_rng_state(), random)


def test_rows_count_by_guidance_and_by_level():
    table = Effects(torch.tensor([0.2, 0.6]).double(), torch.tensor([1.0, 3.0]).double(), 4.0)
    levels = torch.tensor([0.2, 0.6, 0.3, 0.0, 1.0, 0.6])
    found = table.at(levels, torch.tensor([0, 0, 0, 0, 0, 1]))
    assert found.tolist() == pytest.approx([4.0, 12.0, 6.0, 4.0, 12.0, 9.0])
    for guidance in (1.0, 0.0):  # no guidance: a row of the null class is an output as any other
        one = Effects(table.levels, table.sizes, guidance).at(levels, torch.tensor([0, 1, 0, 1, 0, 1]))
        assert one.tolist() == pytest.approx([1.0, 3.0, 1.5, 1.0, 3.0, 3.0])


def job(guidance: float = 1.5, steps: int = 4) -> Job:
    made = jobs.job(jobs.pipeline().transformer)
    made.sampling = lambda: Sampling(jobs.pipeline().scheduler, steps, guidance)
    return made


@pytest.mark.parametrize("guidance", [1.5, 4.0])
def test_weights_have_mean_one_and_are_squared_effects(guidance):
    made = job(guidance)
    weights = row_weights(made, made.calls)
    assert [w.shape for w in weights] == [made.rows(c).shape for c in made.calls]
    assert float(torch.cat(weights).mean()) == pytest.approx(1, abs=1e-6)
    by_level = {}
    for call, w in zip(made.calls, weights, strict=True):
        branch = made.adapter.branch(made.model, call)
        assert set(branch.tolist()) == {0, 1}
        conditional, null = w[branch == 0], w[branch == 1]
        assert len(w.unique()) == 2
        assert float(conditional[0] / null[0]) == pytest.approx((guidance / (guidance - 1)) ** 2, rel=1e-5)
        by_level[float(made.adapter.noise_level(made.model, call)[0])] = float(conditional[0])
    table = effects(jobs.pipeline().scheduler, 4, guidance)
    assert sorted(by_level) == pytest.approx(table.levels.tolist(), abs=1e-6)
    squares = table.sizes.square()
    ratios = torch.tensor([by_level[level] for level in sorted(by_level)]).double() / squares
    torch.testing.assert_close(ratios / ratios[0], torch.ones(4).double(), rtol=1e-5, atol=0)


def test_the_pipeline_tells_its_sampler(monkeypatch):
    seen = []
    monkeypatch.setattr(Rtn, "run", lambda self, job, plain=Rtn.run: (seen.append(job), plain(self, job)))
    pipe = jobs.pipeline()
    dither.quantize(pipe, "rtn", calibration=dither.Calibration(samples=10, steps=3, guidance=2.5))
    assert seen[0].sampling() == Sampling(pipe.scheduler, 3, 2.5)
    assert float(torch.cat(row_weights(seen[0], seen[0].calls)).mean()) == pytest.approx(1, abs=1e-6)
    model = jobs.pipeline().transformer
    dither.quantize(model, "rtn", calls=jobs.calls())
    with pytest.raises(BadRecipe, match="a network alone has none: quantize a pipeline"):
        row_weights(seen[1], seen[1].calls)


def test_a_pipeline_without_a_scheduler_is_named(monkeypatch):
    class Bare(DiffusionPipeline):
        def __init__(self, transformer):
            super().__init__()
            self.register_modules(transformer=transformer)

    monkeypatch.setattr(Rtn, "run", lambda self, job: row_weights(job, job.calls))
    with pytest.raises(BadRecipe, match="Bare has no scheduler"):
        dither.quantize(Bare(tiny.dit()), "rtn", calls=jobs.calls())


def test_a_plan_needs_no_sampler(monkeypatch):
    monkeypatch.setattr(Assign, "run", lambda self, job: job.sampling())
    assert plan_ahead(jobs.pipeline(), get("rtn")).specs == {}


class Noisy(DDIMScheduler):
    """Draws from the global generator."""

    def step(self, model_output, timestep, sample, **rest):
        found = super().step(model_output, timestep, sample, **rest)
        found.prev_sample = found.prev_sample + torch.randn_like(found.prev_sample)
        return found


@pytest.mark.parametrize(
    ("scheduler", "steps", "variance", "message"),
    [
        (DDIMScheduler(), 0, 1.0, "at least 1 step and a positive variance, got 0 and 1.0"),
        (DDIMScheduler(), 5, 0.0, "got 5 and 0.0"),
        (DDIMScheduler(), 5, math.nan, "got 5 and nan"),
        (DDIMScheduler(), 2000, 1.0, "DDIMScheduler cannot take 2000 steps"),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), 5, 1.0, "FlowMatchEulerDiscreteScheduler cannot take"),
        (Noisy(), 5, 1.0, "Noisy draws noise that no generator rules"),
        (DDIMScheduler(prediction_type="colour"), 5, 1.0, "DDIMScheduler predicts 'colour'"),
        (DDIMScheduler(**LINEAR, rescale_betas_zero_snr=True), 5, math.inf, "5 steps of DDIMScheduler end in NaN"),
    ],
)  # fmt: skip
def test_bad_input_is_named(scheduler, steps, variance, message):
    with pytest.raises(BadValue, match=message):
        effects(scheduler, steps, 1.5, variance)
