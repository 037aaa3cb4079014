"""Powers of two or uniform steps: the choice follows the likelihood ratio of what the softmax gives."""

import jobs
import pytest
import torch

from dither.errors import BadRecipe, BadValue
from dither.spec import Act, AttentionSpec, Int, Log2
from dither.stages import Assign, Attention, Log2OrUniform
from dither.stages import log2 as module
from dither.stages.likelihood import power_law_ratio

PLAIN = Assign(weight=Int(8), act=Act(Int(8)))
NAMES = [f"transformer_blocks.{i}.attn1" for i in range(2)]


def after(*stages):
    return jobs.run((PLAIN, *stages), jobs.pipeline().transformer)


def probabilities(name: str) -> torch.Tensor:
    model, seen = jobs.pipeline().transformer, []
    job = jobs.job(model)
    own = {n: job.rounded_attention(n, AttentionSpec(), {}) for n in NAMES}[name]  # all, for the last bit's sake
    own.probs.register_forward_hook(lambda _, args, y: seen.append(args[0].flatten()))
    jobs.outputs(model)
    return torch.cat(seen)


def test_the_noted_ratio_is_that_of_what_the_softmax_gives(monkeypatch):
    seen = []

    def spy(x, quantile):
        seen.append((x, power_law_ratio(x, quantile)))
        return seen[-1][1]

    monkeypatch.setattr(module, "power_law_ratio", spy)
    job = after(Attention(None, probs=8), Log2OrUniform())
    for name, (x, found) in zip(NAMES, seen, strict=True):
        every = probabilities(name)
        assert bool(torch.isin(x, every).all())
        assert float(x.mean()) == pytest.approx(float(every.mean()), rel=1e-3)  # whole rows
        assert job.notes[name]["log2"]["ratio"] == pytest.approx(found.ratio / found.count, rel=1e-3)
        assert job.attention[name].probs == Act(Log2(8) if found.ratio > 0 else Int(8, False))


@pytest.mark.parametrize("static", [False, True])
def test_each_attention_takes_its_own(monkeypatch, static):
    ratios = iter([power_law_ratio(1 / torch.linspace(0.001, 1, 999)), power_law_ratio(torch.linspace(0.9, 1, 999))])
    monkeypatch.setattr(module, "power_law_ratio", lambda x, quantile: next(ratios))
    job = after(Attention(8, probs=6, static=static), Log2OrUniform())
    first, second = (job.attention[name] for name in NAMES)
    assert first.probs == Act(Log2(6), static=static)
    assert second.probs == Act(Int(6, False), static=static)
    assert first.q == second.q
    assert torch.equal(jobs.outputs(job.model), jobs.outputs(jobs.pipeline().transformer))  # nothing is left of looking


def test_nothing_happens_where_no_probabilities_are_integers():
    job = after(Attention(8), Log2OrUniform())
    assert job.attention == after(Attention(8)).attention
    assert not job.notes


def test_probabilities_without_a_law_are_named(monkeypatch):
    def refuse(x, quantile):
        raise BadValue("no law can be fitted")

    monkeypatch.setattr(module, "power_law_ratio", refuse)
    with pytest.raises(BadValue, match=r"log2: the probabilities of attention 'transformer_blocks\.0\.attn1': no law"):
        after(Attention(None, probs=8), Log2OrUniform())


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        (Log2OrUniform(rows=0), r"log2\.rows 0"),
        (Log2OrUniform(quantile=1.0), r"log2\.quantile 1\.0"),
    ],
)
def test_fields_that_make_no_sense_are_named(stage, says):
    with pytest.raises(BadRecipe, match=says):
        after(Attention(probs=8), stage)
