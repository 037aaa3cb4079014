"""One chunk of pictures observed on a tiny pair, against the same numbers made the long way."""

import json

import jobs
import numpy as np
import pytest
import tiny
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, DiTPipeline, PNDMScheduler
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput

import dither
from dither.calibrate import record, replay
from dither.checkpoint import header_of
from dither.errors import BadModel, BadValue
from dither.evaluation.drift import DriftMeter
from dither.evaluation.layers import layer_snr
from dither.evaluation.trajectory import guide, make_targets, relative_error, score
from dither.measure.trajectory import observe_pair, summarize
from dither.measure.x0 import clean_rules
from dither.models import adapter_for
from dither.sampling import sampler_for
from dither.sources import Source

STEPS, GUIDANCE, LABELS, SEEDS = 4, 1.5, [0, 3, 7], [11, 12, 13]


def source(pipe, name="model"):
    return Source(name, pipe, pipe.transformer, adapter_for(pipe.transformer), "transformer", (), 0)


def quantized(pipe, recipe="rtn", bits="w4a8"):
    how = dither.Calibration(samples=2, steps=2, calls=4)
    return source(dither.quantize(pipe, recipe, bits, calibration=how), "small")


def with_scheduler(pipe, kind, **settings):
    pipe.scheduler = kind(beta_schedule="linear", **settings)
    return pipe


def observe(small, full, guidance=GUIDANCE, labels=LABELS, seeds=SEEDS):
    return observe_pair(small, full, labels, seeds, STEPS, guidance)


@pytest.fixture(scope="module")
def pair():
    return quantized(jobs.pipeline()), source(jobs.pipeline(), "full")


@pytest.fixture(scope="module")
def chunk(pair):
    return observe(*pair)


@pytest.fixture(scope="module")
def calls(pair):
    """Of full precision, recorded."""
    sampler = sampler_for(pair[1].pipeline, STEPS, GUIDANCE)
    return record(pair[1].model, lambda: sampler(LABELS, SEEDS))


def answers(source, calls):
    return [replay(source.model, call)[0] for call in calls]


def test_errors_are_those_of_a_replay_of_full_precisions_calls(pair, chunk, calls):
    small, full = (answers(s, calls) for s in pair)
    empty = torch.arange(6) >= 3
    for key, of in {
        "picture/error": lambda rows: guide(rows, empty, GUIDANCE),
        "picture/conditional": lambda rows: rows[:3],
        "picture/unconditional": lambda rows: rows[3:],
    }.items():
        wanted = np.stack([relative_error(of(a), of(b)) for a, b in zip(full, small, strict=True)], axis=1)
        np.testing.assert_allclose(chunk[key], wanted, rtol=1e-5)
        assert chunk[key].shape == (3, STEPS)
        assert (chunk[key] > 0).all()


def test_the_predicted_picture_by_its_formula(pair, chunk, calls):
    small, full = (answers(s, calls) for s in pair)
    empty = torch.arange(6) >= 3
    for i, call in enumerate(calls):
        x = call.args[0][:3].double()
        a = float(pair[1].pipeline.scheduler.alphas_cumprod[int(call.kwargs["timestep"][0])])
        p, q = ((x - (1 - a) ** 0.5 * guide(rows[i], empty, GUIDANCE)) / a**0.5 for rows in (full, small))
        wanted = 10 * (p.square().sum((1, 2, 3)) / (q - p).square().sum((1, 2, 3))).log10()
        np.testing.assert_allclose(chunk["picture/x0_db"][:, i], wanted, rtol=1e-4)


def test_a_search_finds_the_same_errors_in_recorded_calls(pair, chunk, calls):
    def combine(rows):
        return guide(rows, torch.arange(6) >= 3, GUIDANCE)

    small, full = pair
    times = [float(c.kwargs["timestep"][0]) for c in calls]
    timed = [(c.args, c.kwargs, t) for c, t in zip(calls, times, strict=True)]
    states, rules = [c.args[0][:3] for c in calls], clean_rules(full.pipeline.scheduler, times)[0]
    got = score(small.model, make_targets(full.model, timed, combine, states, rules), combine)
    np.testing.assert_allclose(got.log_error, np.log(chunk["picture/error"].sum(1)), rtol=1e-4)
    x0_error = 10 ** (-chunk["picture/x0_db"] / 10)
    np.testing.assert_allclose(got.log_x0_error, np.log(x0_error.sum(1)), rtol=1e-3, atol=1e-4)


def test_layers_and_drift_as_measured_on_their_own(pair, chunk, calls):
    small, full = pair
    found = summarize([chunk])
    timed = [(c.args, c.kwargs, float(c.kwargs["timestep"][0])) for c in calls]
    wanted = layer_snr(full.model, small.model, timed, found["layer_snr"]["layers"]).to_json()
    assert found["layer_snr"] == wanted
    assert "transformer_blocks.0" in wanted["layers"]
    meter = DriftMeter()
    sampler_for(full.pipeline, STEPS, GUIDANCE)(LABELS, SEEDS, meter.full_precision)
    sampler_for(small.pipeline, STEPS, GUIDANCE)(LABELS, SEEDS, meter.quantized)
    meter.end_batch()
    drift = found["trajectory"]["drift"]
    assert drift["relative"] == pytest.approx(meter.result()["relative"], rel=1e-5)
    assert drift["cosine"] == pytest.approx(meter.result()["cosine"], rel=1e-5)


def test_ranges_are_those_of_full_precisions_inputs(pair, chunk, calls):
    found, seen = summarize([chunk])["activation_ranges"], []
    assert set(found["layers"]) == set(header_of(pair[0].model).plan.layers)
    name = "transformer_blocks.1.ff.net.2"
    handle = pair[1].model.get_submodule(name).register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    answers(pair[1], calls)
    handle.remove()
    row = found["layers"].index(name)
    for i, x in enumerate(seen):
        assert found["low"][row][i] == pytest.approx(float(x.min()), rel=1e-5)
        assert found["high"][row][i] == pytest.approx(float(x.max()), rel=1e-5)
        assert found["rms"][row][i] == pytest.approx(float(x.square().mean().sqrt()), rel=1e-5)


def test_the_summary_is_json_and_says_what_was_measured(chunk):
    found = json.loads(json.dumps(summarize([chunk]), allow_nan=False))
    assert set(found) == {"trajectory", "layer_snr", "activation_ranges"}
    t = found["trajectory"]
    assert (t["n"], t["steps"], t["timesteps"]) == (3, [0, 1, 2, 3], [999, 749, 499, 249])
    assert t["noise_levels"] == pytest.approx([0.999, 0.749, 0.499, 0.249])
    assert t["x0_reason"] is None
    for low, mean, high in zip(*(t["error"][key] for key in ("low", "mean", "high")), strict=True):
        assert low <= mean <= high
    for key in ("error_conditional", "error_unconditional", "x0_snr_db", "guidance_amplification"):
        assert len(t[key]) == STEPS
    assert t["guidance_amplification"] == pytest.approx(
        [a / b for a, b in zip(t["error"]["mean"], t["error_conditional"], strict=True)], rel=1e-4
    )
    assert t["amplification"] > 0
    assert all(array.dtype.kind in "fu" for array in chunk.values())


def test_chunks_join_to_the_whole(pair, chunk):
    parts = [observe(*pair, labels=LABELS[i:j], seeds=SEEDS[i:j]) for i, j in ((0, 2), (2, 3))]
    whole, joined = summarize([chunk]), summarize(parts)
    assert joined["trajectory"]["n"] == 3
    for key in ("error_conditional", "x0_snr_db", "guidance_amplification"):
        assert joined["trajectory"][key] == pytest.approx(whole["trajectory"][key], rel=1e-3)
    for key in ("low", "high", "rms"):
        np.testing.assert_allclose(joined["activation_ranges"][key], whole["activation_ranges"][key], rtol=1e-3)
    np.testing.assert_allclose(joined["layer_snr"]["db"], whole["layer_snr"]["db"], atol=0.02)


def test_the_same_bits_again_and_cheap(pair, chunk):
    counts = [0, 0]

    def count(which):
        def hook(*_):
            counts[which] += 1

        return hook

    handles = [s.model.pos_embed.register_forward_hook(count(i)) for i, s in enumerate(pair)]
    again = observe(*pair)
    for handle in handles:
        handle.remove()
    assert counts == [2 * STEPS, STEPS]  # teacher-forced and free; full precision once
    assert all(np.array_equal(again[key], chunk[key]) for key in chunk)


def test_one_picture_has_no_interval(pair):
    t = summarize([observe(*pair, labels=[1], seeds=[1])])["trajectory"]
    assert (t["n"], t["error"]["low"], t["error"]["high"]) == (1, None, None)


def test_without_guidance_there_are_no_unconditional_rows(pair):
    t = summarize([observe(*pair, guidance=1.0)])["trajectory"]
    assert t["error_unconditional"] is None
    assert t["guidance_amplification"] is None
    assert t["error_conditional"] == t["error"]["mean"]


def test_equal_models_have_no_error_under_a_stochastic_scheduler():
    """Which shares its noise: each picture has a generator of its own."""
    pairs = [quantized(with_scheduler(jobs.pipeline(), DDPMScheduler)) for _ in range(2)]
    found = json.loads(json.dumps(summarize([observe(*pairs)]), allow_nan=False))
    t = found["trajectory"]
    assert t["error"]["mean"] == t["error"]["high"] == t["drift"]["relative"] == [0] * STEPS
    assert t["x0_snr_db"] == [100] * STEPS
    assert t["guidance_amplification"] == [1] * STEPS
    assert t["amplification"] == 1
    assert found["layer_snr"]["db"] == [[100] * STEPS] * len(found["layer_snr"]["layers"])


def test_more_bits_are_better(pair, chunk):
    better = summarize([observe(quantized(jobs.pipeline(), bits="w8a8"), pair[1])])["trajectory"]
    worse = summarize([chunk])["trajectory"]
    assert max(better["error"]["mean"]) < min(worse["error"]["mean"])
    assert min(np.subtract(better["x0_snr_db"], worse["x0_snr_db"])) > 6


def test_layers_that_absorbed_a_scale_are_not_compared_but_have_ranges(pair):
    found = summarize([observe(quantized(jobs.pipeline(), "smoothquant", "w8a8"), pair[1])])
    absorbed = {"transformer_blocks.0.norm1.linear", "transformer_blocks.0.attn1.to_v"}
    assert not absorbed & set(found["layer_snr"]["layers"])
    assert absorbed < set(found["activation_ranges"]["layers"])


def test_an_unknown_scheduler_gives_a_reason_instead_of_a_predicted_picture():
    settings = {"kind": PNDMScheduler, "skip_prk_steps": True}
    small, full = quantized(with_scheduler(jobs.pipeline(), **settings)), with_scheduler(jobs.pipeline(), **settings)
    t = summarize([observe(small, source(full))])["trajectory"]
    assert t["x0_snr_db"] is None
    assert t["x0_reason"] == "how PNDMScheduler scales its states is not known"
    assert len(t["timesteps"]) == len(t["error"]["mean"]) == STEPS + 1  # it repeats one


def test_a_learned_variance_is_no_part_of_the_output():
    small, full = quantized(jobs.pipeline(out_channels=2)), source(jobs.pipeline(out_channels=2))
    before = observe(small, full)
    make = torch.Generator().manual_seed(0)
    for s in (small, full):
        s.model.proj_out_2.weight.data.view(-1, 2, 16)[:, 1] = torch.randn(4, 16, generator=make)
    after = observe(small, full)
    for key in ("picture/error", "picture/conditional", "picture/unconditional", "picture/x0_db"):
        assert np.array_equal(before[key], after[key])


def latent_pipeline():
    """``DiTPipeline`` steps both halves of guidance, and dither's sampler watches its scheduler, too."""
    torch.manual_seed(1)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4).eval()
    model = jobs.pipeline(in_channels=4, out_channels=8, num_embeds_ada_norm=1000).transformer
    return DiTPipeline(model, vae, DDIMScheduler(clip_sample=False))


def test_latent_pipelines():
    small, full = quantized(latent_pipeline(), bits="w8a8"), source(latent_pipeline())
    t = summarize([observe(small, full, guidance=2.0)])["trajectory"]
    assert t["n"] == 3
    assert max(t["error"]["mean"]) < 0.05
    assert "step" not in vars(full.pipeline.scheduler)


class FromText:
    """A denoiser of a family that nobody prepared; unconditional rows come first, as in most pipelines from text."""

    def __init__(self):
        self.transformer, self.scheduler = tiny.dense(), DDIMScheduler(clip_sample=False)

    def set_progress_bar_config(self, disable):
        self.quiet = disable

    def __call__(self, prompt, guidance_scale, generator, num_inference_steps, output_type, callback_on_step_end):
        self.scheduler.set_timesteps(num_inference_steps)
        x = torch.stack([torch.randn(4, 16, generator=g) for g in generator])
        text = torch.tensor([0] * len(prompt) + [len(p) for p in prompt]) / 10
        for i, t in enumerate(self.scheduler.timesteps):
            rows = torch.cat([x, x]) + text[:, None, None]
            with torch.no_grad():
                u, c = self.transformer(rows, t.expand(len(rows)), cond=None).chunk(2)
            x = self.scheduler.step(u + guidance_scale * (c - u), t, x, return_dict=False)[0]
            callback_on_step_end(self, i, t, {"latents": x})
        return ImagePipelineOutput(images=x.reshape(-1, 4, 4, 4)[..., :3].sigmoid().numpy())


def test_a_family_that_does_not_tell_its_unconditional_rows():
    """The guided output is still the pipeline's own."""
    pipe = FromText()
    dither.quantize(pipe.transformer, "rtn", "w4")
    t = summarize([observe(source(pipe, "small"), source(FromText(), "full"), labels=["a", "bcd", "ef"])])["trajectory"]
    assert t["error_conditional"] is None
    assert t["error_unconditional"] is None
    assert t["guidance_amplification"] is None
    assert all(0 < e < 0.1 for e in t["error"]["mean"])
    assert all(x > 0 for x in t["x0_snr_db"])


def test_nothing_is_left_behind_by_an_error(pair):
    small, full = quantized(jobs.pipeline()), source(jobs.pipeline(), "full")
    torch.nn.init.constant_(small.model.proj_out_1.bias, torch.nan)
    with pytest.raises(BadValue, match="'small' returns NaN or infinite values at step 0"):
        observe(small, full)
    for s in (small, full):
        assert "step" not in vars(s.pipeline.scheduler)
        assert "forward" not in vars(s.model)
        assert not any(m._forward_hooks for m in s.model.modules())


def test_what_cannot_be_joined_or_observed(pair, chunk):
    with pytest.raises(BadValue, match="without a chunk"):
        summarize([])
    other = observe_pair(*pair, LABELS, SEEDS, 3, GUIDANCE)
    with pytest.raises(BadValue, match="different measurements"):
        summarize([chunk, other])
    with pytest.raises(BadValue, match="different measurements"):
        summarize([chunk, observe(*pair, guidance=1.0)])
    short = quantized(with_scheduler(jobs.pipeline(), PNDMScheduler, skip_prk_steps=True))
    with pytest.raises(BadModel, match="different numbers of steps"):
        observe(short, pair[1])
