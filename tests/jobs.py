"""A tiny pipeline with channel outliers, its recorded calls, and jobs on it; shared by the tests of methods."""

from functools import lru_cache
from pathlib import Path

import tiny
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel

import dither
from dither.calibrate import record
from dither.checkpoint import header_of, load_into, save
from dither.integrations.diffusers import ClockReader
from dither.models import Call, adapter_for
from dither.spec import Bits
from dither.stages import Job, Stage, Store
from dither.zoo import PixelDiTPipeline


def pipeline(seed: int = 0, **changes: object) -> PixelDiTPipeline:
    """A random DiT of two blocks with uneven channels, so that scales have something to move."""
    model = tiny.dit(seed, **changes)
    make = torch.Generator().manual_seed(seed)
    for block in model.transformer_blocks:
        rows = torch.rand(block.norm1.linear.out_features, generator=make).mul(4).exp() / 8  # 1/8 to 7
        block.norm1.linear.weight.data *= rows[:, None]
    pipe = PixelDiTPipeline(model, DDIMScheduler(beta_schedule="linear", timestep_spacing="trailing"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe: PixelDiTPipeline, labels: tuple[int, ...] = tuple(range(10)), steps: int = 4) -> torch.Tensor:
    """Final states (N, 1, 8, 8): every class, with guidance, from the same noise."""
    generators = [torch.Generator().manual_seed(i) for i in range(len(labels))]
    return pipe(list(labels), generator=generators, num_inference_steps=steps, output_type="latent").images


@lru_cache
def calls() -> tuple[Call, ...]:
    """What a sampler asks of the tiny model."""
    pipe = pipeline()
    return record(pipe.transformer, lambda: sample(pipe))


def job(model: DiTTransformer2DModel, bits: str = "w4a8", seed: int = 0) -> Job:
    """A job on a tiny model with recorded calls."""
    return Job(model, adapter_for(model), Bits.parse(bits), seed, calls)


def run(
    stages: tuple[Stage, ...],
    model: DiTTransformer2DModel,
    bits: str = "w4a8",
    seed: int = 0,
    store: Store | None = None,
) -> Job:
    """The job after these stages."""
    made = job(model, bits, seed)
    made.store = store
    with torch.no_grad():
        for stage in stages:
            stage.run(made)
    return made


def outputs(model: torch.nn.Module) -> torch.Tensor:
    """The model's answers to the recorded calls, all in one tensor."""
    with torch.no_grad():
        return torch.cat([model(*c.args, **c.kwargs)[0] for c in calls()])


def assert_reloads(pipe: PixelDiTPipeline, folder: Path, storage: torch.dtype | None = None) -> None:
    """A quantized pipeline, and its network alone, come back from the disk with the answers that they had."""
    dither.save(pipe, folder / "pipe", storage=storage)
    assert torch.equal(sample(dither.load(folder / "pipe")), sample(pipe))
    save(pipe.transformer, folder / "plain", header_of(pipe.transformer))
    fresh = pipeline(seed=1).transformer
    load_into(fresh, folder / "plain", ClockReader(adapter_for(fresh), fresh))
    assert torch.equal(outputs(fresh), outputs(pipe.transformer))


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest difference over largest magnitude."""
    return float((got - want).abs().max() / want.abs().max())


def same_tensors(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Equal names, dtypes and bits."""
    return tiny.same_state(a, b)
