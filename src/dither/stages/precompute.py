"""TRANSFORM: what depends on the timestep alone, precomputed and never quantized (TFMQ-DM, arXiv 2311.16503, section 4.2).

A sampler asks for T whole timesteps, so all that a timestep embedder can ever give is T vectors. Rounding its weights would
disturb every block that reads it; storing what it gives costs nothing in quality:

    emb_i(t) = linear_2(silu(linear_1(sinusoids(t))))  ->  table_i[t],      t in 0 .. T - 1

A table of T x D numbers is smaller than the embedder of 256 D + D^2 + 2 D weights only where T < 258 + D. Embedders that give
the same share one, and there most is saved: DiT of diffusers has a copy in every block of what the original stores once.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dither.errors import BadFormat, BadRecipe
from dither.models.embedders import embedders_of, embedding_at
from dither.nn import TimestepTable, put_table
from dither.spec import TableSpec
from dither.stages.base import Job, Phase

__all__ = ["Precompute"]


@dataclass(frozen=True)
class Precompute:
    """Replaces timestep embedders by tables. The model can then be called at whole timesteps only.

    Args:
        steps: T, the timesteps that the model was trained at.
    """

    tag: ClassVar[str] = "precompute"
    phase: ClassVar[Phase] = Phase.TRANSFORM
    paper: ClassVar[str] = "2311.16503"
    steps: int = 1000

    def run(self, job: Job) -> None:
        """Make and install the tables."""
        try:
            TableSpec(self.steps)
        except BadFormat as e:
            raise BadRecipe(f"precompute.steps: {e}") from None
        names = embedders_of(job.model)
        if not names:
            raise BadRecipe(
                f"precompute: {type(job.model).__name__} (family '{job.adapter.family}') has no timestep embedder that is "
                "known to see whole timesteps alone: leave the stage out"
            )
        made: dict[str, Tensor] = {}  # by the name of the embedder that has the table
        for i, name in enumerate(names):
            values = embedding_at(job.model, name, torch.arange(self.steps))  # (T, D)
            same = next((other for other, table in made.items() if torch.equal(table, values)), "")
            if not same:
                made[name] = values
            table = put_table(job.model, name, TableSpec(self.steps, same), "meta")
            if isinstance(table, TimestepTable):
                table.load(values)
            job.progress("precomputing timestep embeddings", i + 1, len(names))
        job.note(self.tag, {"embedders": len(names), "tables": len(made)})
