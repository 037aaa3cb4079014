"""What code that expects a dense ``weight`` sees of a packed one: a decoded copy, to read.

Libraries write into weights in many ways: ``weight.data += delta`` (merging a LoRA), ``cat([q.weight.data, ...])`` (fusing
projections), ``nn.init.zeros_(weight)``, ``weight.copy_(new)``. Into a copy, all of them would be lost without a word.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from dither.errors import Refused

__all__ = ["PackedWeight"]

_WRITING = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__"}
_HARMLESS = {"requires_grad_", "detach_"}


class PackedWeight(Tensor):
    """A decoded copy of a packed weight. Reading it gives ordinary tensors; writing to it, or ``.data``, is refused."""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """torch ends the names of functions that write with an underscore."""
        name = func.__name__
        writes = name in _WRITING or (name.endswith("_") and not name.endswith("__") and name not in _HARMLESS)
        options = kwargs or {}
        written = args[0] if args else next(iter(options.values()), None)
        if (writes and isinstance(written, cls)) or isinstance(options.get("out"), cls):
            _refuse()
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **options)

    @property
    def data(self) -> Tensor:
        """Refused: whoever asks is about to write, or to keep it as if it were the parameter."""
        _refuse()

    @data.setter
    def data(self, value: Tensor) -> None:
        _refuse()


def _refuse() -> NoReturn:
    raise Refused(
        "the weight of a quantized linear is packed and cannot be rewritten in place: "
        "fuse projections or LoRA weights into the full-precision model, then quantize it"
    )
