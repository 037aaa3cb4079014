"""Learning along trajectories: at every call that a sampler makes, the model that is being quantized is held against the
full-precision one (VQ4DiT, arXiv 2408.17131, section 3.3).

    L_d = mean over blocks of E |y^ - y|^2      y, y^: what a block of the full-precision model, and of this one, gives

Both models receive the same latents, those of the full-precision model's trajectory, so that errors of one step are not
taken for errors of the next ("zero-data": noise and labels are all it takes). The latents of some trajectories may be the
quantized model's own, so that it learns where its errors lead. With ``relative`` each block's error is a share of the
variance of what it is to give: raw errors are those of the last blocks, whose outputs are largest.

Gradients run through the whole network. Memory is its graph for one call of ``samples`` pictures, and a second model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dither.errors import BadModel, BadValue
from dither.models.base import Call
from dither.stages.base import Job
from dither.stages.bounds import check_bounds
from dither.stages.minibatches import leaves
from dither.stages.needs import Trajectory

__all__ = ["Course"]

TINY = 1e-12


@dataclass(frozen=True)
class Course:
    """What is followed; the fields are those of a stage.

    Args:
        stage: its tag, for messages.
        samples: pictures of a trajectory; all classes (or prompts) take turns.
        steps: of the sampler.
        guidance: of the sampler; conditional and unconditional rows are both seen above 1.
        output: what the error of the model's answer counts beside the mean of its blocks'.
        relative: errors as shares of the variance of what is to be given.
        own: share of the trajectories whose latents are those of the model that learns.
    """

    stage: str
    samples: int
    steps: int
    guidance: float
    output: float = 0.0
    relative: bool = False
    own: float = 0.0

    def check(self) -> None:
        """BadRecipe names a field that makes no sense."""
        bounds: dict[str, tuple[float, float]] = {
            "samples": (1, 10**6), "steps": (1, 10**6), "guidance": (0, 1000), "output": (0, 1e6), "own": (0, 1),
        }  # fmt: skip
        check_bounds(self.stage, self, bounds)

    def follow(self, job: Job, exact: nn.Module, number: int, learn: Callable[[Tensor], None]) -> None:
        """One trajectory.

        Args:
            job: whose model learns.
            exact: the full-precision model.
            number: of the trajectory.
            learn: is given the error at each call, a scalar with gradients, and changes the model.

        Raises:
            BadModel: the model has no blocks, and its answer counts nothing.
            BadValue: an error is no number.
        """
        blocks = list(job.adapter.blocks(job.model))
        if not blocks and not self.output:
            raise BadModel(
                f"{self.stage}: {type(job.model).__name__} has no blocks to compare: set {self.stage}.output"
            )
        forward = job.model.forward
        alone = int((number + 1) * self.own) > int(number * self.own)

        def answer(*args: Any, **kwargs: Any) -> Any:
            job.clock.tell(job.rows(Call(args, kwargs)))
            with torch.no_grad(), _watched(exact, blocks) as wanted:
                wanted[""] = target = exact(*args, **kwargs)
            with torch.enable_grad(), _watched(job.model, blocks) as found:
                found[""] = own = forward(*args, **kwargs)
                error = self._error(found, wanted)
                if not bool(torch.isfinite(error)):
                    raise BadValue(f"{self.stage}: the error is {float(error.detach())} in trajectory {number}")
                learn(error)
            return _detached(own) if alone else target

        with _answering(job.model, answer):
            job.draw(Trajectory(number, self.samples, self.steps, self.guidance))

    def _error(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Tensor:
        inside = [self._distance(found[name], wanted[name]) for name in found if name]
        total = torch.stack(inside).mean() if inside else torch.zeros(())
        return total + self.output * self._distance(found[""], wanted[""]) if self.output else total

    def _distance(self, found: Any, wanted: Any) -> Tensor:
        """Mean over the tensors that a module gives."""
        parts = []
        for y, exact in zip(leaves(found), leaves(wanted), strict=True):
            error = (y.float() - exact.float()).square().mean()
            parts.append(error / exact.float().var().clamp(min=TINY) if self.relative else error)
        return torch.stack(parts).mean()


@contextmanager
def _watched(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What these modules give, by name, as calls run."""
    given: dict[str, Any] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, args, output: given.update({name: output})

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield given
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _answering(model: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """While inside, the model answers calls in another way."""
    own = vars(model).get("forward")  # others put theirs there too
    vars(model)["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del vars(model)["forward"]
        else:
            vars(model)["forward"] = own


def _detached(value: Any) -> Any:
    """The same without gradients, in tuples and in mappings such as those of diffusers."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, Mapping):
        return type(value)(**{k: _detached(v) for k, v in value.items()})
    return type(value)(_detached(v) for v in value) if isinstance(value, list | tuple) else value
