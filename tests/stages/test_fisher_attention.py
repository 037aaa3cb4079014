"""The stage: that errors of both products get less, what it leaves for ``ranges``, and what it refuses."""

from dataclasses import replace

import jobs
import pytest
import studies
import torch
import torch.nn.functional as F

from dither.errors import BadRecipe, BadValue
from dither.nn.attention import products_of
from dither.numerics import act_quantize
from dither.spec import Act, Int
from dither.stages import Assign, Attention, FisherAttention, Ranges, Regions, Rtn, TimeGroups, attention_samples
from dither.stages import fisher_attention as stage
from dither.stages.watching import spread

FEW = FisherAttention(calls=4, steps=12, samples=3)
PLAIN = Assign(weight=Int(8), act=Act(Int(8, False), True), adaln=Int(8))
NAME = "transformer_blocks.1.attn1"


def after(*stages, seed: int = 0, store=None):
    return jobs.run(stages, jobs.pipeline().transformer, seed=seed, store=store)


def promised(bits: int = 4, symmetric: bool = True, channels: bool = False, regions: bool = True, groups: int = 3):
    attention = Attention(bits, symmetric, probs=bits, static=True, channels=channels)
    return (PLAIN, attention, *((Regions(),) if regions else ()), TimeGroups(groups))


def errors(job, name: str, tables) -> tuple[float, float]:
    """Weighted errors of scores and of outputs, written once more: each picture by the row of its time."""
    spec = job.attention[name]
    chosen = attention_samples.picked(job, spread(len(job.calls), 4), 3)
    with torch.no_grad():
        samples = attention_samples.attention_samples(job, [name], chosen, "test")[name]
    scores = outputs = 0.0
    for s in samples:

        def rounded(part, x, row=s.row):
            act = spec.parts[part]
            table = {k.partition(".")[2]: t[row : row + 1] for k, t in tables.items() if k.startswith(f"{part}.")}
            if part == "probs":
                return act_quantize(x.reshape(-1, 1), act.grid, table).view_as(x)
            side = x.transpose(0, 1).flatten(1)
            return act_quantize(side, act.grid, table).view(x.shape[1], x.shape[0], -1).transpose(0, 1)

        q, k, v = (t.double().requires_grad_() for t in (s.q, s.k, s.v))
        z = (q @ k.mT * s.scale).detach().requires_grad_()
        a = z.softmax(-1)
        (g,) = torch.autograd.grad((a @ v * s.gradient.double()).sum(), z)
        gap = rounded("q", s.q) @ rounded("k", s.k).mT * s.scale - z.detach()
        scores += float((g.square() * gap.square()).sum())
        gap = rounded("probs", a.detach().float()) @ rounded("v", s.v) - (a @ v).detach()
        outputs += float((s.gradient.square() * gap.square()).sum())
    return scores, outputs


@pytest.mark.parametrize(
    "front",
    [promised(), promised(symmetric=False, regions=False), promised(channels=True), promised(groups=1)],
    ids=["regions", "one region", "channels of v", "all times"],
)
def test_the_weighted_errors_of_both_products_get_less(front):
    job = after(*front, FEW)
    found = dict(job.tables)
    assert set(found) == set(job.attention)
    plain = after(*front, Rtn(), Ranges())
    for name in job.attention:
        full = {f"{p}.{k}": t for p in ("q", "k", "v", "probs") for k, t in _stored(plain, name, p).items()}
        assert {k: t.shape for k, t in full.items()} == {k: t.shape for k, t in found[name].items()}
        before, behind = errors(job, name, full), errors(job, name, found[name])
        assert behind[0] < 0.9 * before[0]
        assert behind[1] < 0.95 * before[1]


def _stored(job, name, part):
    return dict(getattr(products_of(job.model.get_submodule(name)), part).named_buffers())


def test_what_is_found_is_what_runs_and_the_model_is_as_before():
    job, plain = after(*promised(), FEW), after(*promised())
    assert products_of(job.model.get_submodule(NAME)) is None
    call = job.calls[0]
    with torch.no_grad():
        assert torch.equal(job.model(*call.args, **call.kwargs)[0], plain.model(*call.args, **call.kwargs)[0])
        tables = dict(job.tables)
        Rtn().run(job)
        Ranges().run(job)
    for name, table in tables.items():
        made = products_of(job.model.get_submodule(name))
        for key, tensor in table.items():
            assert torch.equal(made.get_buffer(key), tensor)
        assert table["q.scale"].shape == (3, 2)


def test_the_upper_region_ends_where_it_is_told():
    """Its steps are those of 1 / (2^3 - 1) at 4 bits, wherever it begins."""
    job = after(*promised(), replace(FEW, top=1.0))
    for table in job.tables.values():
        torch.testing.assert_close(table["probs.upper"], torch.full((3, 1), 1 / 7))


def test_samples_are_what_attention_reads_and_gives():
    job = after(*promised())
    chosen = attention_samples.picked(job, [0, 1], 2)
    assert all(len(v) <= 4 for v in chosen.values())
    with torch.no_grad():
        found = attention_samples.attention_samples(job, [NAME], chosen, "test")[NAME]
    assert len(found) == sum(map(len, chosen.values()))
    s, attention = found[0], job.model.get_submodule(NAME)
    seen = []
    hook = attention.to_out[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    index, (first, *_) = next(iter(chosen.items()))
    with torch.no_grad():
        call = job.calls[index]
        job.model(*call.args, **call.kwargs)
    hook.remove()
    want = seen[0][first].view(s.q.shape[1], s.q.shape[0], -1).transpose(0, 1)
    torch.testing.assert_close(F.scaled_dot_product_attention(s.q[None], s.k[None], s.v[None])[0], want)


def test_attentions_that_do_not_fit_memory_together_are_sampled_apart(monkeypatch):
    together = after(*promised(), FEW).tables
    monkeypatch.setattr(stage, "BYTES", 1)
    apart = after(*promised(), FEW).tables
    for name, table in together.items():
        assert all(torch.equal(t, apart[name][key]) for key, t in table.items())


def test_an_interrupted_search_goes_on():
    whole, store = after(*promised(), FEW), studies.Kept(1)
    with pytest.raises(KeyboardInterrupt):
        after(*promised(), FEW, store=store)
    store.most = 10**9
    resumed = after(*promised(), FEW, store=store)
    for name, table in whole.tables.items():
        assert all(torch.equal(t, resumed.tables[name][key]) for key, t in table.items())
    done = after(*promised())
    done.store, done.record = store, None  # a finished one needs no data
    with torch.no_grad():
        FEW.run(done)
    assert set(done.tables) == set(whole.tables)


def test_dynamic_factors_are_rounded_as_they_will_be():
    """v by channels is stored, whatever the others are."""
    job = after(PLAIN, Attention(4, True, channels=True), TimeGroups(2), FEW)
    assert {tuple(table) for table in job.tables.values()} == {("v.scale",)}


@pytest.mark.parametrize(
    ("front", "one", "told"),
    [
        ((PLAIN,), FEW, "no attention has static ranges"),
        ((PLAIN, Attention(8)), FEW, "no attention has static ranges"),
        ((*promised(), FEW), FEW, "another stage has found the ranges of attention"),
        (promised(), replace(FEW, samples=0), "fisher-attention.samples 0: must be at least 1"),
        (promised(), replace(FEW, top=1.5), "fisher-attention.top 1.5"),
        (promised(), replace(FEW, rounds=101), "fisher-attention.rounds 101"),
        (promised(), replace(FEW, high=0.001), "fisher-attention.high"),
    ],
)
def test_what_makes_no_sense_is_refused(front, one, told):
    with pytest.raises(BadRecipe, match=told):
        after(*front, one)


def test_gradients_that_are_nothing_are_refused():
    job = after(*promised())
    for name in job.attention:
        torch.nn.init.zeros_(job.model.get_submodule(name).to_out[0].weight)
    with torch.no_grad(), pytest.raises(BadValue, match=r"fisher-attention: the gradients at attention .* are 0"):
        FEW.run(job)
