"""ALLOCATE: group sizes by layer name, as a search found them or as somebody wants them.

Q-DiT (arXiv 2406.17343) searches group sizes once and quantizes with them ever after. This is the second half: it needs no
data and no pictures, so that what was found on one machine can be used on another (``dither quantize --groups``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

from dither.errors import BadRecipe
from dither.spec import Int, LinearSpec
from dither.stages.base import Job, Phase
from dither.stages.granularity import resized

__all__ = ["Groups"]


@dataclass(frozen=True)
class Groups:
    """Given group sizes.

    Args:
        sizes: layer name to the group size of its weight, and of its input where ``assign`` gave that groups too. Layers
            that are not named stay as they are.
    """

    tag: ClassVar[str] = "groups"
    phase: ClassVar[Phase] = Phase.ALLOCATE
    paper: ClassVar[str] = "2406.17343"
    sizes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def run(self, job: Job) -> None:
        """Promise the sizes; BadRecipe or BadFormat names the layer that cannot have its own."""
        layers = job.layers
        for name, size in self.sizes.items():
            if name not in layers:
                raise BadRecipe(
                    f"{self.tag}.sizes names layer '{name}', which {type(job.model).__name__} does not have"
                )
            if size < 1:
                raise BadRecipe(f"{self.tag}.sizes gives layer '{name}' the group size {size}: it must be at least 1")
            if name in job.varied:
                raise BadRecipe(f"{self.tag}: layer '{name}' changes its width over time already")
            spec = job.specs.get(name, LinearSpec())
            if not isinstance(spec.weight, Int):
                what = "full-precision" if spec.weight is None else str(spec.weight)
                raise BadRecipe(f"{self.tag}: layer '{name}' has {what} weights, and only integers have group sizes")
            job.promise(name, resized(spec, size))
        if self.sizes:
            job.note(self.tag, {"groups": dict(self.sizes)})
