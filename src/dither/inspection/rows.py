"""What every linear of a model is, or is going to be: a row of plain JSON each, and what rows say together."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dither.clock import Clock
from dither.inspection.times import by_time, is_quantized, specs_run
from dither.kernels import Kernel, choose, is_simulated
from dither.kernels.attention import attention_kernel
from dither.kernels.reference import REFERENCE
from dither.models import Adapter
from dither.models.base import Layer
from dither.models.rest import rest_of
from dither.nn import Borrowed, QAttention, QLinear, TimedLinear, TimestepTable, ViewedLinear, tensor_layout, widths_of
from dither.spec import Act, AttentionSpec, LinearSpec, Spec, Timed, Views

__all__ = ["describe", "plan_rows", "reasons", "spec_of", "stays", "summary"]

_FULL = "full precision"
_ONLINE = ("pre_scale", "rotation", "lowrank", "time_bias")


def describe(
    model: nn.Module,
    adapter: Adapter,
    specs: Mapping[str, Spec] | None = None,
    clock: Clock | None = None,
    attention: Mapping[str, AttentionSpec] | None = None,
) -> list[dict[str, Any]]:
    """One row a linear: name, kind, shape, formats, kernel, whether simulated, bits per weight, why full precision.

    Also ``by_time``: None, or where widths may change with the noise level a list of ``{"low", "high", "weight_bits",
    "act_bits"}`` from low to high noise, None for full precision; and ``bank_bytes``, what weights beyond the largest one
    take where there are several. Quantized attentions follow as rows without weights, whose ``act`` tells what their
    products read, timestep embedders that are tables of their outputs, whose ``shape`` is that of the table, and modules that
    read the parameters of others, which are equal.

    Args:
        model: quantized or not.
        adapter: of its family.
        specs: what the layers are going to be; None describes what they are.
        clock: whose rows ``specs`` select by.
        attention: what attentions are going to be, beside ``specs``.
    """
    rows = []
    for layer in adapter.layers(model):
        module = model.get_submodule(layer.name)
        found = specs.get(layer.name) if specs is not None else spec_of(module)
        times = module.clock if isinstance(module, TimedLinear | ViewedLinear) else clock
        rows.append(_row(layer, module, found, times or Clock()))
    products = _attentions(model) if specs is None else attention or {}
    attentions = [_attention_row(name, one, model.get_submodule(name)) for name, one in products.items()]
    return rows + attentions + _other_rows(model)


def _attentions(model: nn.Module) -> dict[str, AttentionSpec]:
    return {name.rpartition(".")[0]: m.spec for name, m in model.named_modules() if isinstance(m, QAttention)}


def _attention_row(name: str, spec: AttentionSpec, module: nn.Module) -> dict[str, Any]:
    by_words: dict[str, list[str]] = {}
    for part, act in spec.parts.items():
        if act is not None:
            by_words.setdefault(str(act), []).append(part)
    said = "; ".join(f"{' '.join(parts)} {words}" for words, parts in by_words.items())
    device = next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    kernel = attention_kernel(spec, widths_of(module).head, device)
    return _bare_row(name, "attention") | {"act": said, "kernel": kernel, "simulated": kernel == REFERENCE.name}


def _other_rows(model: nn.Module) -> list[dict[str, Any]]:
    rows = []
    for name, module in model.named_modules():
        table = _bare_row(name.rpartition(".")[0], "table")
        if isinstance(module, TimestepTable):
            rows.append(
                table | {"shape": list(module.table.shape), "reason": f"precomputed at {module.spec.rows} timesteps"}
            )
        elif isinstance(module, Borrowed) and isinstance(module.owner, TimestepTable):
            rows.append(table | {"reason": "precomputed, and stored once with others that give the same"})
        elif isinstance(module, Borrowed):
            rows.append(_bare_row(name, "shared") | {"reason": "stored once with others that are equal"})
    return rows


def _bare_row(name: str, kind: str) -> dict[str, Any]:
    """Of something that is no linear."""
    row: dict[str, Any] = {"name": name, "kind": kind, "shape": [0, 0], "weight": None, "act": None, "by_time": None}
    row |= {"bank_bytes": 0, "online": [], "kernel": None, "simulated": False}
    return row | {"bits_per_weight": None, "reason": None}


def spec_of(module: nn.Module) -> Spec | None:
    """What a quantized layer is; None for any other module."""
    if isinstance(module, TimedLinear):
        return Timed(tuple(v.spec for v in module.variants if isinstance(v, QLinear)), module.select)
    return module.spec if isinstance(module, QLinear | ViewedLinear) else None


def _row(layer: Layer, module: nn.Module, spec: Spec | None, clock: Clock) -> dict[str, Any]:
    shape = _shape(module)
    row: dict[str, Any] = {"name": layer.name, "kind": layer.kind, "shape": list(shape), "weight": None, "act": None}
    row |= {"by_time": None, "bank_bytes": 0}
    runs = specs_run(spec)
    if not is_quantized(spec):
        why = layer.keep or ("transformed, not quantized" if spec is not None else "not quantized")
        return row | {"kernel": None, "simulated": False, "bits_per_weight": None, "reason": why}
    kernels = _kernels(module, runs, shape)
    banks = [_bytes_of(s, shape) for s in _stored(spec)]
    bias = sum(p.numel() * p.element_size() for name, p in module.named_parameters(recurse=False) if name == "bias")
    return row | {
        "weight": _weight_words(spec, runs),
        "act": _act_words([s.act for s in runs]),
        "online": [part for part in _ONLINE if any(getattr(s, part) for s in runs)],
        "kernel": " | ".join(dict.fromkeys(kernel.name for kernel in kernels)),
        "simulated": any(is_simulated(s, kernel) for s, kernel in zip(runs, kernels, strict=True)),
        "bits_per_weight": 8 * (sum(banks) + bias) / (shape[0] * shape[1]),
        "by_time": None if spec is None else by_time(spec, clock),
        "bank_bytes": sum(banks) - max(banks),
        "reason": None,
    }


def _shape(module: nn.Module) -> tuple[int, int]:
    assert isinstance(module, nn.Linear | TimedLinear)
    return module.out_features, module.in_features


def _stored(spec: Spec | None) -> tuple[LinearSpec, ...]:
    """What a layer stores: every bank, or one for all views."""
    return (spec.base,) if isinstance(spec, Views) else specs_run(spec)


def _kernels(module: nn.Module, runs: Sequence[LinearSpec], shape: tuple[int, int]) -> Sequence[Kernel]:
    """What runs each of these, or is going to."""
    if isinstance(module, QLinear):
        return [module.kernel]
    if isinstance(module, TimedLinear | ViewedLinear):
        return module.kernels
    device = next(module.parameters()).device
    return [choose(run, shape, device) for run in runs]


def _weight_words(spec: Spec | None, runs: Sequence[LinearSpec]) -> str | None:
    if isinstance(spec, Views):
        return f"{' | '.join(str(v.bits) for v in spec.views)} of {spec.base.weight}"
    return None if all(r.weight is None for r in runs) else " | ".join(str(r.weight or _FULL) for r in runs)


def _act_words(acts: Sequence[Act | None]) -> str | None:
    words = dict.fromkeys(str(act or _FULL) for act in acts)
    return None if list(words) == [_FULL] else " | ".join(words)


def _bytes_of(spec: LinearSpec, shape: tuple[int, int]) -> int:
    sizes = tensor_layout(spec, shape).values()
    return sum(torch.Size(s).numel() * torch.empty(0, dtype=dtype).element_size() for s, dtype in sizes)


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``layers`` and ``kernels`` of a results file, from the rows of ``describe``."""
    done = [r for r in rows if any(r[side] is not None for side in ("weight", "act"))]
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


def stays(model: nn.Module) -> list[dict[str, Any]]:
    """What is no linear and stays in full precision: convolutions, norms, tables."""
    return [{"name": r.name, "type": r.type, "parameters": r.parameters} for r in rest_of(model)]
