"""The rules against what diffusers' schedulers themselves take for the predicted picture."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from dither.measure.x0 import clean_rules

STEPS = 7
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers on numpy 2


def noise(seed):
    return torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def rules_of(scheduler):
    scheduler.set_timesteps(STEPS)
    rules, reason = clean_rules(scheduler, [float(t) for t in scheduler.timesteps])
    assert (len(rules), reason) == (STEPS, None)
    return rules


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler]
)
def test_as_the_scheduler_reports_it(scheduler, kind):
    if (scheduler, kind) == (EulerAncestralDiscreteScheduler, "sample"):
        pytest.skip("diffusers has not implemented it")
    plain = {"clip_sample": False} if scheduler in (DDIMScheduler, DDPMScheduler) else {}
    made = scheduler(prediction_type=kind, timestep_spacing="trailing", **plain)
    rules, x = rules_of(made), noise(0) * made.init_noise_sigma
    for i, t in enumerate(made.timesteps):
        f = noise(i + 1)
        made.scale_model_input(x, t)
        given = made.step(f, t, x, generator=torch.Generator().manual_seed(i)) if i else made.step(f, t, x)
        torch.testing.assert_close(rules[i](x, f).float(), given.pred_original_sample, rtol=1e-4, atol=1e-4)
        x = given.prev_sample


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow_prediction"])
@pytest.mark.parametrize("scheduler", [DPMSolverMultistepScheduler, UniPCMultistepScheduler, DEISMultistepScheduler])
def test_as_the_solver_converts_it(scheduler, kind):
    made = scheduler(prediction_type=kind, use_flow_sigmas=kind == "flow_prediction")
    rules, x = rules_of(made), noise(0)
    for i, t in enumerate(made.timesteps):
        f = noise(i + 1)
        after = made.step(f, t, x).prev_sample
        latest = made.model_outputs[-1]  # the predicted picture, but for DEIS the predicted noise
        if scheduler is DEISMultistepScheduler:
            s = float(made.sigmas[i])
            alpha, sigma = (1 - s, s) if kind == "flow_prediction" else (1 / (1 + s * s) ** 0.5, s / (1 + s * s) ** 0.5)
            latest = (x - sigma * latest) / alpha
        torch.testing.assert_close(rules[i](x, f).float(), latest, rtol=1e-3, atol=1e-3)
        x = after


def test_flow_matching_points_from_noise_to_the_picture():
    made = FlowMatchEulerDiscreteScheduler()
    rules, x0, eps = rules_of(made), noise(0), noise(1)
    for rule, s in zip(rules, made.sigmas, strict=False):
        torch.testing.assert_close(rule((1 - s) * x0 + s * eps, eps - x0).float(), x0, rtol=1e-4, atol=1e-4)


def test_what_is_not_known_is_not_guessed():
    made = HeunDiscreteScheduler()
    made.set_timesteps(3)
    assert clean_rules(made, [999.0]) == ((), "how HeunDiscreteScheduler scales its states is not known")
    zero = DDIMScheduler(rescale_betas_zero_snr=True)
    rules, reason = clean_rules(zero, [999.0, 0.0])
    assert rules == ()
    assert "alpha 0" in reason
    mixed = UniPCMultistepScheduler(use_flow_sigmas=True)
    mixed.set_timesteps(3)
    assert "mixes flow sigmas" in clean_rules(mixed, [1.0])[1]
