"""Plain buffers that mean what they say: taken as they are, and of the dtype that they were made in, come what may."""

from collections.abc import Mapping

from torch import Tensor, nn

from dither.errors import BadCheckpoint

__all__ = ["keep_dtypes", "take"]


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
