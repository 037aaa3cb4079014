"""Moments of inputs: against sums by hand, shared where inputs are, weighted by time, and in closed form for modulation."""

import jobs
import pytest
import torch

from dither.errors import BadRecipe, BadValue
from dither.models.base import linear_at
from dither.numerics import dynamic_grid, fake_quantize
from dither.spec import Act, Int
from dither.stages import Assign, Rotate, Smooth
from dither.stages.hessian import Gather, chunks

BLOCK = "transformer_blocks.0."
QKV = [BLOCK + f"attn1.to_{x}" for x in "qkv"]
ADALN = BLOCK + "norm1.linear"
PLAIN = Assign(weight=Int(4), adaln=Int(4))
QUANTIZED = Assign(weight=Int(4), act=Act(Int(4, False)), adaln=Int(4))


def prepared(*stages):
    return jobs.run(stages, jobs.pipeline().transformer)


def inputs(job, name):
    """Everything that a layer reads, (n, K), and the noise level of each row."""
    seen, levels, now = [], [], {}

    def hook(module, args):
        x = args[0]
        seen.append(x.reshape(-1, x.shape[-1]))
        levels.append(now["level"].repeat_interleave(len(seen[-1]) // len(now["level"])))

    handle = linear_at(job.model, name).register_forward_pre_hook(hook)
    with torch.no_grad():
        for call in job.calls:
            now["level"] = job.adapter.noise_level(job.model, call)
            job.model(*call.args, **call.kwargs)
    handle.remove()
    return torch.cat(seen), torch.cat(levels)


def close(a, b):
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_moments_are_means_over_every_row_of_every_call():
    job = prepared(PLAIN)
    found = Gather("gptq").observed(job, QKV, "")
    x, _ = inputs(job, QKV[0])
    m = found[QKV[0]]
    assert m.rows == len(x) == sum(c.args[0].shape[0] for c in job.calls) * 16  # both halves of guidance, every token
    assert close(m.h, x.T @ x / len(x))
    assert close(m.seen, x.mean(0))
    assert close(m.plain, x.mean(0))


def test_conditional_and_unconditional_rows_are_both_seen():
    job = prepared(PLAIN)
    branches = torch.cat([job.adapter.branch(job.model, c) for c in job.calls])
    assert 0 < int(branches.sum()) < len(branches)
    assert Gather("gptq").observed(job, QKV, "")[QKV[0]].rows == 16 * len(branches)


def test_readers_of_one_tensor_share_one_hessian_if_they_see_it_alike():
    job = prepared(QUANTIZED)
    found = Gather("gptq").observed(job, [*QKV, BLOCK + "ff.net.2"], "")
    assert found[QKV[0]] is found[QKV[1]] is found[QKV[2]]
    assert found[QKV[0]] is not found[BLOCK + "ff.net.2"]
    other = job.specs[QKV[1]]
    job.specs[QKV[1]] = type(other)(other.weight)
    again = Gather("gptq").observed(job, QKV, "")
    assert again[QKV[0]] is again[QKV[2]] is not again[QKV[1]]


def test_inputs_are_as_the_layer_will_see_them():
    job = prepared(QUANTIZED)
    m = Gather("gptq").observed(job, QKV, "")[QKV[0]]
    x, _ = inputs(job, QKV[0])
    act = job.specs[QKV[0]].act.grid
    seen = fake_quantize(x, act, *dynamic_grid(x, act))
    assert close(m.h, seen.T @ seen / len(x))
    assert close(m.seen, seen.mean(0))
    assert close(m.plain, x.mean(0))
    assert not close(m.seen, m.plain)
    plain = Gather("gptq", quantized=False).observed(job, QKV, "")[QKV[0]]
    assert close(plain.h, x.T @ x / len(x))


def test_online_transforms_come_before():
    job = prepared(Smooth(online=True), Rotate(), PLAIN)
    name = BLOCK + "ff.net.2"
    m = Gather("gptq").observed(job, [name], "")[name]
    x, _ = inputs(job, name)
    turned = linear_at(job.model, name).transform(x)
    assert close(m.h, turned.T @ turned / len(x))
    assert not close(m.h, x.T @ x / len(x))


def test_ranges_of_the_noise_level_weigh_what_they_are_told():
    job = prepared(PLAIN)
    m = Gather("gptq", weights=(1.0, 3.0)).observed(job, QKV, "")[QKV[0]]
    x, level = inputs(job, QKV[0])
    w = torch.where(level < 0.5, 1.0, 3.0)[:, None]
    assert close(m.h, (x * w).T @ x / w.sum())
    assert close(m.seen, (x * w).sum(0) / w.sum())
    high = Gather("gptq", weights=(0.0, 1.0)).observed(job, QKV, "")[QKV[0]]
    assert close(high.h, x[level >= 0.5].T @ x[level >= 0.5] / int((level >= 0.5).sum()))


def test_modulation_is_summed_in_closed_form_over_every_class_without_a_call():
    job = prepared(PLAIN)
    job.model.register_forward_pre_hook(lambda module, args: pytest.fail("the model was called"))
    m = Gather("gptq", levels=8).observed(job, [ADALN], "")[ADALN]
    assert m.rows == 8 * 11  # ten classes and the null class
    norm = job.model.transformer_blocks[0].norm1
    rows, often = [], []
    for level in (torch.arange(8) + 0.5) / 8:
        for label in range(11):
            rows.append(norm.silu(norm.emb(level[None] * 1000, torch.tensor([label]), hidden_dtype=torch.float32))[0])
            often.append(10.0 if label == 10 else 1.0)  # guidance asks for the null class every other time
    assert float(torch.cat([job.adapter.branch(job.model, c) for c in job.calls]).float().mean()) == 0.5
    x, w = torch.stack(rows).detach(), torch.tensor(often)[:, None]
    assert close(m.h, (x * w).T @ x / w.sum())
    assert close(m.seen, (x * w).sum(0) / w.sum())


def test_closed_form_agrees_with_what_calls_show():
    job = prepared(PLAIN)
    closed = Gather("gptq", levels=32).observed(job, [ADALN], "")[ADALN]
    measured = Gather("gptq").observed(job, [ADALN], "")[ADALN]
    w = job.dense(ADALN).float()
    size = (w @ (closed.h - measured.h) * w).sum() / (w @ measured.h * w).sum()
    assert float(size.abs()) < 0.2


def test_too_few_rows_name_the_layer_and_the_field():
    with pytest.raises(BadValue, match=r"layer 'transformer_blocks\.0\.attn1\.to_q' has seen \d+ .*gptq\.rows"):
        Gather("gptq", least=10**6).observed(prepared(PLAIN), QKV, "")


def test_noise_levels_that_weigh_nothing_are_told():
    job = prepared(PLAIN)
    with pytest.raises(BadValue, match=r"gptq\.time_weights weighs 0"):
        Gather("gptq", weights=(1.0, *(0.0,) * 999)).observed(job, QKV, "")


@pytest.mark.parametrize("bad", [(-1.0,), (0.0, 0.0), (float("nan"),), (float("inf"),)])
def test_weights_that_make_no_sense(bad):
    with pytest.raises(BadRecipe, match=r"gptq\.time_weights"):
        Gather("gptq", weights=bad).check()


def test_memory_is_kept_by_passing_more_than_once():
    names = [*QKV, BLOCK + "attn1.to_out.0", BLOCK + "ff.net.0.proj", BLOCK + "ff.net.2"]
    job = prepared(PLAIN)
    small = 3 * 16 * 16 * 4 / (1 << 30)  # three Hessians of 16 channels
    whole, found = next(chunks(job, Gather("gptq"), names, 1.0, "", bool))
    assert whole == tuple(names)
    parts = []
    for part, some in chunks(job, Gather("gptq"), names, small, "", bool):
        parts.append(part)
        assert all(close(some[name].h, found[name].h) for name in part)
    assert parts == [tuple(names[:5]), tuple(names[5:])]  # q, k, v have one; fc2's fills a pass


def test_moments_are_gone_when_the_next_are_asked_for_and_only_made_where_something_lacks():
    names = [QKV[0], BLOCK + "ff.net.2"]
    held = []
    for part, found in chunks(prepared(PLAIN), Gather("gptq"), names, 1e-9, "", lambda part: part[0] == QKV[0]):
        assert not held or not held[-1]
        assert bool(found) == (part == (QKV[0],))
        held.append(found)
    assert len(held) == 2


def test_a_sampler_without_guidance_never_asks_for_the_null_class(monkeypatch):
    job = prepared(PLAIN)
    guided = Gather("gptq", levels=4).observed(job, [ADALN], "")[ADALN]
    monkeypatch.setattr(type(job.adapter), "branch", lambda self, model, call: torch.zeros(2, dtype=torch.int64))
    alone = Gather("gptq", levels=4).observed(job, [ADALN], "")[ADALN]
    norm = job.model.transformer_blocks[0].norm1
    rows = [
        norm.silu(norm.emb(level[None] * 1000, torch.tensor([label]), hidden_dtype=torch.float32))[0]
        for level in (torch.arange(4) + 0.5) / 4
        for label in range(10)
    ]
    x = torch.stack(rows).detach()
    assert close(alone.h, x.T @ x / len(x))
    assert not close(alone.h, guided.h)
