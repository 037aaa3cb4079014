"""Chunks of an observed trajectory, joined and summarized as results files hold them.

A chunk is a dict of arrays; the first part of a key says how chunks are joined: ``picture`` (appended), ``sum``, ``min``,
``max``, and ``same`` (equal in all; text as JSON in bytes). Sums are float64, added in the order given, so that the same
chunks give the same bits wherever they were made.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from dither.errors import BadValue
from dither.evaluation.intervals import bootstrap_mean_interval
from dither.evaluation.layers import decibel
from dither.evaluation.protocol import Float64
from dither.evaluation.trajectory import amplification, guidance_amplification

__all__ = ["Chunk", "summarize"]

Chunk: TypeAlias = dict[str, npt.NDArray[Any]]


def summarize(chunks: Sequence[Mapping[str, npt.NDArray[Any]]]) -> dict[str, Any]:
    """``trajectory``, ``layer_snr`` and ``activation_ranges`` of a results file, from all chunks in a fixed order."""
    joined = _join(chunks)
    about = json.loads(bytes(joined["same/about"]).decode())
    axis = [round(1000 * level, 1) for level in about["noise_levels"]]
    rms = np.sqrt(joined["sum/square"] / joined["sum/count"])
    snr = decibel(joined["sum/layer_signal"], joined["sum/layer_noise"])
    return {
        "trajectory": _trajectory(joined, about),
        "layer_snr": {"layers": about["snr_layers"], "timesteps": axis, "db": snr.round(2).tolist()},
        "activation_ranges": {
            "layers": about["range_layers"],
            "timesteps": axis,
            "low": _rows(joined["min/low"]),
            "high": _rows(joined["max/high"]),
            "rms": _rows(rms),
        },
    }


def _join(chunks: Sequence[Mapping[str, npt.NDArray[Any]]]) -> Chunk:
    if not chunks:
        raise BadValue("a trajectory cannot be summarized without a chunk of pictures")
    if any(_form(chunk) != _form(chunks[0]) for chunk in chunks):
        raise BadValue("chunks of different measurements cannot be joined")
    return {key: _JOIN[_how(key)]([chunk[key] for chunk in chunks]) for key in chunks[0]}


def _form(chunk: Mapping[str, npt.NDArray[Any]]) -> dict[str, object]:
    """What all chunks of a measurement have in common: the number of pictures may differ, names and axes may not."""
    joined_as = {"picture": lambda a: a.shape[1:], "same": lambda a: a.tobytes()}
    return {key: joined_as.get(_how(key), np.shape)(array) for key, array in chunk.items()}


def _how(key: str) -> str:
    return key.partition("/")[0]


_JOIN: dict[str, Callable[[list[npt.NDArray[Any]]], npt.NDArray[Any]]] = {
    "picture": np.concatenate,
    "sum": np.add.reduce,
    "min": np.minimum.reduce,
    "max": np.maximum.reduce,
    "same": itemgetter(0),
}


def _trajectory(joined: Chunk, about: Mapping[str, Any]) -> dict[str, Any]:
    error, final = joined["picture/error"], joined["picture/drift"][:, -1]
    conditional, unconditional = joined.get("picture/conditional"), joined.get("picture/unconditional")
    amplified = None if conditional is None or unconditional is None else guidance_amplification(error, conditional)
    return {
        "n": len(error),
        "steps": list(range(error.shape[1])),
        "timesteps": about["timesteps"],
        "noise_levels": about["noise_levels"],
        "error": _with_interval(error),
        "error_conditional": _mean(conditional),
        "error_unconditional": _mean(unconditional),
        "drift": {"relative": _mean(joined["picture/drift"]), "cosine": _mean(joined["picture/cosine"])},
        "x0_snr_db": _mean(joined.get("picture/x0_db")),
        "x0_reason": about["x0_reason"],
        "guidance_amplification": None if amplified is None else _numbers(amplified),
        "amplification": _number(amplification(final**2, error)),
    }


def _with_interval(table: Float64) -> dict[str, Any]:
    """Mean over pictures with its interval; a single picture has none."""
    if len(table) < 2:
        return {"mean": _mean(table), "low": None, "high": None}
    bounds = [bootstrap_mean_interval(column) for column in table.T]
    return {"mean": _mean(table), "low": [_number(low) for low, _ in bounds], "high": [_number(b) for _, b in bounds]}


def _mean(table: Float64 | None) -> list[float] | None:
    return None if table is None else _numbers(table.mean(axis=0))


def _rows(table: Float64) -> list[list[float]]:
    return [_numbers(row) for row in table]


def _numbers(values: Float64) -> list[float]:
    return [_number(value) for value in values]


def _number(value: float) -> float:
    """Six digits: more are noise, and results files are read by people."""
    return float(f"{float(value):.6g}")
