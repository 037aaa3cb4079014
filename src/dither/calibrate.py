"""Calibration: the denoiser calls that a real sampler makes, statistics streamed over them, and a walk block by block.

``record`` keeps whole denoiser calls (latents, timestep, condition), never activations; memory is bounded by a reservoir
however many steps the sampler takes. ``observe`` runs the calls once and feeds every probe of every layer. ``walk`` hands
out the blocks in order, each with the inputs that its (already changed) predecessors give; ``lockstep`` also with what the
full-precision model receives and answers there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dither.errors import BadModel, BadValue
from dither.models.base import Adapter, Call
from dither.probes import AbsMax, MinMax, Probe, RowSample

__all__ = [
    "AbsMax",
    "BlockStep",
    "MinMax",
    "PairStep",
    "Probe",
    "RowSample",
    "lockstep",
    "observe",
    "record",
    "replay",
    "tapped",
    "walk",
]


def _to(value: Any, device: torch.device | str) -> Any:
    """Tensors in nested lists, tuples and dicts, detached and copied to a device."""
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True)
    if isinstance(value, list | tuple):
        return type(value)(_to(v, device) for v in value)
    if isinstance(value, Mapping):
        return {k: _to(v, device) for k, v in value.items()}
    return value


def _device(model: nn.Module) -> torch.device:
    return next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def record(model: nn.Module, run: Callable[[], object], *, limit: int = 64, seed: int = 0) -> tuple[Call, ...]:
    """The denoiser calls that ``run`` makes, a uniform sample of at most ``limit`` of them, in the order they came.

    Args:
        model: the denoiser; hooked while ``run`` runs.
        run: the user's own sampler.
        limit: calls kept; bounds memory for any number of steps (reservoir sampling, Vitter's algorithm R).
        seed: of the reservoir.

    Raises:
        BadModel: ``run`` never called the model.
        BadValue: a recorded tensor holds NaN or infinity, or ``limit`` is not positive.
    """
    if limit < 1:
        raise BadValue(f"calibration: {limit} denoiser calls cannot be kept: at least 1 is needed")
    rng = np.random.default_rng(seed)
    kept: list[tuple[int, Call]] = []
    seen = 0

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal seen
        slot = seen if seen < limit else int(rng.integers(seen + 1))
        if slot < limit:
            item = (seen, Call(_to(args, "cpu"), _to(kwargs, "cpu")))
            kept[slot : slot + 1] = [item]
        seen += 1

    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with torch.no_grad():
            run()
    finally:
        handle.remove()
    if not kept:
        raise BadModel("calibration: the sampler never called the model, so nothing was recorded")
    calls = tuple(call for _, call in sorted(kept, key=lambda item: item[0]))
    _check_finite(calls)
    return calls


def _check_finite(calls: Sequence[Call]) -> None:
    for i, call in enumerate(calls):
        named = {**{f"argument {j}": v for j, v in enumerate(call.args)}, **call.kwargs}
        for name, value in named.items():
            if isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise BadValue(f"calibration: '{name}' of denoiser call {i} holds NaN or infinity")


def replay(model: nn.Module, call: Call, *, gradients: bool = False) -> Any:
    """Make a recorded call again, without gradients unless they are asked for."""
    device = _device(model)
    with torch.set_grad_enabled(gradients):
        return model(*_to(call.args, device), **_to(call.kwargs, device))


def observe(
    model: nn.Module,
    calls: Sequence[Call],
    probes: Mapping[str, Sequence[Probe]],
    rows: Sequence[Tensor],
    tell: Callable[[Tensor], None],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Run the calls once and feed every probe with its layer's inputs, as they stream by.

    Args:
        model: the denoiser, or one block of a walk.
        calls: of it.
        probes: layer name to the probes that read its input.
        rows: for each call, the clock row of each sample, (B,) int64.
        tell: sets the clock to such rows; called before each call.
        progress: told (done, total) after each call.

    Raises:
        BadValue: an input holds NaN or infinity; the layer is named.
        BadModel: no call reached a layer; it is named.
    """
    now: dict[str, Tensor] = {}
    reached: set[str] = set()
    with ExitStack() as stack:
        for name, readers in probes.items():
            module = model.get_submodule(name)
            stack.callback(module.register_forward_pre_hook(_feeder(name, readers, now, reached)).remove)
        for i, call in enumerate(calls):
            now["rows"] = rows[i]
            tell(rows[i])
            replay(model, call)
            if progress is not None:
                progress(i + 1, len(calls))
    if missed := [name for name in probes if name not in reached]:
        raise BadModel(
            f"calibration: no denoiser call reached layer '{missed[0]}': exclude it, or sample so that it runs"
        )


def _feeder(name: str, probes: Sequence[Probe], now: Mapping[str, Tensor], reached: set[str]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0]
        reached.add(name)
        if not bool(torch.isfinite(x).all()):
            raise BadValue(f"calibration: the input of layer '{name}' holds NaN or infinity")
        for probe in probes:
            probe.update(x, now["rows"].to(x.device))

    return hook


@dataclass(frozen=True)
class BlockStep:
    """One block of a walk: its name, the module, and the calls it receives from the blocks before it."""

    name: str
    module: nn.Module
    calls: Sequence[Call]


class _Stop(Exception):
    """Ends a forward once the block of interest was reached."""


@contextmanager
def _caught(module: nn.Module, into: list[Call], stop: bool) -> Iterator[None]:
    def hook(m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        into.append(Call(_to(args, "cpu"), _to(kwargs, "cpu")))
        if stop:
            raise _Stop

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _inputs_of(
    model: nn.Module, block: str, calls: Sequence[Call], rows: Sequence[Tensor], tell: Callable[[Tensor], None]
) -> list[Call]:
    """What a block receives when the model makes these calls; nothing after the block runs."""
    out: list[Call] = []
    with _caught(model.get_submodule(block), out, stop=True):
        for call, now in zip(calls, rows, strict=True):
            tell(now)
            try:
                replay(model, call)
            except _Stop:
                continue
            raise BadModel(f"block '{block}' was not reached by a denoiser call")
    return out


def walk(
    model: nn.Module,
    adapter: Adapter,
    calls: Sequence[Call],
    rows: Sequence[Tensor],
    tell: Callable[[Tensor], None],
) -> Iterator[BlockStep]:
    """The blocks in order. Change a block before asking for the next: its new output is what the next receives.

    Peak memory is one block's inputs for all calls, on the CPU, whatever the depth; a step's calls are those of the next
    one when that is asked for. ``rows`` and ``tell`` are as for
    ``observe``: a block that runs alone has no denoiser call to read the time from.

    Raises:
        BadModel: there are no blocks, or a block's output is not simply the next block's input (checked on the first
            call, before any change).
    """
    names = list(adapter.blocks(model))
    if not names:
        raise BadModel(f"{type(model).__name__} has no blocks that could be walked")
    tell(rows[0])
    _check_carry(model, adapter, names, calls[0])
    current = _inputs_of(model, names[0], calls, rows, tell)
    for name in names:
        yield BlockStep(name, model.get_submodule(name), current)
        module = model.get_submodule(name)  # the caller may have replaced it
        for i, call in enumerate(current if name != names[-1] else ()):  # in place: old inputs go as new ones come
            current[i] = _onward(module, adapter, call, rows[i], tell)


def tapped(
    model: nn.Module, name: str, calls: Sequence[Call], rows: Sequence[Tensor], tell: Callable[[Tensor], None]
) -> tuple[list[Call], list[Any]]:
    """What one module of a model receives, and what it gives, in each of these calls of the model, on the CPU.

    Raises:
        BadModel: a call reaches it more than once, or not at all.
    """
    received: list[Call] = []
    given: list[Any] = []
    module = model.get_submodule(name)
    with ExitStack() as stack:
        stack.enter_context(_caught(module, received, stop=False))
        handle = module.register_forward_hook(lambda m, args, output: given.append(_to(output, "cpu")))
        stack.callback(handle.remove)
        for i, call in enumerate(calls):
            tell(rows[i])
            replay(model, call)
            if len(given) != i + 1:
                raise BadModel(f"a denoiser call reaches '{name}' {len(given) - i} times, not once")
    return received, given


@dataclass(frozen=True)
class PairStep(BlockStep):
    """A block of a walk, and the same block of the full-precision model.

    Args:
        exact: the calls that it receives there.
        targets: its outputs there, on the CPU.
    """

    exact: Sequence[Call]
    targets: Sequence[Any]


def lockstep(
    model: nn.Module,
    adapter: Adapter,
    calls: Sequence[Call],
    rows: Sequence[Tensor],
    tell: Callable[[Tensor], None],
    exact: nn.Module | None = None,
) -> Iterator[PairStep]:
    """``walk``, and beside it a second stream in which no block was ever changed.

    Args:
        model, adapter, calls, rows, tell: as of ``walk``.
        exact: a copy of the model in full precision. Without one, each block runs in the second stream before the caller
            sees it, and must be in full precision until then.

    Peak memory is one block's inputs in both streams, and its outputs in the second, for all calls, on the CPU.
    """
    inputs: list[Call] = []
    for step in walk(model, adapter, calls, rows, tell):
        block = step.module if exact is None else exact.get_submodule(step.name)
        if not inputs:  # the first block: without a copy, both streams are still one
            inputs = list(step.calls) if exact is None else _inputs_of(exact, step.name, calls, rows, tell)
        targets = []
        for call, now in zip(inputs, rows, strict=True):
            tell(now)
            targets.append(_to(replay(block, call), "cpu"))
        yield PairStep(step.name, step.module, step.calls, inputs, targets)
        inputs = [adapter.carry(call, output) for call, output in zip(inputs, targets, strict=True)]


def _onward(module: nn.Module, adapter: Adapter, call: Call, rows: Tensor, tell: Callable[[Tensor], None]) -> Call:
    """What the next block receives."""
    tell(rows)
    return adapter.carry(call, _to(replay(module, call), "cpu"))


def _check_carry(model: nn.Module, adapter: Adapter, names: Sequence[str], call: Call) -> None:
    """Carrying outputs forward must give what the model itself gives each block, or a walk would drift unseen."""
    real: dict[str, list[Call]] = {n: [] for n in names}
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(_caught(model.get_submodule(name), real[name], stop=False))
        replay(model, call)
    for name, after in pairwise(names):
        if len(real[name]) != 1 or len(real[after]) != 1:
            raise BadModel(f"block '{name}' runs {len(real[name])} times in one denoiser call: it cannot be walked")
        out = _to(replay(model.get_submodule(name), real[name][0]), "cpu")
        if not _same(adapter.carry(real[name][0], out), real[after][0]):
            raise BadModel(
                f"the output of block '{name}' is not all that block '{after}' receives: it cannot be walked"
            )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Call) and isinstance(b, Call):
        return _same(a.args, b.args) and _same(dict(a.kwargs), dict(b.kwargs))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool(torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-5))
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(v, b[k]) for k, v in a.items())
    return bool(a is b or a == b)
