"""The linears of a model, quantized or not, under the names that they had before."""

from torch import nn

__all__ = ["linears_of"]

TIMED = "TimedLinear"
"""Class of ``dither.nn`` that stands in a linear's place and holds several, of which the time selects one. Known by name,
because families know nothing of how quantized layers run."""


def linears_of(module: nn.Module) -> dict[str, nn.Linear]:
    """Name -> linear in order of registration; one with several variants is represented by its first."""
    found: dict[str, nn.Linear] = {}
    timed = ""
    for name, child in module.named_modules():
        if timed and name.startswith(timed):
            if isinstance(child, nn.Linear):
                found.setdefault(timed[:-1], child)
        elif type(child).__name__ == TIMED:
            timed = f"{name}."
        elif name and isinstance(child, nn.Linear):
            found[name] = child
    return found
