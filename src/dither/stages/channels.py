"""Statistics of sites for channel balancing, one set for each range of the noise level: measured, or without data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dither.clock import Clock
from dither.errors import BadModel, BadRecipe, BadValue
from dither.models.base import Modulation, Site
from dither.probes import AbsMax, RowsByTime
from dither.stages.base import Job
from dither.stages.data_free import levels_between, modulated_peaks, modulated_tokens

__all__ = ["Channels", "Source", "Times", "check_edges", "equal_edges", "ranges_of", "sites_of"]

MOST_LEVELS = 1000


@dataclass(frozen=True)
class Times:
    """Ranges of the noise level.

    Args:
        edges: inner edges, ascending in (0, 1).
        select: for each row of the job's clock, the range that it lies in; empty where no table will be read by range.
    """

    edges: tuple[float, ...]
    select: tuple[int, ...]

    @classmethod
    def whole(cls, job: Job) -> "Times":
        """One range, in which every row of the clock lies."""
        return cls((), (0,) * job.clock.size)

    @classmethod
    def off_clock(cls, edges: tuple[float, ...]) -> "Times":
        """Ranges for statistics alone: the job's clock need not know these edges, and gains no rows by them."""
        return cls(edges, ())

    @classmethod
    def cut(cls, job: Job, edges: tuple[float, ...]) -> "Times":
        """Ranges between these edges. Each of the clock's time groups must lie inside one of them."""
        groups = (0.0, *job.time_edges)
        return cls(edges, tuple(sum(e <= low for e in edges) for low in groups for _ in range(job.branches)))

    @classmethod
    def on_clock(cls, job: Job, field: str, edges: tuple[float, ...]) -> "Times":
        """``cut``, with the job's clock cut here unless another stage has cut it.

        BadRecipe names the stage's field if one of the edges is none of the clock's.
        """
        if not job.time_edges and job.branches == 1:
            job.set_clock(edges, 1)
        check_edges(job, field, edges)
        return cls.cut(job, edges)

    @property
    def bounds(self) -> tuple[tuple[float, float], ...]:
        """Low and high end of each range."""
        return tuple(zip((0.0, *self.edges), (*self.edges, 1.0), strict=True))


def check_edges(job: Job, field: str, edges: tuple[float, ...]) -> None:
    """BadRecipe names an edge that is none of the time groups', into which another stage has cut the job's clock."""
    if other := set(edges) - set(job.time_edges):
        raise BadRecipe(
            f"{field}: {min(other):g} is not an edge of the time groups {[round(e, 4) for e in job.time_edges]} that "
            "another stage asks for"
        )


def equal_edges(count: int) -> tuple[float, ...]:
    """Inner edges of this many equal parts of the noise level."""
    return tuple(i / count for i in range(1, count))


def ranges_of(job: Job, edges: Sequence[float]) -> list[Tensor]:
    """For each calibration call, which range between these inner edges each sample's noise level lies in, (B,) int64."""
    clock = Clock(tuple(edges))
    levels = (job.adapter.noise_level(job.model, call) for call in job.calls)
    return [clock.rows_at(level, torch.zeros_like(level)) for level in levels]


def sites_of(job: Job) -> dict[str, str]:
    """The site that each linear reads, by name; linears that read none are not in it."""
    return {reader: site.name for site in job.adapter.sites(job.model) for reader in site.readers}


@dataclass(frozen=True)
class Channels:
    """Of one site.

    Args:
        peaks: largest magnitude of each channel in each range, (R, K) float32.
        tokens: for each range, some of the site's tokens (n, K); empty if none were asked for.
    """

    peaks: Tensor
    tokens: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Source:
    """Where a stage's statistics come from; the fields are the stage's.

    Args:
        stage: its tag, for messages.
        data_free: sites made by adaLN, from noise level and class alone.
        calibrate: all other sites, from calibration calls; otherwise they are left out.
        levels: noise levels that ``data_free`` looks at in each range.
        rows: tokens kept for each site and range; 0: none.
        gaps: measured sites go without the ranges that no calibration call falls into; otherwise these are an error.
    """

    stage: str
    data_free: bool
    calibrate: bool
    levels: int
    rows: int
    gaps: bool = False

    def check(self) -> None:
        """BadRecipe names a field that makes no sense."""
        if not 1 <= self.levels <= MOST_LEVELS:
            raise BadRecipe(f"{self.stage}.levels {self.levels}: must be 1 to {MOST_LEVELS}")
        if not (self.data_free or self.calibrate):
            raise BadRecipe(
                f"{self.stage}.calibrate false: without {self.stage}.data_free there are no statistics to scale by"
            )

    def gather(self, job: Job, sites: Sequence[Site], times: Times) -> dict[str, Channels]:
        """Statistics by site name, in the order of the sites. A site that is left out for want of data is said
        and noted."""
        free = {s.name: s.modulation for s in sites if self.data_free and s.modulation is not None}
        if self.data_free and not free:
            raise BadModel(
                f"{self.stage}.data_free: in {type(job.model).__name__} no chosen site's channels follow from noise "
                "level and class alone; leave it out to measure them"
            )
        rest = [s for s in sites if s.name not in free]
        if rest and not self.calibrate:
            done, total = len(free), len(sites)
            job.progress(f"{len(rest)} sites stay unscaled, as adaLN does not make them; scaling", done, total)
            for reader in (r for s in rest for r in s.readers):
                job.note(reader, {self.stage.replace("-", "_"): "not scaled: adaLN does not make its input"})
        found = self._measured(job, rest, times) if rest and self.calibrate else {}
        found |= {name: self._modulated(job, modulation, times) for name, modulation in free.items()}
        return {s.name: found[s.name] for s in sites if s.name in found}

    def _measured(self, job: Job, sites: Sequence[Site], times: Times) -> dict[str, Channels]:
        """One pass over the calibration calls for all sites."""
        count = len(times.bounds)
        rows = ranges_of(job, times.edges)
        reached = sorted({r for each in rows for r in each.tolist()})
        missing = set(range(count)) - set(reached)
        if missing and not self.gaps:
            low, high = times.bounds[min(missing)]
            raise BadValue(
                f"{self.stage}: no calibration call has a noise level from {low:g} to {high:g}; calibrate with more "
                "steps, or move the edges"
            )
        peaks = {s.name: AbsMax(job.dense(s.readers[0]).shape[1], count) for s in sites}
        tokens = {s.name: RowsByTime(count, self.rows, job.seed) for s in sites} if self.rows else {}
        job.observe("measuring channels", {s.readers[0]: _probes(s, peaks, tokens) for s in sites}, rows)
        return {
            name: Channels(peak.value[reached], tuple(tokens[name].parts[r].value for r in reached) if tokens else ())
            for name, peak in peaks.items()
        }

    def _modulated(self, job: Job, modulation: Modulation, times: Times) -> Channels:
        levels = [levels_between(low, high, self.levels) for low, high in times.bounds]
        peaks = torch.stack([modulated_peaks(job.model, modulation, x) for x in levels])  # (R, K)
        if not self.rows:
            return Channels(peaks)
        return Channels(peaks, tuple(modulated_tokens(job.model, modulation, x, self.rows, job.seed) for x in levels))


def _probes(
    site: Site, peaks: Mapping[str, AbsMax], tokens: Mapping[str, RowsByTime]
) -> tuple[AbsMax | RowsByTime, ...]:
    return (peaks[site.name], tokens[site.name]) if tokens else (peaks[site.name],)
