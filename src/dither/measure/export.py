"""Results as tables for other programs: CSV with every number in full, Markdown for people."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["COLUMNS", "to_csv", "to_markdown"]

COLUMNS: Mapping[str, str] = {
    "model": "model",
    "checkpoint": "checkpoint",
    "recipe": "recipe.name",
    "bits": "bits",
    "n": "n",
    "file_bytes": "size.file_bytes",
    "full_precision_bytes": "size.full_precision_bytes",
    "bits_per_weight": "size.bits_per_weight",
    "model_bits_per_weight": "size.model_bits_per_weight",
    "psnr_db": "psnr_db.mean",
    "psnr_db_low": "psnr_db.ci95.0",
    "psnr_db_high": "psnr_db.ci95.1",
    "ssim": "ssim.mean",
    "ssim_low": "ssim.ci95.0",
    "ssim_high": "ssim.ci95.1",
    "lpips": "lpips.mean",
    "fd_features": "fd.features",
    "fd_to_full_precision": "fd.to_full_precision",
    "fd_se": "fd.to_full_precision_se",
    "fd_to_real": "fd.to_real",
    "full_precision_fd_to_real": "fd.full_precision_to_real",
    "class_accuracy": "class_accuracy.quantized",
    "full_precision_class_accuracy": "class_accuracy.full_precision",
    "noise_floor_psnr_db": "noise_floor.psnr_db",
    "other_seeds_psnr_db": "noise_floor.other_seeds_psnr_db",
    "speed_ratio": "speed.ratio",
    "layers_quantized": "layers.quantized",
    "layers_total": "layers.total",
    "layers_simulated": "layers.simulated",
    "seed": "seed",
    "steps": "steps",
    "guidance": "guidance",
    "device": "device",
    "digest": "digests.quantized",
    "full_precision_digest": "digests.full_precision",
}
"""Column to its place in a results dict."""


def to_csv(results: Sequence[Mapping[str, Any]]) -> str:
    """One line a result, one column a number; empty where it was not measured."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for result in results:
        row = [_look(result, path) for path in COLUMNS.values()]
        writer.writerow(["" if value is None else value for value in row])
    return text.getvalue()


def to_markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """A table with full precision as its first row, and the noise floor as its second."""
    first = results[0]
    head = ["recipe", "bits", "MB", "bits / weight", "PSNR, dB (95%)", "SSIM", "FD to full precision", "FD to real"]
    floor = _look(first, "noise_floor.psnr_db")
    rows = [
        ["full precision", "", _mb(first, "size.full_precision_bytes"), "", "", "", "",
         _number(first, "fd.full_precision_to_real", 3)],
        ["the same, other batch size", "", "", "", "" if floor is None else f"{floor:.2f}", "", "", ""],
    ]  # fmt: skip
    for result in results:
        low, high = (_look(result, f"psnr_db.ci95.{i}") for i in (0, 1))
        error = _look(result, "fd.to_full_precision_se")
        rows.append([
            str(_look(result, "recipe.name") or result.get("checkpoint", "")),
            str(result.get("bits") or ""),
            _mb(result, "size.file_bytes"),
            _number(result, "size.bits_per_weight", 2),
            f"{result['psnr_db']['mean']:.2f} ({low:.2f} to {high:.2f})",
            f"{result['ssim']['mean']:.4f}",
            _number(result, "fd.to_full_precision", 4) + ("" if error is None else f" ± {error:.2g}"),
            _number(result, "fd.to_real", 3),
        ])  # fmt: skip
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)], *rows]
    return "".join(f"| {' | '.join(_cell(value) for value in line)} |\n" for line in lines)


def _look(value: Any, path: str) -> Any:
    """The value at a dotted path, or None."""
    for key in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, Sequence) and not isinstance(value, str) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return value


def _number(result: Mapping[str, Any], path: str, digits: int) -> str:
    value = _look(result, path)
    return "" if value is None else f"{value:.{digits}f}"


def _mb(result: Mapping[str, Any], path: str) -> str:
    value = _look(result, path)
    return "" if value is None else f"{value / 1e6:.2f}"


def _cell(text: str) -> str:
    """Nothing in a name may end its cell."""
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())
