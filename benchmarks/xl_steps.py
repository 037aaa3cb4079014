"""What ``benchmarks.xl`` runs in fresh processes: write a random DiT-XL/2, or load a packed one and call it once."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel

from benchmarks.common import peak_memory

CONFIG: dict[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "sample_size": 32,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
    "norm_eps": 1e-6,
}
WIDTH = 1152
STD = 0.02


def make(layout: str, target: Path, blocks: int) -> dict[str, Any]:
    """Writes random float32 weights; no layer is zero, as adaLN-Zero's start would be. Returns the parameter count."""
    torch.manual_seed(0)
    if layout == "diffusers":
        model = DiTTransformer2DModel(**{**CONFIG, "num_layers": blocks})
        model.save_pretrained(target)
        return {"parameters": sum(p.numel() for p in model.parameters())}
    tensors = _facebook(blocks)
    torch.save(tensors, target)
    return {"parameters": sum(t.numel() for name, t in tensors.items() if name != "pos_embed")}


def _facebook(blocks: int) -> dict[str, torch.Tensor]:
    """The tensors of ``DiT-XL-2-256x256.pt`` by name."""
    d, patch = WIDTH, CONFIG["patch_size"]
    linears = {"t_embedder.mlp.0": (d, 256), "t_embedder.mlp.2": (d, d), "final_layer.adaLN_modulation.1": (2 * d, d)}
    linears["final_layer.linear"] = (patch * patch * CONFIG["out_channels"], d)
    for i in range(blocks):
        head = f"blocks.{i}."
        linears |= {head + "adaLN_modulation.1": (6 * d, d), head + "attn.qkv": (3 * d, d), head + "attn.proj": (d, d)}
        linears |= {head + "mlp.fc1": (4 * d, d), head + "mlp.fc2": (d, 4 * d)}
    blockless = DiTTransformer2DModel(**{**CONFIG, "num_layers": 0})
    tensors = {
        "pos_embed": blockless.pos_embed.pos_embed.clone(),
        "x_embedder.proj.weight": STD * torch.randn(d, CONFIG["in_channels"], patch, patch),
        "x_embedder.proj.bias": STD * torch.randn(d),
        "y_embedder.embedding_table.weight": STD * torch.randn(CONFIG["num_embeds_ada_norm"] + 1, d),
    }
    for name, shape in linears.items():
        tensors |= {f"{name}.weight": STD * torch.randn(shape), f"{name}.bias": STD * torch.randn(shape[0])}
    return tensors


def load(folder: Path) -> dict[str, Any]:
    """Loads a packed checkpoint and makes one guided call of it. Returns seconds, and peaks of resident memory."""
    import dither

    started, before = time.perf_counter(), peak_memory()
    loaded: Any = dither.load(folder)
    seconds, after = time.perf_counter() - started, peak_memory()
    model = loaded if isinstance(loaded, torch.nn.Module) else loaded.transformer
    torch.manual_seed(0)
    x = torch.randn(2, CONFIG["in_channels"], CONFIG["sample_size"], CONFIG["sample_size"])
    with torch.no_grad():
        out = model(x, timestep=torch.tensor([500, 500]), class_labels=torch.tensor([1, 1000]), return_dict=False)[0]
    return {
        "seconds": seconds,
        "peak_before_bytes": before,
        "peak_bytes": after,
        "peak_with_one_call_bytes": peak_memory(),
        "finite": bool(torch.isfinite(out).all()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=["make", "load"])
    parser.add_argument("path", type=Path)
    parser.add_argument("--layout", choices=["diffusers", "facebook"], default="diffusers")
    parser.add_argument("--blocks", type=int, default=CONFIG["num_layers"])
    given = parser.parse_args()
    result = make(given.layout, given.path, given.blocks) if given.step == "make" else load(given.path)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
