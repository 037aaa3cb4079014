"""ALLOCATE: powers of two or uniform steps for the output of each softmax (TCAQ-DM's DAQ, arXiv 2412.16700).

    R > 0: log2,  else uniform        R: log-likelihood ratio of a power law and another law, on sampled probabilities

see ``likelihood``. A softmax whose probabilities fall off as a power law has many that uniform steps would all call 0.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from dither.errors import BadRecipe, BadValue
from dither.nn import attention_tensors
from dither.probes import RowSample
from dither.spec import AttentionSpec, Int, Log2
from dither.stages.base import Job, Phase
from dither.stages.likelihood import LikelihoodRatio, power_law_ratio
from dither.stages.meanwhile import attending

__all__ = ["Log2OrUniform"]


@dataclass(frozen=True)
class Log2OrUniform:
    """Gives probabilities that are promised to be integers powers of two where the ratio says so; notes it, per value.

    Args:
        rows: rows of probabilities kept of each attention.
        quantile: of the probabilities; those below belong to neither law.
    """

    tag: ClassVar[str] = "log2"
    phase: ClassVar[Phase] = Phase.ALLOCATE
    paper: ClassVar[str] = "2412.16700"
    rows: int = 1024
    quantile: float = 0.01

    def run(self, job: Job) -> None:
        """Promise other grids."""
        if self.rows < 1:
            raise BadRecipe(f"log2.rows {self.rows}: must be at least 1")
        if not 0 <= self.quantile < 1:
            raise BadRecipe(f"log2.quantile {self.quantile}: must lie in [0, 1)")
        probs = {n: s.probs for n, s in job.attention.items() if s.probs is not None and isinstance(s.probs.grid, Int)}
        for name, ratio in self._ratios(job, list(probs)).items():
            job.note(name, {"log2": {"ratio": float(f"{ratio.ratio / ratio.count:.4g}"), "z": float(f"{ratio.z:.4g}")}})
            if ratio.power_law:
                act = probs[name]
                grid = Log2(act.grid.bits, act.grid.group)
                job.attend(name, replace(job.attention[name], probs=replace(act, grid=grid)))

    def _ratios(self, job: Job, names: list[str]) -> dict[str, LikelihoodRatio]:
        if not names:
            return {}
        places = {name: f"{attention_tensors(name)}probs" for name in names}
        probes = {name: RowSample(self.rows, seed=job.seed) for name in names}
        rows = [job.rows(call) for call in job.calls]  # before anything of the model is touched
        with attending(job, dict.fromkeys(names, AttentionSpec())):
            job.observe("sampling probabilities", {places[n]: (probe,) for n, probe in probes.items()}, rows)
        return {name: self._ratio(name, probe) for name, probe in probes.items()}

    def _ratio(self, name: str, probe: RowSample) -> LikelihoodRatio:
        x = probe.value.flatten()
        try:
            return power_law_ratio(x[x > 0], self.quantile)  # masked probabilities are 0 in any grid
        except BadValue as e:
            raise BadValue(f"log2: the probabilities of attention '{name}': {e}") from None
