"""The pipeline: determinism, guidance, output types, saving and loading."""

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiTTransformer2DModel, DPMSolverMultistepScheduler
from torch import Tensor

from dither import zoo
from dither.errors import BadValue


def tiny(out_channels: int = 1, in_channels: int = 1) -> zoo.PixelDiTPipeline:
    """A small random model whose output depends on its label and time."""
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=in_channels,
        out_channels=out_channels,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
        norm_elementwise_affine=False,
    )
    schedule = DDIMScheduler(beta_schedule="linear", clip_sample=True, timestep_spacing="trailing")
    pipe = zoo.PixelDiTPipeline(model.eval(), schedule)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of a scheduler of diffusers
@pytest.mark.parametrize("schedule", [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler])
def test_a_sample_depends_on_its_own_seed_only(schedule: type) -> None:
    pipe = tiny()
    pipe.scheduler = schedule.from_config(pipe.scheduler.config)
    run = {"num_inference_steps": 4, "output_type": "pt"}
    together = pipe([3, 5, 7], generator=seeded(1, 2, 3), **run).images
    alone = pipe([5], generator=seeded(2), **run).images
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=0)
    assert (together[0] - together[1]).abs().max() > 0.05


def test_guidance_mixes_conditional_rows_first_and_null_rows() -> None:
    pipe = tiny()
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t, labels = torch.tensor(500), torch.tensor([3, 4])

    def eps(y: list[int]) -> Tensor:
        return pipe.transformer(x, timestep=t.expand(2), class_labels=torch.tensor(y)).sample

    with torch.no_grad():
        conditional, null = eps([3, 4]), eps([10, 10])
        torch.testing.assert_close(pipe._noise(x, t, labels, 3.0), null + 3 * (conditional - null), atol=1e-5, rtol=0)
        torch.testing.assert_close(pipe._noise(x, t, labels, 1.0), conditional, atol=1e-6, rtol=0)
    assert (conditional - null).abs().max() > 1e-2


def test_guidance_doubles_the_batch_and_marks_it() -> None:
    pipe = tiny()
    seen: list[list[int]] = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(kwargs["class_labels"].tolist()), with_kwargs=True
    )
    pipe([1, 2], num_inference_steps=1, guidance_scale=2.0, output_type="pt")
    pipe([1, 2], num_inference_steps=1, guidance_scale=1.0, output_type="pt")
    handle.remove()
    assert seen == [[1, 2, 10, 10], [1, 2]]


def test_learned_variance_is_dropped() -> None:
    pipe = tiny(out_channels=2)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        both = pipe.transformer(x, timestep=torch.tensor([9, 9]), class_labels=torch.tensor([1, 1])).sample
        kept = pipe._noise(x, torch.tensor(9), torch.tensor([1, 1]), 1.0)
    assert both.shape[1] == 2
    torch.testing.assert_close(kept, both[:, :1])


def test_output_types_agree() -> None:
    pipe = tiny()
    out = {
        k: pipe([1, 2], generator=seeded(0, 1), num_inference_steps=2, output_type=k).images
        for k in ("latent", "pt", "np", "pil")
    }
    assert out["pt"].shape == (2, 1, 8, 8)
    torch.testing.assert_close(out["pt"], (out["latent"] / 2 + 0.5).clamp(0, 1))
    np.testing.assert_array_equal(out["np"], out["pt"].permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(np.asarray(out["pil"][0]), (out["np"][0, ..., 0] * 255).round().astype("uint8"))


def test_latents_replace_drawing_and_the_callback_may_replace_them() -> None:
    pipe = tiny()
    noise = torch.cat([torch.randn(1, 1, 8, 8, generator=g) for g in seeded(4, 5)])
    drawn = pipe([1, 2], generator=seeded(4, 5), num_inference_steps=2, output_type="latent").images
    given = pipe([1, 2], latents=noise, num_inference_steps=2, output_type="latent", return_dict=False)[0]
    torch.testing.assert_close(drawn, given)
    steps: list[int] = []

    def zero(_pipe: object, i: int, _t: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        steps.append(i)
        return {"latents": torch.zeros_like(state["latents"])}

    result = pipe([1], num_inference_steps=3, output_type="latent", callback_on_step_end=zero).images
    assert steps == [0, 1, 2]
    assert not result.any()


def test_reloads_through_diffusion_pipeline(tmp_path: Path) -> None:
    zoo.register()
    pipe = tiny()
    pipe.save_pretrained(tmp_path)
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(again) is zoo.PixelDiTPipeline
    run = {"num_inference_steps": 3, "output_type": "pt"}
    torch.testing.assert_close(
        again([1], generator=seeded(1), **run).images, pipe([1], generator=seeded(1), **run).images
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"class_labels": []}, "class_labels"),
        ({"class_labels": [11]}, "11"),
        ({"class_labels": [-1]}, "-1"),
        ({"class_labels": [1, 2], "generator": seeded(1)}, "1 generators"),
        ({"class_labels": [1], "latents": torch.zeros(1, 1, 4, 4)}, r"\(1, 1, 4, 4\)"),
        ({"class_labels": [1], "output_type": "gif"}, "gif"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, named: str) -> None:
    with pytest.raises(BadValue, match=named):
        tiny()(num_inference_steps=1, **arguments)
