"""A realistic results file, small, without torch: what `dither eval --json` writes for a quantized zoo model."""

import base64
import io
import math
from typing import Any

import numpy as np
import pytest
from PIL import Image

BLOCKS, STEPS, PICTURES = 6, 25, 12
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


def make_rows(bits: int) -> list[dict[str, Any]]:
    rows = []
    for block in range(BLOCKS):
        for name, shape in LINEARS.items():
            rows.append(
                {
                    "name": f"transformer_blocks.{block}.{name}",
                    "kind": "linear",
                    "shape": list(shape),
                    "weight": f"int{bits} sym per-channel",
                    "act": "int8 sym per-token dynamic",
                    "kernel": "torch_int_mm" if bits == 8 else "reference",
                    "simulated": bits != 8,
                    "bits_per_weight": bits + 0.17,
                    "reason": None,
                }
            )
    kept = {"proj_out_1": "conditions the last layer", "pos_embed.proj": "first layer", "proj_out_2": "last layer"}
    for name, reason in kept.items():
        full = {"weight": None, "act": None, "kernel": "torch", "simulated": False, "bits_per_weight": 32.0}
        rows.append({"name": name, "kind": "linear", "shape": [192, 16], **full, "reason": reason})
    return rows


def make_result(bits: int = 8, noise: float = 6.0) -> dict[str, Any]:
    """Complete results; `noise` in 8-bit levels sets every quality number."""
    rng = np.random.default_rng(bits)
    rows = make_rows(bits)
    psnr = 20 * math.log10(255 / noise) + rng.normal(size=64) * 1.6 - (rng.random(64) > 0.9) * 4
    half = 1.96 * psnr.std() / 8
    timesteps = [float(t) for t in np.linspace(960, 0, STEPS).round()]
    depth = np.arange(BLOCKS * 6)[:, None] % 6
    snr = 46 - 2.4 * noise + 5 * np.sin(depth) - 12 * (depth == 5) * np.linspace(0, 1, STEPS) ** 2
    layers = [row["name"] for row in rows if row["weight"]]
    return {
        "schema": 1,
        "kind": "eval",
        "model": "zoo:fashion",
        "checkpoint": f"fashion-w{bits}a8",
        "bits": f"w{bits}a8",
        "recipe": {
            "name": "smoothquant",
            "paper": "arXiv 2211.10438",
            "bits": f"w{bits}a8",
            "stages": [{"stage": "smooth", "alpha": 0.5}, {"stage": "rtn"}],
        },
        "size": {
            "file_bytes": 1_000_000 * bits // 4,
            "full_precision_bytes": 7_350_000,
            "ratio": 7.35 * 4 / bits,
            "bits_per_weight": bits + 0.17,
            "model_bits_per_weight": bits + 0.9,
        },
        "layers": {"quantized": 36, "total": 39, "simulated": 0 if bits == 8 else 36, "rows": rows},
        "kernels": {"torch_int_mm": 36} if bits == 8 else {"reference": 36},
        "psnr_db": {
            "mean": float(psnr.mean()),
            "ci95": [float(psnr.mean() - half), float(psnr.mean() + half)],
            "pooled": float(psnr.mean() - 1),
            "median": float(np.median(psnr)),
            "worst": float(psnr.min()),
            "identical": 0,
            "per_image": [round(float(value), 3) for value in psnr],
        },
        "ssim": {"mean": 1 - noise / 300, "ci95": [1 - noise / 280, 1 - noise / 330]},
        "fd": {
            "features": "zoo:fashion classifier",
            "n": 64,
            "to_full_precision": 0.004 * noise**2,
            "to_full_precision_se": 0.0006 * noise**2,
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
            "n": 32,
            "batch_sizes": [32, 16],
        },
        "drift": {
            "steps": list(range(STEPS)),
            "timesteps": timesteps,
            "relative": [noise * 0.0008 * (i + 1) ** 1.2 for i in range(STEPS)],
            "cosine": [1 - (noise * 0.0008 * (i + 1)) ** 2 for i in range(STEPS)],
        },
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
        "command": f"dither eval fashion-w{bits}a8 --against zoo:fashion -n 64 --seed 0 --json eval.json",
        "seconds": {"full_precision": 41.2, "quantized": 33.9},
    }


@pytest.fixture
def result() -> dict[str, Any]:
    return make_result()


@pytest.fixture
def other_result() -> dict[str, Any]:
    return make_result(bits=4, noise=14.0)
