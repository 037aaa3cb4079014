"""Tiny models that tests quantize in place, round to nearest."""

import dataclasses

import torch
from diffusers import DiTTransformer2DModel
from torch import nn

from dither.checkpoint import Header, attach
from dither.integrations.diffusers import ClockReader, stamp
from dither.kernels import choose
from dither.models import adapter_for
from dither.models.embedders import embedding_at
from dither.nn import QLinear, TimedLinear, ViewedLinear, install
from dither.numerics import encode, random_signs, rotate, table_layout
from dither.spec import (
    Act,
    AttentionSpec,
    Codebook,
    Float8,
    Int,
    LinearSpec,
    LowRank,
    Plan,
    Rotation,
    TableSpec,
    Timed,
    TwoRegion,
    View,
    Views,
)


def dit(seed: int = 0, **changes: object) -> DiTTransformer2DModel:
    """Two blocks of width 16; adaLN-zero's zeros are made random, so that every layer matters."""
    torch.manual_seed(seed)
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 1,
        "num_layers": 2,
        "sample_size": 8,
        "patch_size": 2,
        "num_embeds_ada_norm": 10,
        "norm_type": "ada_norm_zero",
        "activation_fn": "gelu-approximate",
    }
    return DiTTransformer2DModel(**{**config, **changes}).eval()


W8A8 = LinearSpec(Int(8), Act(Int(8)))
W4 = LinearSpec(Int(4, False, group=8))
CPU = torch.device("cpu")
INTEGER = choose(W8A8, (24, 16), CPU).name
"""The kernel of integers: of native code, or of torch where there is none."""
WEIGHT_ONLY = choose(LinearSpec(Int(4)), (24, 16), CPU).name
STATIC = LinearSpec(Int(8), Act(Int(8, False), static=True, rows=6))
"""One row for each of three time groups and two branches."""
FLOAT8 = LinearSpec(Float8(), Act(Float8(), static=True, rows=6))
RICH = LinearSpec(Int(3, False), Act(Int(8)), 1, Rotation(16, seed=3), LowRank(2), 1)
TIMED = Timed((W8A8, LinearSpec(Int(4), Act(Int(8)))), (0, 0, 1, 1, 1, 1))
VIEWS = Views(
    LinearSpec(Int(8, False), Act(Int(8)), 1, Rotation(16, seed=3)),
    (View(8, Act(Int(8))), View(4, Act(Int(6, False))), View(5)),
    (0, 0, 1, 1, 2, 1),
)
"""One weight at three widths."""

ATTENTION = AttentionSpec(
    q=Act(Int(8, group=8), static=True, rows=6),
    k=Act(Int(6, False, group=8)),
    probs=Act(TwoRegion(8), static=True, rows=6),
)

BLOCK = "transformer_blocks.{}."


def plan() -> Plan:
    """Every kind of spec at once, with time groups and branches."""
    layers = {}
    for i in range(2):
        head = BLOCK.format(i)
        layers[head + "norm1.linear"] = W4
        layers |= {head + f"attn1.to_{x}": W8A8 for x in "qk"}
        layers[head + "attn1.to_v"] = RICH
        layers[head + "attn1.to_out.0"] = STATIC
        layers[head + "ff.net.0.proj"] = LinearSpec(Codebook(2, 16, row_scale=True))
    layers[BLOCK.format(0) + "ff.net.2"] = TIMED
    layers[BLOCK.format(1) + "attn1.to_q"] = FLOAT8
    layers[BLOCK.format(0) + "attn1.to_k"] = VIEWS
    layers[BLOCK.format(1) + "ff.net.2"] = LinearSpec(None, Act(Int(8)), pre_scale=6, time_bias=6)
    tables = {BLOCK.format(1) + "norm1.emb": TableSpec(1000)}
    tables[BLOCK.format(0) + "norm1.emb"] = TableSpec(1000, BLOCK.format(1) + "norm1.emb")
    return Plan(layers, (0.3, 0.7), 2, {BLOCK.format(1) + "attn1": ATTENTION}, tables)


def linears() -> Plan:
    """The layers of ``plan`` alone."""
    return dataclasses.replace(plan(), attention={}, timesteps={})


def timeless() -> Plan:
    """The layers of ``plan`` that need no clock."""
    full = plan()
    return Plan({k: v for k, v in full.layers.items() if v in (W8A8, W4, RICH)})


def fill(module: QLinear, weight: torch.Tensor, seed: int) -> None:
    """Buffers of a quantized linear for this dense weight (N, K); tables are arbitrary but valid."""
    make = torch.Generator().manual_seed(seed)
    spec, tensors = module.spec, {}
    w = weight.detach().clone()
    if spec.pre_scale:
        tensors["pre_scale"] = torch.rand(spec.pre_scale, w.shape[1], generator=make) + 0.5
        w = w / tensors["pre_scale"].mean(0)
    if spec.time_bias:
        tensors["time_bias"] = torch.randn(spec.time_bias, w.shape[0], generator=make)
    if spec.rotation is not None:
        tensors["rotation_signs"] = random_signs(w.shape[1], spec.rotation.seed)
        w = rotate(w, tensors["rotation_signs"], spec.rotation.block)
    if spec.lowrank is not None:
        u, s, v = torch.linalg.svd(w, full_matrices=False)
        r = spec.lowrank.rank
        parts = {"lowrank_a": (s[:r, None] * v[:r]).contiguous(), "lowrank_b": u[:, :r].contiguous()}
        w = w - parts["lowrank_b"] @ parts["lowrank_a"]
        for name, part in parts.items():
            stored = {"dense": part} if spec.lowrank.weight is None else encode(part, spec.lowrank.weight)
            tensors |= {f"{name}_{k}": t for k, t in stored.items()}
    if spec.act is not None and spec.act.static:
        table = {k: shape for k, (shape, _) in table_layout(spec.act, w.shape[1]).items()}
        tensors["act_scale"] = torch.rand(table["scale"], generator=make) * 0.02 + 0.005
        if "zero" in table:
            tensors["act_zero"] = torch.randint(100, 156, table["zero"], generator=make, dtype=torch.uint8)
        if "upper" in table:
            tensors["act_upper"] = 8 * tensors["act_scale"]
    stored = {"dense": w} if spec.weight is None else encode(w, spec.weight)
    module.load({**tensors, **{f"weight_{k}": t for k, t in stored.items()}})


def stored(module: nn.Module) -> list[QLinear]:
    """The linears that hold a quantized layer's tensors."""
    if isinstance(module, TimedLinear):
        return list(module.variants)
    return [module.base if isinstance(module, ViewedLinear) else module]


def quantize(model: nn.Module, plan: Plan, read: object) -> Header:
    """Quantize a model in place as the plan says, and let it carry its header."""
    weights = {name: model.get_submodule(name).weight for name in plan.layers}
    steps = {n: embedding_at(model, n, torch.arange(s.rows)) for n, s in plan.timesteps.items() if not s.same_as}
    install(model, plan, read)
    for name, values in steps.items():
        model.get_submodule(name).time_proj.load(values)
    for i, name in enumerate(plan.layers):
        module = model.get_submodule(name)
        for j, part in enumerate(stored(module)):
            fill(part, weights[name], 10 * i + j)
    for i, name in enumerate(plan.attention):
        part = model.get_submodule(name).quantized
        make = torch.Generator().manual_seed(i)
        own = {k: torch.rand(t.shape, generator=make) * 0.02 + 0.005 for k, t in part.named_buffers()}
        part.load(own | {k: 8 * own[k.replace("upper", "scale")] for k in own if k.endswith("upper")})
    header = Header(plan, {"name": "rtn", "bits": "w8a8"}, "0.1.0")
    attach(model, header)
    return header


class Denoiser(nn.Module):
    """Of a class that nobody prepared: a tied weight, an integer buffer, a layer that stays in full precision."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16, bias=False)
        self.third = nn.Linear(16, 16)
        self.last = nn.Linear(16, 16)
        self.tied = nn.Linear(16, 16, bias=False)
        self.tied.weight = self.last.weight
        self.register_buffer("steps", torch.arange(5))

    def forward(self, x, t, cond):
        for layer in (self.first, self.second, self.third, self.last):
            x = x + layer(torch.tanh(x))
        return x + self.tied(x)


PLAN = Plan({"first": RICH, "second": STATIC, "third": TIMED}, time_edges=(0.25, 0.75), branches=2)


def read(args, kwargs):
    return args[1], kwargs["cond"]


def dense(seed: int = 0) -> Denoiser:
    torch.manual_seed(seed)
    return Denoiser()


def run(model: Denoiser) -> torch.Tensor:
    """The same samples through any Denoiser: three noise levels, both branches."""
    x = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(1)).to(model.last.weight.dtype)
    with torch.no_grad():
        return model(x, torch.tensor([0.1, 0.5, 0.9]), cond=torch.tensor([0, 1, 1]))


def same_state(a: nn.Module, b: nn.Module) -> bool:
    """Equal names, dtypes and bits."""
    left, right = a.state_dict(), b.state_dict()
    return set(left) == set(right) and all(
        left[k].dtype == right[k].dtype and torch.equal(left[k], right[k]) for k in left
    )


def stamped_dit(plan: Plan, **changes: object) -> DiTTransformer2DModel:
    """A quantized ``dit`` that diffusers can save."""
    model = dit(**changes)
    stamp(model, quantize(model, plan, ClockReader(adapter_for(model), model)))
    return model
