"""The stage: which layers it searches, what it leaves for others, and that what it minimizes gets less."""

from dataclasses import replace

import jobs
import pytest
import studies
import torch

from dither.errors import BadRecipe, BadValue
from dither.numerics import act_quantize, decode, encode, encode_int
from dither.spec import PER_TENSOR, Act, Codebook, Int, TwoRegion
from dither.stages import Assign, Clip, FisherScales, Ranges, Rotate, Rtn, Smooth, fisher
from dither.stages.gradients import Passes

FEW = FisherScales(calls=4, rows=120, steps=12, rounds=2)
STATIC = Assign(weight=Int(3), act=Act(Int(4), True), adaln=Int(4), time_groups=3, branches=2)
FC1, FC2 = "transformer_blocks.0.ff.net.0.proj", "transformer_blocks.0.ff.net.2"
QUERY = "transformer_blocks.1.attn1.to_q"


def after(*stages, seed: int = 0, store=None):
    return jobs.run(stages, jobs.pipeline().transformer, seed=seed, store=store)


def weighted(job, name: str, sample) -> float:
    """sum g^2 (z^ - z)^2 of a finished layer, each token by the row of its time."""
    module = job.model.get_submodule(name)
    act, w = module.spec.act, decode(module.stored(), module.spec.weight, module.shape)
    x = sample.x
    if act is not None:
        table = {k.removeprefix("act_"): t for k, t in module.named_buffers() if k.startswith("act_")}
        x = act_quantize(x, act.grid, {k: t[sample.rows if act.rows > 1 else 0] for k, t in table.items()})
    plain = jobs.pipeline().transformer.get_submodule(name).weight.detach()
    return float((sample.weight * (x @ w.T - sample.x @ plain.T).square()).double().sum())


@pytest.mark.parametrize(
    "act",
    [Act(Int(4), True), Act(Int(4, False, 8), True), Act(TwoRegion(4, signed=True), True)],
    ids=["symmetric", "groups", "regions"],
)  # fmt: skip
def test_the_weighted_error_of_every_layer_gets_less(act):
    assign = replace(STATIC, act=act)
    with torch.no_grad():
        samples = Passes("test", 4, 120).samples(after(assign), list(after(assign).specs))
    plain, job = after(assign, Rtn(), Ranges()), after(assign, FEW, Rtn(), Ranges())
    shares = {n: weighted(job, n, s) / weighted(plain, n, s) for n, s in samples.items()}
    assert max(shares.values()) < 1.02  # ranges of ``Ranges`` are those behind rounded weights: nearly the same start
    assert sum(shares.values()) / len(shares) < 0.8


def test_what_is_found_is_what_runs():
    job = after(STATIC, FEW)
    assert set(job.grids) == set(job.specs)
    static = {n for n, s in job.specs.items() if s.act is not None}
    assert set(job.tables) == static != set(job.specs)
    grids, tables, dense = dict(job.grids), dict(job.tables), {n: job.dense(n).clone() for n in job.specs}
    with torch.no_grad():
        Rtn().run(job)
        Ranges().run(job)
    for name, (scale, zero) in grids.items():
        module = job.model.get_submodule(name)
        want = encode_int(dense[name], job.specs[name].weight, scale, zero)
        assert torch.equal(module.get_buffer("weight_codes"), want["codes"])
        assert not torch.equal(scale, encode(dense[name], job.specs[name].weight)["scale"])
    for name, table in tables.items():
        assert table["act_scale"].shape == (6, 1)
        assert torch.equal(job.model.get_submodule(name).get_buffer("act_scale"), table["act_scale"])
        assert len(set(table["act_scale"].flatten().tolist())) > 1
    assert job.finish().layers


def test_one_searched_layer_brings_the_denoiser_closer():
    """One at a time: in a random model of width 16, errors of clipping in all layers add up."""
    assign, want = replace(STATIC, weight=Int(8)), jobs.outputs(jobs.pipeline().transformer)
    tables = after(assign, replace(FEW, weights=False, rows=480)).tables
    errors = {}
    for key, some in {"plain": {}, "fc1": {FC1: tables[FC1]}, "fc2": {FC2: tables[FC2]}}.items():
        job = after(assign)
        job.tables |= some
        with torch.no_grad():
            Rtn().run(job)
            Ranges().run(job)
        errors[key] = float((jobs.outputs(job.model) - want).square().mean())
    assert max(errors["fc1"], errors["fc2"]) < 0.9 * errors["plain"]


@pytest.mark.parametrize("fmt", [Int(3, group=PER_TENSOR), Int(3, False, 8)], ids=str)
def test_scales_for_whole_tensors_and_groups(fmt):
    job = after(replace(STATIC, weight=fmt), FEW, Rtn(), Ranges())
    for name, (scale, _) in job.grids.items():
        if not name.endswith("norm1.linear"):
            assert torch.equal(job.model.get_submodule(name).get_buffer("weight_scale"), scale)
    assert job.finish().layers


def test_dynamic_inputs_are_not_searched_and_weights_see_them_quantized():
    dynamic = replace(STATIC, act=Act(Int(3)), time_groups=1, branches=1)
    job, exact = after(dynamic, FEW), after(replace(dynamic, act=None), FEW)
    assert not job.tables
    assert set(job.grids) == set(exact.grids) == set(job.specs)
    assert not torch.equal(job.grids[FC2][0], exact.grids[FC2][0])


def test_one_side_alone():
    both, weights, inputs = (after(STATIC, s) for s in (FEW, replace(FEW, inputs=False), replace(FEW, weights=False)))
    assert not weights.tables
    assert not inputs.grids
    assert set(weights.grids) == set(both.grids)
    assert set(inputs.tables) == set(both.tables)
    errors = [j.notes[FC2]["fisher_scales"]["error"] for j in (both, weights, inputs)]
    assert errors[0] < min(errors[1:]) <= max(errors[1:]) < 1


def test_inputs_alone_go_by_the_weights_that_a_stage_before_has_found():
    only = replace(FEW, weights=False)
    plain, other = after(STATIC, only), after(STATIC)
    other.grids |= {n: (encode(other.dense(n), s.weight)["scale"] * 0.3, None) for n, s in other.specs.items()}
    with torch.no_grad():
        only.run(other)
    assert any(not torch.equal(plain.tables[n]["act_scale"], other.tables[n]["act_scale"]) for n in plain.tables)


def test_other_formats_and_finished_layers_are_left_alone():
    other = Assign(weight=Codebook(2, 8), act=Act(Int(4), True), adaln=Int(4))
    job = after(other, FEW)
    assert all(n.endswith("norm1.linear") for n in job.grids)
    assert FC2 in job.tables  # its inputs are searched with the weight as it is

    job = after(STATIC)
    job.commit(QUERY, lambda: encode(job.dense(QUERY), job.specs[QUERY].weight))
    with torch.no_grad():
        FEW.run(job)
    assert QUERY not in job.grids
    assert QUERY not in job.tables
    assert FC2 in job.grids


@pytest.mark.parametrize("first", [Rotate(), Smooth(online=True)], ids=["rotated", "scaled"])
def test_online_transforms_are_seen(first):
    job = after(first, STATIC, FEW)
    assert all(job.notes[n]["fisher_scales"]["error"] < 1.0001 for n in job.specs)
    assert job.notes[FC2]["fisher_scales"]["error"] < 0.95
    with torch.no_grad():
        Rtn().run(job)
        Ranges().run(job)
    assert job.finish().layers


def test_at_the_quantized_point_other_scales_are_found():
    plain, job = after(STATIC, FEW), after(STATIC, replace(FEW, quantized=True))
    assert set(job.grids) == set(plain.grids)
    assert any(not torch.equal(job.grids[n][0], plain.grids[n][0]) for n in job.grids)
    assert job.notes[FC2]["fisher_scales"]["error"] < 1


def test_errors_count_by_what_they_do_to_the_final_picture(monkeypatch):
    """Where only one time group counts, its table alone is found as ever, and the weights are those that serve it."""
    seen = []

    def weigh(job, calls):
        seen.append(job)
        return [(job.rows(call) == 5).float() for call in calls]

    monkeypatch.setattr(fisher, "row_weights", weigh)
    only = replace(FEW, weights=False, trajectory=True)
    plain, job = after(STATIC, replace(only, trajectory=False)), after(STATIC, only)
    assert seen == [job]
    start = after(STATIC, replace(only, steps=1, low=1.0, high=1.5))  # the full range is its only candidate
    for name, table in job.tables.items():
        scale = table["act_scale"]
        assert torch.equal(scale[5], plain.tables[name]["act_scale"][5])
        assert torch.equal(scale[:5], start.tables[name]["act_scale"][:5])
    assert any(not torch.equal(t["act_scale"], plain.tables[n]["act_scale"]) for n, t in job.tables.items())


def test_what_nothing_tells_the_trajectory_of_is_refused():
    with pytest.raises(BadRecipe, match="a network alone has none"):
        after(STATIC, replace(FEW, trajectory=True))


def test_a_time_group_that_no_call_fell_into_has_a_table():
    job = after(replace(STATIC, time_groups=8, branches=1), FEW, Rtn(), Ranges())
    rows = {r for c in job.calls for r in job.rows(c).tolist()}
    assert len(rows) < 8
    scale = job.model.get_submodule(FC2).get_buffer("act_scale")
    assert scale.shape == (8, 1)
    empty = sorted(set(range(8)) - rows)
    assert len(set(scale[empty].flatten().tolist())) == 1


def test_one_seed_gives_one_result():
    first, again, other = after(STATIC, FEW), after(STATIC, FEW), after(STATIC, FEW, seed=1)
    assert all(torch.equal(first.grids[n][0], again.grids[n][0]) for n in first.grids)
    assert all(torch.equal(first.tables[n]["act_scale"], again.tables[n]["act_scale"]) for n in first.tables)
    assert first.notes == again.notes != other.notes


def test_an_interrupted_search_goes_on():
    whole = after(STATIC, FEW)
    store = studies.Kept(3)
    with pytest.raises(KeyboardInterrupt):
        after(STATIC, FEW, store=store)
    store.most = 10**9
    resumed = after(STATIC, FEW, store=store)
    assert resumed.notes == whole.notes
    assert all(torch.equal(resumed.grids[n][0], whole.grids[n][0]) for n in whole.grids)
    done = jobs.job(jobs.pipeline().transformer)
    done.store, done.record = store, None  # a finished one needs no data
    for stage in (STATIC, FEW):
        stage.run(done)
    assert all(torch.equal(done.tables[n]["act_scale"], whole.tables[n]["act_scale"]) for n in whole.tables)
    assert done.notes == whole.notes


# --- what is refused


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"steps": 0}, r"fisher-scales\.steps 0: must be 1 to 1000"),
        ({"low": 0.0}, r"fisher-scales\.low 0: must be positive"),
        ({"high": 0.01}, r"fisher-scales\.high 0\.01: must be finite, and above low"),
        ({"rounds": 0}, r"fisher-scales\.rounds 0: must be 1 to 100"),
        ({"calls": 0}, r"fisher-scales\.calls 0: must be at least 1"),
        ({"rows": 0}, r"fisher-scales\.rows 0: must be at least 1"),
        ({"rows": 5}, r"fisher-scales\.rows 5: fewer than one for each of 6 clock rows"),
        ({"probes": 0}, r"fisher-scales\.probes 0: must be at least 1"),
        ({"weights": False, "inputs": False}, "no unfinished layer has an integer weight or static inputs"),
    ],
)
def test_bad_fields_are_named(fields, words):
    with pytest.raises(BadRecipe, match=words):
        after(STATIC, replace(FEW, **fields))


def test_ranges_that_another_stage_has_searched_are_refused():
    with pytest.raises(BadRecipe, match="another stage has searched the ranges of layer 'transformer_blocks"):
        after(STATIC, Clip(outputs=False), FEW)
    with pytest.raises(BadRecipe, match="another stage has searched the ranges of layer 'transformer_blocks"):
        after(STATIC, FEW, replace(FEW, weights=False))


def test_nothing_left_to_search_is_refused():
    with pytest.raises(BadRecipe, match="fisher-scales: no unfinished layer"):
        after(STATIC, Rtn(), FEW)


def test_inputs_without_candidates_are_refused_by_name():
    job = after(STATIC)
    job.specs[FC2] = replace(job.specs[FC2], act=Act(TwoRegion(4), True, 6))
    with pytest.raises(BadRecipe, match=rf"fisher-scales\.inputs: the inputs of layer '{FC2}' are two-region4"):
        FEW.run(job)


def test_vanishing_gradients_are_refused():
    job = after(STATIC)
    job.model.proj_out_2.weight.data.zero_()  # the answer is its bias, whatever the blocks do
    with pytest.raises(BadValue, match=r"fisher-scales: the squared gradients at layer '.*' are 0"):
        FEW.run(job)
