"""The quality metrics that results are compared by: where each lies in a results file, and which way is better."""

from dataclasses import dataclass

from dither.report.form import sized
from dither.report.load import Results, bounds, number

__all__ = ["METRICS", "Estimate", "Metric", "estimate", "metric_named"]


@dataclass(frozen=True)
class Estimate:
    """A measured value with its 95% interval, when there is one."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Metric:
    """One metric: `path` of its value, `floor` of full precision against itself, `other` of unrelated pictures."""

    key: str
    title: str
    unit: str
    path: str
    interval: str
    error: str | None
    detectable: str
    floor: str
    other: tuple[str, ...]
    higher_is_better: bool
    digits: int | None

    def show(self, value: float | None) -> str:
        """Format a value of this metric without its unit."""
        return sized(value, self.digits)

    def better(self, a: float, b: float) -> bool:
        """Whether `a` is strictly better than `b`."""
        return a > b if self.higher_is_better else a < b

    def with_unit(self, value: float | None) -> str:
        """Format a value of this metric with its unit."""
        return f"{self.show(value)} {self.unit}".strip()


PSNR = Metric(
    "psnr_db", "PSNR", "dB", "psnr_db.mean", "psnr_db.ci95", None, "psnr_db.detectable",
    "noise_floor.psnr_db", ("noise_floor.other_seeds_psnr_db",), higher_is_better=True, digits=2,
)  # fmt: skip
SSIM = Metric(
    "ssim", "SSIM", "", "ssim.mean", "ssim.ci95", None, "ssim.detectable",
    "noise_floor.ssim", ("noise_floor.other_seeds_ssim",), higher_is_better=True, digits=4,
)  # fmt: skip
LPIPS = Metric(
    "lpips", "LPIPS", "", "lpips.mean", "lpips.ci95", None, "lpips.detectable",
    "noise_floor.lpips", ("noise_floor.other_seeds_lpips",), higher_is_better=False, digits=4,
)  # fmt: skip
FD = Metric(
    "fd", "FD", "", "fd.to_full_precision", "fd.ci95", "fd.to_full_precision_se", "fd.detectable",
    "noise_floor.fd", ("noise_floor.other_seeds_fd", "fd.noise_floor"), higher_is_better=False, digits=None,
)  # fmt: skip
METRICS = (PSNR, SSIM, LPIPS, FD)


def metric_named(key: str) -> Metric | None:
    """The metric of this key, or None."""
    return next((metric for metric in METRICS if metric.key == key), None)


def estimate(result: Results, metric: Metric) -> Estimate | None:
    """Value and interval of a metric; where only a standard error is known, the interval is 1.96 of it either way."""
    value = number(result, metric.path)
    if value is None:
        return None
    found = bounds(result, metric.interval)
    error = number(result, metric.error) if metric.error else None
    if found is None and error is not None:
        found = (max(value - 1.96 * abs(error), 0.0), value + 1.96 * abs(error))  # a distance is never negative
    return Estimate(value, *found) if found else Estimate(value, None, None)
