"""ALLOCATE: group sizes by the curvature of the denoiser's error, which Q-DiT compares its search with.

HAWQ-V2 (arXiv 1911.03852) takes the mean trace of a layer's Hessian H for its sensitivity. The loss here is the squared
error of the denoiser's output y against full precision's, whose Hessian there is exactly the Gauss-Newton one:

    Omega(u, g) = sum over layers    tr(H) / numel(W)  ||Q_g(W) - W||^2
    tr(H) = tr(J^T J) = E_v ||J^T v||^2 = E_v ||d(v . y) / dW||_F^2        J = dy/dW,  v of independent +-1 (Hutchinson)

For a linear with input x and gradient e of v . y by its output, d(v . y) / dW = e^T x, summed over a sample's tokens. So one
backward pass serves every layer, and only a few samples have a graph at a time.

Only weights are judged, as in HAWQ-V2: that inputs are quantized in groups too goes unseen. The sizes then solve the same
integer program as ``group-program``'s.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dither.calibrate import replay
from dither.errors import BadModel, BadRecipe, BadValue
from dither.models.base import Call, linear_at
from dither.nn import QLinear
from dither.stages.adding_up import check_seconds, settle_least
from dither.stages.base import Job, Phase
from dither.stages.granularity import SIZES, Limits, Unit, problem_of, resized
from dither.stages.nesting import rounded

__all__ = ["HessianTrace", "squared_gradients"]

SAMPLES = 4
"""Of a call at a time: their graph is what takes memory."""


@dataclass(frozen=True)
class HessianTrace:
    """Group sizes of least summed second-order error of the weights.

    Args:
        sizes: to choose from.
        bits: most stored bits per weight on average; None: what the size that ``assign`` gave takes.
        bitops: most bit operations per multiply-accumulate on average; None: what that size takes.
        calls: calibration calls that are looked at, at most, evenly spread over those that were recorded.
        probes: draws of v for each.
        seconds: that the solver may take; if they do not suffice, what it has is taken and its gap noted.
    """

    tag: ClassVar[str] = "hessian-trace"
    phase: ClassVar[Phase] = Phase.ALLOCATE
    paper: ClassVar[str] = "1911.03852"
    sizes: tuple[int, ...] = SIZES
    bits: float | None = None
    bitops: float | None = None
    calls: int = 8
    probes: int = 1
    seconds: float = 60.0

    def run(self, job: Job) -> None:
        """Measure, solve, and promise."""
        check_seconds(self.tag, self.seconds)
        for name, value in (("calls", self.calls), ("probes", self.probes)):
            if value < 1:
                raise BadRecipe(f"{self.tag}.{name} {value}: must be at least 1")
        problem = problem_of(job, self.tag, self.sizes, Limits(self.bits, self.bitops))
        chosen = _spread(len(job.calls), self.calls)
        samples = sum(len(job.rows(job.calls[i])) for i in chosen)
        traces = self._traces(job, chosen, [name for unit in problem.units for name in unit.layers])
        losses = []
        for unit in problem.units:
            moved = job.measured(f"{unit.name}.rounding", partial(_rounding, job, unit))
            part = {n: traces[n] / samples / job.dense(n).numel() for n in unit.layers}
            losses.append([sum(part[n] * moved[_key(n, size)] for n in unit.layers) for size in unit.sizes])
        judge = "second-order error of the denoiser's output"
        cost = {"model_samples": samples, "gradient_samples": samples * self.probes}
        settle_least(job, self.tag, problem, losses, self.seconds, {"judge": judge, **cost})

    def _traces(self, job: Job, chosen: Sequence[int], names: Sequence[str]) -> dict[str, float]:
        """tr(H) of each layer, summed over the samples of these calls."""
        total = dict.fromkeys(names, 0.0)
        for done, index in enumerate(chosen, 1):
            make = partial(squared_gradients, job, index, names, self.probes)
            for name, value in job.measured(f"{self.tag}.{index}", make).items():
                total[name] += value
            job.progress("measuring curvature", done, len(chosen))
        return total


def _spread(count: int, most: int) -> list[int]:
    """At most this many of ``count`` indices, in the middles of equal parts."""
    parts = min(count, most)
    return [(2 * i + 1) * count // (2 * parts) for i in range(parts)]


def _rounding(job: Job, unit: Unit) -> dict[str, float]:
    """||Q_g(W) - W||^2 of each layer and size."""
    found = {}
    for name in unit.layers:
        w = job.dense(name).float()
        for size in unit.sizes:
            fmt = resized(job.specs[name], size).weight
            assert fmt is not None
            found[_key(name, size)] = float((rounded(w, fmt) - w).double().square().sum())
    return found


def _key(name: str, size: int) -> str:
    return f"{name}.g{size}"


def squared_gradients(job: Job, index: int, names: Sequence[str], probes: int) -> dict[str, float]:
    """||d(v . y)/dW||_F^2 of each layer, summed over the samples of a recorded call: the mean over ``probes`` draws of v.

    Args:
        job: whose model is run with gradients; nothing of it is changed.
        index: of the call.
        names: of layers.
        probes: draws.

    Raises:
        BadModel: the call did not reach a layer.
        BadValue: a gradient holds NaN or infinity.
    """
    call = job.calls[index]
    rows = job.rows(call)
    make = torch.Generator().manual_seed(job.seed * 1_000_003 + index)
    total = dict.fromkeys(names, 0.0)
    for start in range(0, len(rows), SAMPLES):
        part = slice(start, start + SAMPLES)
        job.clock.tell(rows[part] if len(rows) > 1 else rows)
        some = Call(_cut(call.args, len(rows), part), _cut(call.kwargs, len(rows), part))
        for name, found in _of_call(job.model, some, index, len(rows[part]), names, probes, make).items():
            total[name] += found
    return total


def _cut(value: Any, batch: int, part: slice) -> Any:
    """Some samples of all tensors that have a row for each."""
    if isinstance(value, Tensor):
        return value[part] if value.ndim and value.shape[0] == batch else value
    if isinstance(value, list | tuple):
        return type(value)(_cut(v, batch, part) for v in value)
    return {k: _cut(v, batch, part) for k, v in value.items()} if isinstance(value, Mapping) else value


def _of_call(
    model: nn.Module, call: Call, index: int, batch: int, names: Sequence[str], probes: int, make: torch.Generator
) -> dict[str, float]:
    """``squared_gradients`` of a few samples, whose graph is in memory at once."""
    total = dict.fromkeys(names, 0.0)
    with torch.enable_grad(), _without_weight_gradients(model), _watched(model, names) as seen:
        y = _first_tensor(replay(model, call, gradients=True))
        if missed := [name for name in names if not seen[name]]:
            raise BadModel(f"calibration: denoiser call {index} did not reach layer '{missed[0]}': exclude it")
        outputs = [out for name in names for _, out in seen[name]]
        for p in range(probes):
            v = torch.randint(2, y.shape, generator=make).mul(2).sub(1).to(y.device)
            last = p + 1 == probes
            found = torch.autograd.grad((v * y.float()).sum(), outputs, retain_graph=not last, allow_unused=True)
            grads = iter(found)
            for name in names:
                total[name] += _squared(name, [(x, next(grads)) for x, _ in seen[name]], batch) / probes
    return total


def _squared(name: str, uses: Sequence[tuple[Tensor, Tensor | None]], batch: int) -> float:
    """Sum over samples of ||sum over tokens of e^T x||_F^2, for the inputs and output gradients of each use of a layer."""
    known = [(_by_sample(x, batch), _by_sample(e, batch)) for x, e in uses if e is not None]
    if not known:
        return 0.0  # the output does not depend on this layer
    x = torch.cat([a for a, _ in known], 1)  # (B, T, K)
    e = torch.cat([b for _, b in known], 1)  # (B, T, N)
    tokens, (k, n) = x.shape[1], (x.shape[2], e.shape[2])
    if tokens * (k + n) < k * n:  # the same sum over pairs of tokens, in less work
        found = float(((x @ x.mT) * (e @ e.mT)).double().sum())
    else:
        found = sum(float((b.T @ a).double().square().sum()) for a, b in zip(x, e, strict=True))
    if not abs(found) < float("inf"):
        raise BadValue(f"the gradient at layer '{name}' holds NaN or infinity")
    return found


def _by_sample(x: Tensor, batch: int) -> Tensor:
    """(B, T, C) float32; what belongs to all samples, such as one embedding, counts as one sample."""
    x = x.detach().float()
    return x.reshape(batch if x.ndim > 1 and x.shape[0] % batch == 0 else 1, -1, x.shape[-1])


def _first_tensor(output: Any) -> Tensor:
    """What the denoiser returns, or the first of it."""
    if isinstance(output, Mapping):  # as outputs of diffusers are
        output = tuple(output.values())
    first = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(first, Tensor):
        raise BadModel(f"the denoiser returns {type(first).__name__} where a tensor is needed")
    return first


@contextmanager
def _without_weight_gradients(model: nn.Module) -> Iterator[None]:
    """While inside, no parameter asks for a gradient: outputs of layers are all that does."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for p, _ in before:
            p.requires_grad_(False)
        yield
    finally:
        for p, flag in before:
            p.requires_grad_(flag)


@contextmanager
def _watched(model: nn.Module, names: Sequence[str]) -> Iterator[Mapping[str, list[tuple[Tensor, Tensor]]]]:
    """While inside, each use of these layers is kept: what the weight is multiplied with, and the output in the graph."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
    with ExitStack() as stack:
        for name, uses in seen.items():
            stack.callback(linear_at(model, name).register_forward_hook(_keeper(uses)).remove)
        yield seen


def _keeper(uses: list[tuple[Tensor, Tensor]]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        x = args[0]
        if isinstance(module, QLinear):
            with torch.no_grad():
                x = module.transform(x)
        if not output.requires_grad:
            output.requires_grad_()  # nothing before it is watched: the graph begins here
        uses.append((x, output))

    return hook
