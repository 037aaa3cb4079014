"""PixArt: kinds, sites and what is refused; what every family must do is in ``conformance/test_every_adapter.py``."""

import pytest
import torch
from diffusers import PixArtTransformer2DModel

import dither
from dither.errors import BadModel, BadValue
from dither.models import Call, Rows, adapter_for
from dither.nn import QLinear
from dither.spec import Bits
from dither.stages import Job, Rotate, Smooth

KEPT = {
    "adaln_single.emb.timestep_embedder.linear_1": "embed",
    "adaln_single.emb.timestep_embedder.linear_2": "embed",
    "adaln_single.linear": "adaln",
    "caption_projection.linear_1": "embed",
    "caption_projection.linear_2": "embed",
    "proj_out": "final",
}


def tiny(**changes):
    torch.manual_seed(0)
    config = {
        "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "patch_size": 2,
        "cross_attention_dim": 16, "caption_channels": 12,
    }  # fmt: skip
    return PixArtTransformer2DModel(**{**config, **changes}).eval()


def call(level, seed=0):
    make = torch.Generator().manual_seed(seed)
    x, text = torch.randn(2, 4, 8, 8, generator=make), torch.randn(2, 5, 12, generator=make)
    return Call((x, text), {"timestep": torch.tensor([level] * 2), "return_dict": False})


CALLS = tuple(call(t, t) for t in (50, 350, 650, 950))


@torch.no_grad()
def outputs(model):
    return torch.cat([model(*c.args, **c.kwargs)[0] for c in CALLS])


def sample(model):
    return lambda: outputs(model)


def test_kinds_of_a_block_and_of_what_surrounds_it():
    model = tiny()
    layers = adapter_for(model).layers(model)
    inside = {layer.name.removeprefix(f"{layer.block}."): layer.kind for layer in layers if layer.block}
    assert inside == {
        **{f"attn1.to_{x}": "qkv" for x in "qkv"}, "attn1.to_out.0": "attn_out",
        "attn2.to_q": "cross_q", "attn2.to_k": "cross_kv", "attn2.to_v": "cross_kv", "attn2.to_out.0": "attn_out",
        "ff.net.0.proj": "fc1", "ff.net.2": "fc2",
    }  # fmt: skip
    assert not any(layer.keep for layer in layers if layer.block)
    assert {layer.name: layer.kind for layer in layers if not layer.block} == KEPT
    assert all(layer.keep for layer in layers if not layer.block)


def test_only_outputs_of_attention_fold_and_only_what_the_table_modulates_is_known():
    model = tiny()
    sites = [s for s in adapter_for(model).sites(model) if s.name.startswith("transformer_blocks.1.")]
    names = [s.name.removeprefix("transformer_blocks.1.") for s in sites]
    assert names == ["norm1", "attn1.heads", "stream", "text", "attn2.heads", "norm2", "ff.activation"]
    folds = {n: s.fold for n, s in zip(names, sites, strict=True) if s.fold is not None}
    assert folds == {f"{a}.heads": Rows(f"transformer_blocks.1.{a}.to_v", (0, 16)) for a in ("attn1", "attn2")}
    assert [n for n, s in zip(names, sites, strict=True) if s.modulation is not None] == ["norm1", "norm2"]


@pytest.mark.parametrize(
    "changes",
    [
        {"use_additional_conditions": True, "attention_head_dim": 12, "cross_attention_dim": 24},
        {"norm_elementwise_affine": True},
    ],
)
def test_where_more_than_the_time_decides_no_modulation_is_known(changes):
    model = tiny(**changes)
    assert all(site.modulation is None for site in adapter_for(model).sites(model))


def test_without_a_caption_projection_the_text_comes_as_it_is():
    model = tiny(caption_channels=None)
    adapter = adapter_for(model)
    assert {layer.name for layer in adapter.layers(model) if layer.keep} == {n for n in KEPT if "caption" not in n}
    assert len(adapter.sites(model)) == 14


def test_which_rows_are_unconditional_is_not_guessed():
    """The two halves of a guided call hold the same latents, and so do two prompts from one seed."""
    model, x = tiny(), torch.randn(1, 4, 8, 8).expand(2, -1, -1, -1)
    guided = Call((x, torch.randn(2, 5, 12)), {"timestep": 5})
    assert adapter_for(model).branch(model, guided).tolist() == [0, 0]
    assert adapter_for(model).noise_level(model, guided).tolist() == pytest.approx([0.005, 0.005])


def test_a_call_without_timestep_or_latents_is_refused():
    model = tiny()
    adapter = adapter_for(model)
    with pytest.raises(BadValue, match="without a timestep"):
        adapter.noise_level(model, Call((torch.zeros(1, 4, 8, 8),), {}))
    with pytest.raises(BadValue, match="hidden_states"):
        adapter.branch(model, Call((torch.zeros(1, 4),), {"timestep": 1}))


def test_fused_projections_and_a_missing_stack_are_named():
    model = tiny()
    model.transformer_blocks[1].attn2.to_v = torch.nn.Identity()
    with pytest.raises(BadModel, match=r"no linear 'transformer_blocks\.1\.attn2\.to_v'"):
        adapter_for(model).sites(model)
    del model.transformer_blocks
    with pytest.raises(BadModel, match="transformer_blocks"):
        adapter_for(model).blocks(model)


# --- methods on it


def job(model, bits="w4a8"):
    return Job(model, adapter_for(model), Bits.parse(bits), 0, lambda: CALLS)


@pytest.mark.parametrize(
    "stages",
    [
        (Smooth(),),
        (Smooth(online=True),),
        (Smooth(online=True, data_free=True), Rotate(threshold=0.0)),
        (Smooth(online=True, search=(0.25, 0.75), rows=64),),
    ],
)
def test_balancing_keeps_the_function(stages):
    """With online scales the rows of V are scaled where its columns are already."""
    model, want = tiny(), outputs(tiny())
    made = job(model)
    with torch.no_grad():
        for stage in stages:
            stage.run(made)
    after = outputs(model)
    assert not torch.equal(after, want)
    torch.testing.assert_close(after, want, rtol=1e-4, atol=1e-5)


def test_without_data_exactly_the_modulated_sites_are_scaled():
    model = tiny()
    made = job(model)
    made.record = None  # would fail if it were called
    with torch.no_grad():
        Smooth(online=True, data_free=True, calibrate=False).run(made)
    inside = {name.partition(".")[2].partition(".")[2] for name in made.specs}
    assert inside == {"attn1.to_q", "attn1.to_k", "attn1.to_v", "ff.net.0.proj"}


@pytest.mark.parametrize("recipe", ["smoothquant", "quarot", "vidit-q"])
def test_recipes_quantize_it_and_the_checkpoint_reloads_to_the_same_bits(recipe, tmp_path):
    model = tiny()
    dither.quantize(model, recipe, "w8a8", run=sample(model))
    quantized = {name for name, m in model.named_modules() if isinstance(m, QLinear)}
    assert len(quantized) == 20
    got = outputs(model)
    assert float((got - outputs(tiny())).norm() / got.norm()) < 0.05
    dither.save(model, tmp_path / "saved")
    assert torch.equal(outputs(dither.load(tmp_path / "saved")), got)


def test_tables_by_time_are_read_from_its_calls(tmp_path):
    """Static ranges by time: the loaded model's clock must find the time in a call of this family."""
    model = tiny()
    settings = ["assign.act.static=true", "assign.act.grid.symmetric=false", "assign.time_groups=3"]
    dither.quantize(model, "rtn", "w8a8", run=sample(model), settings=settings)
    got = outputs(model)
    dither.save(model, tmp_path / "saved")
    assert torch.equal(outputs(dither.load(tmp_path / "saved")), got)
