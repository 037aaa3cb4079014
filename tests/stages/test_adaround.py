"""AdaRound as a stage: errors it lowers, what it leaves, tables of steps, rounds, interruptions, and what it refuses."""

import dataclasses

import jobs
import pytest
import studies
import torch

import dither
from dither.errors import BadModel, BadRecipe, BadValue
from dither.models.base import linear_at
from dither.numerics import dynamic_grid, grid, unpack_int
from dither.spec import Act, Bits, Codebook, Int, Recipe, TwoRegion
from dither.stages import (
    AdaRound,
    Assign,
    Clip,
    Gptq,
    Ranges,
    Rotate,
    Rtn,
    Smooth,
    SplitLowRank,
    Widen,
    adaround,
    describe,
)
from dither.stages.reconstruct import Unit

W3 = Assign(weight=Int(3, False), act=Act(Int(8, False)), adaln=Int(4, False))
GROUPS = Assign(weight=Int(3, True, 8), act=Act(Int(8, False, 8)), adaln=Int(4, False, 8))
STATIC = Assign(
    weight=Int(3, False), act=Act(Int(6, False), static=True), adaln=Int(4, False), time_groups=2, branches=2
)
SHORT = AdaRound(iterations=60, batch=16, lr=0.2, regularizer=3.0)
QUICK = dataclasses.replace(SHORT, iterations=8)
"""Enough to move something."""
FC2 = "transformer_blocks.1.ff.net.2"


def ran(*stages, store=None, progress=None, seed=0):
    job = jobs.job(jobs.pipeline().transformer, seed=seed)
    job.store = store
    job.progress = progress or job.progress
    with torch.no_grad():
        for stage in stages:
            stage.run(job)
    return job


@torch.no_grad()
def answers(job) -> torch.Tensor:
    """With the clock told, as the finished model's hook does."""
    out = []
    for call in jobs.calls():
        job.clock.tell(job.rows(call))
        out.append(job.model(*call.args, **call.kwargs)[0])
    return torch.cat(out)


def error(job) -> float:
    """Mean squared error of the model's answers."""
    return float((answers(job) - jobs.outputs(jobs.pipeline().transformer)).square().mean())


@pytest.mark.parametrize("assign", [W3, GROUPS], ids=["per channel", "groups"])
@pytest.mark.parametrize(
    "stage",
    [SHORT, dataclasses.replace(SHORT, blocks=False), dataclasses.replace(SHORT, power=2.4)],
    ids=["blocks", "linears", "another power"],
)
def test_the_model_answers_better_than_with_plain_rounding(assign, stage):
    assert error(ran(assign, stage)) < 0.6 * error(ran(assign, Rtn()))


def test_with_inputs_rounded_by_tables_too():
    plain = error(ran(STATIC, Rtn(), Ranges()))
    assert error(ran(STATIC, SHORT, Ranges())) < 0.5 * plain
    assert error(ran(STATIC, dataclasses.replace(SHORT, act_after=20), Ranges())) < 0.5 * plain


@pytest.mark.parametrize("before", [(), (Clip(outputs=False, steps=4),)], ids=["min-max", "clip"])
@pytest.mark.parametrize("assign", [W3, GROUPS], ids=["per channel", "groups"])
def test_every_weight_is_one_of_the_two_codes_beside_it_on_the_grid_that_was_found(assign, before):
    job, plain = ran(assign, *before, SHORT), jobs.pipeline().transformer
    moved = 0
    for name, spec in job.finish().layers.items():
        layer, w = linear_at(job.model, name), linear_at(plain, name).weight.data
        scale, zero = job.grids[name] if before else dynamic_grid(w, spec.weight)
        stored = layer.stored()
        assert layer.spec == spec
        assert torch.equal(stored["scale"], scale)
        assert zero is None or torch.equal(stored["zero"], zero)
        gap = (layer.dequantized() - w).abs() / scale.repeat_interleave(w.shape[1] // scale.shape[1], 1)
        if not before:  # a narrower range clips some by more
            assert gap.max() < 1 + 1e-4
        moved += int((gap > 0.5 + 1e-4).sum())
    assert moved > 100


def test_what_leaves_is_what_was_trained_with_its_choices_made(monkeypatch):
    """Hardened == exported: the codes, and what the block computes with them."""
    trained = {}
    plain = Unit.reconstruct

    def watch(unit, *rest):
        result = plain(unit, *rest)
        batch = next(unit.samples.whole())
        unit.tell(batch.rows)
        trained[unit.name] = (
            [s.rounding.codes() for s in unit.standins],
            batch,
            unit.module(*batch.call.args, **batch.call.kwargs),
        )
        return result

    monkeypatch.setattr(Unit, "reconstruct", watch)
    job = ran(STATIC, SHORT)
    assert list(trained) == ["transformer_blocks.0", "transformer_blocks.1"]
    for name, (codes, batch, output) in trained.items():
        layers = [n for n in job.specs if n.startswith(name)]
        for layer, want in zip(layers, codes, strict=True):
            module = linear_at(job.model, layer)
            assert torch.equal(unpack_int(module.stored(), job.specs[layer].weight, module.in_features), want)
        job.clock.tell(batch.rows)
        with torch.no_grad():
            got = job.model.get_submodule(name)(*batch.call.args, **batch.call.kwargs)
        torch.testing.assert_close(got, output, rtol=1e-4, atol=1e-5)


def test_later_blocks_are_trained_behind_the_rounded_inputs_of_earlier_ones(monkeypatch):
    """With 2-bit inputs, what the second block receives is what the finished model gives it."""
    coarse = dataclasses.replace(STATIC, act=Act(Int(2, False), static=True))
    received, plain = {}, Unit.reconstruct

    def watch(unit, *rest):
        received[unit.name] = [c.args[0].clone() for c in unit.samples.calls]
        return plain(unit, *rest)

    monkeypatch.setattr(Unit, "reconstruct", watch)
    job = ran(coarse, SHORT)
    seen = []
    job.model.transformer_blocks[1].register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    answers(job)
    for x, want in zip(received["transformer_blocks.1"], seen, strict=True):
        torch.testing.assert_close(x, want, rtol=1e-4, atol=1e-5)


def test_tables_are_learned_kept_and_taken_by_ranges():
    job = ran(STATIC, SHORT)
    found = {name: dict(table) for name, table in job.tables.items()}
    first = ran(STATIC, dataclasses.replace(SHORT, act_lr=1e-9))  # as they began
    assert set(found) == {n for n, s in job.specs.items() if s.act is not None}
    assert len(found) == 12
    with torch.no_grad():
        Ranges().run(job)
    moved = 0
    for name, table in found.items():
        layer = linear_at(job.model, name)
        assert layer.spec == job.specs[name]
        assert {k: tuple(t.shape) for k, t in table.items()} == {"act_scale": (4, 1), "act_zero": (4, 1)}
        assert torch.equal(layer.get_buffer("act_scale"), table["act_scale"])
        assert torch.equal(layer.get_buffer("act_zero"), table["act_zero"])
        if name.startswith("transformer_blocks.0."):  # later blocks see other inputs
            assert torch.equal(table["act_zero"], first.tables[name]["act_zero"])
            moved += not torch.allclose(table["act_scale"], first.tables[name]["act_scale"], rtol=1e-3)
    assert moved
    job.finish()


def test_tables_begin_at_the_min_max_of_each_row_behind_online_transforms():
    job = jobs.job(jobs.pipeline().transformer)
    name = "transformer_blocks.0.ff.net.0.proj"
    with torch.no_grad():
        for stage in (Rotate(), STATIC):
            stage.run(job)
        layer, seen = linear_at(job.model, name), []
        layer.register_forward_pre_hook(lambda m, a: seen.append((m.transform(a[0]), job.clock.row)))
        answers(job)
        dataclasses.replace(SHORT, iterations=1, act_lr=1e-9).run(job)
    x, rows = torch.cat([x for x, _ in seen[:4]]), torch.cat([r for _, r in seen[:4]])
    for r in range(4):
        scale, zero = grid(x[rows == r].amin(), x[rows == r].amax(), Int(6, False))
        torch.testing.assert_close(job.tables[name]["act_scale"][r, 0], scale)
        assert job.tables[name]["act_zero"][r, 0] == zero


def test_without_learning_steps_ranges_decides():
    job = ran(STATIC, dataclasses.replace(QUICK, act=False))
    assert not job.tables
    assert linear_at(job.model, FC2).spec.act is None
    with torch.no_grad():
        Ranges().run(job)
    job.finish()


def test_modulation_and_layers_outside_of_blocks_are_learned_too():
    assign = Assign(weight=None, adaln=Int(3, False))
    job = jobs.job(jobs.pipeline().transformer)
    with torch.no_grad():
        assign.run(job)
        job.promise(
            "proj_out_2", dataclasses.replace(job.specs["transformer_blocks.0.norm1.linear"], weight=Int(2, False))
        )
        SHORT.run(job)
    assert set(job.done) == set(job.specs)
    assert {n for n in job.notes if "adaround" in job.notes[n]} == {
        "transformer_blocks.0", "transformer_blocks.1", "proj_out_2"
    }  # fmt: skip
    for facts in job.notes.values():
        assert 0 < facts["adaround"]["after"] < 0.95 * facts["adaround"]["before"]
        assert 0.02 < facts["adaround"]["moved"] < 0.7


def test_only_integers_are_taken_and_rtn_does_the_rest():
    job = ran(Assign(weight=Codebook(2, 16), adaln=Int(4)), QUICK)
    assert job.done == {n for n, s in job.specs.items() if isinstance(s.weight, Int)}
    with torch.no_grad():
        Rtn().run(job)
    job.finish()


@pytest.mark.parametrize("before", [(Smooth(online=True), Rotate()), (SplitLowRank(rank=2),)], ids=["online", "branch"])
def test_behind_transforms_and_beside_branches(before):
    split = isinstance(before[0], SplitLowRank)
    stages = (GROUPS, *before) if split else (*before, GROUPS)
    assert error(ran(*stages, SHORT)) < 0.7 * error(ran(*stages, Rtn()))


def test_the_model_is_left_as_a_model_to_run():
    job = jobs.job(jobs.pipeline().transformer)
    flags = {n: p.requires_grad for n, p in job.model.named_parameters()}
    with torch.no_grad():
        for stage in (W3, QUICK):
            stage.run(job)
        assert not torch.is_grad_enabled()
    assert not any(m.training for m in job.model.modules())
    assert all(p.grad is None for p in job.model.parameters())
    assert all(p.requires_grad == flags[n] for n, p in job.model.named_parameters())
    assert not any(isinstance(m, adaround.StandIn) for m in job.model.modules())


def test_a_model_in_training_mode_is_refused():
    job = jobs.job(jobs.pipeline().transformer)
    job.model.transformer_blocks[1].train()
    W3.run(job)
    with torch.no_grad(), pytest.raises(BadModel, match=r"'transformer_blocks\.1' is in training mode"):
        SHORT.run(job)


def test_one_seed_gives_one_model_and_another_seed_another():
    first, again, other = ran(STATIC, QUICK, seed=3), ran(STATIC, QUICK, seed=3), ran(STATIC, QUICK, seed=4)
    assert jobs.same_tensors(first.model, again.model)
    assert first.notes == again.notes
    assert not jobs.same_tensors(first.model, other.model)


def test_a_loss_that_is_no_number_names_the_block(monkeypatch):
    job = jobs.job(jobs.pipeline().transformer)
    W3.run(job)
    job.model.transformer_blocks[1].ff.net[2].bias.data[0] = torch.nan
    with torch.no_grad(), pytest.raises(BadValue, match=r"'transformer_blocks\.1': the loss is nan"):
        SHORT.run(job)


# --- interruptions


def interrupt(after: int):
    def progress(what: str, done: int, total: int) -> None:
        if what == adaround.WHAT and done == after:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(
    "stage",
    [QUICK, dataclasses.replace(QUICK, act_after=4), dataclasses.replace(QUICK, blocks=False)],
    ids=["joint", "two passes", "linears"],
)
def test_an_interrupted_run_goes_on_at_the_next_part(stage, monkeypatch):
    whole = ran(STATIC, stage, Ranges())
    store = studies.Kept()
    with pytest.raises(KeyboardInterrupt):
        ran(STATIC, stage, Ranges(), store=store, progress=interrupt(1))
    trained, plain = [], Unit.reconstruct
    monkeypatch.setattr(Unit, "reconstruct", lambda unit, *rest: (trained.append(unit.name), plain(unit, *rest))[1])
    again = ran(STATIC, stage, Ranges(), store=store)
    assert len(trained) == (1 if stage.blocks else 13)
    assert trained[-1].startswith("transformer_blocks.1")
    assert jobs.same_tensors(again.model, whole.model)
    assert again.notes == whole.notes


@pytest.mark.parametrize("after", [0, 1, 4, 12])
def test_an_interrupted_run_goes_on_in_the_middle_of_a_part(after):
    whole = ran(STATIC, QUICK, Ranges())
    store = studies.Kept(after)
    with pytest.raises(KeyboardInterrupt):
        ran(STATIC, QUICK, Ranges(), store=store)
    store.most = 10**9
    again = ran(STATIC, QUICK, Ranges(), store=store)
    assert jobs.same_tensors(again.model, whole.model)
    assert again.notes == whole.notes


def test_a_run_that_has_all_layers_walks_no_block(monkeypatch):
    store = studies.Kept()
    whole = ran(STATIC, QUICK, store=store)
    monkeypatch.setattr("dither.stages.parts.lockstep", lambda *a: pytest.fail("a block was walked"))
    again = ran(STATIC, QUICK, store=store)
    assert jobs.same_tensors(again.model, whole.model)
    assert again.notes == whole.notes
    assert {n: {k: t.tolist() for k, t in table.items()} for n, table in again.tables.items()} == {
        n: {k: t.tolist() for k, t in table.items()} for n, table in whole.tables.items()
    }


# --- what is refused


@pytest.mark.parametrize(
    ("field", "value"),
    [("iterations", 0), ("batch", 0), ("lr", 0.0), ("regularizer", -1.0), ("warm_up", 1.5), ("begin", 0.5), ("end", 0.0),
     ("power", 0.5), ("act_lr", 0.0), ("act_after", -1), ("act_power", 0.5), ("samples", 0), ("rounds", 0), ("again", 0),
     ("lr", float("nan"))],
)  # fmt: skip
def test_fields_that_make_no_sense_are_named(field, value):
    with pytest.raises(BadRecipe, match=rf"adaround\.{field}"):
        ran(W3, dataclasses.replace(QUICK, **{field: value}))


def test_a_second_pass_without_anything_to_learn_is_refused():
    with pytest.raises(BadRecipe, match=r"adaround\.act_after 5: adaround\.act false learns no steps"):
        ran(STATIC, dataclasses.replace(QUICK, act=False, act_after=5))


def test_behind_a_stage_that_has_rounded_it_is_refused():
    with pytest.raises(
        BadRecipe, match=r"adaround: an earlier stage has finished layer '.*', .*put 'adaround' before it"
    ):
        ran(W3, Gptq(), QUICK)


def test_widths_that_change_over_time_are_refused():
    widen = Widen(layers="ff", ranges=2, at=(0,), weight=8)
    with pytest.raises(BadRecipe, match=r"adaround: layer '.*ff.*' changes its width over time"):
        ran(Assign(weight=Int(4)), widen, QUICK)


def test_grids_of_other_kinds_are_refused():
    act = Act(TwoRegion(8, signed=True), static=True)
    with pytest.raises(BadRecipe, match=r"adaround: the input of layer '.*' is two-region8"):
        ran(Assign(weight=Int(4), act=act), QUICK)


# --- rounds

TWICE = dataclasses.replace(QUICK, rounds=2, again=5)


def drawing(store=None, assign=STATIC, progress=None, stage=TWICE):
    """A job whose calls are drawn by the model as it then is; and how often, with what it drew."""
    pipe, drawn = jobs.pipeline(), []
    job = jobs.job(pipe.transformer)

    def record():
        drawn.append(dither.calibrate.record(pipe.transformer, lambda: jobs.sample(pipe)))
        return drawn[-1]

    job.record, job.store, job.progress = record, store, progress or job.progress
    with torch.no_grad():
        for each in (assign, stage, Ranges()):
            each.run(job)
    return job, drawn


def test_a_second_round_learns_from_what_the_quantized_model_draws(monkeypatch):
    units, plain = [], Unit.reconstruct

    def watch(unit, schedules, generator):
        kept = [s.rounding.first for s in unit.standins], [s.rounding.nearest for s in unit.standins]
        inputs, targets = [c.args[0].clone() for c in unit.samples.calls], list(unit.samples.targets)
        result = plain(unit, schedules, generator)
        after = [s.rounding.codes() for s in unit.standins]
        units.append((unit.name, schedules[0].iterations, inputs, targets, *kept, after))
        return result

    monkeypatch.setattr(Unit, "reconstruct", watch)
    job, drawn = drawing(stage=dataclasses.replace(TWICE, again=40))
    assert [(u[0], u[1]) for u in units] == [(f"transformer_blocks.{i}", n) for n in (8, 40) for i in (0, 1)]
    assert len(drawn) == 2
    assert torch.equal(drawn[0][0].args[0], drawn[1][0].args[0])  # the same noise
    assert not torch.equal(drawn[0][-1].args[0], drawn[1][-1].args[0])  # but another way
    exact, seen = jobs.pipeline().transformer, []
    exact.transformer_blocks[1].register_forward_hook(lambda m, a, y: seen.append(y))
    with torch.no_grad():
        for call in drawn[1]:
            exact(*call.args, **call.kwargs)
    assert all(torch.equal(a, b) for a, b in zip(units[3][3], seen, strict=True))  # full precision on the new calls
    for before, after in ((units[0], units[2]), (units[1], units[3])):
        assert all(torch.equal(a, b) for a, b in zip(before[6], after[4], strict=True))  # begins where it stood
        assert all(torch.equal(a, b) for a, b in zip(before[5], after[5], strict=True))  # on the same grid
    assert not all(torch.equal(a, b) for a, b in zip(units[2][4], units[2][6], strict=True))  # and goes on
    job.finish()
    assert all(job.notes[u[0]]["adaround"]["after"] <= job.notes[u[0]]["adaround"]["before"] for u in units[2:])


def test_a_second_round_resumes_anywhere_to_the_same_bits():
    whole, _ = drawing()
    for after in (1, 2, 3):
        store = studies.Kept()
        with pytest.raises(KeyboardInterrupt):
            drawing(store, progress=interrupt(after))
        again, _ = drawing(store)
        assert jobs.same_tensors(again.model, whole.model)
        assert again.notes == whole.notes


def test_calls_that_are_given_cannot_be_drawn_again():
    with pytest.raises(BadRecipe, match=r"adaround\.rounds 2: the calibration calls are given"):
        ran(W3, TWICE)


def test_dynamic_inputs_and_linears_alone_have_rounds_too():
    job, drawn = drawing(assign=W3, stage=dataclasses.replace(TWICE, blocks=False, iterations=3, again=2))
    assert len(drawn) == 2
    job.finish()


def test_through_the_api_it_is_packed_and_reloads(tmp_path):
    pipe = jobs.pipeline()
    recipe = Recipe("mine", "", Bits(3, 6), describe((STATIC, TWICE, Rtn(), Ranges())))
    dither.quantize(pipe, recipe, calibration=dither.Calibration(samples=10, steps=3))
    want = jobs.outputs(pipe.transformer)
    dither.save(pipe, tmp_path / "out")
    assert torch.equal(jobs.outputs(dither.load(tmp_path / "out").transformer), want)


def test_errors_count_by_what_they_do_to_the_final_picture(monkeypatch):
    """Samples carry their weights into every part, and they change what is learned."""
    seen = []

    def weigh(job, calls):
        return [(job.rows(call) == 3).float() * 2 for call in calls]

    def kept(unit, schedules, generator):
        seen.append(unit)
        return original(unit, schedules, generator)

    original = Unit.reconstruct
    monkeypatch.setattr(adaround, "row_weights", weigh)
    monkeypatch.setattr(Unit, "reconstruct", kept)
    plain = ran(STATIC, QUICK, Rtn(), Ranges())
    assert all(bool((w == 1).all()) for unit in seen for w in unit.samples.weights)
    seen.clear()
    weighed = ran(STATIC, dataclasses.replace(QUICK, trajectory=True), Rtn(), Ranges())
    assert [unit.name for unit in seen] == ["transformer_blocks.0", "transformer_blocks.1"]
    for unit in seen:
        for rows, weights in zip(unit.samples.rows, unit.samples.weights, strict=True):
            assert torch.equal(weights, (rows == 3).float() * 2)
    assert not torch.equal(answers(plain), answers(weighed))


def test_what_nothing_tells_the_trajectory_of_is_refused():
    with pytest.raises(BadRecipe, match="a network alone has none"):
        ran(W3, dataclasses.replace(QUICK, trajectory=True))
