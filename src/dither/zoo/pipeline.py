"""A class-conditional diffusers pipeline for DiTs that have no VAE: pixels in, pixels out.

Classifier-free guidance (Ho & Salimans, arXiv 2207.12598) on one batch of twice the size, conditional rows first:

    e = e(x, null) + guidance * (e(x, y) - e(x, null))

The state stays float32 whatever the weights' type; noise is drawn in float32 on the generator's device, so the same
seed means the same noise in every precision.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from dither.errors import BadValue

Generators = torch.Generator | list[torch.Generator] | None
StepCallback = Callable[[DiffusionPipeline, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class PixelDiTPipeline(DiffusionPipeline):
    """Samples images of given classes from a transformer and any diffusers scheduler.

    Args:
        transformer: predicts noise (out_channels == in_channels), or noise and variance (twice the channels; the
            variance is dropped). Its null class is ``config.num_embeds_ada_norm``.
        scheduler: any of diffusers' schedulers for noise prediction.
    """

    model_cpu_offload_seq = "transformer"  # type: ignore[assignment]
    transformer: Any
    scheduler: Any

    def __init__(self, transformer: DiTTransformer2DModel, scheduler: SchedulerMixin):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def __call__(  # the order of diffusers' DiTPipeline
        self,
        class_labels: Sequence[int],
        guidance_scale: float = 1.5,
        generator: Generators = None,
        num_inference_steps: int = 25,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
    ) -> Any:
        """Samples one image per label.

        Args:
            class_labels: N labels, each below the number of classes, or equal to it: the null class.
            guidance_scale: 1 or less samples without guidance, with half the work.
            generator: one for the batch, or N of them: then an image depends on its own generator only.
            num_inference_steps: denoising steps.
            latents: (N, C, H, W) starting noise of unit variance, instead of drawing it.
            output_type: "pil"; "np" (N, H, W, C) or "pt" (N, C, H, W) in [0, 1]; "latent": the final state as it is.
            return_dict: an ``ImagePipelineOutput``, or else a tuple.
            callback_on_step_end: called as ``f(pipe, i, t, {"latents": x})`` after each step; may return a new x.

        Raises:
            BadValue: a label, a shape, a number of generators or an output type that does not fit.
        """
        config = self.transformer.config
        self._check(class_labels, generator, output_type)
        device = self._execution_device
        n = len(class_labels)
        shape = (n, config.in_channels, config.sample_size, config.sample_size)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        elif latents.shape != shape:
            raise BadValue(f"latents have shape {tuple(latents.shape)}, but {n} labels of this model need {shape}.")
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        x = latents.to(device=device, dtype=torch.float32) * self.scheduler.init_noise_sigma  # (N, C, H, W)
        labels = torch.tensor(list(class_labels), dtype=torch.long, device=device)  # (N,)
        extra = {"generator": generator} if "generator" in inspect.signature(self.scheduler.step).parameters else {}
        for i, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            eps = self._noise(self.scheduler.scale_model_input(x, t), t, labels, guidance_scale)
            x = self.scheduler.step(eps, t, x, **extra).prev_sample
            if callback_on_step_end is not None:
                x = callback_on_step_end(self, i, t, {"latents": x}).get("latents", x)
        images = self._images(x, output_type)
        self.maybe_free_model_hooks()  # type: ignore[no-untyped-call]
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _noise(self, x: Tensor, t: Tensor, labels: Tensor, guidance_scale: float) -> Tensor:
        """The guided noise prediction (N, C, H, W) in float32."""
        guided = guidance_scale > 1
        if guided:
            x = torch.cat([x, x])
            labels = torch.cat([labels, torch.full_like(labels, self.transformer.config.num_embeds_ada_norm)])
        timestep = t.to(x.device).expand(len(x))
        out = self.transformer(x.to(self.transformer.dtype), timestep=timestep, class_labels=labels, return_dict=False)[
            0
        ]
        eps: Tensor = out[:, : self.transformer.config.in_channels].float()  # without a learned variance
        if not guided:
            return eps
        conditional, null = eps.chunk(2)
        return null + guidance_scale * (conditional - null)

    def _images(self, x: Tensor, output_type: str) -> Any:
        """The final state in [-1, 1] as ``output_type``."""
        if output_type == "latent":
            return x
        pixels = (x / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return pixels
        array = pixels.cpu().permute(0, 2, 3, 1).numpy()  # (N, H, W, C)
        return array if output_type == "np" else self.numpy_to_pil(array)  # type: ignore[no-untyped-call]

    def _check(self, labels: Sequence[int], generator: Generators, output_type: str) -> None:
        """Refuses what would fail later without a name."""
        classes = self.transformer.config.num_embeds_ada_norm
        if len(labels) == 0:
            raise BadValue("class_labels is empty.")
        for label in labels:
            if not 0 <= label <= classes:
                raise BadValue(f"class label {label} is not among this model's classes 0..{classes - 1}.")
        if isinstance(generator, list) and len(generator) != len(labels):
            raise BadValue(f"{len(generator)} generators were given for {len(labels)} labels.")
        if output_type not in OUTPUT_TYPES:
            raise BadValue(f"output_type {output_type!r} is not one of {', '.join(OUTPUT_TYPES)}.")


def register() -> None:
    """Lets ``DiffusionPipeline.from_pretrained`` find the class by the name in ``model_index.json``.

    diffusers looks pipeline classes up as attributes of its own module. Its other way, a copy of the class's source in
    every folder and ``trust_remote_code``, would run code from the folder.
    """
    setattr(diffusers, PixelDiTPipeline.__name__, PixelDiTPipeline)
