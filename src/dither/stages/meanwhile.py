"""What a job's model does for a while only: tell its time, show what attention computes, run other layers; then as before."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from dither.models.base import Call
from dither.nn import detach
from dither.nn import replace as put
from dither.spec import AttentionSpec
from dither.stages.base import Job

__all__ = ["attending", "clocked", "instead", "still"]


@contextmanager
def clocked(job: Job) -> Iterator[None]:
    """While inside, every call of the model tells its time to the job's clock."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        job.clock.tell(job.rows(Call(args, kwargs)))

    handle = job.model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def attending(job: Job, specs: Mapping[str, AttentionSpec]) -> Iterator[None]:
    """While inside, these attentions compute under specs without tables; under an empty one they can be looked at."""
    try:
        for name, spec in specs.items():
            job.rounded_attention(name, spec, {})
        yield
    finally:
        for name in specs:
            detach(job.model.get_submodule(name))


@contextmanager
def instead(model: nn.Module, others: Mapping[str, nn.Module]) -> Iterator[None]:
    """While inside, these modules stand where their names say; afterwards the model's own do again."""
    own = {name: model.get_submodule(name) for name in others}
    try:
        for name, other in others.items():
            put(model, name, other)
        yield
    finally:
        for name, module in own.items():
            put(model, name, module)


@contextmanager
def still(model: nn.Module) -> Iterator[None]:
    """While inside, none of the parameters that the model has now gets gradients."""
    learning = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
