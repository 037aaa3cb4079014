"""Any torch denoiser that no family claims: blocks and linears are found, and nothing is folded.

Blocks are the modules of the classes that diffusers' own hints name (``_repeated_blocks``, ``_no_split_modules``), or else
the elements of the largest lists of like modules. Linears outside the blocks (embedders, output layers) stay in full
precision: they are few, and their errors reach everything. Every linear is a site of its own, because from names alone
nobody can tell that two linears read the same tensor.
"""

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from dither.errors import BadValue
from dither.models.base import Call, Kind, Layer, Site, batch_of
from dither.models.calls import argument, to_batch
from dither.models.concatenated import parts_of
from dither.models.linears import linears_of

__all__ = ["Generic"]

OUTSIDE = "outside the transformer blocks"
ENDS = "first or last linear of a model without blocks"
READ_DIRECTLY = "nn.MultiheadAttention reads its weight without calling it"
TIMES = ("timestep", "timesteps", "t", "sigma", "time")
SHARE = 10  # a list of blocks holds at least a tenth of the weights of the largest list

KINDS: tuple[tuple[str, Kind], ...] = (
    (r"(^|\.)norm_out\.", "final"),
    (r"(ada_?ln|modulation|_mod\b|(^|\.)norm\w*\.linear)", "adaln"),
    (r"(attn2|cross)\w*\.(.*\.)?(to_q|q_proj|q|query|wq)$", "cross_q"),
    (r"(attn2|cross)\w*\.(.*\.)?(to_[kv]|[kv]_proj|[kv]|key|value|w[kv]|kv|to_kv|kv_linear)$", "cross_kv"),
    (r"(^|\.)(to_[qkv]|add_[qkv]_proj|[qkv]_proj|qkv\w*|to_qkv\w*|in_proj|query|key|value|w[qkv]|q|k|v)$", "qkv"),
    (r"(^|\.)(to_out(\.0)?|to_add_out|out_proj|o_proj|wo|attn\w*\.(.*\.)?(proj|o|out))$", "attn_out"),
    (r"(net\.0\.proj|fc1|w1|w3|gate_proj|up_proj|lin1|proj_mlp|(ff|ffn|mlp|feed_forward)\w*\.(linear_[13]|0))$", "fc1"),
    (r"(net\.2|fc2|w2|down_proj|lin2|(ff|ffn|mlp|feed_forward)\w*\.(linear_2|out_projection|2))$", "fc2"),
    (r"(embed|time_proj|t_block)", "embed"),
    (r"(^|\.)(final|norm_out|proj_out|head|output)", "final"),
)
"""Patterns on a linear's name, tried in order; what none of them knows is "other"."""


@dataclass(frozen=True)
class Generic:
    """Adapter of unknown denoisers."""

    family: str = "generic"

    def layers(self, model: nn.Module) -> Sequence[Layer]:
        """Every linear in order of registration."""
        blocks = self.blocks(model)
        linears = linears_of(model)
        ends = {next(iter(linears)), next(reversed(linears))} if linears else set()
        found = []
        for name in linears:
            block = next((b for b in blocks if name == b or name.startswith(f"{b}.")), "")
            keep = "" if block else OUTSIDE
            if not blocks:
                keep = ENDS if name in ends else ""
            if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention):
                keep = READ_DIRECTLY
            found.append(Layer(name, _kind(name, bool(block)), keep, block, parts_of(name, linears)))
        return found

    def blocks(self, model: nn.Module) -> Sequence[str]:
        """Blocks in order of registration; none where the model has no repeated modules."""
        hints = _hinted(model)
        return hints if hints else _repeated(model)

    def sites(self, model: nn.Module) -> Sequence[Site]:
        """Each linear alone, with nowhere to fold."""
        return [Site(layer.name, (layer.name,)) for layer in self.layers(model) if not layer.keep]

    def noise_level(self, model: nn.Module, call: Call) -> Tensor:
        """The time argument, (B,): divided by 1000 where it is an integer or above 1; zeros where there is none."""
        batch = batch_of(call)
        time = _time(model, call)
        if time is None:
            return torch.zeros(batch)
        level = to_batch(time, batch)
        counts = isinstance(time, Integral) or (isinstance(time, Tensor) and not time.is_floating_point())
        return (level / 1000 if counts or bool((level > 1).any()) else level).clamp(0, 1)

    def branch(self, model: nn.Module, call: Call) -> Tensor:
        """Zeros (B,): what an unconditional row looks like is the family's secret."""
        return torch.zeros(batch_of(call), dtype=torch.int64)

    def carry(self, call: Call, output: Any) -> Call:
        """The output replaces the first argument, and a tuple as many leading arguments.

        Raises:
            BadValue: the outputs' shapes do not tell which argument each of them replaces.
        """
        outputs = tuple(output) if isinstance(output, (tuple, list)) else (output,)
        slots: list[int | str] = [*range(len(call.args)), *call.kwargs]
        if not call.args and "hidden_states" in call.kwargs:  # diffusers' blocks name the stream so
            slots.sort(key=lambda slot: slot != "hidden_states")
        targets = _match(call, slots[: len(outputs)], outputs)
        args, kwargs = list(call.args), dict(call.kwargs)
        for slot, value in zip(targets, outputs, strict=True):
            if isinstance(slot, int):
                args[slot] = value
            else:
                kwargs[slot] = value
        return replace(call, args=tuple(args), kwargs=kwargs)


def _match(call: Call, slots: list[int | str], outputs: tuple[Any, ...]) -> list[int | str]:
    """Slots in the order of the outputs.

    Two-stream blocks disagree: some return (image, text), some (text, image). The shapes decide; equal shapes are taken
    in order only when the arguments were positional.
    """
    before = [call.args[s] if isinstance(s, int) else call.kwargs[s] for s in slots]
    named = any(isinstance(slot, str) for slot in slots)
    in_order, swapped = _fits(before, outputs), _fits(before[::-1], outputs)
    if len(slots) != len(outputs) or not (in_order or swapped) or (len(slots) > 1 and named and in_order and swapped):
        shapes = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in outputs]
        raise BadValue(f"A block returned {shapes}, and which of its arguments {slots} they replace is not clear.")
    return slots if in_order else slots[::-1]


def _fits(before: list[Any], after: tuple[Any, ...]) -> bool:
    pairs = [(b, a) for b, a in zip(before, after, strict=False) if isinstance(a, Tensor)]
    return all(isinstance(b, Tensor) and b.shape == a.shape for b, a in pairs)


def _time(model: nn.Module, call: Call) -> Any:
    """The time argument by its name, or the second positional one if it is a number a sample at most."""
    names = list(inspect.signature(model.forward).parameters)
    for name in TIMES:
        value = argument(call, name, names.index(name) if name in names else len(call.args))
        if value is not None:
            return value
    second = call.args[1] if len(call.args) > 1 else None
    number = isinstance(second, (int, float)) or (isinstance(second, Tensor) and second.ndim <= 1)
    return second if number else None


def _kind(name: str, in_block: bool) -> Kind:
    kind: Kind = next((kind for pattern, kind in KINDS if re.search(pattern, name, re.IGNORECASE)), "other")
    return "other" if in_block and kind == "final" else kind  # a block's own proj_out is not the model's


def _hinted(model: nn.Module) -> list[str]:
    """Outermost modules of the classes that the model's class names, if they stand in lists."""
    classes = {
        *(getattr(type(model), "_repeated_blocks", None) or ()),
        *(getattr(type(model), "_no_split_modules", None) or ()),
    }
    found = [
        f"{name}.{index}"
        for name, stack in _stacks(model)
        for index, block in stack.named_children()
        if type(block).__name__ in classes and linears_of(block)
    ]
    return _outermost(found)


def _repeated(model: nn.Module) -> list[str]:
    """Elements of the outermost lists of like modules that hold most of the linear weights."""
    lists = {
        name: _weights(stack)
        for name, stack in _stacks(model)
        if len({type(block) for block in stack.children()}) == 1
        and all(linears_of(block) for block in stack.children())
    }
    largest = max(lists.values(), default=0)
    kept = [name for name in _outermost(list(lists)) if lists[name] * SHARE >= largest]
    return [f"{name}.{index}" for name in kept for index, _ in model.get_submodule(name).named_children()]


def _stacks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, m) for name, m in model.named_modules() if name and isinstance(m, (nn.ModuleList, nn.Sequential))]


def _weights(module: nn.Module) -> int:
    """Weights of the linears by their sizes: quantized ones have no weight to count."""
    return sum(linear.in_features * linear.out_features for linear in linears_of(module).values())


def _outermost(names: list[str]) -> list[str]:
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
