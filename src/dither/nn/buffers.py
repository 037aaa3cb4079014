"""Plain buffers that mean what they say: taken as they are, in the dtype they were made in, and compared by their bits."""

import hashlib
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from dither.errors import BadCheckpoint

__all__ = ["Digests", "keep_dtypes", "take"]


def take(module: nn.Module, tensors: Mapping[str, Tensor], what: object) -> None:
    """Make tensors the module's buffers of the same names, without a copy. BadCheckpoint if one does not fit ``what``."""
    for name, tensor in tensors.items():
        have = module._buffers.get(name)
        if have is None or have.shape != tensor.shape or have.dtype != tensor.dtype:
            raise BadCheckpoint(f"tensor '{name}' {tuple(tensor.shape)} {tensor.dtype} does not fit {what}")
        module._buffers[name] = tensor


def keep_dtypes(module: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Undo a cast: scales stay float32 whatever ``.half()`` or ``.to(dtype)`` ask, or quality is lost unseen.

    Args:
        module: after it was moved or cast.
        kept: its packed buffers before.
    """
    for name, before in kept.items():
        after = module._buffers[name]
        if after is not None and after.dtype != before.dtype:
            module._buffers[name] = before.to(after.device)


class Digests:
    """Digests of a module's buffers by name, found anew where one was replaced or changed; finding waits for the device."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[list[tuple[Tensor, int]], bytes]] = {}

    def of(self, name: str, tensors: Sequence[Tensor]) -> bytes:
        """Of the bits of these tensors, which ``name`` stands for."""
        now = [(t, t._version) for t in tensors]
        last, digest = self._found.get(name, ([], b""))
        if len(last) != len(now) or any(t is not u or i != j for (t, i), (u, j) in zip(now, last, strict=True)):
            found = hashlib.sha256()
            for tensor in tensors:
                found.update(tensor.cpu().numpy().tobytes())
            digest = found.digest()
            self._found[name] = now, digest
        return digest
