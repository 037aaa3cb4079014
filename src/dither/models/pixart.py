"""PixArt-alpha (arXiv 2310.00426) and PixArt-Sigma (2403.04692) as diffusers' ``PixArtTransformer2DModel``.

One linear modulates all blocks; each block adds a table of its own (adaLN-single):

    shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = table + adaln_single(t)      6 x (B, D)

    h += gate_msa attn1(LN(h) (1 + scale_msa) + shift_msa)      h += attn2(h, text)
    h += gate_mlp ff(LN(h) (1 + scale_mlp) + shift_mlp)

A block's channel scale c would have to multiply adaln_single's part, which the other blocks read too: nothing folds there.
The modulation follows from t alone, so that these sites are known without a prompt; only where PixArt-alpha also embeds
resolution and aspect ratio more than t decides. Cross-attention reads the stream as it is. Every block's k and v read the
same text tokens; a scale of theirs would fold into the caption projection only if it were one for all blocks, so each block
has an online one. Outputs of both attentions are linear in the rows of V.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from dither.models.base import Call, Layer, Rows, Site
from dither.models.calls import latents_in, level_in, replace_first, steps_at
from dither.models.linears import Rule, layer_by_rule, linears_of, need, stack_of

__all__ = ["PixArt", "TableModulation"]

TRAINING_STEPS = 1000
BLOCK = r"transformer_blocks\.\d+"
EMBEDDER = "time and size embedder: small, and every block depends on it"
MODULATION = "modulation of all blocks: one row a sample, and its error reaches every block"
CAPTION = "caption projection: small, and every block's cross-attention reads it"
FINAL = "final layer: small, and its error goes straight into the output"

RULES: tuple[Rule, ...] = (
    (rf"{BLOCK}\.attn1\.to_[qkv]", "qkv", ""),
    (rf"{BLOCK}\.attn2\.to_q", "cross_q", ""),
    (rf"{BLOCK}\.attn2\.to_[kv]", "cross_kv", ""),
    (rf"{BLOCK}\.attn[12]\.to_out\.0", "attn_out", ""),
    (rf"{BLOCK}\.ff\.net\.0\.proj", "fc1", ""),
    (rf"{BLOCK}\.ff\.net\.2", "fc2", ""),
    (r"adaln_single\.emb\.\w+_embedder\.linear_[12]", "embed", EMBEDDER),
    (r"adaln_single\.linear", "adaln", MODULATION),
    (r"caption_projection\.linear_[12]", "embed", CAPTION),
    (r"proj_out", "final", FINAL),
)


@dataclass(frozen=True)
class PixArt:
    """Adapter of ``PixArtTransformer2DModel``."""

    family: str = "pixart"

    def layers(self, model: nn.Module) -> Sequence[Layer]:
        """Every linear in order of registration: the blocks, then what surrounds them."""
        return [layer_by_rule(name, RULES, BLOCK) for name in linears_of(model)]

    def blocks(self, model: nn.Module) -> Sequence[str]:
        """``transformer_blocks.0`` and on."""
        return stack_of(model, "transformer_blocks")

    def sites(self, model: nn.Module) -> Sequence[Site]:
        """Seven sites a block, in call order."""
        linears = linears_of(model)
        found = [site for block in self.blocks(model) for site in _block_sites(block, linears, _by_time_alone(model))]
        need(linears, [name for site in found for name in site.readers], "PixArt")
        return found

    def noise_level(self, model: nn.Module, call: Call) -> Tensor:
        """``timestep / 1000``, (B,)."""
        return level_in(model, call, 2, TRAINING_STEPS)

    def branch(self, model: nn.Module, call: Call) -> Tensor:
        """Zeros (B,): an unconditional row differs by its prompt alone, and a negative prompt may be any."""
        return torch.zeros(len(latents_in(model, call)), dtype=torch.int64)

    def carry(self, call: Call, output: Any) -> Call:
        """A block returns the hidden states alone; all else stays the same."""
        return replace_first(call, "hidden_states", output)


@dataclass(frozen=True)
class TableModulation:
    """``table + adaln_single(t)``: two of the six rows.

    Args:
        block: name of the block.
        shift: row of the shift; the scale's is the next one.
    """

    block: str
    shift: int

    def __call__(self, model: nn.Module, levels: Tensor) -> tuple[Tensor, Tensor]:
        """(L, D) each, at these noise levels (L,)."""
        table: Tensor = cast(Any, model.get_submodule(self.block)).scale_shift_table  # (6, D)
        embedder = cast(Any, model).adaln_single.emb.timestep_embedder
        steps = steps_at(levels, TRAINING_STEPS, embedder).to(table.device)
        made = cast(Any, model).adaln_single(steps, batch_size=len(levels), hidden_dtype=table.dtype)[0]  # (L, 6 D)
        rows = (table + made.reshape(len(levels), *table.shape)).float()  # (L, 6, D)
        return rows[:, self.shift + 1], rows[:, self.shift]


def _by_time_alone(model: nn.Module) -> bool:
    """Whether the modulation follows from the time alone, and stands on a plain LayerNorm."""
    checked = cast(Any, model)
    return not (checked.adaln_single.emb.use_additional_conditions or checked.config.norm_elementwise_affine)


def _block_sites(block: str, linears: dict[str, nn.Linear], known: bool) -> list[Site]:
    def modulated(name: str, readers: tuple[str, ...], shift: int) -> Site:
        return Site(f"{block}.{name}", readers, None, TableModulation(block, shift) if known else None)

    def heads(attention: str) -> Site:
        value = f"{block}.{attention}.to_v"
        need(linears, (value,), "PixArt")
        fold = Rows(value, (0, linears[value].out_features))
        return Site(f"{block}.{attention}.heads", (f"{block}.{attention}.to_out.0",), fold)

    return [
        modulated("norm1", tuple(f"{block}.attn1.to_{x}" for x in "qkv"), 0),
        heads("attn1"),
        Site(f"{block}.stream", (f"{block}.attn2.to_q",)),
        Site(f"{block}.text", (f"{block}.attn2.to_k", f"{block}.attn2.to_v")),
        heads("attn2"),
        modulated("norm2", (f"{block}.ff.net.0.proj",), 3),
        Site(f"{block}.ff.activation", (f"{block}.ff.net.2",)),
    ]
