"""Injected outliers: really there, and without effect on the output."""

import copy

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from dither import zoo
from dither.errors import BadModel

SITES = ("attn1.to_q", "attn1.to_out.0", "ff.net.0.proj")


@pytest.fixture(scope="module")
def digits() -> DiTTransformer2DModel:
    return zoo.load("digits").transformer


def call(model: DiTTransformer2DModel) -> Tensor:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(12, 1, 8, 8, generator=g)
    t = torch.linspace(0, 999, 12).long()
    with torch.no_grad():
        return model(x, timestep=t, class_labels=torch.arange(12) % 11).sample


def unevenness(model: DiTTransformer2DModel, site: str) -> float:
    """Largest over median channel of the absolute maximum of the inputs of ``site``, averaged over blocks."""
    ratios: list[float] = []

    def look(_m: nn.Module, args: tuple[Tensor, ...]) -> None:
        peak = args[0].abs().amax((0, 1))
        ratios.append(float(peak.max() / peak.median()))

    handles = [b.get_submodule(site).register_forward_pre_hook(look) for b in model.transformer_blocks]
    call(model)
    for handle in handles:
        handle.remove()
    return sum(ratios) / len(ratios)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_function_stays_the_same(digits: DiTTransformer2DModel, seed: int) -> None:
    hard = copy.deepcopy(digits)
    zoo.inject_outliers(hard, zoo.Outliers(seed=seed))
    before, after = call(digits), call(hard)
    assert (before - after).norm() / before.norm() < 1e-4


@pytest.mark.parametrize("site", SITES)
def test_the_outliers_are_there(digits: DiTTransformer2DModel, site: str) -> None:
    hard = copy.deepcopy(digits)
    zoo.inject_outliers(hard, zoo.Outliers())
    assert unevenness(hard, site) > 4 * unevenness(digits, site)


def test_seeded(digits: DiTTransformer2DModel) -> None:
    models = [copy.deepcopy(digits) for _ in range(3)]
    for model, seed in zip(models, (3, 3, 4), strict=True):
        zoo.inject_outliers(model, zoo.Outliers(seed=seed))
    same, again, other = (m.transformer_blocks[0].attn1.to_q.weight for m in models)
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


def test_a_model_without_adaln_zero_is_refused() -> None:
    model = DiTTransformer2DModel(2, 8, 1, 1, num_layers=1, sample_size=8, norm_type="ada_norm_zero")
    model.register_to_config(norm_type="layer_norm")
    with pytest.raises(BadModel, match="layer_norm"):
        zoo.inject_outliers(model, zoo.Outliers())
