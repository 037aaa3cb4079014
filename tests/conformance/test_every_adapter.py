"""What the adapter of every family must say truly. A new family is one row in ``ROWS``; a test fails until it has one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel
from torch import Tensor, nn

from dither.calibrate import walk
from dither.clock import Clock
from dither.models import FAMILIES, Adapter, Call, adapter_for, linear_at
from dither.models.attentions import attentions_of
from dither.nn import QAttention, widths_of
from dither.spec import AttentionSpec
from dither.stages.smooth import absorb

SIZES = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3, "sample_size": 8, "patch_size": 2}
TIMES = torch.tensor([100, 500, 900])


@dataclass(frozen=True)
class Row:
    """A tiny model of a family, and a call of it for three samples at ``TIMES``, by keywords and by position."""

    build: Callable[[], nn.Module]
    call: Callable[[torch.dtype], Call]
    positional: Callable[[torch.dtype], Call]


def latents(dtype: torch.dtype) -> Tensor:
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)


def text(dtype: torch.dtype) -> Tensor:
    return torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(2), dtype=dtype)


def dit() -> nn.Module:
    return DiTTransformer2DModel(**SIZES, in_channels=4, num_embeds_ada_norm=5)


def pixart(**changes: Any) -> nn.Module:
    return PixArtTransformer2DModel(**{**SIZES, "cross_attention_dim": 16, "caption_channels": 12, **changes})


def sizes(dtype: torch.dtype) -> dict[str, Tensor]:
    return {"resolution": torch.full((3, 2), 64, dtype=dtype), "aspect_ratio": torch.ones(3, 1, dtype=dtype)}


LABELS = torch.tensor([0, 5, 3])
NO_SIZES = {"resolution": None, "aspect_ratio": None}

ROWS: dict[str, Row] = {
    "DiTTransformer2DModel": Row(
        dit,
        lambda dtype: Call((latents(dtype),), {"timestep": TIMES, "class_labels": LABELS}),
        lambda dtype: Call((latents(dtype), TIMES, LABELS), {}),
    ),
    "PixArtTransformer2DModel": Row(
        pixart,
        lambda dtype: Call(
            (latents(dtype),),
            {
                "encoder_hidden_states": text(dtype), "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0]] * 3),
                "timestep": TIMES, "added_cond_kwargs": NO_SIZES,
            },
        ),
        lambda dtype: Call((latents(dtype), text(dtype), TIMES), {}),
    ),
    "PixArtTransformer2DModel with sizes": Row(
        lambda: pixart(use_additional_conditions=True, attention_head_dim=12, cross_attention_dim=24),
        lambda dtype: Call(
            (latents(dtype),),
            {"encoder_hidden_states": text(dtype), "timestep": TIMES, "added_cond_kwargs": sizes(dtype)},
        ),
        lambda dtype: Call((latents(dtype), text(dtype), TIMES, sizes(dtype)), {}),
    ),
}  # fmt: skip
"""Class of the denoiser, and what is special -> its row."""


def made(row: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Adapter]:
    """No parameter is zero, so that every layer matters."""
    torch.manual_seed(0)
    model = ROWS[row].build().eval().to(dtype)
    for i, parameter in enumerate(model.parameters()):
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(i))
    return model, adapter_for(model)


@torch.no_grad()
def output(model: nn.Module, call: Call) -> Tensor:
    return model(*call.args, **call.kwargs).sample


def inputs_of(model: nn.Module, names: list[str], call: Call) -> dict[str, Tensor]:
    """What these modules read in one call."""
    read: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: read.__setitem__(name, args[0]))
        for name in names
    ]
    output(model, call)
    for handle in handles:
        handle.remove()
    return read


def test_every_family_has_a_row():
    assert {row.partition(" ")[0] for row in ROWS} == set(FAMILIES)


@pytest.mark.parametrize("row", ROWS)
def test_every_linear_is_listed_once_and_belongs_to_the_family(row):
    model, adapter = made(row)
    layers = adapter.layers(model)
    assert [layer.name for layer in layers] == [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    assert "other" not in {layer.kind for layer in layers}
    blocks = adapter.blocks(model)
    assert {layer.block for layer in layers} <= {"", *blocks}
    assert all(layer.name.startswith(f"{layer.block}.") for layer in layers if layer.block)
    assert all(layer.keep for layer in layers if not layer.block)


@pytest.mark.parametrize("row", ROWS)
def test_every_layer_that_is_not_kept_has_one_site(row):
    model, adapter = made(row)
    sites = adapter.sites(model)
    readers = [name for site in sites for name in site.readers]
    assert sorted(readers) == sorted(layer.name for layer in adapter.layers(model) if not layer.keep)
    assert len({site.name for site in sites}) == len(sites)


@pytest.mark.parametrize("row", ROWS)
def test_readers_of_a_site_read_the_same_tensor(row):
    model, adapter = made(row)
    sites = adapter.sites(model)
    read = inputs_of(model, [name for site in sites for name in site.readers], ROWS[row].call(torch.float64))
    for site in sites:
        assert all(torch.equal(read[name], read[site.readers[0]]) for name in site.readers)


@pytest.mark.parametrize("row", ROWS)
def test_attentions_are_found_and_compute_the_same_while_nothing_is_rounded(row):
    model, _ = made(row)
    call = ROWS[row].call(torch.float64)
    before = output(model, call)
    found = attentions_of(model)
    assert found
    seen: list[str] = []
    for attention in found:
        module = model.get_submodule(attention.name)
        own = QAttention(AttentionSpec(), widths_of(module), Clock()).attach(module)
        own.probs.register_forward_hook(lambda _, args, y, name=attention.name: seen.append(name))
    torch.testing.assert_close(output(model, call), before)
    assert set(seen) == {attention.name for attention in found}


@pytest.mark.parametrize("row", ROWS)
def test_folding_keeps_the_function(row):
    model, adapter = made(row)
    call = ROWS[row].call(torch.float64)
    before = output(model, call)
    folding = [site for site in adapter.sites(model) if site.fold is not None]
    assert folding
    for i, site in enumerate(folding):
        weights = [linear_at(model, name).weight.data for name in site.readers]
        c = torch.rand(weights[0].shape[1], generator=torch.Generator().manual_seed(i)).mul(6).sub(3).exp()
        with torch.no_grad():
            absorb(model, site.fold, c)
            for weight in weights:
                weight.div_(c)
    after = output(model, call)
    assert not torch.equal(after, before)
    assert torch.allclose(after, before, rtol=1e-4, atol=1e-5 * float(before.abs().max()))  # factors are float32


@pytest.mark.parametrize("row", ROWS)
def test_a_known_modulation_makes_the_site(row):
    """x = LN(h) (1 + scale) + shift: what a site's readers read at a time is what one class's modulation makes of h."""
    model, adapter = made(row)
    call = ROWS[row].call(torch.float64)
    known = [site for site in adapter.sites(model) if site.modulation is not None]
    assert bool(known) is ("sizes" not in row)
    read = inputs_of(model, [site.readers[0] for site in known], call)
    for site in known:
        with torch.no_grad():
            scale, shift = site.modulation(model, TIMES / 1000)  # (3 * classes, K)
        assert scale.dtype == shift.dtype == torch.float32
        scale, shift = (m.view(3, -1, 1, m.shape[-1]) for m in (scale, shift))  # (3, classes, 1, K)
        plain = (read[site.readers[0]][:, None] - shift) / (1 + scale)  # (3, classes, tokens, K): LN(h) for one class
        error = (plain - F.layer_norm(plain, plain.shape[-1:])).abs().amax((2, 3))
        assert bool((error.amin(1) < 1e-3).all()), site.name


@pytest.mark.parametrize("row", ROWS)
def test_a_walk_reproduces_the_model(row):
    model, adapter = made(row)
    calls = (ROWS[row].call(torch.float64),)
    real = inputs_of(model, list(adapter.blocks(model)), calls[0])
    rows = [torch.zeros(3, dtype=torch.int64)]
    names = []
    for step in walk(model, adapter, calls, rows, lambda _: None):
        assert torch.equal(step.calls[0].args[0], real[step.name])
        names.append(step.name)
    assert names == list(adapter.blocks(model))


@pytest.mark.parametrize("row", ROWS)
def test_a_call_is_read_alike_by_position_and_by_keyword(row):
    model, adapter = made(row)
    branches = []
    for call in (ROWS[row].call(torch.float64), ROWS[row].positional(torch.float64)):
        level, branch = adapter.noise_level(model, call), adapter.branch(model, call)
        assert torch.allclose(level, torch.tensor([0.1, 0.5, 0.9]))
        assert level.dtype == torch.float32
        assert branch.shape == (3,)
        assert branch.dtype == torch.int64
        branches.append(branch)
    assert torch.equal(*branches)
