"""A case is measured: all candidates are built and held against float32 first, then they take turns."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import by_turns, milliseconds, seconds_of, speedup
from benchmarks.cpu.peers import PEERS
from benchmarks.cpu.run import Run
from benchmarks.cpu.ways import WAYS, Simulated, Way, in_way, kernels_of, on_reference

__all__ = ["BASELINES", "Case", "Ready", "distance", "measure", "ready"]

BASELINES = ("float32", "bfloat16")
SAME_CODES = 1e-5
"""Relative difference that the order of float32 sums explains between a linear's kernel and the reference."""
SAME_MODEL = 2e-2
"""The same behind many layers, where a code next to a tie may be the other one."""
PEER_ERROR = 0.5
"""A peer that is further than this from float32 computes something else, and is not timed."""
SLOWEST = 20
"""A peer this many times slower than float32 is named, but takes no turns: it would take them all."""


@dataclass(frozen=True)
class Case:
    """What is timed.

    Args:
        name: in tables.
        group: of cases that stand in one table.
        module: float32, whose ``forward`` takes and gives tensors.
        inputs: sets of its inputs that take turns, since a layer knows its last input again.
        ways: names of ``WAYS``.
        peers: whether other libraries take part.
        facts: of the result, such as a shape.
        wrap: of what is to be timed of a ``Run`` and an ``inputs``, where that is more than a call.
    """

    name: str
    group: str
    module: nn.Module
    inputs: Sequence[tuple[Tensor, ...]]
    ways: Sequence[str]
    peers: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)
    wrap: Callable[[Run], Callable[[], object]] | None = None


@dataclass(frozen=True)
class Ready:
    """Candidates of a case that compute what it asks for.

    Args:
        runs: by name.
        errors: relative, of their outputs to float32's.
        gaps: of dither's to those of the reference kernel.
        kernels: that run dither's layers.
        missing: names of those that do not run, and why.
    """

    runs: Mapping[str, Run]
    errors: Mapping[str, float]
    gaps: Mapping[str, float]
    kernels: Mapping[str, list[str]]
    missing: Mapping[str, str]


def ready(case: Case) -> Ready:
    """Builds every candidate. AssertionError where a kernel of ours computes something else than the reference."""
    torch.compiler.reset()  # graphs of earlier cases count towards a limit behind which everything runs eagerly
    want = case.module(*case.inputs[0])
    runs: dict[str, Run] = {}
    errors: dict[str, float] = {}
    gaps: dict[str, float] = {}
    kernels: dict[str, list[str]] = {}
    missing: dict[str, str] = {}
    for name in case.ways:
        way = WAYS[name]
        try:
            module = in_way(case.module, way, case.inputs[0])
        except Simulated as e:
            missing[name] = str(e)
            continue
        runs[name] = run_of(module, way)
        got = runs[name](*case.inputs[0])
        errors[name] = distance(got, want)
        if way.quantizes:
            kernels[name] = kernels_of(module)
            gaps[name] = checked(case, name, got, on_reference(module))
    missing |= peers_of(case, want, runs, errors) if case.peers else {}
    errors.pop("float32", None)
    return Ready(runs, errors, gaps, kernels, missing)


def run_of(module: nn.Module, way: Way) -> Run:
    """The module as it runs."""
    return Run(torch.compile(module) if way.compiled else module, way.dtype)


def checked(case: Case, name: str, got: Tensor, reference: nn.Module) -> float:
    """Relative distance to what the reference kernel gives."""
    gap = distance(got, run_of(reference, Way(dtype=WAYS[name].dtype))(*case.inputs[0]))
    limit = SAME_CODES if case.group == "layers" else SAME_MODEL
    if WAYS[name].dtype == torch.float32 and gap > limit:
        raise AssertionError(f"{case.name}, {name}: {gap:.2g} away from the reference kernel, {limit:.2g} is allowed")
    return gap


def peers_of(case: Case, want: Tensor, runs: dict[str, Run], errors: dict[str, float]) -> dict[str, str]:
    """Adds the peers that run, and says of the others why they do not."""
    missing = {}
    base = seconds_of(lambda: runs["float32"](*case.inputs[0]))
    for peer in PEERS:
        try:
            run = peer.build(case.module, case.inputs[0])
            error = distance(run(*case.inputs[0]), want)
            if not error <= PEER_ERROR:
                raise AssertionError(f"relative error {error:.2g} to float32")
            if (times := seconds_of(lambda run=run: run(*case.inputs[0])) / base) > SLOWEST:  # type: ignore[misc]
                raise AssertionError(f"{times:.0f} times slower than float32")
        except Exception as e:  # other people's libraries raise what they like
            missing[peer.name] = f"{type(e).__name__}: {e}".strip().splitlines()[0][:160]
            sys.stderr.write(f"  {peer.name}: n/a ({missing[peer.name]})\n")
        else:
            runs[peer.name], errors[peer.name] = run, error
    return missing


def measure(case: Case, made: Ready, rounds: int) -> dict[str, Any]:
    """A row of the results: the case's candidates by turns."""
    times = by_turns({name: call_of(case, run) for name, run in made.runs.items()}, rounds)
    return {
        "case": case.name,
        "group": case.group,
        **case.facts,
        "rounds": rounds,
        **{
            f"times_faster_than_{base}": {name: speedup(times, name, base) for name in times if name != base}
            for base in BASELINES
        },
        "relative_error_to_float32": {name: float(f"{error:.3g}") for name, error in made.errors.items()},
        "relative_error_to_reference_kernel": {name: float(f"{gap:.2g}") for name, gap in made.gaps.items()},
        "kernels": made.kernels,
        "missing": made.missing,
        "median_ms_this_machine_shared": milliseconds(times),
    }


def call_of(case: Case, run: Run) -> Callable[[], object]:
    """What is timed of a candidate: calls with the inputs by turns, or what the case makes of them."""
    if case.wrap is not None:
        return case.wrap(run)
    inputs = cycle([run.cast(given) for given in case.inputs])
    return lambda: run.call(*next(inputs))


def distance(got: Tensor, want: Tensor) -> float:
    """``||got - want|| / ||want||``."""
    return float((got.float() - want.float()).norm() / want.float().norm())
