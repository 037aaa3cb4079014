"""The integer program of group sizes: what is measured, the optimum against all genomes, limits and resuming."""

from itertools import product

import jobs
import pytest
import studies
import torch

from dither.calibrate import RowSample
from dither.errors import BadRecipe, BadValue
from dither.numerics import dynamic_grid, fake_quantize
from dither.spec import Act, Bits, Int, Recipe
from dither.stages import Assign, GroupProgram, Rotate, Smooth, describe, stages_of
from dither.stages.adding_up import least_sum
from dither.stages.granularity import Limits, problem_of
from dither.stages.nesting import rounded

GROUPED = Assign(weight=Int(3, False, 8), act=Act(Int(4, group=8)), adaln=Int(3, False, 8))
ATTENTION = Assign(weight=Int(3, False, 8), act=Act(Int(4, group=8)), exclude=r"norm1|ff")
SIZES = (4, 8, 16)
OUT = "transformer_blocks.0.attn1.to_out.0"


def ran(*stages, store=None):
    job, found = studies.job(jobs.pipeline(), store=store)
    with torch.no_grad():
        for stage in stages:
            stage.run(job)
    return job, found


def problem(stage: GroupProgram, assign: Assign = ATTENTION):
    job, _ = ran(assign)
    with torch.no_grad():
        return problem_of(job, stage.tag, stage.sizes, Limits(stage.bits, stage.bitops))


def losses(store: studies.Kept, asked, suffix: str) -> list[list[float]]:
    """What was measured, by unit and size."""
    if suffix == "outputs":
        return [[float(store[f"sensitivity.{u.name}.outputs"][f"g{s}"]) for s in u.sizes] for u in asked.units]
    return [[float(store[f"sensitivity.{u.name}.0.g{s}"]["mse"]) for s in u.sizes] for u in asked.units]


@pytest.mark.parametrize("pictures", [True, False])
@pytest.mark.parametrize(("bits", "bitops"), [(None, None), (8.0, None), (20.0, 200.0), (7.5, 1e4)])
def test_no_genome_within_the_limits_loses_less(pictures, bits, bitops):
    store = studies.Kept()
    stage = GroupProgram(sizes=SIZES, bits=bits, bitops=bitops, pictures=pictures, samples=2, steps=2)
    job, found = ran(ATTENTION, stage, store=store)
    asked = problem(stage)
    table = losses(store, asked, "pictures" if pictures else "outputs")
    allowed = [g for g in product(range(3), repeat=len(asked.units)) if asked.allows(g)]
    assert 1 <= len(allowed) < 3 ** len(asked.units)

    def loss(genome):
        return sum(row[i] for row, i in zip(table, genome, strict=True))

    said = job.notes["group-program"]
    assert said["loss"] == pytest.approx(min(map(loss, allowed)), rel=1e-5)
    assert said["uniform_loss"] == pytest.approx(loss(asked.uniform), rel=1e-5)
    assert said["gap"] == 0
    chosen = next(g for g in allowed if asked.sizes(g) == said["groups"])
    assert loss(chosen) == pytest.approx(said["loss"], rel=1e-5)
    assert all(said["costs"][m] <= said["limits"][m] for m in ("bits", "bitops"))
    for name, size in said["groups"].items():
        assert (job.specs[name].weight.group, job.specs[name].act.grid.group) == (size, size)
    assert len(found) == pictures


def test_every_size_of_every_unit_is_drawn_alone_and_full_precision_once():
    job, (study,) = ran(GROUPED, GroupProgram(sizes=SIZES))
    assert (study.begun, study.drawn) == (1, 10 * 3)
    assert study.roles == ()
    said = job.notes["group-program"]
    assert said["model_samples"] == (1 + 30) * 8 * 5 * 2
    assert said["judge"] == "mean squared error of the final states"
    job, _ = ran(ATTENTION, GroupProgram(sizes=(8, 16), samples=3, steps=2, guidance=1.0))
    assert job.notes["group-program"]["model_samples"] == (1 + 4 * 2) * 3 * 2


@pytest.mark.parametrize("before", [(), (Smooth(online=True), Rotate())], ids=["plain", "balanced"])
def test_outputs_are_judged_as_the_formula_says(before):
    store = studies.Kept()
    job, found = ran(*before, ATTENTION, GroupProgram(sizes=SIZES, pictures=False, rows=64), store=store)
    assert found == []
    other, _ = ran(*before, ATTENTION)
    probe = RowSample(64, seed=0)
    with torch.no_grad():
        other.observe("", {OUT: (probe,)})
        layer, w = other.model.get_submodule(OUT), other.dense(OUT)
        x = layer.transform(probe.value) if before else probe.value
        got = fake_quantize(x, Int(4, group=8), *dynamic_grid(x, Int(4, group=8))) @ rounded(w, Int(3, False, 8)).T
        want = float((got - x @ w.T).square().sum() / (x @ w.T).square().sum())
    unit = next(u.name for u in problem(GroupProgram(sizes=SIZES)).units if u.layers == (OUT,))
    assert float(store[f"sensitivity.{unit}.outputs"]["g8"]) == pytest.approx(want, rel=1e-4)
    said = job.notes["group-program"]
    assert said["model_samples"] == sum(len(job.rows(call)) for call in job.calls)
    assert said["judge"] == "relative squared error of each layer's output"


def test_a_unit_loses_what_its_layers_lose_together():
    store, apart = studies.Kept(), studies.Kept()
    ran(ATTENTION, GroupProgram(sizes=SIZES, pictures=False), store=store)
    for x in "qkv":
        only = Assign(weight=Int(3, False, 8), act=Act(Int(4, group=8)), exclude=rf"norm1|ff|blocks.1|out|to_[^{x}]")
        ran(only, GroupProgram(sizes=SIZES, pictures=False), store=apart)
        part = apart.pop("sensitivity.transformer_blocks.0.norm1.outputs")
        apart[x] = float(part["g4"])
    together = float(store["sensitivity.transformer_blocks.0.norm1.outputs"]["g4"])
    assert together == pytest.approx(sum(apart.values()), rel=1e-5)


@pytest.mark.parametrize("pictures", [True, False])
def test_an_interrupted_search_goes_on_and_measures_nothing_twice(pictures):
    stage = GroupProgram(sizes=SIZES, pictures=pictures, samples=2, steps=2)
    whole, _ = ran(ATTENTION, stage)
    store = studies.Kept(2)
    with pytest.raises(KeyboardInterrupt):
        ran(ATTENTION, stage, store=store)
    store.most = 10**9
    kept = {name: dict(values) for name, values in store.items()}
    resumed, studied = ran(ATTENTION, stage, store=store)
    assert resumed.notes == whole.notes
    assert resumed.specs == whole.specs
    assert {name: store[name] for name in kept} == kept
    if pictures:
        assert studied[0].drawn == 4 * 3 - 2
    full, studied = ran(ATTENTION, stage, store=store)
    assert full.notes == whole.notes
    assert [s.drawn for s in studied] == [0] * pictures


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (GroupProgram(sizes=()), r"group-program.sizes \[\]"),
        (GroupProgram(samples=0), "group-program.samples 0"),
        (GroupProgram(steps=0), "group-program.steps 0"),
        (GroupProgram(rows=0, pictures=False), "group-program.rows 0"),
        (GroupProgram(seconds=0.0), "group-program.seconds 0: must be positive"),
        (GroupProgram(seconds=float("nan")), "group-program.seconds nan: must be positive"),
        (GroupProgram(sizes=SIZES, bits=5.0), r"group-program.bits 5: the coarsest sizes take 5\.5 bits per weight"),
    ],
)
def test_bad_fields_are_named(stage, words):
    with pytest.raises(BadRecipe, match=words):
        ran(ATTENTION, stage)


def test_losses_that_are_no_numbers_are_named():
    asked = problem(GroupProgram(sizes=SIZES))
    table = [[1.0, 1.0, 1.0] for _ in asked.units]
    table[1][2] = float("nan")
    with pytest.raises(BadValue, match=rf"mine: the loss of unit '{asked.units[1].name}' at group size 4 is nan"):
        least_sum("mine", asked, table, 10)


def test_one_recipe_searches_once():
    stages = (GROUPED, GroupProgram(), GroupProgram(pictures=False))
    with pytest.raises(BadRecipe, match="'group-program' and 'group-program' both search group sizes: leave one out"):
        stages_of(Recipe("test", "", Bits(4, 8), describe(stages)))
