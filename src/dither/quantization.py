"""``quantize``: record real denoiser calls, run a recipe's stages, and leave a model that can be saved.

The model is changed in place, layer by layer, so that memory never holds two whole copies. Nothing here knows a method.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import torch
from diffusers import DiffusionPipeline
from diffusers.configuration_utils import ConfigMixin
from torch import Tensor, nn

from dither import memory, recipes
from dither._version import __version__
from dither.calibrate import record, replay
from dither.checkpoint import Header, attach
from dither.clock import start_clock
from dither.errors import BadModel, BadRecipe, BadValue, Refused
from dither.integrations.diffusers import ClockReader, stamp
from dither.models import Call, adapter_for
from dither.nn import QLinear, fuse, packed_tensors
from dither.recorded import check_fit, digest_of
from dither.sampling import default_labels, sampler_for
from dither.spec import Recipe
from dither.stages import Job, Phase, Store, Study, StudySettings, stages_of
from dither.stages.needs import Sampling, Trajectory, no_drawing
from dither.study import study_of

__all__ = [
    "Calibration",
    "calibration_calls",
    "denoiser_of",
    "plan_ahead",
    "quantize",
    "record_calls",
    "resolve_recipe",
    "sample_seeds",
    "stored_as",
]

Target = TypeVar("Target")
_DENOISERS = ("transformer", "unet")
_STRIDE = 1_000_003  # apart, so that sample seeds of different seeds do not overlap
_CALIBRATION = 1_000_000_007  # and calibration never sees the noise of an evaluation
_TRAJECTORIES = 10_000  # pictures of calibration and of studies come before those of trajectories


@dataclass(frozen=True)
class Calibration:
    """How the calibration calls are made when no ``run`` is given.

    Args:
        samples: pictures to draw; all classes (or prompts) take turns.
        steps: of the sampler.
        guidance: of the sampler; conditional and unconditional rows are both seen above 1.
        calls: denoiser calls kept, whatever the number of steps.
        prompts: for text-to-image pipelines.
    """

    samples: int = 16
    steps: int = 25
    guidance: float = 1.5
    calls: int = 64
    prompts: tuple[str, ...] = ()


def sample_seeds(seed: int, n: int, calibration: bool = False) -> list[int]:
    """One seed a picture. Different ``seed`` values, and calibration and evaluation, never share noise."""
    start = seed * _STRIDE + (_CALIBRATION if calibration else 0)
    return list(range(start, start + n))


def denoiser_of(target: Any) -> nn.Module:
    """The network that a pipeline calls at every step, or the module itself."""
    if isinstance(target, nn.Module):
        return target
    components: Mapping[str, Any] = cast(Any, target).components if isinstance(target, DiffusionPipeline) else {}
    for name in _DENOISERS:
        if isinstance(components.get(name), nn.Module):
            return cast(nn.Module, components[name])
    raise BadModel(f"{type(target).__name__} is neither a torch module nor a pipeline with a {' or '.join(_DENOISERS)}")


def resolve_recipe(recipe: str | Recipe, bits: str | None = None, settings: Sequence[str] = ()) -> Recipe:
    """A recipe by name, at these widths, with ``STAGE.FIELD=VALUE`` settings applied."""
    if isinstance(recipe, Recipe):
        if bits is not None:
            raise BadValue("bits belong to a named recipe; a ready Recipe has its own")
        return recipes.override(recipe, settings)
    return recipes.override(recipes.get(recipe, bits), settings)


def quantize(
    target: Target,
    recipe: str | Recipe = "rtn",
    bits: str | None = None,
    *,
    run: Callable[[], object] | None = None,
    calls: Sequence[Call] | None = None,
    settings: Sequence[str] = (),
    calibration: Calibration | None = None,
    seed: int = 0,
    storage: torch.dtype | None = None,
    store: Store | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Target:
    """Quantize a pipeline's denoiser, or any torch denoiser, in place.

    Args:
        target: a diffusers pipeline, or a module.
        recipe: a name (see ``dither.recipes``) or a Recipe.
        bits: such as "w4a8" or "fp8"; the recipe's default if None.
        run: your own sampler, which calls the module; needed for a bare module if the recipe needs data.
        calls: in place of ``run``: denoiser calls that were recorded earlier, see ``dither.load_calls``.
        settings: ``STAGE.FIELD=VALUE`` changes to the recipe.
        calibration: how pictures are drawn for data when neither ``run`` nor ``calls`` is given.
        seed: of everything random.
        storage: dtype that what stays in full precision is rounded to, as it will be saved; None leaves it alone.
        store: keeps finished layers, so that an interrupted run can go on.
        progress: told (what, done, total).

    Returns:
        ``target``, quantized.

    Raises:
        BadRecipe, BadFormat: the recipe is unknown, or does not fit the model.
        BadValue: NaN or infinity in weights or calibration, no way to get calibration data, or calls that do not fit.
    """
    if run is not None and calls is not None:
        raise BadValue("give run= or calls=, not both")
    found = resolve_recipe(recipe, bits, settings)
    stages = stages_of(found)
    model = denoiser_of(target).eval()
    _check_ready(model)
    if calls is not None:
        check_fit(calls, model, "calls=")
    plan_ahead(target, found, seed)  # a format that does not fit is refused before anything is changed
    how = calibration or Calibration()
    job = Job(model, adapter_for(model), found.bits, seed, calibration_calls(target, how, seed, run, calls), store)
    if isinstance(target, DiffusionPipeline):
        job.study = partial(_studied, target, how, seed)
        job.sampling = partial(_sampled, target, how)
    job.draw = partial(_drawn, target, how, seed, run, calls)
    job.progress = _returning_memory(progress or job.progress)
    with torch.no_grad():
        for stage in stages:
            stage.run(job)
        plan = job.finish()
        if storage is not None:
            for name, tensor in full_precision_parts(model).items():
                rounded = tensor.to(storage)
                if not bool(torch.isfinite(rounded).all()):
                    raise BadValue(f"'{name}' holds values too large to be stored as {storage}")
                tensor.copy_(rounded)
    if not plan.layers:
        raise BadModel(f"the recipe '{found.name}' left every linear of {type(model).__name__} in full precision")
    fuse(model)
    start_clock(model, job.clock, ClockReader(job.adapter, model))
    # Nobody knows a caller's own sampler.
    told = {**recipes.recipe_to(found), "seed": seed, "calibration": None if run is not None else _how_made(how, calls)}
    if job.notes:
        told["notes"] = job.notes
    header = Header(plan, told, __version__)
    (stamp if isinstance(model, ConfigMixin) else attach)(model, header)
    return target


def _how_made(how: Calibration, calls: Sequence[Call] | None) -> dict[str, Any]:
    """Where calibration data came from, as JSON."""
    if calls is not None:
        return {"stored_calls": len(calls), "digest": digest_of(calls)}
    return {**vars(how), "prompts": list(how.prompts)}


def plan_ahead(target: Any, recipe: Recipe, seed: int = 0) -> Job:
    """A job after its ALLOCATE stages alone: what each layer would become. The model is not changed.

    Stages that decide from data are left out; ``specs`` then says what the recipe assigns before they refine it.
    """
    model = denoiser_of(target)
    job = Job(model, adapter_for(model), recipe.bits, seed, _no_data, study=_no_pictures, sampling=_no_sampling)
    for stage in stages_of(recipe):
        if stage.phase == Phase.ALLOCATE:
            with suppress(_NeedsData):
                stage.run(job)
    return job


class _NeedsData(Exception):
    """A stage asked for calibration calls or pictures while only the plan was wanted."""


def _no_data() -> tuple[Call, ...]:
    raise _NeedsData


def _no_pictures(settings: StudySettings) -> Study:
    raise _NeedsData


def _no_sampling() -> Sampling:
    raise _NeedsData


def _check_ready(model: nn.Module) -> None:
    """Refuse what is quantized already, and weights that are not numbers, before anything is changed."""
    if any(isinstance(m, QLinear) for m in model.modules()):
        raise Refused(f"this {type(model).__name__} is quantized already; quantize the full-precision model instead")
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise BadValue(f"parameter '{name}' has no data (it is on the meta device)")
        if not bool(torch.isfinite(parameter).all()):
            raise BadValue(f"parameter '{name}' holds NaN or infinity")
        memory.set_aside(parameter)


def _returning_memory(progress: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
    """``progress``, which also gives freed memory back each time: stages report after every layer."""

    def report(what: str, done: int, total: int) -> None:
        memory.trim()
        progress(what, done, total)

    return report


@contextmanager
def _calibrating() -> Iterator[None]:
    """While inside, a BadValue says that it came of drawing for calibration."""
    try:
        yield
    except BadValue as e:
        raise BadValue(f"calibration: {e}") from None


def calibration_calls(
    target: Any,
    how: Calibration,
    seed: int,
    run: Callable[[], object] | None = None,
    calls: Sequence[Call] | None = None,
) -> Callable[[], tuple[Call, ...]]:
    """What records the denoiser calls of calibration pictures, or those of ``run``, when called; or gives ``calls``."""
    if calls is not None:
        given = tuple(calls)
        return lambda: given
    model = denoiser_of(target)

    def draw() -> None:
        if isinstance(target, nn.Module):
            raise BadValue("this recipe needs calibration data: give run=, a callable that samples with the model")
        labels = default_labels(target, how.samples, how.prompts)
        with _calibrating():
            sampler_for(target, how.steps, how.guidance)(labels, sample_seeds(seed, how.samples, calibration=True))

    return lambda: record(model, run or draw, limit=how.calls, seed=seed)


def record_calls(
    target: Any, *, calibration: Calibration | None = None, seed: int = 0, run: Callable[[], object] | None = None
) -> tuple[Call, ...]:
    """The denoiser calls that ``quantize`` records of a full-precision model, with the same arguments.

    Args:
        target: a diffusers pipeline, or a module (then with ``run``); put into eval mode.
        calibration: how pictures are drawn, and how many calls are kept.
        seed: of noise, and of which calls are kept.
        run: your own sampler, in place of drawing pictures.

    Raises:
        BadModel: not a denoiser, or never called.
        BadValue: NaN or infinity in a call, or no way to draw pictures.
    """
    model = denoiser_of(target).eval()
    if run is None and target is model:
        raise BadValue(
            f"{type(model).__name__} is a network without a sampler: give run=, a callable that samples with it"
        )
    return calibration_calls(target, calibration or Calibration(), seed, run)()


def _studied(pipeline: DiffusionPipeline, how: Calibration, seed: int, settings: StudySettings) -> Study:
    """A study of pictures that share no noise with calibration, which has the seeds before theirs, or evaluation."""
    seeds = sample_seeds(seed, how.samples + settings.samples, calibration=True)[how.samples :]
    return study_of(pipeline, settings, how.prompts, seeds)


def _drawn(
    target: Any,
    how: Calibration,
    seed: int,
    run: Callable[[], object] | None,
    calls: Sequence[Call] | None,
    what: Trajectory,
) -> None:
    """Draws a trajectory: of pictures of its own, which share no noise with all others; or ``run``, or the given calls."""
    if calls is not None:
        for call in calls:
            replay(denoiser_of(target), call)
    elif run is not None:
        run()
    elif isinstance(target, nn.Module):
        no_drawing(what)
    else:
        start = what.number * what.samples
        labels = default_labels(target, start + what.samples, how.prompts)[start:]
        first = how.samples + _TRAJECTORIES + start
        seeds = sample_seeds(seed, first + what.samples, calibration=True)[first:]
        with _calibrating():
            sampler_for(target, what.steps, what.guidance, what.samples)(labels, seeds)


def _sampled(pipeline: DiffusionPipeline, how: Calibration) -> Sampling:
    """How calibration pictures are drawn."""
    scheduler = cast(Any, pipeline).components.get("scheduler")
    if scheduler is None:
        raise BadRecipe(f"this recipe weighs errors by the sampler, and {type(pipeline).__name__} has no scheduler")
    return Sampling(scheduler, how.steps, how.guidance)


def full_precision_parts(model: nn.Module) -> dict[str, Tensor]:
    """Every floating tensor that is saved and is not part of a packed layer's codes, scales and tables."""
    packed = packed_tensors(model)
    state: Mapping[str, Tensor] = model.state_dict(keep_vars=True)
    return {k: v for k, v in state.items() if k not in packed and v.is_floating_point()}


@contextmanager
def stored_as(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """While inside, what stays in full precision has this dtype, for saving; afterwards every bit is as it was."""
    parts = list({id(tensor): tensor for tensor in full_precision_parts(model).values()}.values())  # tied ones once
    before = [tensor.data for tensor in parts]
    try:
        for tensor in parts:
            tensor.data = tensor.data.to(dtype)
        yield
    finally:
        for tensor, data in zip(parts, before, strict=True):
            tensor.data = data
