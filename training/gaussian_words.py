"""``python -m training.gaussian_words``: the words of the universal Gaussian codebooks, by k-means of 131,072 sub-vectors.

They are part of a format, so they are found once, stored as int8 of a 29th of a deviation, and committed.
"""

import base64
import json
from pathlib import Path

import torch

from dither.numerics import fit_codebook
from dither.numerics.deviation import UNIT
from dither.numerics.gaussian import WORDS

SETS = ((8, 256), (4, 256), (2, 64), (2, 256))
SOURCE = 1 << 17
ITERATIONS = 50


def words_of(dim: int, size: int) -> torch.Tensor:
    """(size, dim) int8, sorted."""
    source = torch.randn(SOURCE // 2, dim, generator=torch.Generator().manual_seed(0))
    source = torch.cat([source, -source])  # no direction is preferred
    found = fit_codebook(source, torch.ones(len(source)), size, 0, ITERATIONS, sampled=False)
    values = found.mul(UNIT).round().clamp(-127, 127).to(torch.int8)
    return torch.tensor(sorted(values.tolist()), dtype=torch.int8)


def main() -> None:
    """Write the file that ``dither.numerics.gaussian`` reads."""
    made = {f"{d}x{k}": base64.b64encode(words_of(d, k).numpy().tobytes()).decode() for d, k in SETS}
    Path(WORDS).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
