"""Evolution: it finds what is best, within the limits, judges nothing twice, ranks all, and goes on where it stopped."""

import random

import jobs
import numpy as np
import pytest
import studies
import torch

import dither
from dither.checkpoint import header_of
from dither.errors import BadRecipe
from dither.spec import Bits, Int, Recipe
from dither.stages import Assign, Evolve, Rtn, describe

BRIEF = Evolve(population=5, keep=2, rounds=2, sizes=studies.SIZES)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_finds_the_optimum_of_a_small_problem(seed):
    job, (study,), _ = studies.searched(Evolve(population=12, keep=6, rounds=8, sizes=studies.SIZES), seed)
    every = studies.allowed().values()
    best = min(every, key=lambda sizes: studies.total(study, sizes))
    assert len(study.seen) == 108 < len(every) / 10
    assert studies.groups(job) == best
    assert job.notes["evolve"]["loss"] == pytest.approx(studies.total(study, best))
    assert job.notes["evolve"]["uniform_loss"] > 1.3 * job.notes["evolve"]["loss"]


def test_all_that_is_judged_keeps_the_limits_and_nothing_is_judged_twice():
    job, (study,), _ = studies.searched(BRIEF)
    assert set(study.seen) <= set(studies.allowed().values())
    assert len(set(study.seen)) == len(study.seen) == job.notes["evolve"]["evaluations"] == 15
    assert study.seen[0] == (8,) * len(job.specs)  # uniform first


@pytest.mark.parametrize("measure", ["bits", "bitops"])
def test_limits_that_are_asked_for_are_kept(measure):
    free = studies.searched(Evolve(population=6, keep=2, rounds=1, sizes=studies.SIZES))[0].notes["evolve"]
    limit = 0.95 * free["limits"][measure]
    asked = Evolve(population=6, keep=2, rounds=1, sizes=studies.SIZES, **{measure: limit})
    note = studies.searched(asked)[0].notes["evolve"]
    assert note["costs"][measure] <= limit
    assert note["uniform_loss"] is None  # it costs too much


def test_the_last_generation_is_ranked():
    job, (study,), _ = studies.searched(Evolve(population=8, keep=2, rounds=1, sizes=studies.SIZES), seed=3)
    losses = [studies.total(study, sizes) for sizes in study.seen]
    assert len(losses) == 16
    best = min(range(16), key=losses.__getitem__)
    assert best >= 8
    assert studies.groups(job) == study.seen[best]


def test_what_was_found_is_noted():
    job, (study,), (settings,) = studies.searched(BRIEF)
    note = job.notes["evolve"]
    losses = [studies.total(study, sizes) for sizes in study.seen]
    assert note["history"] == pytest.approx([min(losses[:n]) for n in (5, 10, 15)])
    assert note["loss"] == note["history"][-1]
    assert note["uniform_loss"] == pytest.approx(losses[0])
    assert note["judge"] == "mean squared error of the final states"
    assert note["model_samples"] == 16 * 5 * 2 * 16
    assert (settings.samples, settings.steps, settings.guidance, dict(settings.judges)) == (16, 5, 1.5, {})
    assert tuple(note["groups"][name] for name in job.specs) == studies.groups(job)


@pytest.mark.parametrize("most", [0, 1, 7, 14])
def test_an_interrupted_search_goes_on_and_finds_the_same(most):
    whole, _, _ = studies.searched(BRIEF)
    store = studies.Kept(most)
    with pytest.raises(KeyboardInterrupt):
        studies.searched(BRIEF, store=store)
    assert len(store) == most
    store.most = 10**9
    random.seed(99)  # another process has other global numbers
    again, (study,), _ = studies.searched(BRIEF, store=store)
    assert len(study.seen) == 15 - most
    assert again.notes == whole.notes
    assert again.specs == whole.specs
    third, (study,), _ = studies.searched(BRIEF, store=store)
    assert (study.seen, study.begun, third.notes) == ([], 0, whole.notes)


def test_global_random_numbers_are_left_alone():
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    pipe = jobs.pipeline()  # the only one here that draws from torch's
    torch.set_rng_state(before[2])
    dither.quantize(pipe, recipe(BRIEF), calibration=dither.Calibration(samples=2, steps=2))
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_what_drawing_takes_from_them_changes_nothing(monkeypatch):
    want, _, _ = studies.searched(BRIEF)
    plain = studies.Additive.losses
    monkeypatch.setattr(studies.Additive, "losses", lambda self: (random.seed(0), plain(self))[1])
    assert studies.searched(BRIEF)[0].notes == want.notes


def test_other_seeds_are_other_searches():
    a, b = (studies.searched(BRIEF, seed)[1][0].seen for seed in (0, 1))
    assert a != b
    assert a[0] == b[0]
    assert a == studies.searched(BRIEF)[1][0].seen


def test_a_space_that_is_exhausted_ends_the_search():
    job, (study,), _ = studies.searched(Evolve(population=4, keep=4, rounds=3, sizes=(16,)))
    assert len(study.seen) == 1
    assert set(studies.groups(job)) == {16}
    assert len(job.notes["evolve"]["history"]) == 4


def test_progress_is_told(monkeypatch):
    told = []
    plain = jobs.job

    def watched(*args, **kwargs):
        job = plain(*args, **kwargs)
        job.progress = lambda *args: told.append(args)
        return job

    monkeypatch.setattr(jobs, "job", watched)
    studies.searched(BRIEF)
    assert told == [("searching group sizes", i, 15) for i in range(16)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"population": 1}, r"evolve\.population 1: must be at least 2"),
        ({"keep": 0}, r"evolve\.keep 0: must be 1 to 5"),
        ({"keep": 6}, r"evolve\.keep 6: must be 1 to 5"),
        ({"rounds": -1}, r"evolve\.rounds -1: must be at least 0"),
        ({"chance": -0.1}, r"evolve\.chance -0\.1: must be 0 to 1"),
        ({"chance": float("nan")}, r"evolve\.chance nan: must be 0 to 1"),
        ({"samples": 0}, r"evolve\.samples 0: must be at least 1"),
        ({"samples": 1, "judge": "zoo:fashion"}, r"evolve\.samples 1: a Frechet distance needs at least 2 pictures"),
        ({"steps": 0}, r"evolve\.steps 0: must be at least 1"),
        ({"sizes": ()}, r"evolve\.sizes \[\]: name at least one"),
        ({"sizes": (3,)}, r"evolve\.sizes \[3\]: none divides the 16 input channels of layer"),
        ({"bits": 0.5}, r"evolve\.bits 0\.5: the coarsest sizes take"),
    ],
)
def test_fields_that_make_no_sense(change, message):
    fields = {"population": 5, "keep": 2, "rounds": 1, "sizes": studies.SIZES}
    with pytest.raises(BadRecipe, match=message):
        studies.searched(Evolve(**fields | change))


def recipe(stage: Evolve, *before) -> Recipe:
    return Recipe("t", "", Bits(4, 8), describe((*(before or (studies.GROUPED,)), stage, Rtn())))


def test_layers_without_groups_are_nothing_to_search():
    with pytest.raises(BadRecipe, match="evolve: no layer has a group size to search for"):
        dither.quantize(
            jobs.pipeline(),
            recipe(BRIEF, Assign(weight=Int(4))),
            calibration=dither.Calibration(samples=2, steps=2),
        )


@pytest.mark.parametrize("judge", ["", "zoo:fashion"])
def test_a_pipeline_is_searched_by_real_pictures(judge):
    stage = Evolve(population=4, keep=2, rounds=1, sizes=studies.SIZES, samples=3, steps=2, judge=judge)
    pipe = dither.quantize(jobs.pipeline(), recipe(stage), calibration=dither.Calibration(samples=2, steps=2))
    header = header_of(pipe.transformer)
    note = header.recipe["notes"]["evolve"]
    assert 0 < note["loss"] <= note["uniform_loss"]
    assert note["evaluations"] == 8
    assert note["judge"].startswith("Frechet distance of zoo:fashion" if judge else "mean squared error")
    assert {n: s.weight.group for n, s in header.plan.layers.items()} == note["groups"]
    assert note["costs"]["bits"] <= note["limits"]["bits"]
