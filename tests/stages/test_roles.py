"""Which part of a block a linear belongs to, and which role it plays."""

import pytest
import tiny
from diffusers import PixArtTransformer2DModel

from dither.models import adapter_for
from dither.models.base import Layer
from dither.stages.roles import CONTENT, TEMPORAL, VISUAL, Unit, units_of

B = "transformer_blocks.0"


def test_a_dit_has_three_units_a_block():
    model = tiny.dit()
    units = units_of(x for x in adapter_for(model).layers(model) if not x.keep)
    assert [(u.name, u.role, len(u.layers)) for u in units if u.name.startswith(B)] == [
        (f"{B}.adaln", CONTENT, 1),
        (f"{B}.self", VISUAL, 4),
        (f"{B}.ffn", VISUAL, 2),
    ]
    assert len(units) == 6


def test_the_outputs_of_self_and_cross_attention_are_told_apart():
    model = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=1, sample_size=8, cross_attention_dim=16,
        caption_channels=16,
    )  # fmt: skip
    units = {u.name: u for u in units_of(x for x in adapter_for(model).layers(model) if not x.keep)}
    assert set(units[f"{B}.cross"].layers) == {f"{B}.attn2.to_{x}" for x in ("q", "k", "v", "out.0")}
    assert set(units[f"{B}.self"].layers) == {f"{B}.attn1.to_{x}" for x in ("q", "k", "v", "out.0")}
    assert units[f"{B}.cross"].role == CONTENT


@pytest.mark.parametrize(
    ("layer", "unit", "role"),
    [
        (Layer("temporal_transformer_blocks.0.attn1.to_q", "qkv", "", "temporal_transformer_blocks.0"), "temporal", TEMPORAL),
        (Layer("blocks.3.attn_temp.qkv", "qkv", "", "blocks.3"), "temporal", TEMPORAL),
        (Layer("temporal_transformer_blocks.0.ff.net.2", "fc2", "", "temporal_transformer_blocks.0"), "ffn", VISUAL),
        (Layer("blocks.3.template.to_q", "qkv", "", "blocks.3"), "self", VISUAL),
        (Layer("blocks.3.gate", "other", "", "blocks.3"), "ffn", VISUAL),
    ],
)  # fmt: skip
def test_roles_by_kind_and_name(layer, unit, role):
    assert units_of([layer]) == (Unit(f"{layer.block}.{unit}", role, (layer.name,)),)


def test_by_layer_and_outside_blocks_each_is_alone():
    inside = [Layer("b.0.q", "qkv", "", "b.0"), Layer("b.0.k", "qkv", "", "b.0")]
    assert [u.name for u in units_of(inside, by_layer=True)] == ["b.0.q", "b.0.k"]
    outside = [Layer("q", "qkv"), Layer("k", "qkv")]
    assert [u.name for u in units_of(outside)] == ["q", "k"]
