"""Realistic results, small, without torch: what `dither eval` and `dither compare` write for quantized zoo models."""

import base64
import io
import math
from typing import Any

import numpy as np
import pytest
import varied
from PIL import Image

BLOCKS, STEPS, PICTURES = 6, 25, 12
WEIGHTS = 3_675_000
LINEARS = {
    "attn1.to_q": (192, 192),
    "attn1.to_k": (192, 192),
    "attn1.to_v": (192, 192),
    "attn1.to_out.0": (192, 192),
    "ff.net.0.proj": (768, 192),
    "ff.net.2": (192, 768),
}


def png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def make_pictures(noise: float) -> list[dict[str, Any]]:
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    entries = []
    for index in range(PICTURES):
        rng = np.random.default_rng(index)
        a, b, c = rng.uniform(0.3, 0.9, 3)
        shape = 235 * ((np.abs(x) / a) ** 3 + (np.abs(y) / b) ** 3 < 1) * (0.6 + 0.4 * np.sin(9 * c * x + index))
        worst = index >= PICTURES - 3
        changed = shape + rng.normal(size=shape.shape) * noise * (3 if worst else 1) * (shape > 0)
        entries.append(
            {
                "index": index,
                "seed": 1000 + index,
                "label": index % 10,
                "full_precision": png(shape),
                "quantized": png(changed),
                "psnr_db": 20 * math.log10(255 / (noise * (3 if worst else 1))),
                "worst": worst,
            }
        )
    return entries


def make_rows(bits: int, simulated: bool) -> list[dict[str, Any]]:
    rows = []
    for block in range(BLOCKS):
        for name, shape in LINEARS.items():
            rows.append(
                {
                    "name": f"transformer_blocks.{block}.{name}",
                    "kind": KIND[name],
                    "shape": list(shape),
                    "weight": f"int{bits} sym per-channel",
                    "act": "int8 sym per-token dynamic",
                    "kernel": "reference" if simulated else "int_mm",
                    "simulated": simulated,
                    "bits_per_weight": bits + 0.17 + (1 if name == "ff.net.2" and block in (0, BLOCKS - 1) else 0),
                    "reason": None,
                }
            )
    kept = {"proj_out_1": "conditions the last layer", "pos_embed.proj": "first layer", "proj_out_2": "last layer"}
    for name, reason in kept.items():
        full = {"weight": None, "act": None, "kernel": None, "simulated": False, "bits_per_weight": None}
        rows.append(
            {
                "name": name,
                "kind": "embed" if "embed" in name else "final",
                "shape": [192, 16],
                **full,
                "reason": reason,
            }
        )
    return rows


KIND = {"attn1.to_q": "qkv", "attn1.to_k": "qkv", "attn1.to_v": "qkv", "attn1.to_out.0": "attn_out"}
KIND |= {"ff.net.0.proj": "fc1", "ff.net.2": "fc2"}


def make_trajectory(noise: float, timesteps: list[float]) -> dict[str, Any]:
    """Errors of single calls that grow towards the picture, and what they pile up to."""
    share = np.linspace(0, 1, STEPS)
    error = (noise / 255) ** 2 * (0.4 + 1.8 * share**3 + 0.25 * np.sin(9 * share) ** 2)
    return {
        "n": 16,
        "steps": list(range(STEPS)),
        "timesteps": timesteps,
        "noise_levels": (1 - share).round(4).tolist(),
        "error": {"mean": error.tolist(), "low": (0.82 * error).tolist(), "high": (1.21 * error).tolist()},
        "error_conditional": (1.1 * error).tolist(),
        "error_unconditional": (0.8 * error * (1 + 0.3 * np.cos(5 * share))).tolist(),
        "drift": {
            "relative": (noise * 0.0009 * (1 + np.arange(STEPS)) ** 1.15).tolist(),
            "cosine": (1 - (noise * 0.0009 * (1 + np.arange(STEPS))) ** 2).tolist(),
        },
        "x0_snr_db": (44 - 20 * math.log10(noise) + 12 * share - 6 * share**4).tolist(),
        "guidance_amplification": (1.4 + 0.5 * np.sin(3 * share) + 0.01 * noise).tolist(),
        "amplification": 1.7 + 0.02 * noise,
    }


def make_ranges(layers: list[str], timesteps: list[float]) -> dict[str, Any]:
    t = np.linspace(1, 0, len(timesteps))
    low, high, rms = [], [], []
    for index in range(len(layers)):
        scale = 2 + index % 7 + (6 if index % 6 == 5 else 0) * (1 - t) ** 2
        wave = 1 + 0.35 * np.sin(4 * t + index)
        low.append((-scale * wave).round(3).tolist())
        high.append((1.3 * scale * wave + (9 * (t > 0.7) if index % 6 == 4 else 0)).round(3).tolist())
        rms.append((0.35 * scale * wave).round(3).tolist())
    return {"layers": layers, "timesteps": timesteps, "low": low, "high": high, "rms": rms}


def make_guards(noise: float) -> list[dict[str, Any]]:
    def guard(metric: str, features: str, full: float, change: float, half: float, better: str) -> dict[str, Any]:
        return {
            "metric": metric, "features": features, "n": 64, "quantized": full + change, "full_precision": full,
            "difference": change, "difference_ci95": [change - half, change + half], "detectable": 1.4 * half,
            "better": better, "reason": None,
        }  # fmt: skip

    few = "precision and recall need 1000 pictures; there are 64"
    return [
        guard("fid", "inception", 14.2, 0.03 * noise, 0.31, "lower"),
        guard("inception_score", "inception", 7.81, -0.004 * noise**1.5, 0.22, "higher"),
        guard("kid", "zoo:fashion", 0.0041, 1e-6 * noise**2, 0.0009, "lower"),
        {"metric": "recall", "features": "inception", "n": 64, "quantized": None, "full_precision": None,
         "difference": None, "difference_ci95": None, "detectable": None, "better": "higher", "reason": few},
    ]  # fmt: skip


def make_result(
    bits: int = 8, noise: float = 6.0, recipe: str = "smoothquant", simulated: bool = False
) -> dict[str, Any]:
    """Complete results; `noise` in 8-bit levels sets every quality number."""
    rng = np.random.default_rng(bits)
    rows = make_rows(bits, simulated)
    psnr = 20 * math.log10(255 / noise) + rng.normal(size=64) * 1.6 - (rng.random(64) > 0.9) * 4
    half = 1.96 * psnr.std() / 8
    timesteps = [float(t) for t in np.linspace(960, 0, STEPS).round()]
    depth = np.arange(BLOCKS * 6)[:, None] % 6
    snr = 46 - 2.4 * noise + 5 * np.sin(depth) - 12 * (depth == 5) * np.linspace(0, 1, STEPS) ** 2
    layers = [row["name"] for row in rows if row["weight"]]
    return {
        "schema": 2,
        "kind": "eval",
        "model": "zoo:fashion",
        "checkpoint": f"{recipe}-w{bits}a8",
        "bits": f"w{bits}a8",
        "recipe": {
            "name": recipe,
            "paper": "arXiv 2211.10438",
            "bits": f"w{bits}a8",
            "stages": [{"stage": "smooth", "alpha": 0.5}, {"stage": "rtn"}],
        },
        "size": {
            "file_bytes": int(WEIGHTS * (bits + 0.9) / 8),
            "full_precision_bytes": 2 * WEIGHTS,
            "ratio": 16 / (bits + 0.9),
            "bits_per_weight": bits + 0.17,
            "model_bits_per_weight": bits + 0.9,
        },
        "layers": {"quantized": 36, "total": 39, "simulated": 36 if simulated else 0, "rows": rows},
        "kernels": {"reference": 36} if simulated else {"int_mm": 36},
        "psnr_db": {
            "mean": float(psnr.mean()),
            "ci95": [float(psnr.mean() - half), float(psnr.mean() + half)],
            "pooled": float(psnr.mean() - 1),
            "median": float(np.median(psnr)),
            "worst": float(psnr.min()),
            "identical": 0,
            "per_image": [round(float(value), 3) for value in psnr],
            "detectable": float(1.4 * half),
        },
        "ssim": {"mean": 1 - noise / 300, "ci95": [1 - noise / 280, 1 - noise / 330], "detectable": noise / 2000},
        "lpips": {"mean": noise / 90, "ci95": [noise / 100, noise / 82], "net": "alex", "share_above_0.3": 0.02},
        "fd": {
            "features": "zoo:fashion classifier",
            "n": 64,
            "to_full_precision": 0.004 * noise**2,
            "to_full_precision_se": 0.0006 * noise**2,
            "ci95": [0.0029 * noise**2, 0.0053 * noise**2],
            "detectable": 0.0017 * noise**2,
            "reason": None,
            "noise_floor": 2.31,
            "to_real": 6.1 + 0.01 * noise,
            "full_precision_to_real": 6.08,
            "difference_to_real": 0.01 * noise,
            "difference_se": 0.03,
        },
        "class_accuracy": {
            "quantized": 0.953,
            "full_precision": 0.969,
            "real": 0.93,
            "difference": -0.016,
            "ci95": [-0.05, 0],
        },
        "noise_floor": {
            "psnr_db": 59.6,
            "identical": 30,
            "other_seeds_psnr_db": 11.4,
            "ssim": 0.9998,
            "other_seeds_ssim": 0.21,
            "fd": 0.0004,
            "other_seeds_fd": 2.31,
            "n": 32,
            "batch_sizes": [32, 16],
        },
        "drift": {
            "steps": list(range(STEPS)),
            "timesteps": timesteps,
            "relative": [noise * 0.0008 * (i + 1) ** 1.2 for i in range(STEPS)],
            "cosine": [1 - (noise * 0.0008 * (i + 1)) ** 2 for i in range(STEPS)],
        },
        "trajectory": make_trajectory(noise, timesteps),
        "activation_ranges": make_ranges(layers, timesteps),
        "guards": make_guards(noise),
        "speed": make_speed(bits, simulated),
        "memory": {
            "weight_bytes": 1_000_000 * bits // 4 + 90_000,
            "full_precision_weight_bytes": 14_700_000,
            "ratio": 14.7 * 4 / bits,
        },
        "skipped": [
            {"what": "pictures 48 to 63 of shard 4", "why": "the worker was killed: out of memory", "attempts": 2}
        ]
        if simulated
        else [],
        "digests": {"quantized": f"{bits:02x}" * 16, "full_precision": "5f" * 16},
        "scheduler": {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_schedule": "linear"},
        "commands": {
            "quantize": f"dither quantize zoo:fashion -o {recipe}-w{bits}a8 --recipe {recipe} --bits w{bits}a8 --seed 0",
            "eval": f"dither eval {recipe}-w{bits}a8 --against zoo:fashion -n 64 --seed 0 --json eval.json",
        },
        "executor": "2 processes, 1 thread each",
        "layer_snr": {"layers": layers, "timesteps": timesteps, "db": snr.round(2).tolist()},
        "images": make_pictures(noise),
        "n": 64,
        "seed": 0,
        "seeds": list(range(1000, 1064)),
        "steps": STEPS,
        "guidance": 1.5,
        "device": "cpu",
        "threads": 2,
        "versions": {"dither": "0.1.0", "torch": "2.13.0", "diffusers": "0.42.1", "python": "3.11.7"},
        "command": f"dither eval {recipe}-w{bits}a8 --against zoo:fashion -n 64 --seed 0 --json eval.json",
        "seconds": {"full_precision": 41.2, "quantized": 33.9},
    }


def make_speed(bits: int, simulated: bool) -> dict[str, Any]:
    reason = "36 of 36 quantized layers run simulated" if simulated else None
    ratio = None if simulated else 1.1 + 1 / bits
    ci95 = None if ratio is None else [ratio - 0.06, ratio + 0.05]
    return {"ratio": ratio, "ci95": ci95, "rounds": 9, "batch_size": 16, "reason": reason}


def make_comparison(results: list[dict[str, Any]]) -> dict[str, Any]:
    """What `dither compare` writes: pairs told apart by their PSNR, and the ranks that this allows."""
    pairs, ranks = [], {"psnr_db": [[1, len(results)] for _ in results], "fd": [[1, len(results)] for _ in results]}
    for metric, path, up in (("psnr_db", "mean", 1), ("fd", "to_full_precision", -1)):
        for a in range(len(results)):
            for b in range(a + 1, len(results)):
                x, y = results[a][metric], results[b][metric]
                half = 0.6 * sum((v["ci95"][1] - v["ci95"][0]) / 2 for v in (x, y))
                difference = x[path] - y[path]
                apart = abs(difference) > half
                pairs.append({"metric": metric, "a": a, "b": b, "difference": difference,
                              "ci95": [difference - half, difference + half], "distinguishable": apart})  # fmt: skip
                if apart:
                    better, worse = (a, b) if up * difference > 0 else (b, a)
                    ranks[metric][better][1] -= 1
                    ranks[metric][worse][0] += 1
    return {"schema": 2, "kind": "compare", "model": "zoo:fashion", "results": results, "ranks": ranks, "pairs": pairs,
            "command": "dither compare A B --against zoo:fashion"}  # fmt: skip


@pytest.fixture
def result() -> dict[str, Any]:
    return make_result()


@pytest.fixture
def other_result() -> dict[str, Any]:
    return make_result(bits=4, noise=14.0, simulated=True)


@pytest.fixture
def mixed_result() -> dict[str, Any]:
    """Widths that change over time, and notes of balancing and sensitivity."""
    return varied.vary(make_result(recipe="vidit-q-mp"))


@pytest.fixture
def comparison() -> dict[str, Any]:
    """Six results, two of them too close to be told apart."""
    listed = [
        (8, 2.1, "rtn"),
        (6, 4.4, "rtn"),
        (4, 13.0, "rtn"),
        (4, 10.4, "smoothquant"),
        (4, 9.9, "dither"),
        (3, 30.0, "rtn"),
    ]
    return make_comparison([make_result(bits, noise, recipe, recipe == "dither") for bits, noise, recipe in listed])
