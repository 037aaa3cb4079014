"""What ``benchmarks.xl`` runs in fresh processes: write a random model, quantize one by the API, load a packed one.

The answer to one fixed call, as a digest of its bits, says whether a loaded model is the one that was quantized.
"""

import argparse
import hashlib
import json
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel
from torch import Tensor

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
PIXART: dict[str, Any] = {
    **{name: CONFIG[name] for name in ("num_attention_heads", "attention_head_dim", "in_channels", "out_channels")},
    **{name: CONFIG[name] for name in ("num_layers", "sample_size", "patch_size")},
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
}
"""PixArt-Sigma's, for pictures of 256 pixels."""
WIDTH = 1152
STD = 0.02
WORDS = 300
LEVELS = (950, 650, 350, 50)
"""Timesteps of the calls that quantization sees."""


CLASSES: dict[str, tuple[Any, dict[str, Any]]] = {
    "diffusers": (DiTTransformer2DModel, CONFIG),
    "copies": (DiTTransformer2DModel, CONFIG),
    "half": (DiTTransformer2DModel, CONFIG),
    "pixart": (PixArtTransformer2DModel, PIXART),
}
"""Layouts that diffusers writes -> class and config."""


def make(layout: str, target: Path, blocks: int) -> dict[str, Any]:
    """Writes random weights; no layer is zero, as adaLN-Zero's start would be. Returns the parameter count.

    In ``copies`` and ``half`` all blocks have copies of one embedder, as converted checkpoints have; ``half`` is float16.
    """
    torch.manual_seed(0)
    if layout in CLASSES:
        kind, config = CLASSES[layout]
        model = kind(**{**config, "num_layers": blocks})
        if layout in ("copies", "half"):
            first = model.transformer_blocks[0].norm1.emb.state_dict()
            for block in model.transformer_blocks:
                block.norm1.emb.load_state_dict(first)
        if layout == "half":
            model = model.half()
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


def quantize(layout: str, source: Path, packed: Path, recipe: str, bits: str) -> dict[str, Any]:
    """Through the public API, with random latents, labels or texts, and timesteps for calibration."""
    import dither
    from dither.inspection import size_on_disk
    from dither.weightfile import weight_files_in

    started, files = time.perf_counter(), weight_files_in(source)
    model = CLASSES[layout][0].from_pretrained(source)
    dither.quantize(model, recipe, bits, run=lambda: [answer(model, level) for level in LEVELS])
    dither.save(model, packed)
    seconds, peak = time.perf_counter() - started, peak_memory()
    digest = bits_of(answer(model, 500))
    size = size_on_disk(model, weight_files_in(packed), sum(file.stat().st_size for file in files))
    return {"seconds": seconds, "peak_bytes": peak, "size": size, "digest": digest}


def answer(model: Any, level: int) -> Tensor:
    """What the model says to a pair of random latents (2, C, H, W) at this timestep."""
    make = torch.Generator().manual_seed(level)
    config = model.config
    x = torch.randn(2, config.in_channels, config.sample_size, config.sample_size, generator=make).to(model.dtype)
    given: dict[str, Any] = {"timestep": torch.tensor([level, level]), "return_dict": False}
    if isinstance(model, PixArtTransformer2DModel):
        given["encoder_hidden_states"] = torch.randn(2, WORDS, config.caption_channels, generator=make)
        given["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
    else:
        given["class_labels"] = torch.tensor([1, config.num_embeds_ada_norm])
    with torch.no_grad():
        out: Tensor = model(x, **given)[0]
    return out


def bits_of(x: Tensor) -> str:
    """A digest of every bit."""
    return hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()


def rotated(model: torch.nn.Module) -> dict[str, Any]:
    """Quantized layers by the width of their rotation; medians of what was noted about their inputs."""
    from dither.checkpoint import header_of
    from dither.spec import LinearSpec

    header = header_of(model)
    specs = [spec for spec in header.plan.layers.values() if isinstance(spec, LinearSpec)]
    blocks = Counter("none" if spec.rotation is None else str(spec.rotation.block) for spec in specs)
    notes = list(header.recipe.get("notes", {}).values())
    found: dict[str, Any] = {"layers_by_rotation_block": dict(sorted(blocks.items()))}
    for key in ("incoherence", "incoherence_rotated"):
        if worst := [max(note[key]) for note in notes if key in note]:
            found[key] = {"median": round(median(worst), 2), "largest": round(max(worst), 2), "layers": len(worst)}
    return found


def load(folder: Path) -> dict[str, Any]:
    """Loads a packed checkpoint and makes one guided call of it. Returns seconds, and peaks of resident memory."""
    import dither

    started, before = time.perf_counter(), peak_memory()
    loaded: Any = dither.load(folder)
    seconds, after = time.perf_counter() - started, peak_memory()
    model = loaded if isinstance(loaded, torch.nn.Module) else loaded.transformer
    out = answer(model, 500)
    return {
        "seconds": seconds,
        "peak_before_bytes": before,
        "peak_bytes": after,
        "peak_with_one_call_bytes": peak_memory(),
        "finite": bool(torch.isfinite(out).all()),
        "digest": bits_of(out),
        "rotations": rotated(model),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=["make", "quantize", "load"])
    parser.add_argument("path", type=Path)
    parser.add_argument("--layout", choices=[*CLASSES, "facebook"], default="diffusers")
    parser.add_argument("--blocks", type=int, default=CONFIG["num_layers"])
    parser.add_argument("-o", "--output", type=Path, help="where quantize writes")
    parser.add_argument("--recipe", default="vidit-q")
    parser.add_argument("--bits", default="w4a8")
    given = parser.parse_args()
    if given.step == "make":
        result = make(given.layout, given.path, given.blocks)
    elif given.step == "quantize":
        result = quantize(given.layout, given.path, given.output, given.recipe, given.bits)
    else:
        result = load(given.path)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
