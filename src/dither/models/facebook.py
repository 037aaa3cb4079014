"""Original DiT checkpoints (github.com/facebookresearch/DiT, arXiv 2212.09748) as diffusers' ``DiTTransformer2DModel``.

    x_embedder.proj, pos_embed               pos_embed.proj, and a table that diffusers computes itself
    t_embedder.mlp.{0,2}, y_embedder         copied into every block: ``norm1.emb`` (diffusers has one embedder a block)
    blocks.N.adaLN_modulation.1              norm1.linear: shift, scale, gate of attention, then of the MLP, in both
    blocks.N.attn.qkv (3D, D)                attn1.to_q, to_k, to_v
    blocks.N.attn.proj, mlp.fc1, mlp.fc2     attn1.to_out.0, ff.net.0.proj, ff.net.2 (tanh GELU)
    final_layer.{adaLN_modulation.1,linear}  proj_out_1 (shift, scale in both), proj_out_2 (p, p, channel in both)

Both patchify alike. One thing differs and is diffusers' own convention, the same in its published conversions: the
frequencies of the timestep embedding are 10000^(-i/127), where the original trained with 10000^(-i/128). No config field
carries it, so a model that kept the original frequencies would lose them when it is saved: it follows diffusers instead.

safetensors refuses tensors that share memory, so the embedder is copied into every block: 75 M more parameters for DiT-XL.
The other float32 tensors are not copied: they are views of the file, mapped into memory.
"""

import argparse
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import load_file
from torch import Tensor, nn

from dither.errors import BadModel

__all__ = ["Sizes", "is_facebook", "read_facebook"]

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Width of DiT-S, B, L and XL -> heads, which no shape tells."""

PATCHES = (2, 4, 8)
WRAPPERS = ("ema", "model", "state_dict")
MARKS = ("x_embedder.proj.weight", "pos_embed", "t_embedder.mlp.0.weight", "final_layer.linear.weight")
POSITION_TOLERANCE = 1e-3

OUTSIDE_BLOCKS = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
IN_BLOCKS = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
SHARED = {
    "t_embedder.mlp.0": "norm1.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "norm1.emb.timestep_embedder.linear_2",
}
TABLE = "y_embedder.embedding_table.weight"
TABLE_HERE = "norm1.emb.class_embedder.embedding_table.weight"


@dataclass(frozen=True)
class Sizes:
    """What the shapes of a checkpoint say.

    Args:
        width: D.
        depth: number of blocks.
        patch: edge of a patch.
        channels: of the input.
        out_channels: the same, or twice as many with a learned variance.
        input_size: edge of the input.
        classes: without the null class.
    """

    width: int
    depth: int
    patch: int
    channels: int
    out_channels: int
    input_size: int
    classes: int

    def config(self) -> dict[str, Any]:
        """Arguments of ``DiTTransformer2DModel``."""
        return {
            "num_attention_heads": HEADS[self.width],
            "attention_head_dim": self.width // HEADS[self.width],
            "in_channels": self.channels,
            "out_channels": self.out_channels,
            "num_layers": self.depth,
            "sample_size": self.input_size,
            "patch_size": self.patch,
            "num_embeds_ada_norm": self.classes,
            "norm_eps": 1e-6,
        }


def is_facebook(weights: Mapping[str, Any]) -> bool:
    """Whether these are the tensors of an original DiT."""
    return all(mark in weights for mark in MARKS)


def read_facebook(path: str | Path, dtype: torch.dtype = torch.float32) -> DiTTransformer2DModel:
    """Converts an original checkpoint; the file must stay where it is while the model lives.

    Args:
        path: ``.pt`` (bare, or a training state with "ema" and "model": the former is taken) or ``.safetensors``.
        dtype: of the model.

    Raises:
        BadModel: the file cannot be read as weights only, or its tensors are not those of a DiT-S, B, L or XL with
            patch 2, 4 or 8; the sentence names the tensor.
    """
    path = Path(path)
    source = _read(path)
    sizes = _sizes(path, source)
    _check_names(path, source, sizes)
    _check_shapes(path, source, sizes)
    with torch.device("meta"):
        model = _build(sizes.config())
    _set_positions(path, model, sizes, source["pos_embed"])
    for there, here in OUTSIDE_BLOCKS.items():
        _move(model, here, source, there, dtype)
    for index in range(sizes.depth):
        _fill_block(model.transformer_blocks[index], f"blocks.{index}", source, dtype)
    model.eval()
    return cast(DiTTransformer2DModel, model)


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, mapped into memory; the moving average where there is one."""
    try:
        raw: Any = load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except pickle.UnpicklingError as error:
        raise BadModel(
            f"{path} is refused: it is damaged or holds more than weights, and no code of a checkpoint is ever run."
        ) from error
    except Exception as error:  # garbage makes the unpickler fail in many ways
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise BadModel(f"{path} cannot be read as a checkpoint: {lines[0]}") from error
    for key in WRAPPERS:
        if isinstance(raw, Mapping) and isinstance(raw.get(key), Mapping):
            raw = raw[key]
            break
    if not isinstance(raw, Mapping) or not is_facebook(raw):
        raise BadModel(f"{path} does not hold an original DiT checkpoint: it has no {', '.join(MARKS[:3])}.")
    return {name: value for name, value in raw.items() if isinstance(value, Tensor)}


def _unpickle(path: Path) -> Any:
    """Plain data and tensors only; training states also hold their command line, a harmless namespace."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _sizes(path: Path, source: Mapping[str, Tensor]) -> Sizes:
    def fail(reason: str) -> BadModel:
        return BadModel(f"{path} is not a DiT-S, B, L or XL with patch 2, 4 or 8: {reason}.")

    projection, positions = source["x_embedder.proj.weight"], source["pos_embed"]
    if projection.ndim != 4 or projection.shape[2] != projection.shape[3] or projection.shape[2] not in PATCHES:
        raise fail(f"x_embedder.proj.weight has shape {tuple(projection.shape)}")
    width, channels, patch = projection.shape[:3]
    if width not in HEADS:
        raise fail(f"x_embedder.proj.weight has width {width}, and the widths are {', '.join(map(str, HEADS))}")
    grid = math.isqrt(positions.shape[-2]) if positions.ndim == 3 else 0
    if positions.shape != (1, grid * grid, width):
        raise fail(f"pos_embed has shape {tuple(positions.shape)}, not (1, a square, {width})")
    out_channels, left = divmod(source["final_layer.linear.weight"].shape[0], patch * patch)
    if left or out_channels not in (channels, 2 * channels):
        raise fail(f"final_layer.linear.weight has {source['final_layer.linear.weight'].shape[0]} rows")
    numbers = {int(m.group(1)) for name in source if (m := re.match(r"blocks\.(\d+)\.", name))}
    if not numbers or numbers != set(range(len(numbers))):
        raise fail(f"its blocks are numbered {sorted(numbers)}")
    if TABLE not in source or source[TABLE].ndim != 2:
        raise fail(f"{TABLE} is missing or no table")
    classes = source[TABLE].shape[0] - 1
    return Sizes(width, len(numbers), patch, channels, out_channels, grid * patch, classes)


def _expected(s: Sizes) -> dict[str, tuple[int, ...]]:
    """Every tensor of the original, and its shape."""
    d = s.width
    linears = {
        "t_embedder.mlp.0": (d, 256),
        "t_embedder.mlp.2": (d, d),
        "final_layer.adaLN_modulation.1": (2 * d, d),
        "final_layer.linear": (s.patch * s.patch * s.out_channels, d),
    }
    for n in range(s.depth):
        linears[f"blocks.{n}.adaLN_modulation.1"] = (6 * d, d)
        linears[f"blocks.{n}.attn.qkv"] = (3 * d, d)
        linears[f"blocks.{n}.attn.proj"] = (d, d)
        linears[f"blocks.{n}.mlp.fc1"] = (4 * d, d)
        linears[f"blocks.{n}.mlp.fc2"] = (d, 4 * d)
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, (s.input_size // s.patch) ** 2, d),
        "x_embedder.proj.weight": (d, s.channels, s.patch, s.patch),
        "x_embedder.proj.bias": (d,),
        TABLE: (s.classes + 1, d),
    }
    for name, shape in linears.items():
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]
    return shapes


def _check_names(path: Path, source: Mapping[str, Tensor], sizes: Sizes) -> None:
    expected = _expected(sizes).keys()
    missing, unknown = sorted(expected - source.keys()), sorted(source.keys() - expected)
    if missing:
        raise BadModel(f"{path} lacks the tensor {missing[0]!r} ({len(missing)} missing of {len(expected)}).")
    if unknown:
        raise BadModel(f"{path} has a tensor {unknown[0]!r} that an original DiT does not have.")


def _check_shapes(path: Path, source: Mapping[str, Tensor], sizes: Sizes) -> None:
    for name, shape in _expected(sizes).items():
        if tuple(source[name].shape) != shape:
            raise BadModel(f"{path}: the tensor {name!r} has shape {tuple(source[name].shape)}, not {shape}.")


def _build(config: dict[str, Any]) -> Any:
    """diffusers' class is untyped."""
    return DiTTransformer2DModel(**config)  # type: ignore[no-untyped-call]


def _set_positions(path: Path, model: Any, sizes: Sizes, stored: Tensor) -> None:
    """Gives the model the table that diffusers computes, after checking that it is the stored one."""
    blockless = _build({**sizes.config(), "num_layers": 0})  # not on meta: its table has values
    table = blockless.pos_embed.pos_embed  # (1, T, D)
    if not torch.allclose(table, stored.float(), atol=POSITION_TOLERANCE, rtol=0):
        raise BadModel(f"{path}: 'pos_embed' is not the sine-cosine table, and diffusers computes only that one.")
    model.pos_embed.pos_embed = table


def _fill_block(block: nn.Module, prefix: str, source: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    for there, here in IN_BLOCKS.items():
        _move(block, here, source, f"{prefix}.{there}", dtype)
    weights = source[f"{prefix}.attn.qkv.weight"].chunk(3)  # 3 x (D, D)
    biases = source[f"{prefix}.attn.qkv.bias"].chunk(3)
    for letter, weight, bias in zip("qkv", weights, biases, strict=True):
        _set(block, f"attn1.to_{letter}.weight", weight.to(dtype))
        _set(block, f"attn1.to_{letter}.bias", bias.to(dtype))
    for there, here in SHARED.items():
        _set(block, f"{here}.weight", source[f"{there}.weight"].to(dtype, copy=True))
        _set(block, f"{here}.bias", source[f"{there}.bias"].to(dtype, copy=True))
    _set(block, TABLE_HERE, source[TABLE].to(dtype, copy=True))


def _move(module: nn.Module, here: str, source: Mapping[str, Tensor], there: str, dtype: torch.dtype) -> None:
    for part in ("weight", "bias"):
        _set(module, f"{here}.{part}", source[f"{there}.{part}"].to(dtype))


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, nn.Parameter(value))
