"""LoRA beside packed weights: it attaches, trains and detaches; whatever would write into the weights is refused."""

from pathlib import Path

import pytest
import tiny
import torch
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel
from torch import nn

from dither.errors import Refused
from dither.integrations.diffusers import ClockReader, stamp
from dither.models import adapter_for
from dither.nn import QLinear, replace
from dither.spec import Plan

peft = pytest.importorskip("peft", reason="LoRA needs peft")


def inputs() -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(2, 2, 8, 8, generator=made),
        "encoder_hidden_states": torch.randn(2, 3, 16, generator=made),
        "pooled_projections": torch.randn(2, 16, generator=made),
        "timestep": torch.tensor([500, 100]),
    }


def run(model: nn.Module) -> torch.Tensor:
    return model(**inputs()).sample


@pytest.fixture
def folder(tmp_path) -> Path:
    """A class of diffusers that has add_adapter and fuse_qkv_projections, every linear of its blocks packed."""
    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
    )
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith("transformer_blocks.")]
    header = tiny.quantize(model, Plan(dict.fromkeys(names, tiny.W8A8)), ClockReader(adapter_for(model), model))
    stamp(model, header)
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def model(folder) -> SD3Transformer2DModel:
    return SD3Transformer2DModel.from_pretrained(folder)


TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def lora(**options: object) -> object:
    return peft.LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False, **options)


def factors(model: nn.Module) -> dict[str, nn.Parameter]:
    return {k: v for k, v in model.named_parameters() if "lora_" in k}


def test_adapter_changes_the_output_and_trains(model):
    base = run(model).detach()
    model.add_adapter(lora())
    y = run(model)
    assert (y - base).abs().max() > 1e-3
    y.square().mean().backward()
    assert len(factors(model)) == 2 * 2 * len(TARGETS)  # A and B, two blocks
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in factors(model).values())
    assert [k for k, v in model.named_parameters() if v.requires_grad and "lora_" not in k] == []


def test_training_lowers_the_loss(model):
    model.add_adapter(lora())
    target = torch.zeros(2, 2, 8, 8)
    optimizer = torch.optim.Adam(factors(model).values(), lr=0.05)
    losses = []
    for _ in range(8):
        loss = (run(model) - target).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


def test_removing_the_adapter_restores_the_output(model):
    base = run(model)
    model.add_adapter(lora())
    model.disable_adapters()
    assert torch.equal(run(model), base)
    model.unload_lora()
    assert torch.equal(run(model), base)
    assert isinstance(model.transformer_blocks[0].attn.to_q, QLinear)


def test_loading_a_trained_adapter(model, folder):
    model.add_adapter(lora(lora_alpha=2))  # bare tensors say nothing of alpha: loading takes the rank
    weights = peft.get_peft_model_state_dict(model, adapter_name="default")
    other = SD3Transformer2DModel.from_pretrained(folder)
    other.load_lora_adapter({k: v.clone() for k, v in weights.items()}, prefix=None)
    torch.testing.assert_close(run(other), run(model))


def test_timed_layers_take_no_adapter():
    model = tiny.stamped_dit(tiny.plan())
    with pytest.raises(ValueError, match="TimedLinear"):
        peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["transformer_blocks.0.ff.net.2"]), model)


def test_layers_with_views_take_adapters_and_give_them_back(tmp_path):
    """Unlike variants, views have one weight; the adapter stands beside all of them."""
    model = tiny.stamped_dit(tiny.plan())
    call = {"timestep": torch.tensor([900, 500, 100]), "class_labels": torch.tensor([1, 10, 1])}
    x, name = torch.randn(3, 1, 8, 8), "transformer_blocks.0.attn1.to_k"
    base = model(x, **call).sample.detach()
    before = model.get_submodule(name)
    wrapped = peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=[name], init_lora_weights=False), model)
    y = wrapped(x, **call).sample
    assert all((a - b).abs().max() > 1e-5 for a, b in zip(y, base, strict=True))
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in factors(wrapped).values())
    with pytest.raises(Refused, match=r"adapter is attached to layer .*attn1\.to_k'"):
        model.save_pretrained(tmp_path)
    with pytest.raises(Refused, match="packed"):
        model.get_submodule(name).merge()
    replace(model, name, model.get_submodule(name).base_layer)
    assert model.get_submodule(name) is before
    assert torch.equal(model(x, **call).sample, base)


@pytest.mark.parametrize("safe", [False, True])
def test_fusing_a_lora_is_refused_and_changes_nothing(model, safe):
    model.add_adapter(lora())
    before = run(model)
    with pytest.raises(Refused, match="LoRA"):
        model.fuse_lora(safe_fusing=safe)
    assert torch.equal(run(model), before)


def test_merging_one_layer_is_refused(model):
    model.add_adapter(lora())
    with pytest.raises(Refused, match="packed"):
        model.transformer_blocks[0].attn.to_q.merge()


def test_fusing_projections_is_refused_and_changes_nothing(model):
    before = run(model)
    with pytest.raises(Refused, match="fuse projections"):
        model.fuse_qkv_projections()
    with pytest.raises(Refused, match="fuse projections"):
        model.transformer_blocks[0].attn.fuse_projections()
    assert torch.equal(run(model), before)


@pytest.mark.parametrize("targets", [TARGETS, ["proj_out"]], ids=["packed", "full precision"])
def test_saving_with_an_adapter_attached_is_refused(model, tmp_path, targets):
    model.add_adapter(peft.LoraConfig(r=2, target_modules=targets))
    with pytest.raises(Refused, match=r"adapter is attached to layer .*unload_lora"):
        model.save_pretrained(tmp_path / "again")
    model.unload_lora()
    model.save_pretrained(tmp_path / "again2")
    assert torch.equal(run(SD3Transformer2DModel.from_pretrained(tmp_path / "again2")), run(model))


def test_older_attention_refuses_too(tmp_path):
    """Models without fuse_qkv_projections still have Attention.fuse_projections."""
    model = tiny.stamped_dit(tiny.timeless())
    model.save_pretrained(tmp_path)
    again = DiTTransformer2DModel.from_pretrained(tmp_path)
    with pytest.raises(Refused, match="packed"):
        again.transformer_blocks[0].attn1.fuse_projections()


def test_peft_on_a_class_without_add_adapter():
    model = tiny.stamped_dit(tiny.plan())
    call = {"timestep": torch.tensor([900, 100]), "class_labels": torch.tensor([1, 10])}
    x = torch.randn(2, 1, 8, 8)
    base = model(x, **call).sample.detach()
    wrapped = peft.inject_adapter_in_model(lora(), model)
    y = wrapped(x, **call).sample
    assert (y - base).abs().max() > 1e-3
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in factors(wrapped).values())
