"""Signal-to-noise ratio of every layer at every timestep, in dB, and the ranges of what enters each layer.

    SNR(layer, t) = 10 log10( sum |y^FP|^2 / sum |y^Q - y^FP|^2 )

Teacher-forced over time: both networks see the latents that full precision would see at t, so a column shows what
quantization does at t and not what has piled up on the way there. Inside the network errors do flow from layer to
layer, as they do in use. Half the noise power is +3 dB; one bit more is about +6 dB.

A layer whose *output* was rescaled on purpose, because a channel scale was folded into it (adaLN, V rows), computes
another function than its namesake: leave it out, or give the folded network before quantization as `full`.

Ranges are those of the full-precision network: lowest, highest and root-mean-square input at each timestep show which
layers have outliers, and which of them move so much over time that one static scale cannot serve all timesteps.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch

from dither.errors import BadValue
from dither.evaluation.protocol import Float64

__all__ = [
    "SNR_CLIP_DB",
    "Call",
    "LayerSnr",
    "RangeMeter",
    "SnrMeter",
    "decibel",
    "first_tensor",
    "inputs",
    "layer_snr",
    "outputs",
]

SNR_CLIP_DB = 100.0  # a layer that is left in full precision and sees the same input has no noise at all

Call: TypeAlias = tuple[Sequence[Any], Mapping[str, Any], float]  # (args, kwargs, timestep)
See: TypeAlias = Callable[[str, torch.Tensor], None]


@dataclass(frozen=True)
class LayerSnr:
    """`db[i, j]`: signal-to-noise of `layers[i]` at `timesteps[j]`, between -100 and 100 dB."""

    layers: tuple[str, ...]
    timesteps: tuple[float, ...]
    db: Float64  # (L, T)

    def to_json(self) -> dict[str, Any]:
        """The form that results files hold."""
        rows = [[round(float(value), 2) for value in row] for row in self.db]
        return {"layers": list(self.layers), "timesteps": list(self.timesteps), "db": rows}


@dataclass
class SnrMeter:
    """Energies of signal and noise of `layers`, a column for each timestep; they add over pictures.

    In each call full precision comes first and shows its outputs to `full_precision`, then the quantized network shows
    its own to `quantized`, then `end_call` is told the column. Memory: the outputs of the layers of one call.
    """

    layers: Sequence[str]
    _kept: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    _call: dict[str, tuple[float, float]] = field(default_factory=dict)
    _columns: list[Float64] = field(default_factory=list)  # (2, L) each

    def full_precision(self, name: str, output: torch.Tensor) -> None:
        """Keep an output until the quantized network gives its own."""
        self._kept.setdefault(name, []).append(output.clone())  # a later layer may work in place

    def quantized(self, name: str, output: torch.Tensor) -> None:
        """Compare an output with the one that full precision gave."""
        kept = self._kept.get(name)
        if not kept or kept[0].shape != output.shape:
            raise BadValue(f"layer {name!r} gives another shape or is called more often when quantized.")
        x = kept.pop(0)
        signal, noise = self._call.get(name, (0.0, 0.0))
        self._call[name] = signal + _energy(x), noise + _energy(output.to(x.device, x.dtype) - x)

    def end_call(self, column: int, timestep: float) -> None:
        """Add the call's energies to its column; BadValue where a layer was left out or its output is no number."""
        for name, left in self._kept.items():
            if left:
                raise BadValue(f"layer {name!r} is called less often when quantized.")
        while len(self._columns) <= column:
            self._columns.append(np.zeros((2, len(self.layers))))
        for row, name in enumerate(self.layers):
            energy = self._call.get(name, (0.0, 0.0))
            if not np.isfinite(energy).all():
                raise BadValue(f"layer {name!r} gives NaN or infinite values at timestep {timestep:g}.")
            self._columns[column][:, row] += energy
        self._call.clear()

    def result(self) -> tuple[Float64, Float64]:
        """Energies of the signal and of the noise, each (L, T)."""
        both = np.stack(self._columns, axis=-1)  # (2, L, T)
        return both[0], both[1]


@dataclass
class RangeMeter:
    """Lowest and highest value, sum of squares and count of the inputs of `layers`, a column for each timestep."""

    layers: Sequence[str]
    _columns: list[Float64] = field(default_factory=list)  # (4, L) each
    _rows: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rows = {name: row for row, name in enumerate(self.layers)}

    def see(self, column: int, name: str, x: torch.Tensor) -> None:
        """Take in one input."""
        while len(self._columns) <= column:
            start = np.array([np.inf, -np.inf, 0.0, 0.0])
            self._columns.append(np.repeat(start[:, None], len(self.layers), axis=1))
        table, row = self._columns[column], self._rows[name]
        low, high = (float(value) for value in torch.aminmax(x))
        table[0, row] = min(table[0, row], low)
        table[1, row] = max(table[1, row], high)
        table[2, row] += _energy(x)
        table[3, row] += x.numel()

    def result(self) -> Float64:
        """Low, high, sum of squares and count (4, L, T); BadValue where a layer was never reached."""
        tables = np.stack(self._columns, axis=-1) if self._columns else np.zeros((4, len(self.layers), 0))
        for name, counts in zip(self.layers, tables[3], strict=True):
            if not counts.size or not counts.all():
                raise BadValue(f"layer {name!r} is not reached at every timestep.")
        return tables


def layer_snr(
    full: torch.nn.Module, quantized: torch.nn.Module, calls: Sequence[Call], layers: Sequence[str]
) -> LayerSnr:
    """Replay recorded denoiser `calls` through both networks and compare the outputs of `layers`.

    Calls with one timestep share a column; columns are in the order of first appearance.
    """
    timesteps = list(dict.fromkeys(float(timestep) for _, _, timestep in calls))
    meter = SnrMeter(layers)
    for args, kwargs, timestep in calls:
        for model, see in ((full, meter.full_precision), (quantized, meter.quantized)):
            with torch.no_grad(), outputs(model, layers, see):
                model(*args, **kwargs)
        meter.end_call(timesteps.index(float(timestep)), timestep)
    return LayerSnr(tuple(layers), tuple(timesteps), decibel(*meter.result()))


def decibel(signal: Float64, noise: Float64) -> Float64:
    """10 log10(signal / noise) between -100 and 100 dB; 100 without noise."""
    with np.errstate(divide="ignore", invalid="ignore"):
        db = 10 * np.log10(signal / noise)
    db = np.where(noise == 0, SNR_CLIP_DB, db)
    return np.asarray(np.clip(db, -SNR_CLIP_DB, SNR_CLIP_DB), dtype=np.float64)


def first_tensor(output: Any, name: str) -> torch.Tensor:
    """What a network or layer returns, or the first of it; BadValue where that is no tensor."""
    if isinstance(output, Mapping):  # as outputs of diffusers are
        output = tuple(output.values())
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(first, torch.Tensor):
        raise BadValue(f"layer {name!r} returns {type(first).__name__} where a tensor is needed.")
    return first.detach()


@contextmanager
def outputs(model: torch.nn.Module, layers: Sequence[str], see: See) -> Iterator[None]:
    """Show the output of each named layer to `see` while the context is open; no hook outlives it."""
    with _hooked(model, layers, lambda name, _, output: see(name, first_tensor(output, name))):
        yield


@contextmanager
def inputs(model: torch.nn.Module, layers: Sequence[str], see: See) -> Iterator[None]:
    """The same for the first input of each named layer."""
    with _hooked(model, layers, lambda name, args, _: see(name, first_tensor(tuple(args), name))):
        yield


@contextmanager
def _hooked(
    model: torch.nn.Module, layers: Sequence[str], see: Callable[[str, tuple[Any, ...], Any], None]
) -> Iterator[None]:
    def hook(name: str) -> Callable[[torch.nn.Module, tuple[Any, ...], Any], None]:
        return lambda _module, args, output: see(name, args, output)

    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        handles.extend(_layer(model, name).register_forward_hook(hook(name)) for name in layers)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layer(model: torch.nn.Module, name: str) -> torch.nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise BadValue(f"the network has no layer {name!r}.") from None


def _energy(x: torch.Tensor) -> float:
    """Sum of squares, added up in float64; squares of half-precision numbers are made in float32."""
    return float(x.detach().float().square().sum(dtype=torch.float64))
