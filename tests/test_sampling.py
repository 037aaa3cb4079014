import inspect

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, DiTPipeline, DiTTransformer2DModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput

from dither.errors import BadModel, BadValue
from dither.sampling import default_labels, sampler_for
from dither.zoo import PixelDiTPipeline

STEPS = 4


def transformer(channels, classes, out_channels=None):
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=8, patch_size=2, in_channels=channels,
        num_embeds_ada_norm=classes, out_channels=out_channels,
    )  # fmt: skip
    return model.eval()


def scheduler(kind=DDIMScheduler):
    return kind(beta_schedule="linear", clip_sample=False, timestep_spacing="trailing")


def pixel_pipeline(channels=3):
    return PixelDiTPipeline(transformer(channels, 5, 2 * channels), scheduler())


def vae_pipeline(kind=DDIMScheduler, classes=1000):
    torch.manual_seed(1)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4).eval()
    return DiTPipeline(transformer(4, classes, 8), vae, scheduler(kind))


PIPELINES = {
    "pixels": pixel_pipeline,
    "grey": lambda: pixel_pipeline(1),
    "latents": lambda: pixel_pipeline(4),
    "vae": vae_pipeline,
    "stochastic": lambda: vae_pipeline(DDPMScheduler),
}


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_picture_depends_on_its_label_and_seed_only(name, guidance):
    pipeline = PIPELINES[name]()
    together = sampler_for(pipeline, STEPS, guidance)([0, 1, 2, 3], [5, 6, 7, 8])
    in_parts = sampler_for(pipeline, STEPS, guidance, batch_size=3)([3, 2, 1, 0], [8, 7, 6, 5])[::-1]
    assert together.dtype == np.uint8
    assert together.shape == (4, 8, 8, 1 if name == "grey" else 3)
    assert np.abs(together.astype(int) - in_parts.astype(int)).max() <= 1  # the batch size changes rounding
    assert not np.array_equal(together[0], together[1])
    other_seed = sampler_for(pipeline, STEPS, guidance)([0], [50])
    assert not np.array_equal(together[:1], other_seed)


@pytest.mark.parametrize("name", PIPELINES)
def test_every_step_is_seen(name, capfd):
    pipeline = PIPELINES[name]()
    seen, progress = [], []
    sampler = sampler_for(pipeline, STEPS, 2.0, batch_size=2, on_progress=lambda *now: progress.append(now))
    plain = sampler([0, 1, 2], [0, 1, 2])
    watched = sampler([0, 1, 2], [0, 1, 2], lambda i, t, x: seen.append((i, t, x.shape)))
    assert np.array_equal(plain, watched)
    channels = pipeline.transformer.config.in_channels
    times = [float(t) for t in pipeline.scheduler.timesteps]
    wanted = [(i, times[i], (n, channels, 8, 8)) for n in (2, 1) for i in range(STEPS)]
    assert seen == wanted
    assert progress[-2 * STEPS :] == [(i + 1, 2 * STEPS) for i in range(2 * STEPS)]
    assert capfd.readouterr() == ("", "")
    assert "step" not in vars(pipeline.scheduler)


def test_pixels_are_those_of_the_pipeline():
    pipeline = pixel_pipeline()
    generators = [torch.Generator().manual_seed(s) for s in (3, 4)]
    want = pipeline([1, 2], 1.5, generators, STEPS, output_type="np").images
    got = sampler_for(pipeline, STEPS, 1.5)([1, 2], [3, 4])
    assert np.array_equal(got, (want * 255).round().astype(np.uint8))


def test_vae_pictures_are_those_of_the_pipeline():
    pipeline = vae_pipeline()
    generators = [torch.Generator().manual_seed(s) for s in (3, 4)]
    want = pipeline([1, 2], 1.5, generators, STEPS, output_type="np").images
    got = sampler_for(pipeline, STEPS, 1.5)([1, 2], [3, 4])
    assert np.array_equal(got, (want * 255).round().astype(np.uint8))


class FromText:
    """What text-to-image pipelines of diffusers have in common: colour by the prompt's length, noise by the seed."""

    def set_progress_bar_config(self, disable):
        self.quiet = disable

    def __call__(
        self, prompt, guidance_scale, generator, num_inference_steps, output_type="pil", callback_on_step_end=None
    ):
        latents = torch.stack([torch.randn(4, 8, 8, generator=g) for g in generator])
        for step in range(num_inference_steps):
            callback_on_step_end(self, step, torch.tensor(1000 - step), {"latents": latents})
        images = (
            latents[:, :3].permute(0, 2, 3, 1).sigmoid()
            * torch.tensor([len(p) / 10 for p in prompt])[:, None, None, None]
        )
        return ImagePipelineOutput(images=images.numpy() if output_type == "np" else None)


def test_prompts():
    pipeline, seen = FromText(), []
    images = sampler_for(pipeline, 2, 3.0)(["cat", "horse"], [1, 2], lambda i, t, x: seen.append((i, t)))
    assert images.shape == (2, 8, 8, 3)
    assert images[0].max() <= 77
    assert seen == [(0, 1000.0), (1, 999.0)]
    assert pipeline.quiet
    assert default_labels(pipeline, 3, ["a", "b"]) == ["a", "b", "a"]
    with pytest.raises(BadValue, match="FromText"):
        default_labels(pipeline, 3)


def test_default_labels_reach_every_class():
    assert default_labels(pixel_pipeline(), 12) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


def test_refusals():
    pipeline = pixel_pipeline()
    sampler = sampler_for(pipeline, STEPS, 1.5)
    with pytest.raises(BadValue, match="2 labels and 1 seeds"):
        sampler([0, 1], [0])
    with pytest.raises(BadValue, match="'cat'"):
        sampler(["cat"], [0])
    with pytest.raises(BadValue, match="17"):
        sampler([17], [0])
    with pytest.raises(BadValue, match="0"):
        sampler_for(pipeline, 0, 1.5)
    with pytest.raises(BadModel, match="DDIMScheduler"):
        sampler_for(scheduler(), STEPS, 1.5)
    with pytest.raises(BadModel, match="null class"):
        sampler_for(vae_pipeline(classes=5), STEPS, 1.5)([0], [0])
    with pytest.raises(BadValue, match="1001"):
        sampler_for(vae_pipeline(), STEPS, 1.5)([1001], [0])
    torch.nn.init.constant_(pipeline.transformer.proj_out_2.bias, torch.nan)
    with pytest.raises(BadValue, match="NaN"):
        sampler([0], [0])


def test_the_scheduler_is_restored_after_a_failure():
    pipeline = vae_pipeline()

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler_for(pipeline, STEPS, 1.5)([0], [0], stop)
    assert "step" not in vars(pipeline.scheduler)
    assert inspect.ismethod(pipeline.scheduler.step)
