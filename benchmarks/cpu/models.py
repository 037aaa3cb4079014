"""A block and a whole model of DiT-XL/2's width, and the zoo's denoiser and a picture of its pipeline."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from benchmarks.cpu.run import Run
from benchmarks.cpu.turns import Case
from benchmarks.cpu.ways import repeat_a_square
from benchmarks.xl_steps import CONFIG
from dither import zoo
from dither.sampling import sampler_for

__all__ = ["BLOCKS", "Block", "Denoiser", "StandIn", "model_cases", "zoo_cases"]

BLOCKS = 4
"""Of DiT-XL/2's 28: every candidate holds a model of its own."""
TOKENS = 256
PICTURES, STEPS, GUIDANCE = 16, 10, 1.5
WAYS = (
    "float32", "float32, compiled", "bfloat16", "bfloat16, compiled", "W8A8 without native code", "W8A8", "W8A8, rotated",
    "W8A8 in bfloat16", "W8A8 in bfloat16, compiled", "W8A8, attention too", "W8A8, attention too, in bfloat16", "W4A8",
    "W4A8 in bfloat16", "W4A8, groups of 128", "W3A8, trellis", "W2A8, trellis", "W2A8, universal words",
)  # fmt: skip


class Block(nn.Module):
    """A transformer block as a function of tensors."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        """x (B, T, D), time and label (B,) to (B, T, D)."""
        y: Tensor = self.block(x, timestep=time, class_labels=label)
        return y


class Denoiser(nn.Module):
    """A DiT of diffusers as a function of tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        """x (B, C, H, W), time and label (B,) to (B, C', H, W)."""
        y: Tensor = self.model(x, timestep=time, class_labels=label, return_dict=False)[0]
        return y


class StandIn(nn.Module):
    """In the place of a pipeline's transformer: a ``Run`` of its ``Denoiser``.

    Args:
        run: of the denoiser.
        config: of the transformer.
    """

    def __init__(self, run: Run, config: Any) -> None:
        super().__init__()
        self.run, self.config, self.dtype, self.device = run, config, run.dtype, torch.device("cpu")

    def forward(self, x: Tensor, timestep: Tensor, class_labels: Tensor, return_dict: bool) -> tuple[Tensor]:
        """As diffusers' models answer without ``return_dict``."""
        return (self.run.call(x, timestep.contiguous(), class_labels),)  # graphs read memory as it lies


def model_cases(config: dict[str, Any] = CONFIG, blocks: int = BLOCKS) -> Iterator[Case]:
    """Random weights, none of them zero, as adaLN-Zero's gates would be; one picture with guidance."""
    model = DiTTransformer2DModel(**{**config, "num_layers": blocks}).eval()
    repeat_a_square(model)
    width = model.config.num_attention_heads * model.config.attention_head_dim
    tokens = (model.config.sample_size // model.config.patch_size) ** 2
    time, label = torch.tensor([500, 500]), torch.tensor([1, model.config.num_embeds_ada_norm])
    states = [torch.randn(2, tokens, width) for _ in range(2)]
    yield Case(
        f"DiT-XL/2 block, {tokens} tokens x 2",
        "models",
        Block(model.transformer_blocks[0]).eval(),
        [(x, time, label) for x in states],
        WAYS,
        facts={"blocks": 1},
    )
    sizes = (2, model.config.in_channels, model.config.sample_size, model.config.sample_size)
    yield Case(
        f"DiT-XL/2 with {blocks} of its 28 blocks, a guided picture",
        "models",
        Denoiser(model).eval(),
        [(torch.randn(sizes), time, label) for _ in range(2)],
        WAYS,
        facts={"blocks": blocks},
    )


def zoo_cases(name: str = "fashion", pictures: int = PICTURES, steps: int = STEPS) -> Iterator[Case]:
    """A denoiser's call as sampling makes it, with guidance; then whole pictures, sampler included."""
    pipeline = zoo.load(name)
    denoiser = Denoiser(pipeline.transformer).eval()
    config, rows = pipeline.transformer.config, 2 * pictures
    sizes = (rows, config.in_channels, config.sample_size, config.sample_size)
    label = torch.arange(rows) % (config.num_embeds_ada_norm + 1)
    inputs = [(torch.randn(sizes), torch.full((rows,), level), label) for level in (500, 300)]
    yield Case(f"zoo:{name} denoiser, {pictures} guided pictures", "zoo", denoiser, inputs, WAYS)
    what = f"zoo:{name}, {pictures} pictures in {steps} steps"
    yield Case(what, "zoo", denoiser, inputs, WAYS, wrap=sampled(pipeline, pictures, steps))


def sampled(pipeline: Any, pictures: int, steps: int) -> Callable[[Run], Callable[[], object]]:
    """What draws pictures by the pipeline with a ``Run`` for its denoiser."""
    sampler = sampler_for(pipeline, steps, GUIDANCE, pictures)
    config = pipeline.transformer.config
    labels = [i % config.num_embeds_ada_norm for i in range(pictures)]

    def wrap(run: Run) -> Callable[[], object]:
        stand_in = StandIn(run, config)

        def call() -> object:
            pipeline.register_modules(transformer=stand_in)
            return sampler(labels, range(pictures))

        return call

    return wrap
