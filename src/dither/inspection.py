"""What is in a model: layers, formats, kernels, true bits. Bytes of what is saved are read from the disk.

    bits_per_weight         8 x bytes of the quantized linears as stored / their original weight count
    model_bits_per_weight   8 x bytes of the denoiser's files / its original parameter count

Codes, scales, zero points, codebooks, signs, online scales, low-rank branches and biases all count.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from dither.kernels import choose, is_simulated
from dither.models import Adapter
from dither.models.base import Layer
from dither.models.rest import rest_of
from dither.nn import QLinear, TimedLinear, tensor_layout
from dither.spec import LinearSpec

__all__ = ["describe", "estimate", "plan_rows", "reasons", "size_on_disk", "stays", "stored_dtype", "summary"]


def describe(model: nn.Module, adapter: Adapter, specs: Mapping[str, LinearSpec] | None = None) -> list[dict[str, Any]]:
    """One row a linear: name, kind, shape, formats, kernel, whether simulated, bits per weight, why full precision.

    Args:
        model: quantized or not.
        adapter: of its family.
        specs: what the layers are going to be; None describes what they are.
    """
    rows = []
    for layer in adapter.layers(model):
        module = model.get_submodule(layer.name)
        if isinstance(module, TimedLinear):
            rows.append(_timed_row(layer, module))
            continue
        assert isinstance(module, nn.Linear)
        spec = (module.spec if isinstance(module, QLinear) else None) if specs is None else specs.get(layer.name)
        rows.append(_row(layer, module, spec))
    return rows


def _row(layer: Layer, module: nn.Linear, spec: LinearSpec | None) -> dict[str, Any]:
    shape = (module.out_features, module.in_features)
    row: dict[str, Any] = {"name": layer.name, "kind": layer.kind, "shape": list(shape), "weight": None, "act": None}
    if spec is None or (spec.weight is None and spec.act is None):
        why = layer.keep or ("transformed, not quantized" if spec is not None else "not quantized")
        return row | {"kernel": None, "simulated": False, "bits_per_weight": None, "reason": why}
    kernel = module.kernel if isinstance(module, QLinear) else choose(spec, shape, module.weight.device)
    bias = 0 if module.bias is None else module.bias.numel() * module.bias.element_size()
    return row | {
        "weight": None if spec.weight is None else str(spec.weight),
        "act": None if spec.act is None else str(spec.act),
        "online": _online(spec),
        "kernel": kernel.name,
        "simulated": is_simulated(spec, kernel),
        "bits_per_weight": 8 * (_bytes_of(spec, shape) + bias) / (shape[0] * shape[1]),
        "reason": None,
    }


def _timed_row(layer: Layer, module: TimedLinear) -> dict[str, Any]:
    """All variants in one row; they share the bias, and all of them are stored."""
    variants = [v for v in module.variants if isinstance(v, QLinear)]
    n, k = variants[0].shape
    bias = 0 if module.bias is None else module.bias.numel() * module.bias.element_size()
    return {
        "name": layer.name,
        "kind": layer.kind,
        "shape": [n, k],
        "weight": " | ".join(str(v.spec.weight or "full precision") for v in variants),
        "act": " | ".join(str(v.spec.act or "full precision") for v in variants),
        "online": sorted({part for v in variants for part in _online(v.spec)}),
        "kernel": " | ".join(dict.fromkeys(v.kernel.name for v in variants)),
        "simulated": any(v.simulated for v in variants),
        "bits_per_weight": 8 * (sum(_bytes_of(v.spec, v.shape) for v in variants) + bias) / (n * k),
        "reason": None,
    }


def _online(spec: LinearSpec) -> list[str]:
    return [part for part in ("pre_scale", "rotation", "lowrank") if getattr(spec, part)]


def _bytes_of(spec: LinearSpec, shape: tuple[int, int]) -> int:
    sizes = tensor_layout(spec, shape).values()
    return sum(torch.Size(s).numel() * torch.empty(0, dtype=dtype).element_size() for s, dtype in sizes)


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``layers`` and ``kernels`` of a results file, from the rows of ``describe``."""
    done = [r for r in rows if r["weight"] is not None or r["act"] is not None]
    counts = {"quantized": len(done), "total": len(rows), "simulated": sum(bool(r["simulated"]) for r in done)}
    return {"layers": {**counts, "rows": list(rows)}, "kernels": dict(Counter(r["kernel"] for r in done))}


def plan_rows(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Rows grouped for reading: (kind, weight, activation, kernel, how many layers, how many weights), all short.

    What goes without saying is left out: symmetric grids, ranges that are found anew for each input.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for r in rows:
        kernel = "simulated" if r["simulated"] else r["kernel"] or "-"
        key = (r["kind"], _short(r["weight"]), _short(r["act"]), kernel)
        groups.setdefault(key, []).append(r["shape"][0] * r["shape"][1])
    return [(*key, str(len(sizes)), f"{sum(sizes):,}") for key, sizes in groups.items()]


def reasons(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Why layers stay in full precision: each reason with the kinds of layers that it holds for."""
    found: dict[str, list[str]] = {}
    for r in rows:
        if r["reason"] is not None and r["kind"] not in found.setdefault(r["reason"], []):
            found[r["reason"]].append(r["kind"])
    return found


def _short(spec: str | None) -> str:
    return "full" if spec is None else spec.replace(" sym", "").replace(" dynamic", "")


def estimate(model: nn.Module, rows: Sequence[Mapping[str, Any]], storage: torch.dtype) -> dict[str, int]:
    """Bytes to expect: of the saved denoiser, and the peak of the process beyond what it uses before loading the model."""
    width = torch.empty(0, dtype=storage).element_size()
    now = sum(p.numel() * p.element_size() for p in model.parameters())
    weights = [(r["shape"][0] * r["shape"][1], r["bits_per_weight"]) for r in rows if r["bits_per_weight"] is not None]
    packed = [model.get_submodule(r["name"]) for r in rows if r["bits_per_weight"] is not None]
    rest = sum(p.numel() for p in model.parameters()) - sum(p.numel() for m in packed for p in m.parameters())
    largest = max((n for n, _ in weights), default=0)
    return {
        "file_bytes": int(sum(n * bits / 8 for n, bits in weights)) + rest * width,
        "peak_bytes": now + 16 * largest,  # the model, and a layer in float32 with its codes, values and errors
    }


def stays(model: nn.Module) -> list[dict[str, Any]]:
    """What is no linear and stays in full precision: convolutions, norms, tables."""
    return [{"name": r.name, "type": r.type, "parameters": r.parameters} for r in rest_of(model)]


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
    weights: dict[str, int] = {}
    for name, module in model.named_modules():
        linear = module.variants[0] if isinstance(module, TimedLinear) else module
        if isinstance(linear, QLinear) and ".variants." not in name:
            weights[name] = linear.out_features * linear.in_features
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
    }


def _has_owner(key: str, names: Mapping[str, int]) -> bool:
    """Whether a tensor belongs to one of these modules."""
    parts = key.split(".")
    return any(".".join(parts[:i]) in names for i in range(1, len(parts)))
