"""What it does to pictures when one unit alone is quantized, in one range of the noise level (ViDiT-Q, arXiv 2406.02540).

For every unit, time range, width and side (weights or inputs) the study draws its few pictures anew with only that changed,
and says how far they are from those of full precision. The model itself is not changed: the unit's linears have a hook that
puts another result in place of theirs for the samples whose noise level lies in the range.

The widest of the widths is not drawn: it is the reference, whose loss counts as 0, and the others are what they lose
against it. That is a picture less in three, and what the widest loses is small beside the rest.

Until the sampler comes to the range, it asks for just what it asked for in full precision, and gets the answers of then:
a third of the work is saved, and not a bit changes. Every measurement goes into the job's store as soon as it is made.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn

from dither.clock import Clock
from dither.errors import BadValue
from dither.models.base import Call
from dither.nn import QLinear
from dither.spec import Act, Format
from dither.stages.base import Job, Study
from dither.stages.meanwhile import clocked
from dither.stages.roles import Unit

__all__ = ["Losses", "Variant", "measure", "only"]

Losses = dict[str, float]
"""``mse``, and each judged role's."""


@dataclass(frozen=True)
class Variant:
    """What a unit's linears are turned into while pictures are drawn.

    Args:
        name: short, such as ``w4``.
        weight: format of each layer's weight, or None.
        act: of its input, or None.
    """

    name: str
    weight: Callable[[str], Format | None]
    act: Callable[[str], Act | None]


class _Now:
    """The running call: noise level of each sample (B,), and for which of them something is changed."""

    def __init__(self) -> None:
        self.level = torch.zeros(1)
        self.where: tuple[Clock, int] | None = None
        self.answers: dict[bytes, Any] = {}

    def inside(self) -> Tensor:
        """Whether each sample's noise level lies in the range that is changed, (B,)."""
        if self.where is None:
            return torch.zeros_like(self.level, dtype=torch.bool)
        ranges, index = self.where
        return ranges.rows_at(self.level, torch.zeros_like(self.level)) == index

    def answer(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What the model answers. Calls of full precision are remembered, and not computed again."""
        if self.where is not None and bool(self.inside().any()):
            return plain(*args, **kwargs)
        asked = _digest((args, kwargs))
        if asked in self.answers:
            return deepcopy(self.answers[asked])  # some samplers work in place
        output = plain(*args, **kwargs)
        if self.where is None:
            self.answers[asked] = deepcopy(output)
        return output


def measure(
    job: Job, study: Study, units: Sequence[tuple[Unit, Sequence[Variant]]], edges: Sequence[float]
) -> dict[tuple[str, int, str], Losses]:
    """Losses by unit's name, time range (from low to high noise) and variant's name.

    Args:
        job: whose model computes what it did in full precision.
        study: draws and judges.
        units: each with what it is to be turned into.
        edges: inner edges of the time ranges.

    Raises:
        BadValue: pictures of a variant hold NaN or infinity.
    """
    todo = [(unit, i, variant) for unit, variants in units for i in range(len(edges) + 1) for variant in variants]
    found, ranges = {}, Clock(tuple(edges))
    with _watched(job) as now:
        for done, (unit, i, variant) in enumerate(todo):
            job.progress("measuring sensitivity", done, len(todo))
            make = partial(_drawn, job, study, unit, (ranges, i), variant, now)
            found[unit.name, i, variant.name] = job.measured(f"{unit.name}.{i}.{variant.name}", make)
    if todo:
        job.progress("measuring sensitivity", len(todo), len(todo))
    return found


def _drawn(
    job: Job, study: Study, unit: Unit, where: tuple[Clock, int], variant: Variant, now: _Now
) -> Mapping[str, float]:
    study.begin()
    twins = {name: job.imitation(name, variant.weight(name), variant.act(name)) for name in unit.layers}
    with only(job.model, twins, now.inside):
        now.where = where
        try:
            losses = study.losses()
        finally:
            now.where = None
    for key, value in losses.items():
        if not abs(value) < float("inf"):
            raise BadValue(f"the pictures' {key} is {value} when only '{unit.name}' is {variant.name}")
    return losses


@contextmanager
def _watched(job: Job) -> Iterator[_Now]:
    """While inside, every call of the model tells its time to the job's clock, and is answered by what this gives."""
    now, model = _Now(), job.model
    before = vars(model).get("forward")  # somebody else's may stand there already
    plain = model.forward

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        now.level = job.adapter.noise_level(model, Call(args, kwargs))

    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    vars(model)["forward"] = partial(now.answer, plain)
    try:
        with clocked(job):
            yield now
    finally:
        handle.remove()
        del vars(model)["forward"]
        if before is not None:
            vars(model)["forward"] = before


def _digest(value: Any) -> bytes:
    """The same for arguments that are equal bit for bit."""
    found = blake2b(digest_size=16)
    parts: list[Any] = [value]
    while parts:
        part = parts.pop()
        if isinstance(part, Tensor):
            found.update(f"{part.dtype}{tuple(part.shape)}".encode())
            found.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(part, list | tuple):
            found.update(f"[{len(part)}".encode())
            parts += part
        elif isinstance(part, Mapping):
            found.update(f"{list(part)}".encode())
            parts += part.values()
        else:  # a number or a text; of anything else, the very object
            found.update(repr(part if isinstance(part, bool | int | float | str | None) else id(part)).encode())
    return found.digest()


@contextmanager
def only(model: nn.Module, twins: Mapping[str, QLinear], inside: Callable[[], Tensor]) -> Iterator[None]:
    """While inside, these layers answer as their twins do, for samples of which ``inside`` (B,) says so."""
    with ExitStack() as stack:
        for name, twin in twins.items():
            handle = model.get_submodule(name).register_forward_hook(_answering(twin, inside))
            stack.callback(handle.remove)
        yield


def _answering(twin: QLinear, inside: Callable[[], Tensor]) -> Callable[..., Tensor | None]:
    def hook(module: nn.Module, args: tuple[Any, ...], plain: Tensor) -> Tensor | None:
        chosen = inside()
        if not bool(chosen.any()):
            return None  # the layer's own answer stands
        other: Tensor = twin(args[0])
        # one input for all samples, such as an embedding, is in all their ranges
        if bool(chosen.all()) or plain.shape[0] % chosen.shape[0]:
            return other
        rows = chosen.to(plain.device).repeat_interleave(plain.shape[0] // chosen.shape[0])
        return torch.where(rows.view(-1, *(1,) * (plain.ndim - 1)), other, plain)

    return hook
