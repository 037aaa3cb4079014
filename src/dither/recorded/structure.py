"""The arguments of a denoiser call as JSON beside a list of tensors. Nothing else can be in them; nothing is evaluated.

null, true, 3, 0.5, "text"    themselves
[...]                         a list
{"tuple": [...]}              a tuple
{"dict": {"name": ...}}       a dict, whose keys are text
{"tensor": 7}                 tensor number 7
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dither.errors import BadValue
from dither.models.base import Call

__all__ = ["Pool", "calls_from", "calls_to", "check_tensor", "digest_of"]

DEEPEST = 16
"""Levels of lists, tuples and dicts in one argument."""
DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
)  # fmt: skip


@dataclass(frozen=True)
class Pool:
    """The tensors of calls, each once however often it is an argument (a prompt's embedding is one at every step).

    Args:
        tensors: on the CPU, contiguous.
        numbers: digest of each to its place.
    """

    tensors: list[Tensor] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)

    def number(self, tensor: Tensor) -> int:
        """The tensor's place; it is kept if its equal is not there yet."""
        key = _digest(tensor)
        if key not in self.numbers:
            self.numbers[key] = len(self.tensors)
            self.tensors.append(tensor.clone())  # a file refuses tensors that share memory
        return self.numbers[key]


def _digest(tensor: Tensor) -> str:
    """SHA-256 over dtype, shape and bytes."""
    found = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def digest_of(calls: Sequence[Call]) -> str:
    """SHA-256 over all that calls hold, the same before they are stored and after."""
    pool = Pool()
    structure = calls_to(calls, pool)
    return hashlib.sha256(json.dumps([structure, list(pool.numbers)]).encode()).hexdigest()


def check_tensor(tensor: Tensor, where: str) -> None:
    """Raises BadValue for a tensor that no file holds, and for NaN or infinity."""
    if tensor.layout != torch.strided or tensor.dtype not in DTYPES:
        raise BadValue(f"{where} is a {tensor.dtype} tensor of layout {tensor.layout}, which cannot be stored")
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise BadValue(f"{where} holds NaN or infinity")


def calls_to(calls: Sequence[Call], pool: Pool) -> list[dict[str, Any]]:
    """Calls as JSON; their tensors go into the pool.

    Raises:
        BadValue: an argument holds what cannot be stored; it and the call are named.
    """
    found = []
    for i, call in enumerate(calls):
        args = [_to(v, pool, f"argument {j} of denoiser call {i}", 0) for j, v in enumerate(call.args)]
        kwargs = {k: _to(v, pool, f"'{k}' of denoiser call {i}", 0) for k, v in call.kwargs.items()}
        found.append({"args": args, "kwargs": kwargs})
    return found


def _to(value: Any, pool: Pool, where: str, depth: int) -> Any:
    if isinstance(value, Tensor):
        check_tensor(value, where)
        return {"tensor": pool.number(value.detach().cpu().contiguous())}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return _finite(value, where)
    _check_depth(where, depth)
    if isinstance(value, list):
        return [_to(v, pool, where, depth + 1) for v in value]
    if type(value) is tuple:
        return {"tuple": [_to(v, pool, where, depth + 1) for v in value]}
    if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
        return {"dict": {k: _to(v, pool, where, depth + 1) for k, v in value.items()}}
    raise BadValue(f"{where} holds a {type(value).__name__}, which cannot be stored")


def calls_from(data: Any, tensor: Callable[[int], Tensor]) -> tuple[Call, ...]:
    """The calls that ``calls_to`` wrote.

    Args:
        data: JSON of any origin.
        tensor: gives a tensor by its number; IndexError if there is none.

    Raises:
        BadValue: anything else; the argument and the call are named.
    """
    if not isinstance(data, list):
        raise BadValue("its calls are no list")
    found = []
    for i, item in enumerate(data):
        if not isinstance(item, dict) or item.keys() != {"args", "kwargs"}:
            raise BadValue(f"denoiser call {i} must have 'args' and 'kwargs', and nothing else")
        args, kwargs = item["args"], item["kwargs"]
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise BadValue(f"denoiser call {i} needs a list 'args' and an object 'kwargs'")
        positional = (_from(v, tensor, f"argument {j} of denoiser call {i}", 0) for j, v in enumerate(args))
        named = {k: _from(v, tensor, f"'{k}' of denoiser call {i}", 0) for k, v in kwargs.items()}
        found.append(Call(tuple(positional), named))
    return tuple(found)


def _from(data: Any, tensor: Callable[[int], Tensor], where: str, depth: int) -> Any:
    if data is None or isinstance(data, bool | int | str):
        return data
    if isinstance(data, float):
        return _finite(data, where)
    _check_depth(where, depth)
    if isinstance(data, list):
        return [_from(v, tensor, where, depth + 1) for v in data]
    tag, value = next(iter(data.items())) if len(data) == 1 else ("", None)
    if tag == "tuple" and isinstance(value, list):
        return tuple(_from(v, tensor, where, depth + 1) for v in value)
    if tag == "dict" and isinstance(value, dict):
        return {k: _from(v, tensor, where, depth + 1) for k, v in value.items()}
    if tag == "tensor" and type(value) is int:
        return _tensor_at(value, tensor, where)
    raise BadValue(f"{where} is {str(data)[:40]!r}, which means nothing here")


def _tensor_at(number: int, tensor: Callable[[int], Tensor], where: str) -> Tensor:
    try:
        return tensor(number)
    except IndexError:
        raise BadValue(f"{where} is tensor {number}, which is not there") from None


def _check_depth(where: str, depth: int) -> None:
    if depth >= DEEPEST:
        raise BadValue(f"{where} is nested more than {DEEPEST} levels deep")


def _finite(value: float, where: str) -> float:
    if not math.isfinite(value):
        raise BadValue(f"{where} holds NaN or infinity")
    return float(value)
