"""Bytes to expect of a plan, and bytes as they are on the disk."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from dither.inspection.rows import spec_of
from dither.inspection.times import is_quantized, mean_widths
from dither.nn import QLinear, TimedLinear, ViewedLinear

__all__ = ["estimate", "size_on_disk", "stored_dtype"]


def estimate(
    model: nn.Module, rows: Sequence[Mapping[str, Any]], storage: torch.dtype, shared: Collection[str] = ()
) -> dict[str, int]:
    """Bytes to expect: of the saved denoiser, and the peak of the process beyond what it uses before loading the model.

    Args:
        model: before it is quantized.
        rows: what its layers will be, as ``describe`` tells.
        storage: dtype of what stays in full precision.
        shared: names of modules in full precision that will not be stored, as others are equal.
    """
    width = torch.empty(0, dtype=storage).element_size()
    now = sum(p.numel() * p.element_size() for p in model.parameters())
    weights = [(r["shape"][0] * r["shape"][1], r["bits_per_weight"]) for r in rows if r["bits_per_weight"] is not None]
    packed = [model.get_submodule(r["name"]) for r in rows if r["bits_per_weight"] is not None]
    packed += [model.get_submodule(name) for name in shared]
    rest = sum(p.numel() for p in model.parameters()) - sum(p.numel() for m in packed for p in m.parameters())
    largest = max((n for n, _ in weights), default=0)
    return {
        "file_bytes": int(sum(n * bits / 8 for n, bits in weights)) + rest * width,
        "peak_bytes": now + 16 * largest,  # the model, and a layer in float32 with its codes, values and errors
    }


def stored_dtype(files: Sequence[Path]) -> torch.dtype:
    """The floating dtype that holds most numbers in these safetensors files; float32 if there are none."""
    names = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
    counts: Counter[torch.dtype] = Counter()
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as f:
                for key in f.keys():  # noqa: SIM118  # safe_open is no mapping
                    part = f.get_slice(key)
                    if part.get_dtype() in names:
                        counts[names[part.get_dtype()]] += torch.Size(part.get_shape()).numel()
    return counts.most_common(1)[0][0] if counts else torch.float32


def size_on_disk(model: nn.Module, files: Sequence[Path], full_precision_bytes: int) -> dict[str, Any]:
    """``size`` of a results file. Bytes of quantized linears are summed over their tensors in the files.

    Args:
        model: the quantized denoiser.
        files: its weight files.
        full_precision_bytes: size of the full-precision denoiser's files.
    """
    layers = _layers(model)
    weights = {name: m.out_features * m.in_features for name, m in layers.items()}
    count = sum(weights.values())
    stored = total = 0
    for file in files:
        total += file.stat().st_size
        with safe_open(file, framework="pt") as f:
            for key in f.keys():  # noqa: SIM118
                if _has_owner(key, weights):
                    t = f.get_tensor(key)
                    stored += t.numel() * t.element_size()
    parameters = count + sum(p.numel() for n, p in model.named_parameters() if not n.endswith("weight_dense"))
    return {
        "file_bytes": total,
        "full_precision_bytes": full_precision_bytes,
        "ratio": full_precision_bytes / total,
        "bits_per_weight": 8 * stored / count if count else None,
        "model_bits_per_weight": 8 * total / parameters,
        **_running(layers),
    }


def _layers(model: nn.Module) -> dict[str, QLinear | TimedLinear | ViewedLinear]:
    """Every quantized layer by name; what one holds is not told again."""
    found: dict[str, QLinear | TimedLinear | ViewedLinear] = {}
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if isinstance(module, QLinear | TimedLinear | ViewedLinear) and not name.startswith(inside):
            found[name] = module
            inside += () if isinstance(module, QLinear) else (f"{name}.",)
    return found


def _running(layers: Mapping[str, QLinear | TimedLinear | ViewedLinear]) -> dict[str, float | None]:
    """Mean widths of what runs, by the number of weights of each layer."""
    weights, acts = [], []
    for module in layers.values():
        spec, count = spec_of(module), module.out_features * module.in_features
        if not is_quantized(spec):
            continue  # transformed, not quantized
        assert spec is not None
        dense = [8 * b.element_size() for name, b in module.named_buffers() if name.endswith("weight_dense")]
        weight, act = mean_widths(spec, module.clock, max(dense, default=0))
        weights.append((weight, count))
        acts += [] if act is None else [(act, count)]
    return {"running_bits_per_weight": _mean(weights), "running_bits_per_activation": _mean(acts)}


def _mean(values: Sequence[tuple[float, int]]) -> float | None:
    """Of (value, weight); None without any."""
    return sum(v * n for v, n in values) / sum(n for _, n in values) if values else None


def _has_owner(key: str, names: Mapping[str, int]) -> bool:
    """Whether a tensor belongs to one of these modules."""
    parts = key.split(".")
    return any(".".join(parts[:i]) in names for i in range(1, len(parts)))
