"""Which linears read several tensors side by side, told from names and widths; shown by what real models concatenate."""

from collections.abc import Callable

import pytest
import torch
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel, HunyuanDiT2DModel
from torch import nn

from dither.models import adapter_for
from dither.models.concatenated import parts_of


def hunyuan() -> nn.Module:
    return HunyuanDiT2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, patch_size=2, sample_size=8, hidden_size=32,
        num_layers=4, cross_attention_dim=8, cross_attention_dim_t5=8, pooled_projection_dim=8, text_len=3, text_len_t5=3,
    )  # fmt: skip


def flux() -> nn.Module:
    return FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip


def flux2() -> nn.Module:
    return Flux2Transformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip


def hunyuan_call(model: nn.Module) -> None:
    n, text = 2, torch.randn(2, 3, 8)
    model(
        torch.randn(n, 4, 8, 8), torch.tensor([10.0, 900.0]), encoder_hidden_states=text,
        text_embedding_mask=torch.ones(n, 3),
        encoder_hidden_states_t5=text, text_embedding_mask_t5=torch.ones(n, 3), image_meta_size=torch.ones(n, 6),
        style=torch.zeros(n, dtype=torch.long), image_rotary_emb=(torch.ones(16, 16), torch.zeros(16, 16)),
    )  # fmt: skip


def flux_call(model: nn.Module) -> None:
    model(
        hidden_states=torch.randn(1, 4, 4), encoder_hidden_states=torch.randn(1, 2, 16),
        pooled_projections=torch.randn(1, 16), timestep=torch.tensor([0.5]), img_ids=torch.zeros(4, 3),
        txt_ids=torch.zeros(2, 3),
    )  # fmt: skip


def flux2_call(model: nn.Module) -> None:
    model(
        hidden_states=torch.randn(1, 4, 4), encoder_hidden_states=torch.randn(1, 2, 16), timestep=torch.tensor([0.5]),
        img_ids=torch.zeros(4, 4), txt_ids=torch.zeros(2, 4), guidance=torch.ones(1),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("build", "call", "parts"),
    [
        (hunyuan, hunyuan_call, {"blocks.3.skip_linear": (32, 32)}),
        (flux, flux_call, {f"single_transformer_blocks.{i}.proj_out": (32, 128) for i in range(2)}),
        (flux2, flux2_call, {"single_transformer_blocks.0.attn.to_out": (32, 96)}),
    ],
    ids=["HunyuanDiT", "FLUX", "FLUX.2"],
)
def test_parts_are_what_the_model_concatenates(
    build: Callable[[], nn.Module], call: Callable[[nn.Module], None], parts, monkeypatch
):
    model = build().eval()
    assert {layer.name: layer.parts for layer in adapter_for(model).layers(model) if layer.parts} == parts
    made: dict[int, tuple[int, ...]] = {}  # address of what a concatenation of channels gave, to its widths
    joined = torch.cat

    def cat(tensors, dim=0):
        out = joined(tensors, dim)
        if dim in (-1, out.ndim - 1):
            made[out.data_ptr()] = tuple(t.shape[-1] for t in tensors)
            kept.append(out)
        return out

    kept: list[torch.Tensor] = []  # so that no address is used twice
    read: dict[str, tuple[int, ...]] = {}

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            if args[0].data_ptr() in made:
                read[name] = made[args[0].data_ptr()]

        return hook

    monkeypatch.setattr(torch, "cat", cat)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or name.endswith("skip_norm"):  # HunyuanDiT has a norm between
            module.register_forward_pre_hook(look(name.replace("skip_norm", "skip_linear")))
    with torch.no_grad():
        call(model)
    assert {name: read[name] for name in parts} == parts
    assert set(read) - set(parts) <= {n for n, m in model.named_modules() if "embed" in n and isinstance(m, nn.Linear)}


@pytest.mark.parametrize(
    ("name", "shape", "parts"),
    [
        ("out_blocks.0.skip_linear", (16, 8), (8, 8)),
        ("skip", (24, 8), (8, 8, 8)),
        ("blocks.0.linear_skip", (16, 8), (8, 8)),
        ("blocks.0.skip_proj", (8, 8), ()),  # nothing is concatenated
        ("blocks.0.skip_proj", (12, 8), ()),  # of no known widths
        ("blocks.0.skipper", (16, 8), ()),
        ("blocks.0.proj_out", (40, 8), ()),  # the second linear of an MLP
        ("blocks.0.attn.to_out", (40, 8), ()),
    ],
)
def test_names_and_widths_decide(name, shape, parts):
    assert parts_of(name, {name: nn.Linear(*shape)}) == parts


@pytest.mark.parametrize(
    ("name", "beside", "parts"),
    [
        ("proj_out", "proj_mlp", (8, 32)),
        ("single.0.proj_out", "single.0.proj_mlp", (8, 32)),
        ("single.0.attn.to_out", "single.0.attn.to_qkv_mlp_proj", (8, 32)),
        ("single.0.proj_out", "single.1.proj_mlp", ()),
        ("single.0.attn.to_out", "single.0.attn.proj_mlp", ()),
    ],
)
def test_attention_beside_an_mlp_is_known_by_the_linear_that_begins_it(name, beside, parts):
    assert parts_of(name, {name: nn.Linear(40, 8), beside: nn.Linear(8, 32)}) == parts
    assert parts_of(name, {name: nn.Linear(8, 8), beside: nn.Linear(8, 32)}) == ()
