"""What can run here. For kernels of Triton: Triton itself, a CUDA device, and tensor cores that multiply int8. For torch's
products of float8: tensor cores that multiply those."""

import importlib.util
import logging
import os
from functools import lru_cache

import torch

__all__ = [
    "FLOAT8",
    "LEAST",
    "OLDEST",
    "can_run",
    "is_interpreted",
    "multiplies_float8",
    "processors",
    "scales_rows",
    "triton_version",
]

LEAST = (8, 0)
"""Compute capability of the first architecture that kernels are made for (Ampere)."""
FLOAT8 = (8, 9)
"""The same of the first whose tensor cores multiply float8 (Ada)."""
_ROWS = (9, 10)
"""Major numbers of those for which torch's row-wise float8 products can be relied on: Hopper, Blackwell of data centers."""
OLDEST = (3, 7)
"""Version of Triton that kernels were first compiled with."""
_log = logging.getLogger("dither")


def can_run(device: torch.device) -> bool:
    """Whether kernels of Triton run on this device; if it is a CUDA device and they do not, one line says why, once."""
    if device.type != "cuda":
        return False
    found: bool = _can_run(device.index)
    return found


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # graphs need not look into it
def _can_run(index: int | None) -> bool:
    why = _why_not(index)
    if why:
        _say(why)
    return why is None


@lru_cache
def _why_not(index: int | None) -> str | None:
    """Why kernels do not run on the CUDA device of this index; empty: there is none, which needs no telling."""
    if not torch.cuda.is_available():
        return ""
    version = triton_version()
    if version is None:
        return "Triton is not installed: pip install 'dither[gpu]'"
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        return f"Triton {version} is older than {OLDEST[0]}.{OLDEST[1]}"
    have = torch.cuda.get_device_capability(index)
    if have < LEAST:
        name = torch.cuda.get_device_name(index)
        return f"{name} has compute capability {have[0]}.{have[1]}, and they need {LEAST[0]}.{LEAST[1]}"
    return None


def multiplies_float8(device: torch.device) -> bool:
    """Whether torch multiplies ``float8_e4m3fn`` on this device's tensor cores."""
    return device.type == "cuda" and _capability(device.index) >= FLOAT8


def scales_rows(device: torch.device) -> bool:
    """Whether such a product can scale rows and columns itself; the CPU, which multiplies none, does so too."""
    return device.type == "cpu" or (device.type == "cuda" and _capability(device.index)[0] in _ROWS)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # graphs need not look into it
def _capability(index: int | None) -> tuple[int, int]:
    """Of an NVIDIA GPU; (0, 0) where there is none, or one of another maker."""
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return 0, 0
    return torch.cuda.get_device_capability(index)


@lru_cache
def triton_version() -> str | None:
    """Such as ``3.7.1``; None where it is not installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    import triton

    version: str = triton.__version__
    return version


@lru_cache
def _say(why: str) -> None:
    _log.warning("no Triton kernels on this GPU, torch does their work more slowly: %s", why)


@lru_cache
def is_interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU: in tests, if it was asked for before Triton was imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@lru_cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a device; 1 under the interpreter, whose time is that of the programs it runs."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
