"""``Borrowed``: a module that reads the parameters of another one, which holds the same.

DiT of diffusers has a copy of its embedders in every block, where the original stores one. Where the copies are equal bit for
bit, one of them is enough, in memory as in files.
"""

from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["SHARABLE", "Borrowed", "alike", "equal", "owner_of", "shared_modules"]

SHARABLE = (nn.Linear, nn.Embedding)
"""What they do follows from their parameters and what ``repr`` says; classes derived from them may do more."""


class Borrowed(nn.Module):
    """Stands where a module was, and calls another.

    Args:
        owner: the other.
        name: of the other.
    """

    def __init__(self, owner: nn.Module, name: str) -> None:
        super().__init__()
        self._owner = (owner,)  # in a tuple, so that it is no module of this one and is stored once
        self.name = name

    @property
    def owner(self) -> nn.Module:
        """The other module."""
        return self._owner[0]

    @property
    def weight(self) -> Tensor:
        """The other's, for those who ask for its dtype or device."""
        return cast(Tensor, self.owner.weight)

    @property
    def bias(self) -> Tensor | None:
        """The other's."""
        return cast(Tensor | None, self.owner.bias)

    def forward(self, x: Tensor) -> Tensor:
        """What the other gives."""
        return cast(Tensor, self.owner(x))

    def extra_repr(self) -> str:
        """Whose parameters it reads."""
        return f"same_as={self.name}"


def owner_of(module: nn.Module) -> nn.Module:
    """Whose parameters it reads: its own, or another's."""
    return module.owner if isinstance(module, Borrowed) else module


def alike(a: nn.Module, b: nn.Module) -> bool:
    """Whether one could read the parameters of the other, were these equal: same kind, widths, dtypes."""
    if type(a) is not type(b) or type(a) not in SHARABLE or repr(a) != repr(b):
        return False
    kinds = [{k: (p.shape, p.dtype, p.device) for k, p in m.named_parameters()} for m in (a, b)]
    return kinds[0] == kinds[1] and not list(a.buffers()) and not list(b.buffers())


def equal(a: nn.Module, b: nn.Module) -> bool:
    """Whether both hold the same parameters, bit for bit."""
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(torch.equal(p.view(torch.uint8), q.view(torch.uint8)) for p, q in pairs)


def shared_modules(model: nn.Module) -> dict[str, str]:
    """Which modules read the parameters of which others."""
    return {name: m.name for name, m in model.named_modules() if isinstance(m, Borrowed) and type(m.owner) in SHARABLE}
