"""Timestep embedders that whole timesteps alone decide."""

import pytest
import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel, SD3Transformer2DModel
from diffusers.models.embeddings import get_timestep_embedding
from torch import nn

from dither.models import adapter_for
from dither.models.embedders import embedders_of, embedding_at
from dither.spec import Bits
from dither.stages import Job, Precompute

SIZES = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3, "sample_size": 8, "patch_size": 2}


def dit() -> DiTTransformer2DModel:
    torch.manual_seed(0)
    return DiTTransformer2DModel(**SIZES, in_channels=4, num_embeds_ada_norm=5).eval()


def pixart(**changes) -> PixArtTransformer2DModel:
    torch.manual_seed(0)
    return PixArtTransformer2DModel(**{**SIZES, "cross_attention_dim": 16, "caption_channels": 12, **changes}).eval()


def test_each_block_of_dit_has_one_and_pixart_one_for_all():
    assert embedders_of(dit()) == [f"transformer_blocks.{i}.norm1.emb" for i in range(3)]
    assert embedders_of(pixart()) == ["adaln_single.emb"]
    assert embedders_of(pixart(use_additional_conditions=True, attention_head_dim=12, cross_attention_dim=24)) == [
        "adaln_single.emb"
    ]


def test_models_that_take_any_noise_level_have_none():
    sd3 = SD3Transformer2DModel(
        sample_size=8, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16, out_channels=4,
    )  # fmt: skip
    assert embedders_of(sd3) == []
    assert embedders_of(nn.Sequential(nn.Linear(2, 2))) == []


def test_a_subclass_belongs_to_its_family():
    class Mine(DiTTransformer2DModel):
        pass

    assert len(embedders_of(Mine(**SIZES, in_channels=4, num_embeds_ada_norm=5))) == 3


@pytest.mark.parametrize(
    ("build", "name", "shift"), [(dit, "transformer_blocks.1.norm1.emb", 1), (pixart, "adaln_single.emb", 0)]
)
def test_the_embedding_is_an_mlp_of_sinusoids(build, name, shift):
    model = build()
    mlp = model.get_submodule(name).timestep_embedder
    steps = torch.tensor([0, 1, 500, 999])
    waves = get_timestep_embedding(steps, 256, flip_sin_to_cos=True, downscale_freq_shift=shift)
    hidden = nn.functional.silu(waves @ mlp.linear_1.weight.T + mlp.linear_1.bias)
    want = hidden @ mlp.linear_2.weight.T + mlp.linear_2.bias
    got = embedding_at(model, name, steps)
    torch.testing.assert_close(got, want)
    assert not got.requires_grad
    assert embedding_at(nn.Module.to(model, torch.bfloat16), name, steps).dtype == torch.bfloat16


@pytest.mark.parametrize("build", [dit, pixart])
def test_a_modulation_behind_tables_is_told_at_the_nearest_timestep_that_they_know(build):
    model = build()
    Precompute().run(Job(model, adapter_for(model), Bits(8), 0, tuple))
    site = next(site for site in adapter_for(model).sites(model) if site.modulation is not None)
    with torch.no_grad():
        for near, known in ((0.5004, 0.5), (0.0, 0.0), (1.0, 0.999)):
            got, want = (site.modulation(model, torch.tensor([level])) for level in (near, known))
            assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
