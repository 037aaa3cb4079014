import pytest
import torch
from diffusers import DiTTransformer2DModel, FluxTransformer2DModel, PixArtTransformer2DModel, SD3Transformer2DModel
from torch import nn

from dither.errors import BadValue
from dither.models import Call, adapter_for
from dither.models.generic import Generic
from dither.models.rest import rest_of


class Block(nn.Module):
    def __init__(self, width, attention=False):
        super().__init__()
        self.q_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        if attention:
            self.attention = nn.MultiheadAttention(width, 2)

    def forward(self, x):
        return x + self.mlp(self.out_proj(self.q_proj(x)))


class Homemade(nn.Module):
    """A denoiser of a class that nobody prepared."""

    def __init__(self, stack=nn.ModuleList, attention=False):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 2, 2)
        self.embed = nn.Linear(8, 8)
        self.towers = nn.ModuleList([nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))])
        items = [Block(8, attention) for _ in range(3)]
        self.layers = stack(items) if stack is nn.ModuleList else stack(*items)
        self.table = nn.Parameter(torch.zeros(3))
        self.out = nn.Linear(8, 4)

    def forward(self, x, t):
        return self.out(x) * t


@pytest.mark.parametrize("stack", [nn.ModuleList, nn.Sequential])
def test_blocks_of_an_unknown_class(stack):
    model = Homemade(stack)
    adapter = adapter_for(model)
    assert isinstance(adapter, Generic)
    assert adapter.blocks(model) == ["layers.0", "layers.1", "layers.2"]
    layers = {layer.name: layer for layer in adapter.layers(model)}
    assert list(layers) == [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    assert {name for name, layer in layers.items() if layer.keep} == {"embed", "towers.0.0", "towers.1.0", "out"}
    kinds = [layers[f"layers.1.{n}"].kind for n in ("q_proj", "out_proj", "mlp.0", "mlp.2")]
    assert kinds == ["qkv", "attn_out", "fc1", "fc2"]
    assert layers["embed"].kind == "embed"


def test_sites_are_single_and_never_fold():
    model = Homemade()
    adapter = adapter_for(model)
    sites = adapter.sites(model)
    assert [site.readers for site in sites] == [(a.name,) for a in adapter.layers(model) if not a.keep]
    assert all(site.fold is None for site in sites)


def test_multihead_attention_reads_its_output_weight_itself():
    model = Homemade(attention=True)
    layers = {layer.name: layer for layer in adapter_for(model).layers(model)}
    assert "MultiheadAttention" in layers["layers.0.attention.out_proj"].keep


def test_without_blocks_the_ends_are_kept():
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4))
    adapter = adapter_for(model)
    assert list(adapter.blocks(model)) == []
    assert [(layer.name, bool(layer.keep)) for layer in adapter.layers(model)] == [
        ("0", True),
        ("2", False),
        ("4", True),
    ]
    assert adapter_for(nn.Conv2d(1, 1, 1)).layers(nn.Conv2d(1, 1, 1)) == []


def sd3():
    return SD3Transformer2DModel(
        sample_size=8, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16, out_channels=4,
    )  # fmt: skip


def flux():
    return FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip


def pixart():
    return PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=8, cross_attention_dim=16,
        caption_channels=8, in_channels=4,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("build", "blocks", "kinds"),
    [
        (
            sd3,
            ["transformer_blocks.0", "transformer_blocks.1"],
            {
                "transformer_blocks.0.norm1_context.linear": "adaln",
                "transformer_blocks.0.attn.add_k_proj": "qkv",
                "transformer_blocks.0.attn.to_add_out": "attn_out",
                "transformer_blocks.0.ff_context.net.0.proj": "fc1",
                "norm_out.linear": "final",
                "context_embedder": "embed",
            },
        ),
        (
            flux,
            ["transformer_blocks.0", "single_transformer_blocks.0", "single_transformer_blocks.1"],
            {
                "single_transformer_blocks.1.proj_mlp": "fc1",
                "single_transformer_blocks.1.proj_out": "other",
                "proj_out": "final",
                "single_transformer_blocks.1.attn.to_q": "qkv",
                "transformer_blocks.0.ff.net.2": "fc2",
                "x_embedder": "embed",
            },
        ),
        (
            pixart,
            ["transformer_blocks.0", "transformer_blocks.1"],
            {
                "transformer_blocks.1.attn2.to_q": "cross_q",
                "transformer_blocks.1.attn2.to_v": "cross_kv",
                "transformer_blocks.1.attn2.to_out.0": "attn_out",
                "proj_out": "final",
                "adaln_single.linear": "adaln",
            },
        ),
    ],
)
def test_names_of_diffusers_families_say_what_a_linear_is_for(build, blocks, kinds):
    model, adapter = build(), Generic()
    assert list(adapter.blocks(model)) == blocks
    layers = {layer.name: layer for layer in adapter.layers(model)}
    assert {name: layers[name].kind for name in kinds} == kinds
    assert all(bool(layer.keep) == (layer.block == "") for layer in layers.values())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("layers.3.feed_forward.linear_3", "fc1"),
        ("layers.3.feed_forward.linear_2", "fc2"),
        ("blocks.0.ff.out_projection", "fc2"),
        ("blocks.0.attn.qkv", "qkv"),
        ("blocks.0.attn.proj", "attn_out"),
        ("blocks.0.mlp.fc1", "fc1"),
        ("blocks.0.adaLN_modulation.1", "adaln"),
        ("blocks.0.cross_attn.kv_linear", "cross_kv"),
        ("transformer_blocks.0.img_mod.1", "adaln"),
        ("layers.0.feed_forward.w2", "fc2"),
        ("layers.0.attention.to_out.0", "attn_out"),
        ("blocks.0.something", "other"),
    ],
)
def test_kinds_by_name(name, kind):
    model = nn.ModuleDict()
    parent = model
    *path, leaf = name.split(".")
    for part in path:
        parent[part] = nn.ModuleDict()
        parent = parent[part]
    parent[leaf] = nn.Linear(2, 2)
    assert [layer.kind for layer in Generic().layers(model) if layer.name == name] == [kind]


X = torch.zeros(2, 1, 4, 4)


@pytest.mark.parametrize(
    ("args", "kwargs", "levels"),
    [
        ((X, torch.tensor([0.25, 1.0])), {}, [0.25, 1.0]),
        ((X, torch.tensor([250, 1])), {}, [0.25, 0.001]),
        ((X, 1), {}, [0.001] * 2),
        ((X,), {"timestep": torch.tensor(500.0)}, [0.5] * 2),
        ((X,), {"sigma": torch.tensor([0.5])}, [0.5] * 2),
        ((X, X), {}, [0.0] * 2),
        ((X,), {}, [0.0] * 2),
        ((X,), {"timestep": torch.tensor([[0.0, 0.8, 0.8], [0.0, 0.3, 0.3]])}, [0.8, 0.3]),
    ],
)
def test_noise_level(args, kwargs, levels):
    model = Homemade()
    call = Call(args, kwargs)
    assert Generic().noise_level(model, call).tolist() == pytest.approx(levels)
    assert Generic().branch(model, call).tolist() == [0, 0]


def test_noise_level_follows_the_signature():
    model = pixart()  # its third positional parameter is the timestep
    call = Call((torch.zeros(2, 4, 8, 8), torch.zeros(2), torch.tensor([100, 200])), {})
    assert Generic().noise_level(model, call).tolist() == pytest.approx([0.1, 0.2])


def test_carry():
    image, text, other = torch.zeros(1, 4, 8), torch.zeros(1, 3, 8), torch.zeros(1, 8)
    new_image, new_text = image + 1, text + 1
    carry = Generic().carry
    assert carry(Call((image, other), {}), new_image).args == (new_image, other)
    assert carry(Call((image, text), {}), (new_image, new_text)).args == (new_image, new_text)
    assert carry(Call((image, text), {}), (new_text, new_image)).args == (new_image, new_text)
    named = Call((), {"temb": other, "hidden_states": image})
    assert carry(named, new_image).kwargs == {"temb": other, "hidden_states": new_image}
    both = Call((), {"hidden_states": image, "encoder_hidden_states": text, "temb": other})
    assert carry(both, (new_text, new_image)).kwargs["hidden_states"] is new_image
    assert carry(both, (None, new_image)).kwargs["hidden_states"] is new_image
    with pytest.raises(BadValue, match="not clear"):
        carry(Call((), {"hidden_states": image, "encoder_hidden_states": image}), (new_image, new_image))
    with pytest.raises(BadValue, match="not clear"):
        carry(Call((image,), {}), (new_image, new_text))
    with pytest.raises(BadValue, match=r"\(1, 4, 9\)"):
        carry(Call((image,), {}), torch.zeros(1, 4, 9))


def test_rest_tells_what_is_no_linear():
    rest = rest_of(Homemade())
    assert [(r.name, r.type, r.parameters) for r in rest] == [("conv", "Conv2d", 40), ("", "Homemade", 3)]


def test_subclasses_belong_to_the_family():
    class Mine(DiTTransformer2DModel):
        pass

    model = Mine(num_attention_heads=2, attention_head_dim=8, num_layers=1, sample_size=8)
    assert adapter_for(model).family == "dit"
