"""ACT: parameters in full precision that are equal, bit for bit, are kept once.

DiT of diffusers has a copy of its timestep and label embedders in every block; the original stores one. With weights of
2 bits these copies are nearly half of DiT-XL/2's checkpoint. The stage is the last: what others change is no longer equal.
"""

from collections.abc import Container
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from dither.nn import SHARABLE, alike, equal, lend
from dither.stages.base import Job, Phase

__all__ = ["Share", "repeated"]


@dataclass(frozen=True)
class Share:
    """Lets linears and embeddings that stay in full precision read the parameters of the first that is equal."""

    tag: ClassVar[str] = "share"
    phase: ClassVar[Phase] = Phase.ACT
    paper: ClassVar[str] = ""

    def run(self, job: Job) -> None:
        """Share them, and note how many and what it saves."""
        found = repeated(job.model, job.promised)
        saved = sum(p.numel() for name in found for p in job.model.get_submodule(name).parameters())
        for name, owner in found.items():
            lend(job.model, name, owner)
        if found:
            job.note(self.tag, {"modules": len(found), "parameters": saved})


def repeated(model: nn.Module, besides: Container[str]) -> dict[str, str]:
    """Linears and embeddings that are equal to an earlier one, by name, and the name of that one.

    Args:
        model: whose modules are looked at.
        besides: names of modules that are left out.
    """
    first: dict[str, list[tuple[str, nn.Module]]] = {}
    found = {}
    for name, module in model.named_modules():
        if type(module) not in SHARABLE or name in besides:
            continue
        known = first.setdefault(repr(module), [])
        owner = next((other for other, m in known if alike(m, module) and equal(m, module)), None)
        if owner is None:
            known.append((name, module))
        else:
            found[name] = owner
    return found
