"""``python -m benchmarks.data_free``: do channel peaks computed from the modulation alone follow those that are measured?

For every site that adaLN makes: the correlation over channels of the logarithms of both, since balancing scales are powers
of them.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, environment, write_result
from benchmarks.vidit_q import MODELS
from dither.models import adapter_for
from dither.quantization import Calibration, calibration_calls
from dither.sources import open_source
from dither.spec import Bits
from dither.stages import Job
from dither.stages.channels import Source, Times

LEVELS = 16


def main() -> int:
    """Always 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_free", description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "data_free.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    how, rows = Calibration(), []
    for model in MODELS:
        rows += correlations(model, how)
    measured = {"calibration": vars(how) | {"prompts": []}, "seed": 0, "levels": LEVELS, "rows": rows}
    write_result(given.output, {**environment("python -m benchmarks.data_free", given.threads), **measured})
    return 0


@torch.no_grad()
def correlations(name: str, how: Calibration) -> list[dict[str, Any]]:
    """A row a site, in the order of the network."""
    source = open_source(name)
    model = source.model.eval()
    adapter = adapter_for(model)
    job = Job(model, adapter, Bits(4, 8), 0, calibration_calls(source.pipeline, how, 0))
    sites = [site for site in adapter.sites(model) if site.modulation is not None]
    measured, computed = (
        Source("smooth", free, True, LEVELS, 0).gather(job, sites, Times.whole(job)) for free in (False, True)
    )
    rows = []
    for site in sites:
        pair = torch.stack([found[site.name].peaks[0].double().log() for found in (measured, computed)])  # (2, K)
        spread = pair.std(dim=1)
        rows.append(
            {
                "model": name,
                "site": site.name,
                "correlation": round(float(torch.corrcoef(pair)[0, 1]), 3),
                "spread_measured": round(float(spread[0]), 3),
                "spread_computed": round(float(spread[1]), 3),
            }
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
