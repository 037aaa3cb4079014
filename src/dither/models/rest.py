"""What is not a linear and so stays as it is: convolutions, norms, embedding tables, loose parameters."""

from dataclasses import dataclass

from torch import nn

from dither.models.linears import linears_of

__all__ = ["Rest", "rest_of"]


@dataclass(frozen=True)
class Rest:
    """A module that is no linear and owns parameters.

    Args:
        name: as in ``model.named_modules()``; empty for the model itself.
        type: its class, such as ``Conv2d``.
        parameters: numbers in its own parameters, without its children's.
    """

    name: str
    type: str
    parameters: int


def rest_of(model: nn.Module) -> list[Rest]:
    """Every module besides the linears that owns parameters, largest first."""
    linears = linears_of(model)
    found = [
        Rest(name, type(module).__name__, sum(p.numel() for p in module.parameters(recurse=False)))
        for name, module in model.named_modules()
        if name not in linears and not isinstance(module, nn.Linear)
    ]
    return sorted((rest for rest in found if rest.parameters), key=lambda rest: -rest.parameters)
