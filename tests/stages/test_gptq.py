"""GPTQ as a stage: errors it lowers, groups it keeps, biases, walks, interruptions, and fields that make no sense."""

import jobs
import pytest
import studies
import torch

import dither
from dither.errors import BadModel, BadRecipe, BadValue
from dither.models.base import linear_at
from dither.numerics import layout
from dither.spec import Act, Bits, Codebook, Int, Recipe
from dither.stages import Assign, Clip, Gptq, Rtn, SplitLowRank, Widen, describe

W3 = Assign(weight=Int(3, False), act=Act(Int(8, False)), adaln=Int(4, False))
GROUPS = Assign(weight=Int(3, False, 8), act=Act(Int(8, False, 8)), adaln=Int(4, False, 8))
FC2 = "transformer_blocks.1.ff.net.2"


def ran(*stages, store=None):
    pipe = jobs.pipeline()
    job = jobs.job(pipe.transformer)
    job.store = store
    with torch.no_grad():
        for stage in stages:
            stage.run(job)
    return job


def error(job) -> float:
    """Mean squared error of the model's answers."""
    return float((jobs.outputs(job.model) - jobs.outputs(jobs.pipeline().transformer)).square().mean())


@pytest.mark.parametrize("assign", [W3, GROUPS], ids=["per channel", "groups"])
@pytest.mark.parametrize(
    "gptq",
    [
        Gptq(),
        Gptq(act_order=True),
        Gptq(walk=False),
        Gptq(by_site=True),
        Gptq(bias=False),
        Gptq(clip=8),
    ],
    ids=["plain", "ordered", "one pass", "by site", "no bias", "clipped"],
)
def test_the_model_answers_better_than_with_plain_rounding(assign, gptq):
    assert error(ran(assign, gptq)) < 0.6 * error(ran(assign, Rtn()))


def test_layers_have_the_groups_that_they_were_promised():
    job = ran(GROUPS, Gptq())
    plan = job.finish()
    for name, spec in plan.layers.items():
        layer = linear_at(job.model, name)
        assert layer.spec == spec
        want = layout(spec.weight, layer.shape)
        assert {k: tuple(t.shape) for k, t in layer.stored().items()} == {k: s for k, (s, _) in want.items()}


def test_what_it_found_is_noted():
    job = ran(GROUPS, Gptq())
    for name in job.specs:
        facts = job.notes[name]["gptq"]
        assert facts["damp"] == 0.01
        assert facts["rows"] > 0
        assert 0 < facts["error"] < 0.2


def test_a_hessian_that_is_singular_is_damped_and_told():
    pipe = jobs.pipeline()
    job = jobs.job(pipe.transformer)
    pipe.transformer.transformer_blocks[1].ff.net[0].proj.weight.data[5] = 0  # a channel behind GELU that is always 0
    pipe.transformer.transformer_blocks[1].ff.net[0].proj.bias.data[5] = 0
    with torch.no_grad():
        for stage in (Assign(weight=Int(4)), Gptq(bias=False)):
            stage.run(job)
    assert job.notes[FC2]["gptq"]["rank_deficient"]
    assert torch.isfinite(jobs.outputs(job.model)).all()


def test_the_bias_keeps_the_mean_output():
    """With a wide damping of nothing else, the mean of each layer's output error over its calibration inputs is 0."""
    job = ran(Assign(weight=Int(2), adaln=None), Gptq(walk=False, damp=0.1))
    plain = jobs.pipeline().transformer
    seen = []
    name = "transformer_blocks.0.attn1.to_q"
    handle = linear_at(plain, name).register_forward_pre_hook(lambda m, args: seen.append(args[0].reshape(-1, 16)))
    jobs.outputs(plain)
    handle.remove()
    x = torch.cat(seen)
    with torch.no_grad():
        gap = linear_at(job.model, name)(x) - linear_at(plain, name)(x)
    assert float(gap.mean(0).abs().max()) < 1e-3
    assert float(gap.abs().max()) > 0.05


def test_without_the_switch_biases_stay():
    job, plain = ran(W3, Gptq(bias=False)), jobs.pipeline().transformer
    for name in job.specs:
        assert torch.equal(linear_at(job.model, name).bias, linear_at(plain, name).bias)


def test_blocks_are_walked_behind_rounded_ones(monkeypatch):
    """The second block's Hessians are those of the quantized first block; in one pass they are full precision's."""
    from dither.stages import gptq

    found = {}
    plain = gptq.round_columns

    def watch(w, h, *rest):
        found.setdefault("h", []).append(h)
        return plain(w, h, *rest)

    monkeypatch.setattr(gptq, "round_columns", watch)
    coarse = Assign(weight=Int(2), adaln=None)
    walked = ran(coarse, Gptq(bias=False))
    first, found["h"] = found["h"], []
    assert len(first) == len(walked.specs)
    ran(coarse, Gptq(bias=False, walk=False))
    assert torch.allclose(first[0], found["h"][0], rtol=1e-4)  # the first block's q
    assert not torch.allclose(first[6], found["h"][6], rtol=1e-2)  # the second block's


def test_only_integer_weights_are_taken_and_rtn_does_the_rest():
    job = ran(Assign(weight=Codebook(2, 16), adaln=Int(4)), Gptq(), Rtn())
    plan = job.finish()
    assert {"gptq" in job.notes.get(n, {}) for n, s in plan.layers.items() if isinstance(s.weight, Codebook)} == {False}
    assert all("gptq" in job.notes[n] for n, s in plan.layers.items() if isinstance(s.weight, Int))


def test_a_branch_is_taken_out_before():
    job = ran(GROUPS, SplitLowRank(rank=2, rounds=2), Gptq(), Rtn())
    job.finish()
    assert error(job) < error(ran(GROUPS, Gptq()))


def test_widths_that_change_over_time_are_refused():
    widen = Widen(layers="ff", ranges=2, at=(0,), weight=8)
    with pytest.raises(BadRecipe, match=r"gptq: layer '.*ff.*' changes its width over time"):
        ran(Assign(weight=Int(4)), widen, Gptq())


def test_too_few_rows():
    with pytest.raises(BadValue, match=r"has seen \d+ calibration rows, and gptq\.rows asks for 100000"):
        ran(W3, Gptq(rows=100000))


def test_a_model_that_cannot_be_walked_is_told_how():
    job = jobs.job(jobs.pipeline().transformer)
    job.adapter = type("Flat", (), {**{k: getattr(job.adapter, k) for k in dir(job.adapter) if k[0] != "_"}})()
    job.adapter.blocks = lambda model: []
    W3.run(job)
    with torch.no_grad(), pytest.raises(BadModel, match=r"gptq: .*gptq\.walk=false"):
        Gptq().run(job)


@pytest.mark.parametrize(
    ("field", "value"),
    [("damp", -0.1), ("damp", 2.0), ("block", 0), ("clip", 0), ("smallest", 0.0), ("power", 0.0), ("rows", 0),
     ("levels", -1), ("memory", 0.0), ("time_weights", (-1.0,))],
)  # fmt: skip
def test_fields_that_make_no_sense_are_named(field, value):
    with pytest.raises(BadRecipe, match=rf"gptq\.{field}"):
        ran(W3, Gptq(**{field: value}))


@pytest.mark.parametrize("after", [1, 5, 9, 20])
def test_an_interrupted_run_goes_on_to_the_same_bits_and_notes(after):
    whole = ran(GROUPS, Gptq())
    store = studies.Kept(after)
    with pytest.raises(KeyboardInterrupt):
        ran(GROUPS, Gptq(), store=store)
    store.most = 10**9
    again = ran(GROUPS, Gptq(), store=store)
    assert jobs.same_tensors(again.model, whole.model)
    assert again.notes == whole.notes


def test_a_range_search_before_is_not_silently_thrown_away():
    with pytest.raises(BadRecipe, match=r"gptq\.clip"):
        ran(W3, Clip(outputs=False), Gptq())


def test_through_the_api_it_is_packed_and_reloads(tmp_path):
    pipe = jobs.pipeline()
    recipe = Recipe("mine", "", Bits(3, 8), describe((GROUPS, Gptq(act_order=True), Rtn())))
    dither.quantize(pipe, recipe, calibration=dither.Calibration(samples=10, steps=3))
    want = jobs.outputs(pipe.transformer)
    dither.save(pipe, tmp_path / "out")
    assert torch.equal(jobs.outputs(dither.load(tmp_path / "out").transformer), want)


def test_behind_a_stage_that_has_rounded_all_it_is_refused():
    with pytest.raises(BadRecipe, match="put 'gptq' before it"):
        ran(W3, Rtn(), Gptq())


def test_one_range_for_a_whole_tensor_is_not_searched():
    with pytest.raises(BadRecipe, match=r"gptq\.clip 5: layer '.*' has one range for"):
        ran(Assign(weight=Int(4, True, -1), adaln=None), Gptq(clip=5))
    ran(Assign(weight=Int(4, True, -1), adaln=None), Gptq()).finish()


def test_a_run_that_has_all_layers_walks_no_block(monkeypatch):
    store = studies.Kept()
    whole = ran(GROUPS, Gptq(), store=store)
    monkeypatch.setattr("dither.stages.gptq._walked", lambda job: pytest.fail("a block was walked"))
    again = ran(GROUPS, Gptq(), store=store)
    assert jobs.same_tensors(again.model, whole.model)
    assert again.notes == whole.notes
