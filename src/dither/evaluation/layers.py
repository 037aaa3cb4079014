"""Signal-to-noise ratio of every layer at every timestep, in dB.

    SNR(layer, t) = 10 log10( sum |y^FP|^2 / sum |y^Q - y^FP|^2 )

Teacher-forced over time: both networks see the latents that full precision would see at t, so a column shows what
quantization does at t and not what has piled up on the way there. Inside the network errors do flow from layer to
layer, as they do in use. Half the noise power is +3 dB; one bit more is about +6 dB.

A layer whose *output* was rescaled on purpose, because a channel scale was folded into it (adaLN, V rows), computes
another function than its namesake: leave it out, or give the folded network before quantization as `full`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from dither.errors import BadValue
from dither.evaluation.protocol import Float64

__all__ = ["SNR_CLIP_DB", "Call", "LayerSnr", "layer_snr"]

SNR_CLIP_DB = 100.0  # a layer that is left in full precision and sees the same input has no noise at all

Call: TypeAlias = tuple[Sequence[Any], Mapping[str, Any], float]  # (args, kwargs, timestep)


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


def layer_snr(
    full: torch.nn.Module, quantized: torch.nn.Module, calls: Sequence[Call], layers: Sequence[str]
) -> LayerSnr:
    """Replay recorded denoiser `calls` through both networks and compare the outputs of `layers`.

    Calls with one timestep share a column; columns are in the order of first appearance. Memory: the outputs of the
    named layers of one call.
    """
    timesteps = list(dict.fromkeys(float(timestep) for _, _, timestep in calls))
    signal = np.zeros((len(layers), len(timesteps)))
    noise = np.zeros_like(signal)
    for args, kwargs, timestep in calls:
        column = timesteps.index(float(timestep))
        energies = _replay(full, quantized, args, kwargs, layers)
        signal[:, column] += energies[0]
        noise[:, column] += energies[1]
    _check_finite(layers, timesteps, noise + signal)
    return LayerSnr(tuple(layers), tuple(timesteps), _decibel(signal, noise))


def _replay(
    full: torch.nn.Module,
    quantized: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    layers: Sequence[str],
) -> Float64:
    """Energy of the signal and of the noise of each layer in one call (2, L)."""
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    energies = np.zeros((2, len(layers)))

    def keep(name: str, output: torch.Tensor) -> None:
        kept[name].append(output.clone())  # a later layer may work in place

    def compare(name: str, output: torch.Tensor) -> None:
        if not kept[name] or kept[name][0].shape != output.shape:
            raise BadValue(f"layer {name!r} gives another shape or is called more often when quantized.")
        x = kept[name].pop(0).double()
        energies[:, layers.index(name)] += float(x.square().sum()), float((output.double() - x).square().sum())

    for model, see in ((full, keep), (quantized, compare)):
        with torch.no_grad(), _outputs(model, layers, see):
            model(*args, **kwargs)
    _check_used(kept)
    return energies


def _decibel(signal: Float64, noise: Float64) -> Float64:
    with np.errstate(divide="ignore", invalid="ignore"):
        db = 10 * np.log10(signal / noise)
    db = np.where(noise == 0, SNR_CLIP_DB, db)
    return np.asarray(np.clip(db, -SNR_CLIP_DB, SNR_CLIP_DB), dtype=np.float64)


def _check_used(left: Mapping[str, list[torch.Tensor]]) -> None:
    for name, outputs in left.items():
        if outputs:
            raise BadValue(f"layer {name!r} is called less often when quantized.")


def _check_finite(layers: Sequence[str], timesteps: Sequence[float], energy: Float64) -> None:
    bad = np.argwhere(~np.isfinite(energy))
    if len(bad):
        row, column = bad[0]
        raise BadValue(f"layer {layers[row]!r} gives NaN or infinite values at timestep {timesteps[column]:g}.")


@contextmanager
def _outputs(model: torch.nn.Module, layers: Sequence[str], see: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """Show the output of each named layer to `see` while the context is open; no hook outlives it."""
    modules = dict(model.named_modules())
    missing = [name for name in layers if name not in modules]
    if missing:
        raise BadValue(f"the network has no layer {missing[0]!r}.")

    def hook(name: str) -> Callable[[torch.nn.Module, Any, Any], None]:
        def seen(_module: torch.nn.Module, _args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if not isinstance(first, torch.Tensor):
                raise BadValue(f"layer {name!r} returns {type(first).__name__} where a tensor is needed.")
            see(name, first.detach())

        return seen

    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        handles.extend(modules[name].register_forward_hook(hook(name)) for name in layers)
        yield
    finally:
        for handle in handles:
            handle.remove()
