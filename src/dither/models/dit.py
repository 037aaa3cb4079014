"""DiT with adaLN-Zero (Peebles & Xie, arXiv 2212.09748) as diffusers' ``DiTTransformer2DModel``.

Rows of ``norm1.linear``, each of width D, in diffusers' order:

    shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp

So the inputs of q, k, v and of the first feed-forward linear fold into it, and the input of the attention output
projection is linear in the rows of V (softmax weights sum over tokens, never over channels). GELU stands before the
second feed-forward linear, and SiLU before the modulation linear: nothing folds there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dither.errors import BadValue
from dither.models.base import AdaLN, Call, Layer, Rows, Site, linear_at
from dither.models.calls import argument, latents_in, level_in, replace_first, steps_at, to_batch
from dither.models.linears import Rule, layer_by_rule, linears_of, need, stack_of

__all__ = ["DiT", "LabelInputs", "LabelModulation"]

TRAINING_STEPS = 1000
BLOCK = r"transformer_blocks\.\d+"
EMBEDDER = "timestep embedder: small, and every block depends on it"
FINAL = "final layer: small, and its error goes straight into the output"

RULES: tuple[Rule, ...] = (
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
        return [layer_by_rule(name, RULES, BLOCK) for name in linears_of(model)]

    def blocks(self, model: nn.Module) -> Sequence[str]:
        """``transformer_blocks.0`` and on."""
        return stack_of(model, "transformer_blocks")

    def sites(self, model: nn.Module) -> Sequence[Site]:
        """Five sites a block: adaLN's input, and the inputs of q/k/v, the attention output, fc1 and fc2."""
        linears = linears_of(model)
        found = [site for block in self.blocks(model) for site in _block_sites(block, linears)]
        need(linears, [name for site in found for name in site.readers], "DiT")
        return found

    def noise_level(self, model: nn.Module, call: Call) -> Tensor:
        """``timestep / 1000``, (B,)."""
        return level_in(model, call, 1, TRAINING_STEPS)

    def branch(self, model: nn.Module, call: Call) -> Tensor:
        """1 where the label is the null class, which is the number of classes; (B,)."""
        labels = argument(call, "class_labels", 2)
        if labels is None:
            raise BadValue(f"A call of {type(model).__name__} came without class labels.")
        null = int(cast(Any, model).config.num_embeds_ada_norm)
        return (to_batch(labels, len(latents_in(model, call))) == null).long()

    def carry(self, call: Call, output: Any) -> Call:
        """A block returns the hidden states alone; all else stays the same."""
        return replace_first(call, "hidden_states", output)


@dataclass(frozen=True)
class LabelModulation:
    """Rows of a block's modulation linear, whose input is ``silu(emb(timestep, label))`` of the block's own embedder.

    Args:
        block: name of the block.
        fold: the rows.
    """

    block: str
    fold: AdaLN

    def __call__(self, model: nn.Module, levels: Tensor) -> tuple[Tensor, Tensor]:
        """(L * classes, D) each: every class, then the null class, at each noise level (L,)."""
        inputs = _embedded(model, self.block, levels)
        linear = linear_at(model, self.fold.linear)
        weight, bias = linear.weight, linear.bias  # decoded anew at each access, if it is quantized

        def rows(of: tuple[int, int]) -> Tensor:
            return F.linear(inputs, weight[of[0] : of[1]], None if bias is None else bias[of[0] : of[1]]).float()

        return rows(self.fold.scale), rows(self.fold.shift)


@dataclass(frozen=True)
class LabelInputs:
    """What a block's modulation linear reads.

    Args:
        block: name of the block.
    """

    block: str

    def __call__(self, model: nn.Module, levels: Tensor) -> tuple[Tensor, Tensor]:
        """(L * classes, D), (L * classes,)."""
        rows = _embedded(model, self.block, levels).float()
        null = torch.zeros(len(levels), len(rows) // len(levels), dtype=torch.bool, device=rows.device)
        null[:, -1] = True
        return rows, null.reshape(-1)


def _embedded(model: nn.Module, block: str, levels: Tensor) -> Tensor:
    """``silu(emb(timestep, label))`` of a block, (L * classes, D): every class, then the null class, at each level (L,).

    Where a table stands in the embedder's place a level counts as the nearest whole timestep.
    """
    norm = cast(Any, model.get_submodule(f"{block}.norm1"))
    table = norm.emb.class_embedder.embedding_table.weight  # (classes, D)
    labels = torch.arange(len(table), device=table.device).repeat(len(levels))
    steps = steps_at(levels, TRAINING_STEPS, norm.emb.timestep_embedder).to(table.device).repeat_interleave(len(table))
    return cast(Tensor, norm.silu(norm.emb(steps, labels, hidden_dtype=table.dtype)))


def _block_sites(block: str, linears: dict[str, nn.Linear]) -> list[Site]:
    modulation, value = f"{block}.norm1.linear", f"{block}.attn1.to_v"
    need(linears, (modulation, value), "DiT")
    width, heads = linears[modulation].out_features // 6, linears[value].out_features  # D, and D again

    def rows(chunk: int) -> tuple[int, int]:
        return chunk * width, (chunk + 1) * width

    def modulated(name: str, readers: tuple[str, ...], first: int) -> Site:
        fold = AdaLN(modulation, rows(first), rows(first + 1))
        return Site(name, readers, fold, LabelModulation(block, fold))

    return [
        Site(f"{block}.norm1.silu", (modulation,), inputs=LabelInputs(block)),
        modulated(f"{block}.norm1", tuple(f"{block}.attn1.to_{x}" for x in "qkv"), 0),
        Site(f"{block}.attn1.heads", (f"{block}.attn1.to_out.0",), Rows(value, (0, heads))),
        modulated(f"{block}.norm3", (f"{block}.ff.net.0.proj",), 3),
        Site(f"{block}.ff.activation", (f"{block}.ff.net.2",)),
    ]
