"""DiT with adaLN-Zero (Peebles & Xie, arXiv 2212.09748) as diffusers' ``DiTTransformer2DModel``.

Rows of ``norm1.linear``, each of width D, in diffusers' order:

    shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp

So the inputs of q, k, v and of the first feed-forward linear fold into it, and the input of the attention output
projection is linear in the rows of V (softmax weights sum over tokens, never over channels). GELU stands before the
second feed-forward linear, and SiLU before the modulation linear: nothing folds there.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from dither.errors import BadModel, BadValue
from dither.models.base import AdaLN, Call, Kind, Layer, Rows, Site
from dither.models.calls import argument, replace_first, to_batch
from dither.models.linears import linears_of

__all__ = ["DiT", "LabelConditions"]

TRAINING_STEPS = 1000
BLOCK = r"transformer_blocks\.\d+"
EMBEDDER = "timestep embedder: small, and every block depends on it"
FINAL = "final layer: small, and its error goes straight into the output"
UNKNOWN = "not a part of this model family"

RULES: tuple[tuple[str, Kind, str], ...] = (
    (rf"{BLOCK}\.norm1\.emb\.timestep_embedder\.linear_[12]", "embed", EMBEDDER),
    (rf"{BLOCK}\.norm1\.linear", "adaln", ""),
    (rf"{BLOCK}\.attn1\.to_[qkv]", "qkv", ""),
    (rf"{BLOCK}\.attn1\.to_out\.0", "attn_out", ""),
    (rf"{BLOCK}\.ff\.net\.0\.proj", "fc1", ""),
    (rf"{BLOCK}\.ff\.net\.2", "fc2", ""),
    (r"proj_out_[12]", "final", FINAL),
)


@dataclass(frozen=True)
class DiT:
    """Adapter of ``DiTTransformer2DModel``."""

    family: str = "dit"

    def layers(self, model: nn.Module) -> Sequence[Layer]:
        """Every linear; diffusers registers them in call order."""
        return [_layer(name) for name in linears_of(model)]

    def blocks(self, model: nn.Module) -> Sequence[str]:
        """``transformer_blocks.0`` and on."""
        stack = dict(model.named_children()).get("transformer_blocks")
        if not isinstance(stack, nn.ModuleList):
            raise BadModel(f"{type(model).__name__} has no list of modules named 'transformer_blocks'.")
        return [f"transformer_blocks.{i}" for i in range(len(stack))]

    def sites(self, model: nn.Module) -> Sequence[Site]:
        """Five sites a block: adaLN's input, and the inputs of q/k/v, the attention output, fc1 and fc2."""
        linears = linears_of(model)
        found = [site for block in self.blocks(model) for site in _block_sites(block, linears)]
        for site in found:
            for name in site.readers:
                _linear(linears, name)
        return found

    def noise_level(self, model: nn.Module, call: Call) -> Tensor:
        """``timestep / 1000``, (B,)."""
        timestep = argument(call, "timestep", 1)
        if timestep is None:
            raise BadValue(f"A call of {type(model).__name__} came without a timestep.")
        return to_batch(timestep, _batch(model, call)).div(TRAINING_STEPS).clamp(0, 1)

    def branch(self, model: nn.Module, call: Call) -> Tensor:
        """1 where the label is the null class, which is the number of classes; (B,)."""
        labels = argument(call, "class_labels", 2)
        if labels is None:
            raise BadValue(f"A call of {type(model).__name__} came without class labels.")
        null = int(cast(Any, model).config.num_embeds_ada_norm)
        return (to_batch(labels, _batch(model, call)) == null).long()

    def carry(self, call: Call, output: Any) -> Call:
        """A block returns the hidden states alone; all else stays the same."""
        return replace_first(call, "hidden_states", output)


@dataclass(frozen=True)
class LabelConditions:
    """Inputs of a block's modulation linear: ``silu(emb(timestep, label))`` of the block's own embedder.

    Args:
        block: name of the block.
    """

    block: str

    def __call__(self, model: nn.Module, levels: Tensor) -> Tensor:
        """(L * classes, D): every class, then the null class, at each noise level (L,)."""
        norm = cast(Any, model.get_submodule(f"{self.block}.norm1"))
        table = norm.emb.class_embedder.embedding_table.weight  # (classes, D)
        labels = torch.arange(len(table), device=table.device).repeat(len(levels))
        steps = levels.to(table.device).mul(TRAINING_STEPS).repeat_interleave(len(table))
        inputs: Tensor = norm.silu(norm.emb(steps, labels, hidden_dtype=table.dtype))
        return inputs


def _batch(model: nn.Module, call: Call) -> int:
    state = argument(call, "hidden_states", 0)
    if not isinstance(state, Tensor) or state.ndim != 4:
        raise BadValue(f"A call of {type(model).__name__} came without hidden_states (B, C, H, W).")
    return int(state.shape[0])


def _layer(name: str) -> Layer:
    block = re.match(rf"({BLOCK})\.", name)
    inside = block.group(1) if block else ""
    for pattern, kind, keep in RULES:
        if re.fullmatch(pattern, name):
            return Layer(name, kind, keep, inside)
    return Layer(name, "other", UNKNOWN, inside)


def _block_sites(block: str, linears: dict[str, nn.Linear]) -> list[Site]:
    modulation, value = f"{block}.norm1.linear", f"{block}.attn1.to_v"
    width = _linear(linears, modulation).out_features // 6  # D

    def rows(chunk: int) -> tuple[int, int]:
        return chunk * width, (chunk + 1) * width

    return [
        Site(f"{block}.norm1.silu", (modulation,)),
        Site(
            f"{block}.norm1",
            tuple(f"{block}.attn1.to_{x}" for x in "qkv"),
            AdaLN(modulation, rows(0), rows(1), LabelConditions(block)),
        ),
        Site(
            f"{block}.attn1.heads", (f"{block}.attn1.to_out.0",), Rows(value, (0, _linear(linears, value).out_features))
        ),
        Site(
            f"{block}.norm3",
            (f"{block}.ff.net.0.proj",),
            AdaLN(modulation, rows(3), rows(4), LabelConditions(block)),
        ),
        Site(f"{block}.ff.activation", (f"{block}.ff.net.2",)),
    ]


def _linear(linears: dict[str, nn.Linear], name: str) -> nn.Linear:
    if name not in linears:
        raise BadModel(f"This DiT has no linear {name!r}: was an adapter attached, or were projections fused?")
    return linears[name]
