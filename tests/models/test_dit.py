import pytest
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from torch import nn

from dither.errors import BadModel, BadValue
from dither.models import AdaLN, Call, Rows, adapter_for, linear_at
from dither.zoo import PixelDiTPipeline

WIDTH, CLASSES = 16, 5


def tiny(**changes):
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "patch_size": 2}
    return DiTTransformer2DModel(**{**sizes, "in_channels": 3, "num_embeds_ada_norm": CLASSES, **changes}).eval()


def call(batch=3):
    x = torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    time, labels = torch.linspace(0, 999, batch).long(), torch.arange(batch) + CLASSES - 1
    return Call((x,), {"timestep": time, "class_labels": labels.clamp(max=CLASSES)})


def run(model, inputs):
    with torch.no_grad():
        return model(*inputs.args, **inputs.kwargs).sample


def test_every_linear_has_a_kind():
    model = tiny()
    layers = adapter_for(model).layers(model)
    assert [layer.name for layer in layers] == [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    kinds = [layer.kind for layer in layers if layer.block == "transformer_blocks.1"]
    assert kinds == ["embed", "embed", "adaln", "qkv", "qkv", "qkv", "attn_out", "fc1", "fc2"]
    assert [(layer.name, layer.kind) for layer in layers if not layer.block] == [
        ("proj_out_1", "final"),
        ("proj_out_2", "final"),
    ]
    assert {layer.kind for layer in layers if layer.keep} == {"embed", "final"}


def test_linears_are_listed_in_call_order():
    model, order = tiny(), []
    names = [layer.name for layer in adapter_for(model).layers(model)]
    for name in names:
        linear_at(model, name).register_forward_hook(lambda *_, name=name: order.append(name))
    run(model, call())
    repeated = {n for n in names if n.startswith("transformer_blocks.0.norm1.emb.")}  # once more for the final layer
    assert [n for i, n in enumerate(order) if n not in repeated or i < 2] == names


def test_sites_name_every_quantizable_linear_once():
    model = tiny()
    adapter = adapter_for(model)
    readers = [name for site in adapter.sites(model) for name in site.readers]
    assert sorted(readers) == sorted(layer.name for layer in adapter.layers(model) if not layer.keep)


def test_readers_of_a_site_read_the_same_tensor():
    model, read = tiny(), {}
    sites = adapter_for(model).sites(model)
    for site in sites:
        for name in site.readers:
            hook = linear_at(model, name).register_forward_pre_hook
            hook(lambda _, args, name=name: read.__setitem__(name, args[0]))
    run(model, call())
    for site in sites:
        assert all(torch.equal(read[name], read[site.readers[0]]) for name in site.readers)


@torch.no_grad()
def scale(model, site, factors):
    """Absorbs 1 / factors into the readers and factors into the producer, by the formulas of ``models.base``."""
    for name in site.readers:
        linear_at(model, name).weight.div_(factors)
    linear = linear_at(model, site.fold.linear)
    if isinstance(site.fold, Rows):
        rows = slice(*site.fold.rows)
        linear.weight[rows] *= factors[:, None]
        linear.bias[rows] *= factors
        return
    shift, gain = slice(*site.fold.shift), slice(*site.fold.scale)
    for rows in (shift, gain):
        linear.weight[rows] *= factors[:, None]
    linear.bias[shift] *= factors
    linear.bias[gain] = (1 + linear.bias[gain]) * factors - 1


@pytest.mark.parametrize("affine", [False, True])
def test_folding_keeps_the_function(affine):
    model = tiny(norm_elementwise_affine=affine).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    inputs = call()
    inputs = Call((inputs.args[0].double(),), inputs.kwargs)
    before = run(model, inputs)
    sites = [site for site in adapter_for(model).sites(model) if site.fold is not None]
    assert [type(site.fold) for site in sites[:3]] == [AdaLN, Rows, AdaLN]
    for i, site in enumerate(sites):
        draw = torch.randn(WIDTH, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        scale(model, site, draw.exp())
        assert torch.allclose(run(model, inputs), before, rtol=1e-9, atol=1e-9), site.name


def test_carry_walks_block_by_block():
    model, calls, outputs = tiny(), [], []
    adapter = adapter_for(model)
    for name in adapter.blocks(model):
        block = model.get_submodule(name)
        block.register_forward_pre_hook(lambda _, a, k: calls.append(Call(a, k)), with_kwargs=True)
        block.register_forward_hook(lambda _, a, out: outputs.append(out))
    run(model, call())
    carried = adapter.carry(calls[0], outputs[0])
    assert torch.equal(carried.args[0], calls[1].args[0])
    assert carried.kwargs == calls[1].kwargs
    by_name = Call((), {"hidden_states": calls[0].args[0], "timestep": 3})
    assert torch.equal(adapter.carry(by_name, outputs[0]).kwargs["hidden_states"], outputs[0])


@pytest.mark.parametrize(
    ("timestep", "levels"),
    [
        (torch.tensor([0, 500, 999]), [0, 0.5, 0.999]),
        (torch.tensor([250]), [0.25] * 3),
        (torch.tensor(250), [0.25] * 3),
        (250, [0.25] * 3),
        (torch.tensor([1.0, 1000.0, 2000.0]), [0.001, 1, 1]),
    ],
)
def test_noise_level(timestep, levels):
    model = tiny()
    x = call().args[0]
    by_name = Call((), {"timestep": timestep, "hidden_states": x})
    for inputs in (by_name, Call((x, timestep), {})):
        got = adapter_for(model).noise_level(model, inputs)
        assert got.dtype == torch.float32
        assert got.tolist() == pytest.approx(levels)


def test_branch_of_a_real_pipeline_call():
    model, calls = tiny(), []
    model.register_forward_pre_hook(lambda _, a, k: calls.append(Call(a, k)), with_kwargs=True)
    pipeline = PixelDiTPipeline(model, DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    pipeline([0, 4], guidance_scale=2.0, num_inference_steps=2, output_type="np")
    adapter = adapter_for(model)
    assert [adapter.branch(model, c).tolist() for c in calls] == [[0, 0, 1, 1]] * 2
    assert [adapter.noise_level(model, c).tolist() for c in calls] == [[0.5] * 4, [0.0] * 4]


def test_bad_calls_and_models_are_named():
    model = tiny()
    adapter = adapter_for(model)
    x = call().args[0]
    with pytest.raises(BadValue, match="timestep"):
        adapter.noise_level(model, Call((x,), {}))
    with pytest.raises(BadValue, match="class labels"):
        adapter.branch(model, Call((x,), {}))
    with pytest.raises(BadValue, match="hidden_states"):
        adapter.noise_level(model, Call((), {"timestep": 3}))
    with pytest.raises(BadValue, match=r"batch of 3.*\(2,\)"):
        adapter.noise_level(model, Call((x, torch.zeros(2)), {}))
    del model.transformer_blocks[1].attn1.to_k
    with pytest.raises(BadModel, match=r"transformer_blocks\.1\.attn1\.to_k"):
        adapter.sites(model)
    model.adapter = nn.Linear(3, 3)
    assert [(a.kind, bool(a.keep)) for a in adapter.layers(model) if a.name == "adapter"] == [("other", True)]
    del model.transformer_blocks
    with pytest.raises(BadModel, match="transformer_blocks"):
        adapter.blocks(model)
